"""Soft labels find their pairs by id or by text; everything that does not fit is refused by its line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nlicot.data.rows import RecordList
from nlicot.data.soft_labels import (
    SoftLabelSummary,
    as_unlabelled,
    at_temperature,
    join_soft_labels,
    read_soft_labels,
    with_soft_labels,
)
from nlicot.errors import DataError
from nlicot.records import Example

TRAIN = [
    Example(id="1", premise="P", hypothesis="H", label=1),
    Example(id="2", premise="P", hypothesis="I", label=0),
    Example(id="3", premise="P", hypothesis="H", label=1),
]
UNLABELLED = [Example(id="1", premise="Q", hypothesis="H"), Example(id="x", premise="Q", hypothesis="I")]
PAIRS = {"train": TRAIN, "unlabelled": UNLABELLED}


def soft_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "soft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def joined(folder: Path, *rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    return join_soft_labels(PAIRS, read_soft_labels(soft_file(folder, *rows)))


def complaint(folder: Path, *rows: dict[str, Any]) -> str:
    with pytest.raises(DataError) as raised:
        joined(folder, *rows)
    return str(raised.value).removeprefix(f"{folder / 'soft.jsonl'}:").strip()


def test_soft_labels_join_by_id_and_texts_else_by_texts(tmp_path: Path) -> None:
    found = joined(
        tmp_path,
        {"id": "1", "premise": "Q", "hypothesis": "H", "p_entailment": 0.1, "predicted_label": 0},
        {"id": "1", "premise": "P", "hypothesis": "H", "p_entailment": 0.2},
        {"id": 99, "premise": "P", "hypothesis": "I", "p_entailment": 0.3},
        {"premise": "Q", "hypothesis": "I", "p_entailment": 0.4},
    )
    assert found == {"train": {"1": 0.2, "2": 0.3}, "unlabelled": {"1": 0.1, "x": 0.4}}


def test_texts_without_an_id_are_those_of_every_such_pair_and_an_id_without_texts_is_enough(
    tmp_path: Path,
) -> None:
    found = joined(
        tmp_path,
        {"premise": "P", "hypothesis": "H", "p_entailment": 0.2},
        {"id": "x", "p_entailment": "0.5"},
    )
    assert found == {"train": {"1": 0.2, "3": 0.2}, "unlabelled": {"x": 0.5}}


def test_a_csv_of_another_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "soft.csv"
    path.write_text("id,p_entailment,note\n2,1,\nx,0.125,?\n", encoding="utf-8")
    assert join_soft_labels(PAIRS, read_soft_labels(path)) == {
        "train": {"2": 1.0},
        "unlabelled": {"x": 0.125},
    }


@pytest.mark.parametrize("names", ["premise,hypothesis", "sentence1,sentence2", "Premise,HYPOTHESIS"])
def test_texts_are_found_under_the_names_that_pairs_may_have(names: str, tmp_path: Path) -> None:
    path = tmp_path / "soft.csv"
    path.write_text(f"id,{names},p_entailment\nother,P,H,0.25\n", encoding="utf-8")
    assert join_soft_labels(PAIRS, read_soft_labels(path))["train"] == {"1": 0.25, "3": 0.25}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"p_entailment": 1.5},
            "2: found p_entailment 1.5, expected a probability of entailment from 0 to 1",
        ),
        ({"p_entailment": math.nan}, "2: found p_entailment nan, expected a probability of entailment"),
        ({"p_entailment": True}, "2: found p_entailment True, expected a probability of entailment"),
        ({"p_entailment": 10**400}, "2: found p_entailment 1000"),
        (
            {"prediction": 1},
            "2: found no p_entailment among 'prediction', expected one for each pair (`predict`",
        ),
        ({"p_entailment": 0.5}, "2: found no id among 'p_entailment', expected text"),
        (
            {"id": "2", "premise": "R", "hypothesis": "I", "p_entailment": 0.5},
            "2: the soft label of '2' matches no training pair (give its pair, too: --data.train_pairs or",
        ),
        ({"id": "9", "p_entailment": 0.5}, "2: the soft label of '9' matches no training pair"),
        (
            {"id": "2", "p_entailment": 0.5},
            "2: found p_entailment 0.5 of pair '2', after 0.7, expected one for",
        ),
    ],
)
def test_a_soft_label_that_cannot_be_used_is_refused_by_its_line(
    row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert complaint(tmp_path, {"id": "2", "p_entailment": 0.7}, row).startswith(expected)


def test_an_id_that_different_pairs_have_needs_their_texts(tmp_path: Path) -> None:
    splits = {"train": TRAIN, "unlabelled": [Example(id="1", premise="Other", hypothesis="one")]}
    with pytest.raises(DataError, match="found the id '1', which different pairs have, without their texts"):
        join_soft_labels(splits, read_soft_labels(soft_file(tmp_path, {"id": "1", "p_entailment": 0.9})))


def test_the_same_soft_label_twice_is_no_conflict(tmp_path: Path) -> None:
    rows = [{"id": "2", "p_entailment": 0.7}] * 2
    assert joined(tmp_path, *rows)["train"] == {"2": 0.7}


def test_soft_labels_of_a_file_win_over_those_of_the_column() -> None:
    own = [Example(id=f"{p}", premise="P", hypothesis="H", p_entailment=p) for p in (0.2, 0.8, 0.0)]
    found = with_soft_labels(RecordList([*own, TRAIN[0]], [2, 3, 4, 5]), {"0.8": 0.5, "1": 0.9}, 0.5)
    expected = [1 / 17, 0.5, 0.0, 81 / 82]
    assert [example.p_entailment for example in found] == pytest.approx(expected)
    assert found.lines == [2, 3, 4, 5]


def test_unlabelled_pairs_lose_their_labels_and_get_ids_of_their_own(tmp_path: Path) -> None:
    own = Example(id="1", premise="P", hypothesis="H", label=1, p_entailment=0.2)
    assert as_unlabelled(RecordList([own])) == [
        Example(id="unlabelled-1", premise="P", hypothesis="H", p_entailment=0.2)
    ]
    with pytest.raises(DataError) as raised:
        as_unlabelled(RecordList([own, TRAIN[1]], [2, 3], tmp_path / "pool.csv"))
    assert str(raised.value) == (
        f"{tmp_path / 'pool.csv'}:3: found no soft label of pair '2', expected one for each unlabelled pair "
        "(predict these pairs, and give the .jsonl instead, or as --data.soft_labels)"
    )


@pytest.mark.parametrize("p", [1e-300, 0.01, 0.3, 0.5, 0.77, 1 - 1e-12])
@pytest.mark.parametrize("temperature", [1e-4, 0.5, 1.0, 2.0, 50.0])
def test_a_temperature_divides_the_log_odds(p: float, temperature: float) -> None:
    found = at_temperature(p, temperature)
    log_odds = (math.log(p) - math.log1p(-p)) / temperature
    expected = 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
    assert found == pytest.approx(expected, abs=1e-12)
    assert at_temperature(0.0, temperature) == 0.0
    assert at_temperature(1.0, temperature) == 1.0


def test_a_summary_is_read_back_and_says_what_is_transductive() -> None:
    stored = {
        "files": {"soft.jsonl": "0123456789abcdef"},
        "num_pairs": 5,
        "num_unlabelled": 2,
        "num_in_test": 0,
        "temperature": 1.0,
    }
    summary = SoftLabelSummary.in_summary({"soft_labels": stored})
    line = (
        "soft labels of 5 pairs, 2 of them unlabelled, at temperature 1, from soft.jsonl "
        "(sha256 0123456789ab)"
    )
    assert str(summary) == line
    transductive = SoftLabelSummary.in_summary({"soft_labels": {**stored, "num_in_test": 2}})
    assert str(transductive) == f"{line}; TRANSDUCTIVE: 2 are pairs of the test split"
    assert SoftLabelSummary.in_summary({}) is None
