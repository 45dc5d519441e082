from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from nlicot.data import pairs
from nlicot.data.pairs import read_examples
from nlicot.errors import DataError
from nlicot.records import Example, content_id

THREE_WAY = {"entailment": 1, "neutral": 0, "contradiction": 0}


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def jsonl_file(folder: Path, *objects: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        read_examples(path, **options)
    return str(raised.value).removeprefix(f"{path}:").strip()


def labels_of(path: Path, **options: Any) -> list[int | None]:
    return [example.label for example in read_examples(path, **options)]


def test_pairs_are_read_verbatim(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path,
        'id,premise,hypothesis,label,phenomenon,note\nx," A, b ","two\nlines",1,negation,?\ny,P,H,0,,\n',
    )
    examples = read_examples(path)
    assert examples == [
        Example(id="x", premise=" A, b ", hypothesis="two\nlines", label=1, phenomenon="negation"),
        Example(id="y", premise="P", hypothesis="H", label=0),
    ]
    assert list(examples.lines) == [2, 4]


def test_json_lines_read_as_the_same_pairs(tmp_path: Path) -> None:
    path = jsonl_file(
        tmp_path,
        {"id": 7, "premise": "P", "hypothesis": "H", "label": 1, "extra": {"deep": float("nan")}},
        {"id": "b", "Sentence1": "Q", "sentence2": "H", "gold_label": "0"},
    )
    assert read_examples(path) == [
        Example(id="7", premise="P", hypothesis="H", label=1),
        Example(id="b", premise="Q", hypothesis="H", label=0),
    ]


def test_a_json_array_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[\n{"id": 1, "premise": "P", "hypothesis": "H"}\n]')
    assert read_examples(path) == [Example(id="1", premise="P", hypothesis="H")]


def test_alias_columns_are_accepted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_file(tmp_path, " Sentence1 ,SENTENCE2,Gold_Label\nP,H,1\nQ,H,0\n")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        examples = read_examples(path)
    assert [(example.premise, example.hypothesis, example.label) for example in examples] == [
        ("P", "H", 1),
        ("Q", "H", 0),
    ]
    assert caplog.messages == [
        f"{path}: took the column Sentence1 for premise, SENTENCE2 for hypothesis, Gold_Label for label"
    ]


def test_our_own_column_name_precedes_an_alias(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_file(tmp_path, "true_label,gold_label,Label,premise,hypothesis\n0,0,1,P,H\n")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        assert labels_of(path) == [1]
    assert caplog.messages == []
    assert labels_of(csv_file(tmp_path, "true_label,gold_label,premise,hypothesis\n0,1,P,H\n")) == [1]


def test_pairs_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis\nP,H\nA dog runs.,An animal moves.\n")
    assert [example.id for example in read_examples(path)] == [content_id("P", "H"), "pair-3a39140c0fd4"]
    assert read_examples(path, id_prefix="test-")[1].id == "test-pair-3a39140c0fd4"


def test_a_repeated_pair_is_kept_under_its_own_id(tmp_path: Path) -> None:
    base = content_id("P", "H")
    rows = f"P,H,,1\nP,H,,0\nQ,H,own,1\nP,H,,1\nP,H,{base}-3,1\n"
    path = csv_file(tmp_path, "premise,hypothesis,id,label\n" + rows)
    ids = [example.id for example in read_examples(path)]
    assert ids == [base, f"{base}-2", "own", f"{base}-4", f"{base}-3"]


def test_a_repeated_id_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'id,premise,hypothesis\na,"P\n",H\nb,P,H\n a ,P,H\n')
    assert complaint(path) == "5: found the id 'a' again, after line 2, expected each id once"


def test_words_become_labels_through_a_label_map(tmp_path: Path) -> None:
    rows = "P,H, entailment \nP,I,neutral\nP,J,contradiction\n"
    path = csv_file(tmp_path, "premise,hypothesis,label\n" + rows)
    assert labels_of(path, label_map=THREE_WAY) == [1, 0, 0]


def test_numbers_become_labels_through_a_label_map(tmp_path: Path) -> None:
    rows = [{"premise": "P", "hypothesis": "H", "label": label} for label in (0, 1, 2)]
    assert labels_of(jsonl_file(tmp_path, *rows), label_map={"0": 1, "1": 0, "2": 0}) == [1, 0, 0]


def test_words_without_a_label_map_are_an_error_that_suggests_one(tmp_path: Path) -> None:
    rows = "P,H,1\nP,I,entailment\nP,J,neutral\nP,K,entailment\n"
    assert complaint(csv_file(tmp_path, "premise,hypothesis,label\n" + rows)) == (
        "3: found the labels 'entailment', 'neutral', expected 0 or 1 (map them to 0 and 1, "
        "for example --label_map entailment=1,neutral=0,contradiction=0)"
    )


def test_a_label_outside_the_label_map_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,entailment\nP,I,-\n")
    assert complaint(path, label_map=THREE_WAY) == (
        "3: found the label '-', expected entailment or neutral or contradiction (map them to 0 and 1, "
        "for example --label_map entailment=1,neutral=0,contradiction=0)"
    )


@pytest.mark.parametrize(
    "label, found", [(2, "'2'"), (-1, "'-1'"), (1.0, "'1.0'"), ("0.0", "'0.0'"), (float("nan"), "'nan'")]
)
def test_a_label_other_than_0_or_1_is_an_error(tmp_path: Path, label: object, found: str) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": label})
    assert complaint(path).startswith(f"1: found the label {found}, expected 0 or 1 (")


def test_true_is_not_a_label(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": True})
    assert complaint(path).startswith("1: found the label 'True', expected 0 or 1 (")


def test_a_column_of_empty_labels_means_unlabelled(tmp_path: Path) -> None:
    assert labels_of(csv_file(tmp_path, "premise,hypothesis,label\nP,H,\nP,I, \n")) == [None, None]
    assert labels_of(csv_file(tmp_path, "premise,hypothesis\nP,H\n")) == [None]
    assert labels_of(jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": None})) == [None]


@pytest.mark.parametrize("rows, line, labelled", [("P,H,1\nP,I,\n", 3, 2), ("P,H,\nP,I,0\n", 2, 3)])
def test_labels_for_some_pairs_only_are_an_error(tmp_path: Path, rows: str, line: int, labelled: int) -> None:
    assert complaint(csv_file(tmp_path, "premise,hypothesis,label\n" + rows)) == (
        f"{line}: found no label, expected one, as on line {labelled} (label every pair or none)"
    )


def test_a_missing_column_is_an_error_that_lists_the_existing_ones(tmp_path: Path) -> None:
    assert complaint(csv_file(tmp_path, "\npremise,text\nP,H\n")) == (
        "2: found the columns 'premise', 'text', expected hypothesis too"
    )
    assert complaint(csv_file(tmp_path, "premise;hypothesis\nP;H\n")) == (
        "1: found the columns 'premise;hypothesis', expected premise and hypothesis too "
        "(separate the columns with commas)"
    )
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H"}, {"premise": "P"})
    assert complaint(path) == "2: found the columns 'premise', expected hypothesis too"


@pytest.mark.parametrize("row, name", [('"  ",H', "premise"), ("P,", "hypothesis")])
def test_an_empty_text_is_an_error(tmp_path: Path, row: str, name: str) -> None:
    path = csv_file(tmp_path, f"premise,hypothesis\nP,H\n{row}\n")
    assert complaint(path) == f"3: found an empty {name}, expected text"


@pytest.mark.parametrize(
    "field, value, found",
    [
        ("premise", 5, "premise 5, expected a string"),
        ("hypothesis", ["H"], "hypothesis ['H'], expected a string"),
        ("premise", None, "an empty premise, expected text"),
        ("id", 1.5, "id 1.5, expected a string"),
        ("id", True, "id True, expected a string"),
        ("phenomenon", {}, "phenomenon {}, expected a string"),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error(tmp_path: Path, field: str, value: object, found: str) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", field: value})
    assert complaint(path) == f"1: found {found}"


def test_text_that_utf8_cannot_encode_is_an_error(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"premise": "a \ud83d", "hypothesis": "H"})
    assert complaint(path) == (
        "1: found half a surrogate pair (\\ud83d) in premise, expected text that UTF-8 can hold"
    )
    path = csv_file(tmp_path, "premise,hypothesis\nP,a\0b\n")
    assert complaint(path) == (
        "2: found a NUL character in hypothesis, expected text (save the file as UTF-8)"
    )


@pytest.mark.parametrize("text", ["", "\n\n", "premise,hypothesis\n"])
def test_a_file_without_pairs_is_an_error(tmp_path: Path, text: str) -> None:
    assert complaint(csv_file(tmp_path, text)) == "found no rows, expected a row for each pair"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    csv_file(tmp_path, "")
    assert complaint(tmp_path / "pair.csv") == "no such file (did you mean pairs.csv?)"


def test_a_repeated_id_on_one_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    row = {"id": "a", "premise": "P", "hypothesis": "H"}
    path.write_text(json.dumps([row, row]))
    with pytest.raises(DataError, match=r"pairs\.json:1: found the id 'a' again, after line 1, expected"):
        read_examples(path)


def test_ids_made_from_content_differ_from_all_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = content_id("P", "H")
    path = tmp_path / "train.csv"
    # The first row's made id is a given one further down, and so is the first free number.
    path.write_text(f"id,premise,hypothesis\n,P,H\n,P,H\n{base},Q,H\n{base}-2,R,H\n,S,H\n,S,H\n")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        ids = [pair.id for pair in read_examples(path)]
    other = content_id("S", "H")
    assert ids == [f"{base}-3", f"{base}-4", base, f"{base}-2", other, f"{other}-2"]
    assert caplog.messages == [f"{path}: 2 pairs appear more than once; all are kept"]


def test_many_mixed_ids_are_numbered_as_one_by_one(tmp_path: Path) -> None:
    chosen = random.Random(0)
    rows = [(chosen.choice(["", f"own-{i}"]), f"P{chosen.randrange(40)}") for i in range(300)]
    path = tmp_path / "train.csv"
    path.write_text("id,premise,hypothesis\n" + "".join(f"{id},{premise},H\n" for id, premise in rows))
    taken = {id for id, _ in rows if id}
    expected = []
    for id, premise in rows:
        base, number = content_id(premise, "H"), 1
        name = id or base
        while not id and name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        expected.append(name)
    assert [pair.id for pair in read_examples(path)] == expected


@pytest.mark.parametrize("split, num_pairs", [("train", 5237), ("dev", 500), ("test", 3302)])
def test_the_shared_tasks_pairs_load(real_data: Path, split: str, num_pairs: int) -> None:
    examples = read_examples(real_data / "comp34812" / f"{split}.csv")
    assert len(examples) == num_pairs
    assert len({example.id for example in examples}) == num_pairs
    assert {example.label for example in examples} == ({None} if split == "test" else {0, 1})


def test_the_predecessors_pairs_load_unchanged(real_data: Path) -> None:
    assert len(read_examples(real_data / "original" / "sample.csv")) == 100
