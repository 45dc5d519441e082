"""Pairs beside their thoughts, reflections and scores, joined chunk by chunk in constant memory.

The teacher writes its texts in the pairs' order, so each chunk of pairs finds its own texts next in their
files. Files in another order, or with texts of other ids, are read whole instead: `joined_chunks` looks
before it begins, so the result is the same either way. `read_joined` is the plain way, all in memory.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nlicot.data.pairs import PairsFile
from nlicot.data.root import (
    ScoredTexts,
    no_thoughts,
    read_reflections,
    read_scores,
    read_thoughts,
    reflection_from,
    scored_from,
    scored_texts,
    thought_from,
)
from nlicot.data.rows import RecordList, Row, read_rows
from nlicot.data.thoughts import JoinTally, join_reflections, join_scores, join_thoughts
from nlicot.errors import DataError
from nlicot.records import Example, Reflection, Score, Thought, content_id

__all__ = ["JoinedTexts", "PairsFile", "TextFiles", "in_chunks", "joined_chunks", "read_joined"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

CHUNK_SIZE = 4096
"""Pairs at once: few enough to weigh nothing, enough for what a chunk costs to be shared by many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """Where a split's texts lie; None stands for a file that is not there or not wanted."""

    thoughts: Path | None = None
    reflections: Path | None = None
    scores: Path | None = None

    @classmethod
    def found(cls, thoughts: Path, reflections: Path, scores: Path, *, needed: Container[Path]) -> TextFiles:
        """Those of three paths that are there; without thoughts nothing else is read either.

        Args:
            needed: paths that must be there.

        Raises:
            DataError: a needed one is not there.
        """
        if not thoughts.exists() and thoughts not in needed:
            return cls()
        for path, kind in ((reflections, "reflections"), (scores, "scores")):
            if path in needed and not path.exists():
                raise DataError("no such file", f"JSON lines of {kind}", path=path)
        return cls(
            thoughts=thoughts,
            reflections=reflections if reflections.exists() else None,
            scores=scores if scores.exists() else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedTexts:
    """Pairs in order, and all texts that belong to them, regenerations included: a builder's input."""

    examples: Sequence[Example]
    thoughts: Sequence[Thought]
    reflections: Sequence[Reflection]
    scores: Sequence[Score]


def read_joined(examples: Sequence[Example], files: TextFiles) -> JoinedTexts:
    """Read all texts and join them to their pairs, in memory.

    Raises:
        DataError: as the readers and `joining` raise it.
    """
    join = _Join(files)
    joined = join(
        examples,
        thoughts=read_thoughts(files.thoughts) if files.thoughts else RecordList(),
        reflections=read_reflections(files.reflections) if files.reflections else RecordList(),
        scored=read_scores(files.scores) if files.scores else scored_texts(()),
    )
    join.log()
    return joined


def joined_chunks(
    pairs: Iterable[Example], files: TextFiles, *, size: int = CHUNK_SIZE
) -> Iterator[JoinedTexts]:
    """Yield pairs and their texts, `size` pairs at a time; all at once where the files' order differs.

    Args:
        pairs: a `PairsFile`, or else what can be walked several times.

    Raises:
        DataError: as the readers and `joining` raise it.
    """
    out_of_step = _out_of_step(pairs, files, size)
    if out_of_step is not None:
        logger.info("%s: not in the pairs' order, so the files are read whole", out_of_step)
        yield read_joined(list(pairs), files)
        return
    join = _Join(files)
    thoughts, reflections, scores = map(_InStep, (files.thoughts, files.reflections, files.scores))
    for examples in in_chunks(pairs, size):
        ids = {example.id for example in examples}
        own_thoughts, own_reflections = thoughts.take(ids), reflections.take(ids)
        yield join(
            examples,
            thoughts=RecordList(map(thought_from, own_thoughts), _lines(own_thoughts)),
            reflections=RecordList(map(reflection_from, own_reflections), _lines(own_reflections)),
            scored=scored_texts((row.line, scored_from(row)) for row in scores.take(ids)),
        )
    join.log()


class _Join:
    """Joins texts to pairs, and adds up what its parts came to."""

    def __init__(self, files: TextFiles) -> None:
        self._thoughts, self._reflections = (
            JoinTally(path=path or Path()) for path in (files.thoughts, files.reflections)
        )
        self._new_thoughts, self._new_reflections = (JoinTally(path=files.scores or Path()) for _ in range(2))

    def __call__(
        self,
        examples: Sequence[Example],
        *,
        thoughts: Sequence[Thought],
        reflections: Sequence[Reflection],
        scored: ScoredTexts,
    ) -> JoinedTexts:
        tally = self._thoughts
        first = join_thoughts(examples, thoughts, path=tally.path, tally=tally)
        tally = self._reflections
        on_them = join_reflections(examples, first, reflections, path=tally.path, tally=tally)
        if not (scored.scores or scored.thoughts or scored.reflections):
            return JoinedTexts(examples=examples, thoughts=first, reflections=on_them.reflections, scores=())
        tally = self._new_thoughts
        new_thoughts = join_thoughts(examples, scored.thoughts, path=tally.path, tally=tally)
        tally = self._new_reflections
        new = join_reflections(examples, first, scored.reflections, path=tally.path, tally=tally)
        return JoinedTexts(
            examples=examples,
            thoughts=[*first, *new_thoughts],
            reflections=[*on_them.reflections, *new.reflections],
            scores=join_scores(examples, scored.scores, path=tally.path),
        )

    def log(self) -> None:
        """Say what was dropped, skipped or changed, file by file."""
        for tally in (self._thoughts, self._reflections, self._new_thoughts, self._new_reflections):
            tally.log()


class _InStep:
    """A file's rows, taken as far as they belong to one chunk after the other; no path, no rows."""

    def __init__(self, path: Path | None) -> None:
        self._rows = iter(()) if path is None else read_rows(path)
        self.next = next(self._rows, None)

    def take(self, ids: Container[str]) -> list[Row]:
        """The next rows, up to the first of another pair than those."""
        taken = []
        while self.next is not None and _id_of(self.next) in ids:
            taken.append(self.next)
            self.next = next(self._rows, None)
        return taken


def _out_of_step(pairs: Iterable[Example], files: TextFiles, size: int) -> Path | None:
    """A file that cannot be read beside the pairs: another order, or another text than the id's pair."""
    beside = [(path, _InStep(path)) for path in (files.thoughts, files.reflections, files.scores) if path]
    if files.thoughts and beside[0][1].next is None:
        raise no_thoughts(files.thoughts)
    for examples in in_chunks(pairs, size) if beside else ():
        texts_of = {example.id: (example.premise, example.hypothesis) for example in examples}
        for path, rows in beside:
            for row in rows.take(texts_of):
                texts = (row.fields.get("premise"), row.fields.get("hypothesis"))
                if texts != texts_of[_id_of(row)] and "score" not in row.fields:
                    return path
    return next((path for path, rows in beside if rows.next is not None), None)


def _id_of(row: Row) -> str:
    return row.identifier() or content_id(row.text("premise"), row.text("hypothesis"))


def _lines(rows: Sequence[Row]) -> list[int]:
    return [row.line for row in rows]


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    remaining = iter(items)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk
