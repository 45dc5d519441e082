"""A split's files read and joined together."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nlicot.data.thoughts import TextFiles, read_joined
from nlicot.errors import DataError
from nlicot.records import Example, Reflection, Score, Thought, to_json_dict

PAIRS = [Example(id=f"p{i}", premise=f"P{i}", hypothesis="H", label=i % 2) for i in range(10)]


def thought(pair: Example, predicted_label: int | None = None, sample: int = 0, round: int = 0) -> Thought:
    """A thought of the pair, right unless another label is given."""
    assert pair.label is not None
    return Thought(
        id=pair.id,
        sample=sample,
        round=round,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        thought_process=f"thought {sample}.{round} of {pair.id}",
        predicted_label=pair.label if predicted_label is None else predicted_label,
        true_label=pair.label,
    )


def reflection(pair: Example, round: int = 0) -> Reflection:
    assert pair.label is not None
    return Reflection(
        id=pair.id,
        round=round,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        true_label=pair.label,
        thought_process="first",
        error_analysis="E",
        improved_thought_process=f"improved {round} of {pair.id}",
        reflected_label=pair.label,
    )


WRONG = PAIRS[::3]
THOUGHTS = [thought(pair, 1 - pair.label if pair in WRONG else None) for pair in PAIRS]  # type: ignore[operator]
REFLECTIONS = [reflection(pair) for pair in WRONG]
SCORED: list[Any] = [
    *(Score(id=pair.id, score=2 + (index % 3)) for index, pair in enumerate(PAIRS[:4])),
    thought(PAIRS[4], round=1),
    Score(id="p4", round=1, score=5),
    Score(id="p6", target="reflection", score=1),
    reflection(PAIRS[6], round=1),
    Score(id="p6", target="reflection", round=1, score=4),
]


def jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(to_json_dict(record)) + "\n" for record in records))
    return path


def files(
    folder: Path,
    thoughts: Sequence[Any] = THOUGHTS,
    reflections: Sequence[Any] = REFLECTIONS,
    scored: Sequence[Any] = SCORED,
) -> TextFiles:
    return TextFiles(
        thoughts=jsonl(folder / "thoughts.jsonl", thoughts),
        reflections=jsonl(folder / "reflections.jsonl", reflections),
        scores=jsonl(folder / "scores.jsonl", scored),
    )


def test_every_kind_of_text_is_read(tmp_path: Path) -> None:
    joined = read_joined(PAIRS, files(tmp_path))
    assert joined.thoughts == [*THOUGHTS, thought(PAIRS[4], round=1)]
    assert joined.reflections == [*REFLECTIONS, reflection(PAIRS[6], round=1)]
    assert joined.scores == [record for record in SCORED if isinstance(record, Score)]


def test_texts_with_ids_of_another_numbering_join_by_content(tmp_path: Path) -> None:
    # The numbers are ids of pairs too, but of other ones: each thought's own text decides.
    renumbered = [{**to_json_dict(each), "id": f"p{9 - index}"} for index, each in enumerate(THOUGHTS)]
    path = tmp_path / "thoughts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(renumbered)))
    part = read_joined(PAIRS, TextFiles(thoughts=path))
    assert part.thoughts == list(reversed(THOUGHTS))


def test_a_text_that_matches_no_pair_is_an_error_with_its_line(tmp_path: Path) -> None:
    stranger = Example(id="z", premise="Z", hypothesis="H", label=0)
    texts = TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", [*THOUGHTS[:2], thought(stranger)]))
    with pytest.raises(DataError, match=r"t\.jsonl:3: thought of pair 'z' matches no pair: no pair has"):
        read_joined(PAIRS, texts)


def test_a_broken_line_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", THOUGHTS)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"t\.jsonl:11: found invalid JSON"):
        read_joined(PAIRS, TextFiles(thoughts=path))


def test_dropped_and_changed_texts_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mislabelled = [{**to_json_dict(each), "true_label": 1 - each.true_label} for each in THOUGHTS]  # type: ignore[operator]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n{json.dumps(row)}\n" for row in mislabelled))
    wrong = [{**to_json_dict(each), "reflected_label": 1 - each.reflected_label} for each in REFLECTIONS]
    reflections = tmp_path / "r.jsonl"
    reflections.write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with caplog.at_level(logging.INFO, logger="nlicot"):
        joined = read_joined(PAIRS, TextFiles(thoughts=path, reflections=reflections))
    assert joined.thoughts == THOUGHTS
    assert caplog.messages == [
        f"{path}: dropped 10 identical repetitions",
        f"{path}: 20 true labels differ from their pairs'; took the pairs'",
        f"{reflections}: skipped 4 reflections that miss the true label",
        f"{reflections}: no reflections, but 4 thoughts are wrong",
    ]


def test_an_empty_file_of_reflections_is_reported_if_thoughts_are_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reflections = tmp_path / "r.jsonl"
    reflections.touch()
    right = [each for each in THOUGHTS if each.correct]
    assert 0 < len(right) < len(THOUGHTS)
    read_joined(PAIRS, TextFiles(thoughts=jsonl(tmp_path / "right.jsonl", right), reflections=reflections))
    assert caplog.messages == []
    read_joined(PAIRS, TextFiles(thoughts=jsonl(tmp_path / "t.jsonl", THOUGHTS), reflections=reflections))
    num_wrong = len(THOUGHTS) - len(right)
    assert caplog.messages == [f"{reflections}: no reflections, but {num_wrong} thoughts are wrong"]


def test_existing_files_are_found(tmp_path: Path) -> None:
    thoughts, reflections, scores = (tmp_path / name for name in ("t.jsonl", "r.jsonl", "s.jsonl"))
    assert TextFiles.found(thoughts, reflections, scores, needed=()) == TextFiles()
    missing = TextFiles.found(thoughts, reflections, scores, needed={thoughts})
    assert missing == TextFiles(thoughts=thoughts)
    with pytest.raises(DataError, match=r"t\.jsonl: no such file"):
        read_joined(PAIRS, missing)
    thoughts.touch()
    scores.touch()
    found = TextFiles.found(thoughts, reflections, scores, needed={scores})
    assert found == TextFiles(thoughts=thoughts, scores=scores)
    with pytest.raises(DataError, match=r"r\.jsonl: found no such file, expected JSON lines of reflections"):
        TextFiles.found(thoughts, reflections, scores, needed={reflections})
