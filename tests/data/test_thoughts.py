"""Reading the teacher's files: thoughts, reflections, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlicot.data.thoughts import read_reflections, read_scores, read_thoughts
from nlicot.errors import DataError
from nlicot.records import Provenance, Reflection, Score, Thought, Usage, content_id, to_json_dict

THOUGHT = {"id": "a", "premise": "P", "hypothesis": "H", "thought_process": "T", "predicted_label": 0}
REFLECTION = {
    **THOUGHT,
    "true_label": 1,
    "error_analysis": "E",
    "improved_thought_process": "I",
    "reflected_label": 1,
}


def jsonl_file(folder: Path, *objects: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def test_a_thought_is_read_with_its_provenance(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    provenance = {"backend": "http", "model": "m", "params": {"temperature": 0.3}, "usage": usage}
    path = jsonl_file(
        tmp_path,
        {**THOUGHT, "sample": 2, "true_label": "1", "relation": "neutral", "provenance": provenance},
    )
    thoughts = read_thoughts(path)
    assert thoughts == [
        Thought(
            id="a",
            sample=2,
            premise="P",
            hypothesis="H",
            thought_process="T",
            predicted_label=0,
            relation="neutral",
            true_label=1,
            provenance=Provenance(
                backend="http",
                model="m",
                params={"temperature": 0.3},
                usage=Usage(prompt_tokens=10, completion_tokens=5),
            ),
        )
    ]
    assert list(thoughts.lines) == [1]


def test_unknown_fields_of_a_thought_are_ignored(tmp_path: Path) -> None:
    extra = {"correct": True, "chat_history": [{"role": "user"}], "reprompt_counts": 0, "hard": True}
    path = jsonl_file(tmp_path, {**THOUGHT, "id": 0, "predicted_label": "1", **extra})
    assert read_thoughts(path) == [
        Thought(id="0", premise="P", hypothesis="H", thought_process="T", predicted_label=1)
    ]


def test_a_thought_without_an_id_is_named_by_its_content(tmp_path: Path) -> None:
    assert read_thoughts(jsonl_file(tmp_path, {**THOUGHT, "id": None}))[0].id == content_id("P", "H")


@pytest.mark.parametrize(
    "field, value, found",
    [
        ("predicted_label", 2, "predicted_label 2, expected 0 or 1"),
        ("predicted_label", float("nan"), "predicted_label nan, expected 0 or 1"),
        ("predicted_label", None, "an empty predicted_label, expected 0 or 1"),
        ("true_label", "yes", "true_label 'yes', expected 0 or 1"),
        ("thought_process", " ", "an empty thought_process, expected text"),
        ("thought_process", "\udfff", "half a surrogate pair (\\udfff) in thought_process, "
                                      "expected text that UTF-8 can hold"),
        ("sample", -1, "sample -1, expected a whole number, 0 or more"),
        ("sample", float("inf"), "sample inf, expected a whole number, 0 or more"),
        ("provenance", "me", "provenance 'me', expected a JSON object"),
        ("provenance", {"usage": {"prompt_tokens": 1.5}},
         "prompt_tokens 1.5, expected a whole number, 0 or more"),
    ],
)  # fmt: skip
def test_a_thought_that_cannot_be_used_is_an_error(
    tmp_path: Path, field: str, value: object, found: str
) -> None:
    path = jsonl_file(tmp_path, THOUGHT, {**THOUGHT, field: value})
    with pytest.raises(DataError) as raised:
        read_thoughts(path)
    assert str(raised.value) == f"{path}:2: found {found}"


def test_a_thought_with_a_missing_field_is_an_error(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "thought_process": "T"})
    with pytest.raises(DataError) as raised:
        read_thoughts(path)
    assert str(raised.value) == (
        f"{path}:1: found no predicted_label among 'premise', 'hypothesis', 'thought_process', "
        "expected 0 or 1"
    )


def test_a_thoughts_file_without_thoughts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no rows, expected a row for each thought$"):
        read_thoughts(jsonl_file(tmp_path))


def test_a_reflection_is_read(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {**REFLECTION, "hard": True})
    assert read_reflections(path) == [
        Reflection(
            id="a",
            premise="P",
            hypothesis="H",
            true_label=1,
            thought_process="T",
            error_analysis="E",
            improved_thought_process="I",
            reflected_label=1,
        )
    ]


def test_an_older_reflections_predicted_label_replaces_a_missing_reflected_one(tmp_path: Path) -> None:
    older = {name: value for name, value in REFLECTION.items() if name != "reflected_label"}
    path = jsonl_file(
        tmp_path, {**REFLECTION, "predicted_label": 0}, {**older, "id": 1, "predicted_label": 1}
    )
    assert [reflection.reflected_label for reflection in read_reflections(path)] == [1, 1]


def test_a_reflections_file_may_be_empty(tmp_path: Path) -> None:
    assert read_reflections(jsonl_file(tmp_path)) == []


def test_the_round_of_a_text_is_written_if_it_is_not_the_first_and_read_back(tmp_path: Path) -> None:
    first, later = (
        Thought(id="a", round=number, premise="P", hypothesis="H", thought_process="T", predicted_label=0)
        for number in (0, 2)
    )
    assert ("round" in to_json_dict(first), to_json_dict(later)["round"]) == (False, 2)
    assert read_thoughts(jsonl_file(tmp_path, to_json_dict(first), to_json_dict(later))) == [first, later]
    reflections = read_reflections(jsonl_file(tmp_path, REFLECTION, {**REFLECTION, "round": 1}))
    assert [reflection.round for reflection in reflections] == [0, 1]
    assert [to_json_dict(reflection).get("round") for reflection in reflections] == [None, 1]


def test_scores_are_read_with_the_regenerated_texts_between_them(tmp_path: Path) -> None:
    score = {"id": "a", "target": "thought", "score": 2, "analysis": "too short"}
    path = jsonl_file(
        tmp_path,
        score,
        {**THOUGHT, "round": 1},
        {**score, "round": 1, "score": 5},
        {"id": 7, "sample": 2, "score": "3", "target": "reflection"},
        {**REFLECTION, "round": 2},
    )
    found = read_scores(path)
    assert found.scores == [
        Score(id="a", score=2, analysis="too short"),
        Score(id="a", round=1, score=5, analysis="too short"),
        Score(id="7", sample=2, target="reflection", score=3),
    ]
    assert [(thought.id, thought.round) for thought in found.thoughts] == [("a", 1)]
    assert [(reflection.id, reflection.round) for reflection in found.reflections] == [("a", 2)]
    assert (found.scores.lines, found.thoughts.lines, found.reflections.lines) == ([1, 3, 4], [2], [5])


def test_a_judges_score_is_read_back_unchanged(tmp_path: Path) -> None:
    provenance = Provenance(backend="mistral", model="m", usage=Usage(prompt_tokens=1, completion_tokens=2))
    score = Score(
        id="a", sample=1, target="reflection", round=3, score=1, analysis="A", provenance=provenance
    )
    assert read_scores(jsonl_file(tmp_path, to_json_dict(score))).scores == [score]


@pytest.mark.parametrize(
    "row, found",
    [
        ({"id": "a", "score": 0}, "score 0, expected 1 to 5"),
        ({"id": "a", "score": 6}, "score 6, expected 1 to 5"),
        ({"id": "a", "score": None}, "score null, expected 1 to 5"),
        ({"id": "a", "score": 3.5}, "score 3.5, expected a whole number, 0 or more"),
        ({"score": 3}, "no id among 'score', expected text"),
        ({"id": "a", "score": 3, "target": "pair"}, "target 'pair', expected 'thought' or 'reflection'"),
        (THOUGHT, "a regenerated text of round 0, expected round 1 or later (round 0 is the first text)"),
        (REFLECTION, "a regenerated text of round 0, expected round 1 or later (round 0 is the first text)"),
        ({"id": "a"}, "the fields 'id', expected a score, or the thought_process or improved_thought_process "
                      "of a regenerated text"),
    ],
)  # fmt: skip
def test_a_score_that_cannot_be_used_is_an_error(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = jsonl_file(tmp_path, {"id": "a", "score": 3}, row)
    with pytest.raises(DataError) as raised:
        read_scores(path)
    assert str(raised.value) == f"{path}:2: found {found}"


@pytest.mark.parametrize(
    "split, num_thoughts, num_reflections",
    [("train", 1200, 511), ("dev", 150, 55), ("defined_train", 1200, 73), ("defined_dev", 150, 5)],
)
def test_the_shared_tasks_thoughts_and_reflections_load(
    real_data: Path, split: str, num_thoughts: int, num_reflections: int
) -> None:
    folder = real_data / "comp34812"
    assert len(read_thoughts(folder / f"thoughts_{split}.jsonl")) == num_thoughts
    assert len(read_reflections(folder / f"reflections_{split}.jsonl")) == num_reflections


def test_the_predecessors_texts_load_unchanged(real_data: Path) -> None:
    folder = real_data / "original"
    assert len(read_thoughts(folder / "sample_thoughts.json")) == 100
    assert len(read_reflections(folder / "sample_reflections.json")) == 33


def test_labels_and_scores_may_be_floats_and_booleans(tmp_path: Path) -> None:
    rows = [
        {**THOUGHT, "sample": 0.0, "predicted_label": 1.0, "true_label": "0.0"},
        {**THOUGHT, "sample": "1.0", "predicted_label": "true", "true_label": False},
    ]
    thoughts = read_thoughts(jsonl_file(tmp_path, *rows))
    assert [(each.sample, each.predicted_label, each.true_label) for each in thoughts] == [
        (0, 1, 0),
        (1, 1, 0),
    ]
    reflection = {**REFLECTION, "true_label": 1.0, "reflected_label": "True"}
    (read,) = read_reflections(jsonl_file(tmp_path, reflection))
    assert (read.true_label, read.reflected_label) == (1, 1)
    scores = read_scores(jsonl_file(tmp_path, {"id": "a", "score": 4.0}, {"id": 2, "score": "5.0"})).scores
    assert [(each.id, each.score) for each in scores] == [("a", 4), ("2", 5)]


@pytest.mark.parametrize("value", [0.5, "0.5", "yes", 2, 2.0, [1]])
def test_other_labels_of_a_thought_are_refused(tmp_path: Path, value: object) -> None:
    path = jsonl_file(tmp_path, {**THOUGHT, "predicted_label": value})
    with pytest.raises(DataError, match=r"records\.jsonl:1: found predicted_label .*, expected 0 or 1"):
        read_thoughts(path)
