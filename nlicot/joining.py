"""Which thought and which reflection belongs to which pair, and whether splits keep apart.

Stands between `storage`'s readers and the builders. Thoughts join their pairs by id, else by exact text,
so that files whose ids only number rows still find their pairs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from nlicot.errors import DataError
from nlicot.files import RecordList, line_of, shown
from nlicot.records import Example, Provenance, Reflection, Thought

logger = logging.getLogger(__name__)

Joinable = TypeVar("Joinable", Thought, Reflection)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedReflections:
    """The usable reflections, and how many were skipped because they miss the true label."""

    reflections: RecordList[Reflection]
    num_wrong_label: int


def join_thoughts(
    examples: Sequence[Example], thoughts: Sequence[Thought], *, path: Path
) -> RecordList[Thought]:
    """Give each thought its pair's id and label.

    A pair is found by id where the texts agree too, else by premise and hypothesis, letter for letter
    (the first of several pairs that read the same). Identical repetitions are dropped and counted.

    Args:
        path: the file that the thoughts come from, for error messages.

    Raises:
        DataError: a thought belongs to no pair, or a pair has two that differ under one sample number.
    """
    return _joined(examples, thoughts, path)


def join_reflections(
    examples: Sequence[Example],
    thoughts: Sequence[Thought],
    reflections: Sequence[Reflection],
    *,
    path: Path,
) -> JoinedReflections:
    """Give each reflection its pair's id and label, and skip those that miss the true label.

    Args:
        thoughts: as `join_thoughts` returns them. Where there are none, nothing is checked against them.
        path: the file that the reflections come from, for error messages.

    Raises:
        DataError: as `join_thoughts`; or the thought that is reflected on was right.
    """
    thought_of = {(thought.id, thought.sample): thought for thought in thoughts}
    joined = _joined(examples, reflections, path)
    kept: list[Reflection] = []
    lines: list[int] = []
    num_without_thought = 0
    for index, reflection in enumerate(joined):
        thought = thought_of.get((reflection.id, reflection.sample))
        if thought is not None and thought.predicted_label == reflection.true_label:
            raise DataError(
                f"a reflection of a right thought (pair {shown(reflection.id)})",
                "reflections of wrong thoughts only",
                path=path,
                line=line_of(joined, index),
                remedy="give the thoughts that these reflections were made from",
            )
        num_without_thought += thought is None
        if reflection.reflected_label == reflection.true_label:
            kept.append(reflection)
            lines.extend(joined.lines[index : index + 1])
    num_wrong_label = len(joined) - len(kept)
    if num_wrong_label:
        logger.warning("%s: skipped %d reflections that miss the true label", path, num_wrong_label)
    if thoughts and num_without_thought:
        logger.info("%s: %d reflections have no thought in the thoughts' file", path, num_without_thought)
    return JoinedReflections(reflections=RecordList(kept, lines), num_wrong_label=num_wrong_label)


def _joined(examples: Sequence[Example], records: Sequence[Joinable], path: Path) -> RecordList[Joinable]:
    pairs = _Pairs(examples)
    position_of: dict[tuple[str, int], int] = {}
    joined: list[Joinable] = []
    lines: list[int] = []
    num_repeated = num_relabelled = 0
    for index, record in enumerate(records):
        line = line_of(records, index)
        example = pairs.find(record, path, line)
        own = _with_pair(record, example)
        num_relabelled += record.true_label not in (None, own.true_label)
        first = position_of.setdefault((own.id, own.sample), len(joined))
        if first == len(joined):
            joined.append(own)
            lines.extend([] if line is None else [line])
        elif _without_provenance(joined[first]) == _without_provenance(own):
            num_repeated += 1
        else:
            before = f" on line {lines[first]}" if line is not None else " before"
            raise DataError(
                f"another {_kind(record)} of pair {shown(own.id)}, sample {own.sample}, than{before}",
                "one of each sample number",
                path=path,
                line=line,
                remedy="number several for one pair with the field sample, or delete one",
            )
    if num_repeated:
        logger.info("%s: dropped %d identical repetitions", path, num_repeated)
    if num_relabelled:
        logger.warning("%s: %d true labels differ from their pairs'; took the pairs'", path, num_relabelled)
    return RecordList(joined, lines)


class _Pairs:
    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._by_id = {example.id: example for example in examples}

    @cached_property
    def _by_text(self) -> dict[tuple[str, str], Example]:
        first_wins = reversed(self._examples)
        return {(example.premise, example.hypothesis): example for example in first_wins}

    def find(self, record: Thought | Reflection, path: Path, line: int | None) -> Example:
        """The record's pair, by id and text or else by text alone."""
        namesake = self._by_id.get(record.id)
        if namesake and (namesake.premise, namesake.hypothesis) == (record.premise, record.hypothesis):
            return namesake
        example = self._by_text.get((record.premise, record.hypothesis))
        if example is not None:
            return example
        why = "which has another text" if namesake else "which is not among the pairs"
        raise DataError(
            f"a {_kind(record)} of pair {shown(record.id)}, {why}, nor has any pair its text",
            "a premise and hypothesis that stand in the pairs",
            path=path,
            line=line,
            remedy="give the pairs that it was made from",
        )


def _with_pair(record: Joinable, example: Example) -> Joinable:
    if (record.id, record.true_label) == (example.id, example.label):
        return record
    if isinstance(record, Reflection):
        true_label = record.true_label if example.label is None else example.label
        return dataclasses.replace(record, id=example.id, true_label=true_label)
    return dataclasses.replace(record, id=example.id, true_label=example.label)


def _without_provenance(record: Joinable) -> Joinable:
    return dataclasses.replace(record, provenance=Provenance())


def _kind(record: Thought | Reflection) -> str:
    return type(record).__name__.lower()


def check_disjoint(splits: Mapping[str, tuple[Path, Sequence[Example]]], *, allow: bool = False) -> None:
    """Check that no pair of another split stands in train; shared premises alone are counted in the log.

    Args:
        splits: each split's file and pairs by its name; nothing is checked without a `train`.
        allow: only count shared pairs too.

    Raises:
        DataError: a pair, premise and hypothesis letter for letter, is in train and in another split.
    """
    _, train = splits.get("train", (None, ()))
    id_in_train = {(example.premise, example.hypothesis): example.id for example in train}
    train_premises = {example.premise for example in train}
    for split, (path, examples) in splits.items():
        if split == "train":
            continue
        shared = [
            index
            for index, example in enumerate(examples)
            if (example.premise, example.hypothesis) in id_in_train
        ]
        if shared and not allow:
            example = examples[shared[0]]
            twin = id_in_train[example.premise, example.hypothesis]
            more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise DataError(
                f"pair {shown(example.id)} of {split} in train too (there {shown(twin)}){more}",
                "splits that share no pair",
                path=path,
                line=line_of(examples, shared[0]),
                remedy="take it out of one of them, or allow it: --data.allow_overlap true",
            )
        if shared:
            logger.warning("%s: %d pairs of %s are in train too, as allowed", path, len(shared), split)
        num_premises = sum(example.premise in train_premises for example in examples)
        if num_premises:
            logger.info("%s: %d pairs of %s have a premise of train", path, num_premises, split)
