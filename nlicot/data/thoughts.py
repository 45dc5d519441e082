"""Read the teacher's thoughts, reflections and scores, and join them to their pairs.

Thoughts and reflections join by id, otherwise by exact text, so that files whose ids are only row numbers
still find their pairs. Scores join by id, and know the text that was judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from nlicot.data.rows import RecordList, Row, read_records, shown
from nlicot.errors import DataError
from nlicot.records import NO_PROVENANCE, Example, Provenance, Reflection, Score, Thought, Usage, content_id

logger = logging.getLogger(__name__)

SCORES = range(1, 6)
Text = TypeVar("Text", Thought, Reflection)
Scored: TypeAlias = Score | Thought | Reflection
"""The possible rows of a file of scores."""


def read_thoughts(path: Path) -> RecordList[Thought]:
    """Read a teacher's thoughts, including files of the predecessor; unknown fields are ignored."""
    return read_records(path, thought_from, each="thought")


def read_reflections(path: Path) -> RecordList[Reflection]:
    """Read reflections; an empty file is valid, because there may have been nothing to reflect on."""
    return read_records(path, reflection_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """A judge's scores, and the texts that were regenerated because of a low one."""

    scores: RecordList[Score]
    thoughts: RecordList[Thought]
    reflections: RecordList[Reflection]


def read_scores(path: Path) -> ScoredTexts:
    """Read a file of scores, which also contains the regenerated thoughts and reflections."""
    scored = read_records(path, scored_from)

    def of_type(kind: type[Any]) -> RecordList[Any]:
        return scored.select([index for index, record in enumerate(scored) if type(record) is kind])

    return ScoredTexts(scores=of_type(Score), thoughts=of_type(Thought), reflections=of_type(Reflection))


def thought_from(row: Row) -> Thought:
    """Parse a row as a thought."""
    return Thought(
        **_common_fields(row),
        thought_process=row.text("thought_process"),
        predicted_label=row.label("predicted_label"),
        relation=row.optional_text("relation"),
        true_label=row.optional_label("true_label"),
    )


def reflection_from(row: Row) -> Reflection:
    """Parse a row as a reflection; older files have the reflected label as `predicted_label`."""
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
        "sample": row.whole_number("sample"),
        "round": row.whole_number("round"),
        "premise": premise,
        "hypothesis": hypothesis,
        "provenance": _provenance_from(row),
    }


def scored_from(row: Row) -> Scored:
    """Parse a row of a file of scores: a score or a regenerated text."""
    if "score" in row.fields:
        return _score_from(row)
    if "improved_thought_process" in row.fields:
        text: Thought | Reflection = reflection_from(row)
    elif "thought_process" in row.fields:
        text = thought_from(row)
    else:
        raise row.error(
            f"the fields {', '.join(map(shown, row.fields)) or '(none)'}",
            "a score, or the thought_process or improved_thought_process of a regenerated text",
        )
    if not text.round:
        remedy = "round 0 is the first text"
        raise row.error("a regenerated text of round 0", "round 1 or later", remedy=remedy)
    return text


def _score_from(row: Row) -> Score:
    score, target = row.whole_number("score"), row.optional_text("target") or "thought"
    if score not in SCORES:
        raise row.error(f"score {shown(row.fields['score'])}", f"{SCORES[0]} to {SCORES[-1]}")
    if target not in ("thought", "reflection"):
        raise row.error(f"target {shown(target)}", "'thought' or 'reflection'")
    return Score(
        id=row.identifier() or row.text("id"),
        sample=row.whole_number("sample"),
        target="thought" if target == "thought" else "reflection",
        round=row.whole_number("round"),
        score=score,
        text_sha256=row.optional_text("text_sha256") or "",
        analysis=row.optional_text("analysis") or "",
        provenance=_provenance_from(row),
    )


def _provenance_from(row: Row) -> Provenance:
    if row.fields.get("provenance") is None:
        return NO_PROVENANCE
    inner = row.nested("provenance")
    usage = inner.nested("usage")
    texts = ("backend", "model", "prompt_sha256", "created_at")
    tokens = ("prompt_tokens", "completion_tokens")
    return Provenance(
        **{name: inner.optional_text(name) or "" for name in texts},
        params=inner.nested("params").fields,
        usage=Usage(**{name: usage.whole_number(name) for name in tokens}) if usage.fields else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """The files of a split's texts; None for a file that does not exist or is not wanted."""

    thoughts: Path | None = None
    reflections: Path | None = None
    scores: Path | None = None

    @classmethod
    def found(cls, thoughts: Path, reflections: Path, scores: Path, *, needed: Container[Path]) -> TextFiles:
        """Select the files that exist; without thoughts nothing else is read either."""
        if not thoughts.exists() and thoughts not in needed:
            return cls()
        for path, kind, command in (
            (reflections, "reflections", "reflect"),
            (scores, "scores, which min_score needs", "score"),
        ):
            if path in needed and not path.exists():
                remedy = f"write it first: python -m nlicot {command}"
                raise DataError("no such file", f"JSON lines of {kind}", path=path, remedy=remedy)
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
    """Read a split's texts and join them to their pairs."""
    thoughts: list[Thought] = []
    reflections: list[Reflection] = []
    scores: list[Score] = []
    if files.thoughts:
        thoughts = join_thoughts(examples, read_thoughts(files.thoughts))
    if files.reflections:
        reflections = join_reflections(examples, thoughts, read_reflections(files.reflections))
        num_wrong = sum(not each.correct for each in thoughts if each.true_label is not None)
        if num_wrong and not reflections:
            logger.warning("%s: no reflections, but %d thoughts are wrong", files.reflections, num_wrong)
    if files.scores:
        scored = read_scores(files.scores)
        rewritten = join_thoughts(examples, scored.thoughts)
        reflections = reflections + join_reflections(examples, thoughts, scored.reflections)
        thoughts = thoughts + rewritten
        texts = {("thought", each.id, each.sample, each.round): each.thought_process for each in thoughts}
        for each in reflections:
            texts["reflection", each.id, each.sample, each.round] = each.improved_thought_process
        scores = join_scores(examples, scored.scores, texts)
    return JoinedTexts(examples=examples, thoughts=thoughts, reflections=reflections, scores=scores)


def join_thoughts(examples: Sequence[Example], thoughts: RecordList[Text]) -> RecordList[Text]:
    """Give each thought (or reflection) its pair's id and label.

    A pair is found by id if its texts are the same, otherwise by exact premise and hypothesis (the first of
    several identical pairs). Identical repetitions are dropped and counted.
    """
    pairs = _PairIndex(examples)
    position_of: dict[tuple[str, int, int], int] = {}
    joined: list[Text] = []
    kept: list[int] = []
    num_relabelled = 0
    for index, thought in enumerate(thoughts):
        pair = pairs.find(thoughts, index)
        true_label: Any = pair.label
        if true_label is None and isinstance(thought, Reflection):
            true_label = thought.true_label
        matched = dataclasses.replace(  # the texts are equal, but now stored once
            thought, id=pair.id, premise=pair.premise, hypothesis=pair.hypothesis, true_label=true_label
        )
        num_relabelled += thought.true_label not in (None, matched.true_label)
        first = position_of.setdefault((matched.id, matched.sample, matched.round), len(joined))
        if first == len(joined):
            joined.append(matched)
            kept.append(index)
        elif dataclasses.replace(matched, provenance=joined[first].provenance) != joined[first]:
            number = f"sample {matched.sample}" + (f", round {matched.round}" if matched.round else "")
            line = thoughts.line(kept[first])
            earlier = f", after that on line {line}" if line is not None else ""
            found = f"a different {_kind(thought)} for pair {shown(matched.id)}, {number}{earlier}"
            remedy = "number several for one pair with the field sample, or delete one"
            raise thoughts.error(found, "one per sample number", index=index, remedy=remedy)
    if len(joined) < len(thoughts):
        logger.info("%s: dropped %d identical repetitions", thoughts.path, len(thoughts) - len(joined))
    if num_relabelled:
        changed = "%s: %d true labels differ from their pairs'; took the pairs'"
        logger.warning(changed, thoughts.path, num_relabelled)
    return RecordList(joined, thoughts.select(kept).lines, thoughts.path)


def join_reflections(
    examples: Sequence[Example], thoughts: Sequence[Thought], reflections: RecordList[Reflection]
) -> RecordList[Reflection]:
    """Give each reflection its pair's id and label; skip and count those that miss the true label.

    `thoughts` are the result of `join_thoughts`; if there are none, reflections are not checked against them.
    A reflection of any round is one on the first thought, that of round 0.
    """
    label_of = {
        (thought.id, thought.sample): thought.predicted_label for thought in thoughts if not thought.round
    }
    joined = join_thoughts(examples, reflections)
    thought_labels = [label_of.get((reflection.id, reflection.sample)) for reflection in joined]
    for index, (reflection, thought_label) in enumerate(zip(joined, thought_labels, strict=True)):
        if thought_label == reflection.true_label:
            found = f"a reflection on a correct thought (pair {shown(reflection.id)})"
            remedy = "pass the thoughts that these reflections were generated from"
            raise joined.error(found, "reflections on wrong thoughts only", index=index, remedy=remedy)
    usable = joined.select([i for i, each in enumerate(joined) if each.reflected_label == each.true_label])
    if skipped := len(joined) - len(usable):
        logger.warning("%s: skipped %d reflections that miss the true label", joined.path, skipped)
    if thoughts and (num := thought_labels.count(None)):
        logger.info("%s: %d reflections have no thought in the file of thoughts", joined.path, num)
    return usable


def text_sha256(text: str) -> str:
    """Return the digits that tell a score's text from another, whatever its blanks."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def join_scores(
    examples: Sequence[Example],
    scores: RecordList[Score],
    texts: Mapping[tuple[str, str, int, int], str] = MappingProxyType({}),
) -> list[Score]:
    """Return each score once, after checking that its pair exists, and that its text was judged.

    Args:
        examples: the pairs.
        scores: those of a file.
        texts: the thoughts and reflections, by target, id, sample and round.
    """
    ids = {example.id for example in examples}
    first: dict[tuple[str, str, int, int], Score] = {}
    for index, score in enumerate(scores):
        if score.id not in ids:
            found = f"score of pair {shown(score.id)} matches no pair: no pair has that id"
            remedy = "pass the pairs file that these texts were generated from"
            raise scores.error(found, index=index, remedy=remedy)
        key = (score.target, score.id, score.sample, score.round)
        if score.text_sha256 and key in texts and score.text_sha256 != text_sha256(texts[key]):
            stale = f"a score of another {score.target} of pair {shown(score.id)} than there is now"
            advice = "python -m nlicot score --overwrite, or move the file of scores away"
            raise scores.error(stale, "scores of these texts", index=index, remedy=advice)
        earlier = first.setdefault(key, score)
        if earlier.score != score.score:
            text = f"the {score.target} of pair {shown(score.id)}, sample {score.sample}, round {score.round}"
            conflict = f"score {score.score} for {text}, after score {earlier.score}"
            raise scores.error(conflict, "one score per text", index=index, remedy="delete one")
    return list(first.values())


class _PairIndex:
    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._by_id = {example.id: example for example in examples}

    @cached_property
    def _by_text(self) -> dict[tuple[str, str], Example]:
        first_wins = reversed(self._examples)
        return {(example.premise, example.hypothesis): example for example in first_wins}

    def find(self, records: RecordList[Text], index: int) -> Example:
        record = records[index]
        texts = record.premise, record.hypothesis
        same_id = self._by_id.get(record.id)
        if same_id and (same_id.premise, same_id.hypothesis) == texts:
            return same_id
        if texts in self._by_text:
            return self._by_text[texts]
        reason = "no pair has that id or these texts"
        if same_id:
            reason = "the pair with that id has other texts, and no pair has these"
        kind, remedy = _kind(record), "pass the pairs file that these {}s were generated from"
        found = f"{kind} of pair {shown(record.id)} matches no pair: {reason}"
        raise records.error(found, index=index, remedy=remedy.format(kind))


def _kind(record: Thought | Reflection) -> str:
    return type(record).__name__.lower()
