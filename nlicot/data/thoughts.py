"""Read the teacher's thoughts, reflections and scores, and join them to their pairs.

Thoughts and reflections join by id, otherwise by exact text, so that files whose ids are only row numbers
still find their pairs. Scores join by id.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from nlicot.data.rows import RecordList, Row, line_of, read_rows, shown
from nlicot.errors import DataError
from nlicot.records import Example, Provenance, Reflection, Score, Thought, Usage, content_id

logger = logging.getLogger(__name__)

SCORES = range(1, 6)
NO_PROVENANCE = Provenance()
T = TypeVar("T")
Text = TypeVar("Text", Thought, Reflection)
Scored: TypeAlias = Score | Thought | Reflection
"""The possible rows of a file of scores."""

# ------------------------------------------------------------------------------ reading


def read_thoughts(path: Path) -> RecordList[Thought]:
    """Read a teacher's thoughts, including files of the predecessor; unknown fields are ignored.

    Raises:
        DataError: with path and line, for anything that cannot be read as it is.
    """
    thoughts = _read_all(path, thought_from)
    if not thoughts:
        raise DataError("no rows", "a thought on each line", path=path)
    return thoughts


def read_reflections(path: Path) -> RecordList[Reflection]:
    """Read reflections; an empty file is valid, because there may have been nothing to reflect on.

    Raises:
        DataError: with path and line, for anything that cannot be read as it is.
    """
    return _read_all(path, reflection_from)


def _read_all(path: Path, record_from: Callable[[Row], T]) -> RecordList[T]:
    records, lines = [], []
    for row in read_rows(path):
        records.append(record_from(row))
        lines.append(row.line)
    return RecordList(records, lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """A judge's scores, and the texts that were regenerated because of a low one."""

    scores: RecordList[Score]
    thoughts: RecordList[Thought]
    reflections: RecordList[Reflection]


def read_scores(path: Path) -> ScoredTexts:
    """Read a file of scores, which also contains the regenerated thoughts and reflections.

    Raises:
        DataError: with path and line, for anything that cannot be read as it is.
    """
    found: dict[type, tuple[list[Any], list[int]]] = {kind: ([], []) for kind in (Score, Thought, Reflection)}
    for row in read_rows(path):
        record = scored_from(row)
        records, lines = found[type(record)]
        records.append(record)
        lines.append(row.line)
    return ScoredTexts(
        scores=RecordList(*found[Score]),
        thoughts=RecordList(*found[Thought]),
        reflections=RecordList(*found[Reflection]),
    )


def thought_from(row: Row) -> Thought:
    """Parse a row as a thought; raises `DataError`."""
    return Thought(
        **_common_fields(row),
        thought_process=row.text("thought_process"),
        predicted_label=row.label("predicted_label"),
        relation=row.optional_text("relation"),
        true_label=row.optional_label("true_label"),
    )


def reflection_from(row: Row) -> Reflection:
    """Parse a row as a reflection; raises `DataError`.

    Older files have the reflected label as `predicted_label`.
    """
    reflected = row.optional_label("reflected_label")
    return Reflection(
        **_common_fields(row),
        true_label=row.label("true_label"),
        thought_process=row.text("thought_process"),
        error_analysis=row.text("error_analysis"),
        improved_thought_process=row.text("improved_thought_process"),
        reflected_label=row.label("predicted_label") if reflected is None else reflected,
    )


def _common_fields(row: Row) -> dict[str, Any]:
    premise, hypothesis = row.text("premise"), row.text("hypothesis")
    return {
        "id": row.identifier() or content_id(premise, hypothesis),
        "sample": row.whole_number("sample", 0),
        "round": row.whole_number("round", 0),
        "premise": premise,
        "hypothesis": hypothesis,
        "provenance": _provenance_from(row),
    }


def scored_from(row: Row) -> Scored:
    """Parse a row of a file of scores: a score or a regenerated text; raises `DataError`."""
    if "score" in row.fields:
        return _score_from(row)
    if not {"thought_process", "improved_thought_process"} & row.fields.keys():
        raise row.error(
            f"the fields {', '.join(map(shown, row.fields)) or '(none)'}",
            "a score, or the thought_process or improved_thought_process of a regenerated text",
        )
    text = reflection_from(row) if "improved_thought_process" in row.fields else thought_from(row)
    if not text.round:
        raise row.error(
            "a regenerated text of round 0", "round 1 or later", remedy="round 0 is the first text"
        )
    return text


def _score_from(row: Row) -> Score:
    score, target = row.whole_number("score", 0), row.optional_text("target") or "thought"
    if score not in SCORES:
        raise row.error(f"score {shown(row.fields['score'])}", f"{SCORES[0]} to {SCORES[-1]}")
    if target not in ("thought", "reflection"):
        raise row.error(f"target {shown(target)}", "'thought' or 'reflection'")
    return Score(
        id=row.identifier() or row.text("id"),
        sample=row.whole_number("sample", 0),
        target="thought" if target == "thought" else "reflection",
        round=row.whole_number("round", 0),
        score=score,
        analysis=row.optional_text("analysis") or "",
        provenance=_provenance_from(row),
    )


def _provenance_from(row: Row) -> Provenance:
    if row.fields.get("provenance") is None:
        return NO_PROVENANCE
    inner = row.nested("provenance")
    usage = inner.nested("usage")
    return Provenance(
        backend=inner.optional_text("backend") or "",
        model=inner.optional_text("model") or "",
        prompt_sha256=inner.optional_text("prompt_sha256") or "",
        params=inner.nested("params").fields,
        usage=Usage(
            prompt_tokens=usage.whole_number("prompt_tokens", 0),
            completion_tokens=usage.whole_number("completion_tokens", 0),
        )
        if usage.fields
        else None,
        created_at=inner.optional_text("created_at") or "",
    )


# ------------------------------------------------------------------------------ joining


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """The files of a split's texts; None for a file that does not exist or is not wanted."""

    thoughts: Path | None = None
    reflections: Path | None = None
    scores: Path | None = None

    @classmethod
    def found(cls, thoughts: Path, reflections: Path, scores: Path, *, needed: Container[Path]) -> TextFiles:
        """Select the files that exist; without thoughts nothing else is read either.

        Raises:
            DataError: a file among `needed` does not exist.
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
    """Pairs in order with all texts that belong to them, regenerated ones included: a builder's input."""

    examples: Sequence[Example]
    thoughts: Sequence[Thought]
    reflections: Sequence[Reflection]
    scores: Sequence[Score]


def read_joined(examples: Sequence[Example], files: TextFiles) -> JoinedTexts:
    """Read a split's texts and join them to their pairs.

    Raises:
        DataError: as the readers and the joins raise it.
    """
    thoughts: Sequence[Thought] = ()
    reflections: Sequence[Reflection] = ()
    if files.thoughts:
        thoughts = join_thoughts(examples, read_thoughts(files.thoughts), path=files.thoughts)
    if files.reflections:
        read = read_reflections(files.reflections)
        reflections = join_reflections(examples, thoughts, read, path=files.reflections)
    if files.scores is None:
        return JoinedTexts(examples=examples, thoughts=thoughts, reflections=reflections, scores=())
    scored = read_scores(files.scores)
    new_thoughts = join_thoughts(examples, scored.thoughts, path=files.scores)
    new_reflections = join_reflections(examples, thoughts, scored.reflections, path=files.scores)
    return JoinedTexts(
        examples=examples,
        thoughts=[*thoughts, *new_thoughts],
        reflections=[*reflections, *new_reflections],
        scores=join_scores(examples, scored.scores, path=files.scores),
    )


def join_thoughts(examples: Sequence[Example], thoughts: Sequence[Text], *, path: Path) -> RecordList[Text]:
    """Give each thought (or reflection) its pair's id and label.

    A pair is found by id if its texts are the same, otherwise by exact premise and hypothesis (the first of
    several identical pairs). Identical repetitions are dropped and counted. `path` is for messages.

    Raises:
        DataError: a thought matches no pair, or a pair has two different ones with the same sample number
            and round.
    """
    pairs = _PairIndex(examples)
    position_of: dict[tuple[str, int, int], int] = {}
    joined: list[Text] = []
    lines: list[int] = []
    num_repeated = num_relabelled = 0
    for index, thought in enumerate(thoughts):
        line = line_of(thoughts, index)
        matched = _with_pair(thought, pairs.find(thought, path, line))
        num_relabelled += thought.true_label not in (None, matched.true_label)
        first = position_of.setdefault((matched.id, matched.sample, matched.round), len(joined))
        if first == len(joined):
            joined.append(matched)
            lines.extend([] if line is None else [line])
        elif _without_provenance(joined[first]) == _without_provenance(matched):
            num_repeated += 1
        else:
            number = f"sample {matched.sample}" + (f", round {matched.round}" if matched.round else "")
            earlier = f", after that on line {lines[first]}" if line is not None else ""
            raise DataError(
                f"a different {_kind(thought)} for pair {shown(matched.id)}, {number}{earlier}",
                "one per sample number",
                path=path,
                line=line,
                remedy="number several for one pair with the field sample, or delete one",
            )
    if num_repeated:
        logger.info("%s: dropped %d identical repetitions", path, num_repeated)
    if num_relabelled:
        logger.warning("%s: %d true labels differ from their pairs'; took the pairs'", path, num_relabelled)
    return RecordList(joined, lines)


def join_reflections(
    examples: Sequence[Example], thoughts: Sequence[Thought], reflections: Sequence[Reflection], *, path: Path
) -> RecordList[Reflection]:
    """Give each reflection its pair's id and label; skip and count those that miss the true label.

    Args:
        examples: the pairs of the split.
        thoughts: the result of `join_thoughts`; if empty, reflections are not checked against them. A
            reflection of any round is one on the first thought, that of round 0.
        reflections: as they were read.
        path: the file of the reflections, for messages.

    Raises:
        DataError: as `join_thoughts`, or a reflection is on a correct thought.
    """
    first_thought = {(thought.id, thought.sample): thought for thought in thoughts if not thought.round}
    joined = join_thoughts(examples, reflections, path=path)
    usable: list[Reflection] = []
    lines: list[int] = []
    num_without_thought = 0
    for index, reflection in enumerate(joined):
        thought = first_thought.get((reflection.id, reflection.sample))
        if thought is not None and thought.predicted_label == reflection.true_label:
            raise DataError(
                f"a reflection on a correct thought (pair {shown(reflection.id)})",
                "reflections on wrong thoughts only",
                path=path,
                line=line_of(joined, index),
                remedy="pass the thoughts that these reflections were generated from",
            )
        num_without_thought += thought is None
        if reflection.reflected_label == reflection.true_label:
            usable.append(reflection)
            lines.extend(joined.lines[index : index + 1])
    if len(usable) < len(joined):
        logger.warning("%s: skipped %d reflections that miss the true label", path, len(joined) - len(usable))
    if thoughts and num_without_thought:
        logger.info("%s: %d reflections have no thought in the file of thoughts", path, num_without_thought)
    return RecordList(usable, lines)


def join_scores(examples: Sequence[Example], scores: Sequence[Score], *, path: Path) -> list[Score]:
    """Return each score once, after checking that its pair exists; `path` is for messages.

    Raises:
        DataError: a score matches no pair, or a text has two different scores.
    """
    ids = {example.id for example in examples}
    first: dict[tuple[str, str, int, int], Score] = {}
    for index, score in enumerate(scores):
        if score.id not in ids:
            raise DataError(
                f"score of pair {shown(score.id)} matches no pair: no pair has that id",
                path=path,
                line=line_of(scores, index),
                remedy="pass the pairs file that these texts were generated from",
            )
        earlier = first.setdefault((score.target, score.id, score.sample, score.round), score)
        if earlier.score != score.score:
            raise DataError(
                f"score {score.score} for the {score.target} of pair {shown(score.id)}, "
                f"sample {score.sample}, round {score.round}, after score {earlier.score}",
                "one score per text",
                path=path,
                line=line_of(scores, index),
                remedy="delete one",
            )
    return list(first.values())


class _PairIndex:
    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._by_id = {example.id: example for example in examples}

    @cached_property
    def _by_text(self) -> dict[tuple[str, str], Example]:
        first_wins = reversed(self._examples)
        return {(example.premise, example.hypothesis): example for example in first_wins}

    def find(self, record: Thought | Reflection, path: Path, line: int | None) -> Example:
        same_id = self._by_id.get(record.id)
        if same_id and (same_id.premise, same_id.hypothesis) == (record.premise, record.hypothesis):
            return same_id
        example = self._by_text.get((record.premise, record.hypothesis))
        if example is not None:
            return example
        reason = "the pair with that id has other texts, and no pair has these"
        raise DataError(
            f"{_kind(record)} of pair {shown(record.id)} matches no pair: "
            f"{reason if same_id else 'no pair has that id or these texts'}",
            path=path,
            line=line,
            remedy=f"pass the pairs file that these {_kind(record)}s were generated from",
        )


def _with_pair(record: Text, example: Example) -> Text:
    true_label: Any = example.label
    if example.label is None and isinstance(record, Reflection):
        true_label = record.true_label
    return dataclasses.replace(
        record,
        id=example.id,
        premise=example.premise,  # equal, but now stored once
        hypothesis=example.hypothesis,
        true_label=true_label,
    )


def _without_provenance(record: Text) -> Text:
    return dataclasses.replace(record, provenance=NO_PROVENANCE)


def _kind(record: Thought | Reflection) -> str:
    return type(record).__name__.lower()


def check_disjoint(splits: Mapping[str, tuple[Path, Sequence[Example]]], *, allow: bool = False) -> None:
    """Check that no pair of another split is also in train; shared premises are only counted in the log.

    Args:
        splits: each split's file and pairs by its name; nothing is checked without a `train`.
        allow: also only count shared pairs.

    Raises:
        DataError: a pair, by exact premise and hypothesis, is in train and in another split.
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
                remedy="remove it from one of them, or allow it: --data.allow_overlap true",
            )
        if shared:
            logger.warning("%s: %d pairs of %s are in train too, as allowed", path, len(shared), split)
        num_premises = sum(example.premise in train_premises for example in examples)
        if num_premises:
            logger.info("%s: %d pairs of %s have a premise of train", path, num_premises, split)
