"""The data of a run: pairs of each split, and the training examples that a builder makes of them.

Everything is read before a model loads, so that errors in the data come first. The dev loss is taken on what
the builder makes of the dev split, dev accuracy on every labelled dev pair.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nlicot import completion, ranks
from nlicot.builders import builder_name, check_built, find_builder
from nlicot.builders.base import Builder, CountTokens, build_report
from nlicot.completion import Form
from nlicot.data.checksums import sha256_of
from nlicot.data.pairs import LABELLED_SPLITS, PairFormat, check_disjoint, read_examples
from nlicot.data.root import DataRoot
from nlicot.data.rows import RecordList, shown
from nlicot.data.soft_labels import (
    SoftLabelSummary,
    as_unlabelled,
    join_soft_labels,
    read_soft_labels,
    with_soft_labels,
)
from nlicot.data.thoughts import JoinedTexts, TextFiles, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.prepare.formats import read_prepared
from nlicot.prompts import LabelDefinitions, StudentPrompts, folded
from nlicot.records import Example, TrainingExample
from nlicot.settings import SINGLE_FILES, SOFT_FILES, RunSettings
from nlicot.text_tables import counted

logger = logging.getLogger(__name__)


class RunData:
    """Pairs and training examples of a data root, read as a command's settings say."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings.data
        self.root = DataRoot(settings.root.expanduser())
        self.pair_format: PairFormat = settings
        self.seed = settings.seed_everything
        self.prompts = settings.data.prompts or StudentPrompts()
        given, default = asdict(settings.definitions), asdict(LabelDefinitions())
        if texts := {name: text for name, text in given.items() if text != default[name]}:
            # Each default leaves that of `data.prompts`.
            definitions = replace(self.prompts.definitions, **texts)
            self.prompts = replace(self.prompts, definitions=folded(definitions))
        self.pairs: dict[str, RecordList[Example]] = {}
        self._num_in_file: dict[str, int] = {}
        self.built: dict[str, list[TrainingExample]] = {}
        self.reports: dict[str, str] = {}
        self.unlabelled: RecordList[Example] = RecordList()
        self.soft_labels: SoftLabelSummary | None = None
        self._single_files = {
            name: Path(path).expanduser() for name in SINGLE_FILES if (path := getattr(self.settings, name))
        }

    @cached_property
    def builder(self) -> Builder:
        """The builder of the training examples; predictions need none."""
        builder = self.settings.builder
        return find_builder(builder) if isinstance(builder, str) else builder

    @property
    def on_sample(self) -> bool:
        """True if everything that is read belongs to the sample that ships with nlicot."""
        settings = self.settings
        others = settings.prepared or settings.soft_labels or settings.unlabelled_pairs
        return self.root.is_sample and not others and not self._single_files

    def announce_sample(self) -> None:
        """Print a line, in the first process, if the user named no data of their own."""
        if self.on_sample and ranks.is_first():
            print(
                "SAMPLE DATA: this runs on the small sample that comes with nlicot. "
                "For your own pairs: "
                "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
            )

    @property
    def forms(self) -> frozenset[Form]:
        """Forms of completion in the training examples."""
        return _forms(self.built["train"])

    def path(self, split: str, kind: str) -> Path:
        """Return the file that a split's `pairs`, `thoughts`, `reflections` or `scores` are read from."""
        found: Path = self._single_files.get(f"{split}_{kind}") or getattr(self.root, kind)(split)
        return found

    def read_for_fit(self, count_tokens: CountTokens | None = None) -> None:
        """Read and build train and dev; `count_tokens` is for a builder that limits a thought's tokens."""
        self.read_pairs("train")
        self.read_labelled("dev")  # a soft label does not say what is right
        if self.settings.prepared is None:
            self._read_soft_labels()
        elif name := next((each for each in SOFT_FILES if getattr(self.settings, each)), None):
            raise ConfigError(f"--data.{name}: found it with --data.prepared, expected one of them")
        elif self.settings.soft_label_temperature != 1:
            raise ConfigError(
                "--data.soft_label_temperature: found it with --data.prepared, expected it in `prepare`"
            )
        self.check_apart_from_train("dev")
        for split in ("train", "dev"):
            self.built[split] = self._build(split, count_tokens)
        if self.settings.prepared is not None:
            self.soft_labels = self._soft_labels_of_prepared(Path(self.settings.prepared).expanduser())
            if others := _forms(self.built["dev"]) - self.forms:
                logger.warning(
                    "%s has no example of %s, which dev is built with: the dev loss measures what is not "
                    "learnt; give fit the --config that the file was prepared with",
                    *(self.settings.prepared, ", ".join(sorted(form.value for form in others))),
                )

    @property
    def dev_pairs_report(self) -> str:
        """The number of dev pairs, and a hash of their content."""
        digest = hashlib.sha256()
        for each in self.pairs["dev"]:
            digest.update(f"{each.id}\x1f{each.premise}\x1f{each.hypothesis}\x1f{each.label}\x1e".encode())
        return f"{len(self.pairs['dev'])} pairs, content {digest.hexdigest()[:12]}"

    def check_same_as(self, summary: Mapping[str, Any], *, label: str) -> None:
        """Refuse data of another content than that of the run with this `fit.json`; `label` names it."""
        if not summary.get("built"):
            logger.warning("%s: an earlier version started it, so its data cannot be compared", label)
            return
        stored = {**summary["built"], "dev_pairs": summary.get("dev_pairs")}
        for name, found in {**self.reports, "dev_pairs": self.dev_pairs_report}.items():
            expected = stored.get(name)
            if expected and _content_hash(expected) != _content_hash(found):
                raise DataError(
                    found,
                    f"{expected}, the content that the run was started with",
                    path=self.path(name.removesuffix("_pairs"), "pairs"),
                    remedy=f"{label} continues with the same data; for other data start a new run",
                )

    def read_pairs(self, split: str) -> list[Example]:
        """Read the pairs of a split, and keep them."""
        optional = split not in LABELLED_SPLITS
        examples = read_examples(self.path(split, "pairs"), self.pair_format, labels_optional=optional)
        limit = self._limit(split)
        self._num_in_file[split] = len(examples)
        pairs = RecordList(examples[:limit], examples.lines[:limit])
        if split != "train":  # of other splits, only true labels count
            pairs[:] = [
                each if each.p_entailment is None else replace(each, p_entailment=None) for each in pairs
            ]
        self.pairs[split] = pairs
        return pairs

    def read_labelled(self, split: str) -> list[Example]:
        """Read the pairs of a split, all of which must have a label."""
        examples = self.read_pairs(split)
        if any(example.label is None for example in examples):
            raise DataError(
                "pairs without a label",
                "a label for each pair",
                path=self.path(split, "pairs"),
                remedy=f"to predict unlabelled pairs use `predict --split {split}`",
            )
        return examples

    def check_apart_from_train(self, split: str, learners: Sequence[RunData] = ()) -> None:
        """Refuse to measure on pairs that are in train too, if there is a train file to compare with.

        Args:
            split: the pairs to measure on.
            learners: the data that other runs were fitted with, or this run under another root.
        """
        if split == "train":
            return
        compared: set[Path] = set()
        for each in (self, *learners):
            path = each.path("train", "pairs")
            if path in compared or not path.is_file():
                continue
            compared.add(path)
            each._check_apart_from_prepared(split, self.pairs[split], allow=self.settings.allow_overlap)
            train = each.pairs.get("train") or read_examples(path, each.pair_format, labels_optional=True)
            learnt = [*train, *each.unlabelled]
            sources = {"train": (path, learnt), split: (self.path(split, "pairs"), self.pairs[split])}
            check_disjoint(sources, allow=self.settings.allow_overlap)

    def _check_apart_from_prepared(self, split: str, pairs: Sequence[Example], *, allow: bool) -> None:
        """Refuse pairs whose prompts are among those that were prepared for training."""
        path = Path(self.settings.prepared or "").expanduser()
        if allow or not path.is_file():
            return
        built = read_prepared(path)
        prompts, forms = {example.prompt for example in built}, _forms(built)
        shared = [
            pair
            for pair in pairs
            if any(self.prompts.render(pair.premise, pair.hypothesis, form=form) in prompts for form in forms)
        ]
        if shared:
            raise DataError(
                f"the prompts of {counted(len(shared), 'pair')} of {split}, such as {shown(shared[0].id)}",
                "none of them",
                path=path,
                remedy="remove them from one of both, or allow it: --data.allow_overlap true",
            )

    def announce_limit(self, split: str) -> None:
        """Print a line, in the first process, if only the first pairs of a split are used."""
        used, num = len(self.pairs[split]), self._num_in_file[split]
        if used < num and ranks.is_first():
            print(f"{split}: the first {used} of {num} pairs (--data.limit_{split})")

    def announce_transductive(self, examples: Sequence[Example], *, learner: object) -> None:
        """Print a line if the learner's unlabelled training pairs contain some of these; or refuse it."""
        if not self.settings.unlabelled_pairs:
            return
        path = Path(self.settings.unlabelled_pairs).expanduser()
        if not path.is_file():
            if self.settings.blind_test:
                raise ConfigError(
                    f"--data.blind_test: found no file {path}, whose soft labels {learner} has learnt, "
                    "expected it, to compare the pairs to predict with; restore it, or correct "
                    "--data.unlabelled_pairs"
                )
            logger.warning("%s: no longer there, so the pairs to predict cannot be compared with it", path)
            return
        num = _num_shared(read_examples(path, self.pair_format, labels_optional=True), examples)
        if num and self.settings.blind_test:
            raise ConfigError(
                f"--data.blind_test: found {num} of the pairs to predict in {path}, whose soft labels "
                f"{learner} has learnt, expected none; use a run that has not"
            )
        if num and ranks.is_first():
            learnt = f"soft labels of {num} of these {len(examples)} pairs"
            print(f"TRANSDUCTIVE: {learner} has learnt {learnt} ({path})")

    def dev_sample(self, num_pairs: int) -> list[Example]:
        """Return a fixed, seeded sample of the labelled dev pairs, in their order."""
        labelled = [example for example in self.pairs["dev"] if example.label is not None]
        size = min(num_pairs, len(labelled))
        chosen = random.Random(self.seed).sample(range(len(labelled)), size)
        return [labelled[index] for index in sorted(chosen)]

    def _limit(self, split: str) -> int | None:
        return {"train": self.settings.limit_train, "dev": self.settings.limit_dev}.get(split)

    def _read_soft_labels(self) -> None:
        """Read the unlabelled pairs, and give these and the training pairs their soft labels."""
        settings, temperature = self.settings, self.settings.soft_label_temperature
        pairs = {"train": self.pairs["train"], "unlabelled": RecordList[Example]()}
        files = []
        if any(example.p_entailment is not None for example in pairs["train"]):
            files.append(self.path("train", "pairs"))
        if settings.unlabelled_pairs:
            files.append(Path(settings.unlabelled_pairs).expanduser())
            pairs["unlabelled"] = read_examples(files[-1], self.pair_format, labels_optional=True)
        given: dict[str, dict[str, float]] = {"train": {}, "unlabelled": {}}
        if settings.soft_labels:
            files.append(Path(settings.soft_labels).expanduser())
            known = {**pairs, "train": self._before_limit("train")}
            given = join_soft_labels(known, read_soft_labels(files[-1]))
        train, unlabelled = (with_soft_labels(pairs[name], given[name], temperature) for name in pairs)
        self.pairs["train"], self.unlabelled = train, as_unlabelled(unlabelled)
        soft = [each for each in (*train, *self.unlabelled) if each.p_entailment is not None]
        if soft:
            self.soft_labels = SoftLabelSummary(
                files={str(path): sha256_of(path) for path in files},
                num_pairs=len(soft),
                num_unlabelled=sum(example.label is None for example in soft),
                num_in_test=self._num_in_test(soft),
                temperature=temperature,
            )

    def _soft_labels_of_prepared(self, path: Path) -> SoftLabelSummary | None:
        soft = [example for example in self.built["train"] if example.p_entailment is not None]
        if not soft:
            return None
        soft_ids = {example.id for example in soft}
        return SoftLabelSummary(
            files={str(path): sha256_of(path)},
            num_pairs=len(soft_ids),
            num_unlabelled=len({example.id for example in soft if example.source == "soft label"}),
            num_in_test=self._num_in_test([each for each in self.pairs["train"] if each.id in soft_ids]),
            temperature=1.0,
        )

    def _before_limit(self, split: str) -> Sequence[Example]:
        """Return all pairs of a split, because texts of pairs after its limit would match none."""
        if self._limit(split) is None:
            return self.pairs[split]
        return read_examples(self.path(split, "pairs"), self.pair_format)

    def _num_in_test(self, soft: Sequence[Example]) -> int:
        """Return the number of pairs that are in the test split, too; refuse them on request."""
        path = self.path("test", "pairs")
        if not path.is_file():
            return 0
        num = _num_shared(read_examples(path, self.pair_format, labels_optional=True), soft)
        if num and self.settings.blind_test:
            raise ConfigError(
                f"--data.blind_test: found soft labels of {num} pairs of {path}, expected none; leave these "
                "pairs out of --data.unlabelled_pairs"
            )
        return num

    def _build(self, split: str, count_tokens: CountTokens | None) -> list[TrainingExample]:
        num_pairs, name = len(self.pairs[split]), builder_name(self.builder)
        if split == "train" and self.settings.prepared is not None:
            built = read_prepared(Path(self.settings.prepared).expanduser())
            ids = set([*dict.fromkeys(example.id for example in built)][: self._limit(split)])
            built = [example for example in built if example.id in ids]
            num_pairs = len({example.id for example in built})
            self._compare_prompts(built)
        else:
            texts = self._read_texts(split)
            pairs = [*self.pairs[split], *(self.unlabelled if split == "train" else ())]
            num_pairs = len(pairs)
            built = self.builder.build(
                pairs,
                texts.thoughts,
                texts.reflections,
                texts.scores,
                prompts=self.prompts,
                count_tokens=count_tokens,
            )
            if split == "train":
                self._check_use_of_soft_labels(built)
                self._count_used_soft_labels(built)
        self.reports[split] = str(build_report(num_pairs, built))
        logger.info("%s: %s: %s", split, name, self.reports[split])
        check_built(built, self.builder, self.path(split, "pairs"))
        return built

    def _compare_prompts(self, built: Sequence[TrainingExample]) -> None:
        """Warn of prepared prompts that differ from those that predictions of this run will have."""
        pairs, num = {pair.id: pair for pair in self.pairs["train"]}, 0
        for example in built:
            parsed, pair = completion.parse(example.completion), pairs.get(example.id)
            if parsed is not None and pair is not None:
                rendered = self.prompts.render(pair.premise, pair.hypothesis, form=parsed.form)
                num += example.prompt != rendered
        if num:
            logger.warning(
                "%s: %d of %d prompts differ from those that predictions of this run will have; give fit the "
                "--config, --definitions and --data.prompts that the file was prepared with",
                *(self.settings.prepared, num, len(built)),
            )

    def _check_use_of_soft_labels(self, built: Sequence[TrainingExample]) -> None:
        """Refuse soft labels, or unlabelled pairs, of which the builder makes no example."""
        used = {example.id for example in built if example.p_entailment is not None}
        kind = "soft labels" if self.soft_labels and not used else ""
        if self.unlabelled and used.isdisjoint(example.id for example in self.unlabelled):
            kind = "unlabelled pairs"
        if kind:
            raise DataError(
                f"{kind} that the builder {builder_name(self.builder)} makes no example of",
                "label_only or multitask" if self.unlabelled else "label_only, multitask or label_first",
                path=self.path("train", "pairs"),
                remedy="or leave them out; --columns p_entailment= reads no column of soft labels",
            )

    def _count_used_soft_labels(self, built: Sequence[TrainingExample]) -> None:
        """Count the pairs of which the builder made an example, not those that it left out."""
        if self.soft_labels is None:
            return
        used = {example.id for example in built if example.p_entailment is not None}
        soft = [each for each in (*self.pairs["train"], *self.unlabelled) if each.id in used]
        self.soft_labels = replace(
            self.soft_labels,
            num_pairs=len(soft),
            num_unlabelled=sum(example.label is None for example in soft),
            num_in_test=self._num_in_test(soft),
        )

    def _read_texts(self, split: str) -> JoinedTexts:
        """Read the texts of a split; a builder that needs no thoughts gets those that exist."""
        pairs = self._before_limit(split)
        files = TextFiles()
        if f"{split}_pairs" not in self._single_files or f"{split}_thoughts" in self._single_files:
            thoughts = self.path(split, "thoughts")
            needed = {self.path(split, kind) for kind in self.builder.needed_texts(split)}
            needed |= {*self._single_files.values()}
            files = TextFiles.found(
                thoughts, self.path(split, "reflections"), self.path(split, "scores"), needed=needed
            )
        elif self.builder.needed_texts(split):  # the root's texts belong to the root's own pairs
            raise DataError(
                f"--data.{split}_pairs without --data.{split}_thoughts",
                f"thoughts of these pairs, which the builder {builder_name(self.builder)} learns from",
                path=self.path(split, "pairs"),
            )
        return read_joined(pairs, files)


def _forms(built: Iterable[TrainingExample]) -> frozenset[Form]:
    found = (completion.parse(example.completion) for example in built)
    return frozenset(parsed.form for parsed in found if parsed is not None)


def _num_shared(examples: Iterable[Example], others: Iterable[Example]) -> int:
    """Return the number of pairs among the second ones that the first ones contain, by their texts."""
    texts = {(example.premise, example.hypothesis) for example in examples}
    return sum((other.premise, other.hypothesis) in texts for other in others)


def _content_hash(report: str) -> str:
    """Return the hash in a report.

    >>> _content_hash("2 examples from 2 pairs (label 1: 2; 0 pairs left out; content 0a1b2c3d4e5f)")
    '0a1b2c3d4e5f'
    """
    return report.rpartition("content ")[2].rstrip(")")
