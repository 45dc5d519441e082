"""The data module: reads a data root, lets a builder choose, encodes, and hands out loaders.

Reading comes first and on its own (`read`), so that a mistake in the data is told before a model loads.
The dev loss is taken on what the builder makes of the dev split; dev accuracy on every labelled dev pair.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from nlicot import completion
from nlicot.builders import find_builder
from nlicot.builders.base import Builder, CountTokens, build_report
from nlicot.command_line import parse_label_map
from nlicot.completion import Form
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import JoinedTexts, TextFiles, check_disjoint, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.model.base_model import cache_folder
from nlicot.model.encoded_dataset import EncodingReport, encode_dataset
from nlicot.model.encoding import OverBudget
from nlicot.model.prompt_format import PromptFormat
from nlicot.prediction.decoding import PromptBatch, prompt_batches
from nlicot.prepare.formats import read_prepared
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import Example, TrainingExample
from nlicot.shipped import SAMPLE
from nlicot.training.batches import Window
from nlicot.training.sampler import WindowDataset, WindowSampler

if TYPE_CHECKING:
    from nlicot.training.module import ThoughtTuner

logger = logging.getLogger(__name__)


SINGLE_FILES = (
    "train_pairs",
    "train_thoughts",
    "train_reflections",
    "train_scores",
    "dev_pairs",
    "dev_thoughts",
    "dev_reflections",
    "dev_scores",
    "test_pairs",
)
"""The arguments that name one file in place of the data root's."""


class PairsData(LightningDataModule):
    """Pairs, thoughts and reflections of a data root, as the student learns from them.

    Args:
        root: a data root (see data/README.md); single paths below replace its files.
        train_pairs: CSV or JSON lines of the pairs to learn from.
        train_thoughts: their thoughts.
        train_reflections: the reflections on the wrong ones.
        train_scores: a judge's scores of both, and what was written anew.
        dev_pairs: pairs to measure on while learning.
        dev_thoughts: their thoughts, for the dev loss.
        dev_reflections: their reflections, for the dev loss.
        dev_scores: their scores, for the dev loss.
        test_pairs: pairs to predict.
        prepared: a file of training examples written by `prepare`, in place of builder and thoughts.
        builder: `correct_only`, `reflected`, `unmodified`, `label_only`, or a class path.
        definitions: what the labels mean on this data.
        prompts: templates in place of the project's own.
        label_map: what the file's own labels mean, such as `entailment=1,neutral=0`.
        allow_overlap: let a dev or test pair stand in train too.
        effective_batch: examples of one optimizer step, over all ranks and micro-batches.
        micro_batch_tokens: tokens at once through the model; a beginning that prompts share counts once.
        share_beginning: what prompts begin with alike goes through the model once a micro-batch. Gradients
            are the same, but LoRA's dropout drops the same units of it for all examples; false costs time.
        max_length: tokens of prompt and completion together.
        over_budget: a longer example loses its last sentences (`cut`) or is left out (`drop`).
        limit_train: take only the first so many training pairs.
        limit_dev: likewise of dev.
        seed: of the order of training examples and of samples of dev pairs.
    """

    def __init__(
        self,
        root: str = str(SAMPLE),
        train_pairs: str | None = None,
        train_thoughts: str | None = None,
        train_reflections: str | None = None,
        train_scores: str | None = None,
        dev_pairs: str | None = None,
        dev_thoughts: str | None = None,
        dev_reflections: str | None = None,
        dev_scores: str | None = None,
        test_pairs: str | None = None,
        prepared: str | None = None,
        builder: Builder | str = "reflected",
        definitions: LabelDefinitions | None = None,
        prompts: StudentPrompts | None = None,
        label_map: str | None = None,
        allow_overlap: bool = False,
        effective_batch: int = 64,
        micro_batch_tokens: int = 2048,
        share_beginning: bool = True,
        max_length: int = 768,
        over_budget: OverBudget = "cut",
        limit_train: int | None = None,
        limit_dev: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_root = DataRoot(Path(root).expanduser())
        given = (
            train_pairs,
            train_thoughts,
            train_reflections,
            train_scores,
            dev_pairs,
            dev_thoughts,
            dev_reflections,
            dev_scores,
            test_pairs,
        )
        self.paths = dict(zip(SINGLE_FILES, given, strict=True))
        self.prepared = Path(prepared) if prepared else None
        self.builder = find_builder(builder) if isinstance(builder, str) else builder
        prompts = prompts or StudentPrompts()
        self.prompts = StudentPrompts(
            thinking=prompts.thinking,
            label_only=prompts.label_only,
            label_first=prompts.label_first,
            definitions=definitions or prompts.definitions,
        )
        self.label_map = parse_label_map(label_map) if label_map else None
        self.allow_overlap = allow_overlap
        self.effective_batch = effective_batch
        self.micro_batch_tokens = micro_batch_tokens
        self.share_beginning = share_beginning
        self.max_length = max_length
        self.over_budget: OverBudget = over_budget
        self.limits = {"train": limit_train, "dev": limit_dev}
        self.seed = seed
        self.pairs: dict[str, list[Example]] = {}
        self.built: dict[str, list[TrainingExample]] = {}
        self.reports: dict[str, str] = {}
        self.decoded: set[str] = set()
        """Ids of pairs that need no prediction any more."""
        self._resume_at: tuple[int, int] | None = None
        self._encoded: dict[str, Any] = {}

    @property
    def on_sample(self) -> bool:
        """Whether all that is read belongs to the sample that ships with the project."""
        return self.data_root.is_sample and self.prepared is None and not any(self.paths.values())

    @property
    def _running(self) -> Trainer:
        assert self.trainer is not None, "loaders exist only under a trainer"
        return self.trainer

    @property
    def _tuner(self) -> ThoughtTuner:
        return cast("ThoughtTuner", self._running.lightning_module)

    @property
    def forms(self) -> set[Form]:
        """The forms of completion among the examples to train on."""
        found = (completion.parse(example.completion) for example in self.built["train"])
        return {parsed.form for parsed in found if parsed is not None}

    # ---------------------------------------------------------------- reading

    def path_of(self, split: str, kind: str) -> Path:
        """Where a split's `pairs`, `thoughts`, `reflections` or `scores` are read from."""
        single = self.paths.get(f"{split}_{kind}")
        return Path(single).expanduser() if single else getattr(self.data_root, kind)(split)

    def read_for_fit(self, count_tokens: CountTokens | None = None) -> None:
        """Read and build train and dev.

        Args:
            count_tokens: counts a thought's tokens of the student, for a builder that limits them.

        Raises:
            DataError: something in the files is not as it must be, or the builder leaves nothing.
        """
        for split in ("train", "dev"):
            self.read_pairs(split)
        self.check_apart_from_train("dev")
        for split in ("train", "dev"):
            self.built[split] = self._build(split, count_tokens)

    def read_pairs(self, split: str) -> list[Example]:
        """The pairs of a split, kept for later."""
        examples = read_examples(self.path_of(split, "pairs"), label_map=self.label_map)
        limit = self.limits.get(split)
        self.pairs[split] = list(examples) if limit is None else list(examples)[:limit]
        return self.pairs[split]

    def read_labelled(self, split: str) -> list[Example]:
        """The pairs of a split, every one with a label.

        Raises:
            DataError: they have none; `predict` is named as the way.
        """
        examples = self.read_pairs(split)
        if any(example.label is None for example in examples):
            raise DataError(
                "pairs without a label",
                "a label for each pair",
                path=self.path_of(split, "pairs"),
                remedy=f"to predict unlabelled pairs use `predict --split {split}`",
            )
        return examples

    def check_apart_from_train(self, split: str) -> None:
        """Refuse pairs to measure on that are in train too, where there is a train file to compare with."""
        path = self.path_of("train", "pairs")
        if split == "train" or not path.is_file():
            return
        train = self.pairs.get("train") or read_examples(path, label_map=self.label_map)
        sources = {"train": (path, train), split: (self.path_of(split, "pairs"), self.pairs[split])}
        check_disjoint(sources, allow=self.allow_overlap)

    def _build(self, split: str, count_tokens: CountTokens | None) -> list[TrainingExample]:
        if split == "train" and self.prepared is not None:
            built = read_prepared(self.prepared)
            report = build_report(len(built), built)
        else:
            texts = self._read_texts(split)
            built = self.builder.build(
                self.pairs[split],
                texts.thoughts,
                texts.reflections,
                texts.scores,
                prompts=self.prompts,
                count_tokens=count_tokens,
            )
            report = build_report(len(self.pairs[split]), built)
        self.reports[split] = str(report)
        logger.info("%s: %s: %s", split, type(self.builder).__name__, report)
        if not built:
            raise DataError(
                f"nothing that the builder {type(self.builder).__name__} can use",
                "labelled pairs, with thoughts unless the builder is label_only",
                path=self.path_of(split, "pairs"),
            )
        return built

    def _read_texts(self, split: str) -> JoinedTexts:
        """The texts of a split; where a builder needs no thoughts, those that are there."""
        pairs = self.pairs[split]
        if self.limits.get(split) is not None:  # thoughts of pairs beyond the limit belong to no pair here
            pairs = read_examples(self.path_of(split, "pairs"), label_map=self.label_map)
        if self.paths[f"{split}_pairs"] and not self.paths[f"{split}_thoughts"]:
            # The root's texts belong to the root's own pairs.
            if self.builder.thinks:
                raise DataError(
                    f"--data.{split}_pairs without --data.{split}_thoughts",
                    f"thoughts of these pairs, which the builder {type(self.builder).__name__} learns from",
                    path=self.path_of(split, "pairs"),
                )
            return read_joined(pairs, TextFiles())
        thoughts, reflections, scores = (
            self.path_of(split, kind) for kind in ("thoughts", "reflections", "scores")
        )
        needed = {Path(path).expanduser() for path in self.paths.values() if path}
        files = TextFiles.found(
            thoughts, reflections, scores, needed=needed | ({thoughts} if self.builder.thinks else set())
        )
        return read_joined(pairs, files)

    # --------------------------------------------------------------- encoding

    def setup(self, stage: str) -> None:
        """Encode what was read, with the tokenizer of the module's base; Lightning calls this."""
        if stage == "fit":
            self.encode(self._tuner.prompt_format)

    def encode(self, prompt_format: PromptFormat) -> None:
        """Encode what was read, once.

        Raises:
            ConfigError: the budget leaves no example of a split.
        """
        for split, built in self.built.items():
            if split in self._encoded:
                continue
            self._encoded[split], report = encode_dataset(
                prompt_format,
                built,
                max_length=self.max_length,
                over_budget=self.over_budget,
                cache=cache_folder(),
            )
            logger.info("%s: %s", split, _budget_line(report, self.max_length))
            if not report.num_examples:
                raise ConfigError(
                    f"--data.max_length: found {self.max_length}, expected enough for one example of {split}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: the epoch, and how many of its windows are done."""
        loops = self._running.fit_loop
        return {
            "epoch": self._running.current_epoch,
            "window": loops.epoch_loop.batch_progress.current.completed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._resume_at = (state_dict["epoch"], state_dict["window"])

    # ---------------------------------------------------------------- loaders

    def train_dataloader(self) -> DataLoader[Window]:
        """One window, that is one optimizer step, at a time."""
        sampler = self.sampler("train", shuffle=True)
        if self._resume_at is not None:
            sampler.resume_at(*self._resume_at)
        return self._window_loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """In `fit` windows of the dev examples; in `validate` the prompts of the split that was read."""
        if self._running.state.fn == "fit":
            return self._window_loader("dev", self.sampler("dev", shuffle=False))
        return self._prompt_loader()

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test pair's prompt."""
        return self._prompt_loader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The prompt of every pair to predict."""
        return self._prompt_loader()

    def sampler(self, split: str, *, shuffle: bool) -> WindowSampler:
        """Which encoded examples make which window."""
        return WindowSampler(
            len(self._encoded[split]), window_size=self.effective_batch, seed=self.seed, shuffle=shuffle
        )

    def windows(self, split: str, *, rank: int = 0, world_size: int = 1) -> WindowDataset:
        """The encoded examples of a split, a window at a time."""
        return WindowDataset(
            self._encoded[split],
            token_budget=self.micro_batch_tokens,
            rank=rank,
            world_size=world_size,
            share_prefix=self.share_beginning,
        )

    def _window_loader(self, split: str, sampler: WindowSampler) -> DataLoader[Any]:
        trainer = self._running
        windows = self.windows(split, rank=trainer.global_rank, world_size=trainer.world_size)
        # As `sampler`, not `batch_sampler`: Lightning tells only the former which epoch begins.
        return DataLoader(windows, batch_size=None, sampler=sampler, collate_fn=_as_it_is)

    def _prompt_loader(self) -> DataLoader[Any]:
        (examples,) = self.pairs.values()  # commands that decode read one split
        batches = self.prompt_batches([each for each in examples if each.id not in self.decoded])
        # Each rank takes whole batches in turn, so no pair is decoded twice to even out ranks; what one rank
        # takes goes to the decoder at once, which refills places.
        mine = batches[self._running.global_rank :: self._running.world_size]
        stream = PromptBatch(
            ids=[id_ for batch in mine for id_ in batch.ids],
            prompts=[prompt for batch in mine for prompt in batch.prompts],
        )
        return DataLoader([stream], batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def prompt_batches(self, examples: Sequence[Example]) -> list[PromptBatch]:
        """The prompts of pairs, encoded, sorted by length."""
        module = self._tuner
        prompts = [
            module.prompt_format.encode_prompt(
                self.prompts.render(example.premise, example.hypothesis, form=module.prompt_form)
            )
            for example in examples
        ]
        return prompt_batches([example.id for example in examples], prompts, module.decoding.batch_size)

    def dev_sample(self, num_pairs: int) -> list[Example]:
        """A fixed, seeded choice of labelled dev pairs, in their order; all where there are no more."""
        labelled = [example for example in self.pairs["dev"] if example.label is not None]
        if num_pairs >= len(labelled):
            return labelled
        chosen = sorted(random.Random(self.seed).sample(range(len(labelled)), num_pairs))
        return [labelled[index] for index in chosen]


def _budget_line(report: EncodingReport, max_length: int) -> str:
    return (
        f"{report.num_examples} examples, {report.num_tokens} tokens "
        f"({report.num_supervised} supervised, the longest example {report.longest}); over the budget of "
        f"{max_length}: {report.num_cut} cut at a sentence end, {report.num_dropped} left out"
    )


def _as_it_is(batch: Any) -> Any:
    return batch
