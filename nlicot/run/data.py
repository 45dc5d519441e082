"""The data of a run: pairs of each split, and the training examples that a builder makes of them.

Everything is read before a model loads, so that errors in the data come first. The dev loss is taken on what
the builder makes of the dev split, dev accuracy on every labelled dev pair.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nlicot import completion
from nlicot.builders import find_builder
from nlicot.builders.base import Builder, CountTokens, build_report
from nlicot.completion import Form
from nlicot.data.pairs import LABELLED_SPLITS, PairFormat, check_disjoint, read_examples
from nlicot.data.root import DataRoot
from nlicot.data.rows import RecordList
from nlicot.data.thoughts import JoinedTexts, TextFiles, read_joined
from nlicot.errors import DataError
from nlicot.prepare.formats import read_prepared
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import Example, TrainingExample
from nlicot.settings import SINGLE_FILES, RunSettings

logger = logging.getLogger(__name__)


class RunData:
    """Pairs and training examples of a data root, read as a command's settings say."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings.data
        self.root = DataRoot(settings.root.expanduser())
        self.pair_format: PairFormat = settings
        self.seed = settings.seed_everything
        self.prompts = settings.data.prompts or StudentPrompts()
        if settings.definitions != LabelDefinitions():  # the defaults leave those of `data.prompts`
            self.prompts = replace(self.prompts, definitions=settings.definitions)
        self.pairs: dict[str, list[Example]] = {}
        self.built: dict[str, list[TrainingExample]] = {}
        self.reports: dict[str, str] = {}
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
        return self.root.is_sample and not self.settings.prepared and not self._single_files

    def announce_sample(self) -> None:
        """Print a line if the user named no data of their own."""
        if self.on_sample:
            print(
                "SAMPLE DATA: this runs on the small sample that comes with nlicot. "
                "For your own pairs: "
                "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
            )

    @property
    def forms(self) -> frozenset[Form]:
        """Forms of completion in the training examples."""
        found = (completion.parse(example.completion) for example in self.built["train"])
        return frozenset(parsed.form for parsed in found if parsed is not None)

    def path(self, split: str, kind: str) -> Path:
        """Return the file that a split's `pairs`, `thoughts`, `reflections` or `scores` are read from."""
        found: Path = self._single_files.get(f"{split}_{kind}") or getattr(self.root, kind)(split)
        return found

    def read_for_fit(self, count_tokens: CountTokens | None = None) -> None:
        """Read and build train and dev; `count_tokens` is for a builder that limits a thought's tokens."""
        for split in ("train", "dev"):
            self.read_pairs(split)
        self.check_apart_from_train("dev")
        for split in ("train", "dev"):
            self.built[split] = self._build(split, count_tokens)

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
        self.pairs[split] = RecordList(examples[:limit], examples.lines[:limit])
        return self.pairs[split]

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

    def check_apart_from_train(self, split: str) -> None:
        """Refuse to measure on pairs that are in train too, if there is a train file to compare with."""
        path = self.path("train", "pairs")
        if split == "train" or not path.is_file():
            return
        train = self.pairs.get("train") or read_examples(path, self.pair_format, labels_optional=True)
        sources = {"train": (path, train), split: (self.path(split, "pairs"), self.pairs[split])}
        check_disjoint(sources, allow=self.settings.allow_overlap)

    def dev_sample(self, num_pairs: int) -> list[Example]:
        """Return a fixed, seeded sample of the labelled dev pairs, in their order."""
        labelled = [example for example in self.pairs["dev"] if example.label is not None]
        size = min(num_pairs, len(labelled))
        chosen = random.Random(self.seed).sample(range(len(labelled)), size)
        return [labelled[index] for index in sorted(chosen)]

    def _limit(self, split: str) -> int | None:
        return {"train": self.settings.limit_train, "dev": self.settings.limit_dev}.get(split)

    def _build(self, split: str, count_tokens: CountTokens | None) -> list[TrainingExample]:
        num_pairs, name = len(self.pairs[split]), type(self.builder).__name__
        if split == "train" and self.settings.prepared is not None:
            built = read_prepared(Path(self.settings.prepared))
            num_pairs = len(built)
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
        self.reports[split] = str(build_report(num_pairs, built))
        logger.info("%s: %s: %s", split, name, self.reports[split])
        if not built:
            raise DataError(
                f"nothing that the builder {name} can use",
                "labelled pairs, with thoughts unless the builder is label_only",
                path=self.path(split, "pairs"),
            )
        return built

    def _read_texts(self, split: str) -> JoinedTexts:
        """Read the texts of a split; a builder that needs no thoughts gets those that exist."""
        pairs = self.pairs[split]
        if self._limit(split) is not None:  # thoughts of pairs after the limit match no pair here
            pairs = read_examples(self.path(split, "pairs"), self.pair_format)
        files = TextFiles()
        if f"{split}_pairs" not in self._single_files or f"{split}_thoughts" in self._single_files:
            thoughts = self.path(split, "thoughts")
            needed = {self.path(split, kind) for kind in self.builder.needed_texts(split)}
            needed |= {*self._single_files.values()}
            files = TextFiles.found(
                thoughts, self.path(split, "reflections"), self.path(split, "scores"), needed=needed
            )
        elif self.builder.thinks:  # the root's texts belong to the root's own pairs
            raise DataError(
                f"--data.{split}_pairs without --data.{split}_thoughts",
                f"thoughts of these pairs, which the builder {type(self.builder).__name__} learns from",
                path=self.path(split, "pairs"),
            )
        return read_joined(pairs, files)


def _content_hash(report: str) -> str:
    """Return the hash in a report.

    >>> _content_hash("2 examples from 2 pairs (label 1: 2; 0 pairs left out; content 0a1b2c3d4e5f)")
    '0a1b2c3d4e5f'
    """
    return report.rpartition("content ")[2].rstrip(")")
