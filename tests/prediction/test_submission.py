"""Predictions as a shared task wants them: one column, the input's order, all rows or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nlicot.completion import render
from nlicot.prediction.prediction_files import write_predictions
from nlicot.records import Example, Prediction

EXAMPLES = [
    Example(id="c", premise='Es regnet, "heute".', hypothesis="It's wet.", label=1, phenomenon="lexical"),
    Example(id="a", premise="Two\nlines", hypothesis="One", label=0),
    Example(id="b", premise="P", hypothesis="H"),
]


def _prediction(id_: str, label: int, thought: str | None = "Ça va.") -> Prediction:
    return Prediction(
        id=id_,
        predicted_label=label,
        p_entailment=0.25 + label / 2,
        thought_process=thought,
        status="label_only" if thought is None else "closed",
        completion=render(thought, label),
    )


def test_csv_has_the_one_column_in_the_order_of_the_input(tmp_path: Path) -> None:
    found = [_prediction("a", 0), _prediction("b", 1), _prediction("c", 1)]
    csv_path, _ = write_predictions(tmp_path / "predictions", "test", EXAMPLES, found)
    assert csv_path == tmp_path / "predictions" / "test.csv"
    assert csv_path.read_text(encoding="utf-8").splitlines() == ["prediction", "1", "0", "1"]


def test_jsonl_holds_pair_and_prediction(tmp_path: Path) -> None:
    found = [_prediction("a", 0), _prediction("b", 1, thought=None), _prediction("c", 1)]
    _, jsonl_path = write_predictions(tmp_path, "dev", EXAMPLES, found)
    lines = jsonl_path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "id": "c",
            "premise": 'Es regnet, "heute".',
            "hypothesis": "It's wet.",
            "phenomenon": "lexical",
            "true_label": 1,
            "predicted_label": 1,
            "p_entailment": 0.75,
            "thought_process": "Ça va.",
            "status": "closed",
            "completion": '{"thought_process": "Ça va.", "predicted_label": 1}',
        },
        {
            "id": "a",
            "premise": "Two\nlines",
            "hypothesis": "One",
            "true_label": 0,
            "predicted_label": 0,
            "p_entailment": 0.25,
            "thought_process": "Ça va.",
            "status": "closed",
            "completion": '{"thought_process": "Ça va.", "predicted_label": 0}',
        },
        {
            "id": "b",
            "premise": "P",
            "hypothesis": "H",
            "predicted_label": 1,
            "p_entailment": 0.75,
            "status": "label_only",
            "completion": '{"predicted_label": 1}',
        },
    ]


def test_a_pairs_own_soft_label_is_no_prediction(tmp_path: Path) -> None:
    pair = replace(EXAMPLES[0], p_entailment=0.1)
    unknown = replace(_prediction("c", 1), predicted_label=None, p_entailment=None)
    _, jsonl_path = write_predictions(tmp_path, "train", [pair], [unknown])
    assert "p_entailment" not in json.loads(jsonl_path.read_text(encoding="utf-8"))


def test_earlier_predictions_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for label in (0, 1):
        write_predictions(tmp_path, "test", EXAMPLES, [_prediction(id_, label) for id_ in "abc"])
    assert (tmp_path / "test.csv").read_text(encoding="utf-8").split() == ["prediction", "1", "1", "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.csv", "test.jsonl"]


def test_missing_prediction_leaves_earlier_files_as_they_were(tmp_path: Path) -> None:
    written = write_predictions(tmp_path, "test", EXAMPLES, [_prediction(id_, 0) for id_ in "abc"])
    before = [path.read_bytes() for path in written]
    with pytest.raises(KeyError, match="b"):
        write_predictions(tmp_path, "test", EXAMPLES, [_prediction(id_, 1) for id_ in "ac"])
    assert [path.read_bytes() for path in written] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.csv", "test.jsonl"]
