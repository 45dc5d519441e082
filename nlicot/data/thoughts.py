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

from nlicot.data.rows import RecordList, line_of, shown
from nlicot.errors import DataError
from nlicot.records import Example, Provenance, Reflection, Score, Thought

logger = logging.getLogger(__name__)

Joinable = TypeVar("Joinable", Thought, Reflection)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedReflections:
    """The usable reflections, and how many were skipped because they miss the true label."""

    reflections: RecordList[Reflection]
    num_wrong_label: int


@dataclass(slots=True, kw_only=True)
class JoinTally:
    """What joining a file came to, added up over the file's parts and told once by `log`."""

    path: Path
    num_repeated: int = 0
    num_relabelled: int = 0
    num_wrong_label: int = 0
    num_without_thought: int = 0
    has_thoughts: bool = False

    def log(self) -> None:
        """Say what was counted, where there was any."""
        if self.num_repeated:
            logger.info("%s: dropped %d identical repetitions", self.path, self.num_repeated)
        if self.num_relabelled:
            logger.warning(
                "%s: %d true labels differ from their pairs'; took the pairs'", self.path, self.num_relabelled
            )
        if self.num_wrong_label:
            logger.warning(
                "%s: skipped %d reflections that miss the true label", self.path, self.num_wrong_label
            )
        if self.has_thoughts and self.num_without_thought:
            logger.info(
                "%s: %d reflections have no thought in the thoughts' file",
                self.path,
                self.num_without_thought,
            )


def join_thoughts(
    examples: Sequence[Example],
    thoughts: Sequence[Thought],
    *,
    path: Path,
    tally: JoinTally | None = None,
) -> RecordList[Thought]:
    """Give each thought its pair's id and label.

    A pair is found by id where the texts agree too, else by premise and hypothesis, letter for letter
    (the first of several pairs that read the same). Identical repetitions are dropped and counted.

    Args:
        path: the file that the thoughts come from, for error messages.
        tally: where these are a part of the file, what counts its parts; the log is then left to it.

    Raises:
        DataError: a thought belongs to no pair, or a pair has two that differ under one sample number
            and round.
    """
    counts = tally or JoinTally(path=path)
    joined = _joined(examples, thoughts, path, counts)
    if tally is None:
        counts.log()
    return joined


def join_reflections(
    examples: Sequence[Example],
    thoughts: Sequence[Thought],
    reflections: Sequence[Reflection],
    *,
    path: Path,
    tally: JoinTally | None = None,
) -> JoinedReflections:
    """Give each reflection its pair's id and label, and skip those that miss the true label.

    Args:
        thoughts: as `join_thoughts` returns them. Where there are none, nothing is checked against them.
            A reflection of whatever round is one on the first thought, that of round 0.
        path: the file that the reflections come from, for error messages.
        tally: as for `join_thoughts`.

    Raises:
        DataError: as `join_thoughts`; or the thought that is reflected on was right.
    """
    counts = tally or JoinTally(path=path)
    counts.has_thoughts |= bool(thoughts)
    first_thought = {(thought.id, thought.sample): thought for thought in thoughts if not thought.round}
    joined = _joined(examples, reflections, path, counts)
    kept: list[Reflection] = []
    lines: list[int] = []
    for index, reflection in enumerate(joined):
        thought = first_thought.get((reflection.id, reflection.sample))
        if thought is not None and thought.predicted_label == reflection.true_label:
            raise DataError(
                f"a reflection of a right thought (pair {shown(reflection.id)})",
                "reflections of wrong thoughts only",
                path=path,
                line=line_of(joined, index),
                remedy="give the thoughts that these reflections were made from",
            )
        counts.num_without_thought += thought is None
        if reflection.reflected_label == reflection.true_label:
            kept.append(reflection)
            lines.extend(joined.lines[index : index + 1])
    num_wrong_label = len(joined) - len(kept)
    counts.num_wrong_label += num_wrong_label
    if tally is None:
        counts.log()
    return JoinedReflections(reflections=RecordList(kept, lines), num_wrong_label=num_wrong_label)


def join_scores(examples: Sequence[Example], scores: Sequence[Score], *, path: Path) -> list[Score]:
    """The scores, each once; they find their pairs by id alone.

    Args:
        path: the file that the scores come from, for error messages.

    Raises:
        DataError: a score belongs to no pair, or one text has two that differ.
    """
    ids = {example.id for example in examples}
    first: dict[tuple[str, str, int, int], Score] = {}
    for index, score in enumerate(scores):
        if score.id not in ids:
            raise DataError(
                f"a score of pair {shown(score.id)}, which is not among the pairs",
                "an id that stands in the pairs",
                path=path,
                line=line_of(scores, index),
                remedy="give the pairs that it was made from",
            )
        kept = first.setdefault((score.target, score.id, score.sample, score.round), score)
        if kept.score != score.score:
            raise DataError(
                f"score {score.score} for the {score.target} of pair {shown(score.id)}, "
                f"sample {score.sample}, round {score.round}, after {kept.score}",
                "one score for each text",
                path=path,
                line=line_of(scores, index),
                remedy="delete one",
            )
    return list(first.values())


def _joined(
    examples: Sequence[Example], records: Sequence[Joinable], path: Path, counts: JoinTally
) -> RecordList[Joinable]:
    pairs = _Pairs(examples)
    position_of: dict[tuple[str, int, int], int] = {}
    joined: list[Joinable] = []
    lines: list[int] = []
    for index, record in enumerate(records):
        line = line_of(records, index)
        example = pairs.find(record, path, line)
        own = _with_pair(record, example)
        counts.num_relabelled += record.true_label not in (None, own.true_label)
        first = position_of.setdefault((own.id, own.sample, own.round), len(joined))
        if first == len(joined):
            joined.append(own)
            lines.extend([] if line is None else [line])
        elif _without_provenance(joined[first]) == _without_provenance(own):
            counts.num_repeated += 1
        else:
            before = f" on line {lines[first]}" if line is not None else " before"
            which = f"sample {own.sample}" + (f", round {own.round}" if own.round else "")
            raise DataError(
                f"another {_kind(record)} of pair {shown(own.id)}, {which}, than{before}",
                "one of each sample number",
                path=path,
                line=line,
                remedy="number several for one pair with the field sample, or delete one",
            )
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
