"""Training examples from records in memory (`prepare_examples`) or from files of any size (`prepare_file`).

Both make what `fit` would train on: the same builder, joins and prompts. Files are read and written chunk by
chunk; where a choice or an order needs to know all examples, they wait in a temporary file, so that memory
holds no more than a place and a label of each.
"""

from __future__ import annotations

import dataclasses
import pickle
import random
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.builders import Builder, BuildReport, find_builder
from nlicot.builders.base import ReportTally
from nlicot.data.root import write_jsonl
from nlicot.data.streaming import PairsFile, TextFiles, joined_chunks, read_joined
from nlicot.errors import DataError
from nlicot.prepare.formats import MARKERS, to_row
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample

_FIELDS = tuple(field.name for field in dataclasses.fields(TrainingExample))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the built examples are written, and in which order.

    Args:
        shuffle_seed: another seed, another order; None keeps the pairs' order.
        limit: only the first so many, after shuffling.
    """

    shuffle_seed: int | None = None
    limit: int | None = None

    def of(self, positions: Sequence[int]) -> Sequence[int]:
        """The chosen ones of `positions`, in their new order."""
        if self.shuffle_seed is not None:
            positions = array("L", positions)
            random.Random(self.shuffle_seed).shuffle(positions)
        return positions[: self.limit]


def prepare_examples(
    examples: Sequence[Example],
    thoughts: Iterable[Thought] = (),
    reflections: Iterable[Reflection] = (),
    scores: Iterable[Score] = (),
    *,
    builder: Builder | str = "reflected",
    prompts: StudentPrompts | None = None,
    selection: Selection | None = None,
) -> list[TrainingExample]:
    """Records in memory into training examples; `forms.to_row` makes a file's rows of them.

    Args:
        thoughts: joined to `examples`, as `storage.join_thoughts` gives them; likewise the reflections.
        builder: a builder, its short name, or a class path.
    """
    chosen = find_builder(builder, flag="builder") if isinstance(builder, str) else builder
    built = chosen.build(examples, thoughts, reflections, scores, prompts=prompts)
    return [built[position] for position in (selection or Selection()).of(range(len(built)))]


def prepare_file(
    pairs: PairsFile,
    files: TextFiles,
    path: Path,
    *,
    builder: Builder,
    prompts: StudentPrompts | None = None,
    selection: Selection | None = None,
    form: str = "text",
    markers: str = "mistral",
    overwrite: bool = False,
) -> BuildReport:
    """Write the training examples of a file of pairs and its texts to `path`, whole or not at all.

    Args:
        form: one of `forms.FORMATS`.
        markers: one of `forms.MARKERS`; not used for `messages`.

    Returns:
        What was written, counted and hashed in its order.

    Raises:
        DataError: something in the files is not as it must be, or the builder leaves nothing.
        ConfigError: `path` exists and `overwrite` is false, or cannot be written to.
    """
    tally = ReportTally()

    def rows() -> Iterator[dict[str, Any]]:
        example = None
        chosen = _selected(pairs, files, builder, prompts, selection or Selection(), path.parent)
        for example in tally.watch(chosen):
            yield to_row(example, form=form, markers=MARKERS[markers])
        if example is None:
            raise DataError(
                f"nothing that the builder {type(builder).__name__} can use",
                "labelled pairs, with thoughts unless the builder is label_only",
                path=pairs.path,
            )

    write_jsonl(path, rows(), overwrite=overwrite)
    return tally.report(len(pairs))


def _selected(
    pairs: PairsFile,
    files: TextFiles,
    builder: Builder,
    prompts: StudentPrompts | None,
    selection: Selection,
    folder: Path,
) -> Iterator[TrainingExample]:
    """The built examples that are chosen. Where a choice needs to know all, they wait on the disk."""
    built: Iterator[TrainingExample]
    if type(builder).build is Builder.build:
        built = (
            example
            for part in joined_chunks(pairs, files)
            for example in builder.build_all(
                part.examples, part.thoughts, part.reflections, part.scores, prompts=prompts
            )
        )
        balances = builder.balance
    else:  # a user's own, which may look at all pairs at once
        whole = read_joined(list(pairs), files)
        built = iter(
            builder.build(whole.examples, whole.thoughts, whole.reflections, whole.scores, prompts=prompts)
        )
        balances = False
    if not balances and selection == Selection():
        yield from built
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        waiting = _Waiting(file, built)
        positions = builder.balanced(waiting.labels) if balances else range(len(waiting.labels))
        yield from map(waiting.get, selection.of(positions))


class _Waiting:
    """Examples in a temporary file: only their places and labels are in memory."""

    def __init__(self, file: Any, examples: Iterable[TrainingExample]) -> None:
        self._file = file
        self._offsets = array("Q")
        self.labels = array("b")
        for example in examples:
            self._offsets.append(file.tell())
            self.labels.append(example.label)
            pickle.dump([getattr(example, name) for name in _FIELDS], file, protocol=5)

    def get(self, position: int) -> TrainingExample:
        """The example at a position of the order in which they came."""
        self._file.seek(self._offsets[position])
        return TrainingExample(**dict(zip(_FIELDS, pickle.load(self._file), strict=True)))
