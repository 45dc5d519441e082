from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from nlicot.data import pairs
from nlicot.data.pairs import ColumnNames, LabelMap, PairFormat, labelled_pairs_shown, read_examples
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example, content_id

THREE_WAY = LabelMap({"entailment": 1, "neutral": 0, "contradiction": 0})


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
        read_examples(path, PairFormat(**options))
    return str(raised.value).removeprefix(f"{path}:").strip()


def labels_of(path: Path, **options: Any) -> list[int | None]:
    return [example.label for example in read_examples(path, PairFormat(**options))]


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
    path = csv_file(tmp_path, "sentence,true_label,context,Label,premise,hypothesis\nQ,,R,1,P,H\n")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        assert read_examples(path)[0].premise == "P"
    assert caplog.messages == [
        f"{path}: premise is read as premise, not context or sentence, "
        "Label is read as label, not true_label (--columns names others)"
    ]
    caplog.clear()
    columns = ColumnNames(premise="context", label="label")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        assert read_examples(path, PairFormat(columns=columns))[0].premise == "R"
    assert caplog.messages == [f"{path}: took the column context for premise"]


@pytest.mark.parametrize(
    "header, line",
    [
        ("label,gold_label", "found '0' as label and '1' as gold_label"),
        ("gold,Gold_Label", "found '1' as Gold_Label and '0' as gold"),
    ],
)
def test_two_columns_of_labels_must_agree(tmp_path: Path, header: str, line: str) -> None:
    path = csv_file(tmp_path, f"{header},premise,hypothesis\n1,1.0,P,H\n0,false,P,I\n0,1,P,J\n")
    assert complaint(path) == f"4: {line}, expected one label (name the column to read: --columns label=NAME)"
    assert labels_of(path, columns=ColumnNames(label=header.partition(",")[0])) == [1, 0, 0]
    path = csv_file(tmp_path, "label,gold_label,premise,hypothesis\n,1,P,H\n")
    assert complaint(path).startswith("2: found '' as label and '1' as gold_label, expected one label (")


def test_a_column_has_one_role(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,1\n")
    for columns, roles in (
        ({"premise": "Hypothesis"}, "'hypothesis' as premise and as hypothesis"),
        ({"phenomenon": "label"}, "'label' as label and as phenomenon"),
    ):
        assert complaint(path, columns=ColumnNames(columns)).startswith(
            f"1: found the column {roles}, expected a column for each (--columns "
        )


def test_pairs_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis\nP,H\nA dog runs.,An animal moves.\n")
    assert [example.id for example in read_examples(path)] == [content_id("P", "H"), "pair-3a39140c0fd4"]


def test_a_repeated_pair_is_kept_under_its_own_id(tmp_path: Path) -> None:
    base = content_id("P", "H")
    rows = f"P,H,,1\nP,H,,0\nQ,H,own,1\nP,H,,1\nP,H,{base}-3,1\n"
    path = csv_file(tmp_path, "premise,hypothesis,id,label\n" + rows)
    ids = [example.id for example in read_examples(path)]
    assert ids == [base, f"{base}-2", "own", f"{base}-4", f"{base}-3"]


def test_a_repeated_id_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'id,premise,hypothesis\na,"P\n",H\nb,P,H\n a ,P,H\n')
    assert complaint(path) == (
        "5: found the id 'a' again, after line 2, expected each id once "
        "(--columns id= makes ids from the texts)"
    )


def test_words_become_labels_through_a_label_map(tmp_path: Path) -> None:
    rows = "P,H, entailment \nP,I,neutral\nP,J,contradiction\n"
    path = csv_file(tmp_path, "premise,hypothesis,label\n" + rows)
    assert labels_of(path, label_map=THREE_WAY) == [1, 0, 0]


def test_numbers_become_labels_through_a_label_map(tmp_path: Path) -> None:
    rows = [{"premise": "P", "hypothesis": "H", "label": label} for label in (0, 1, 2)]
    assert labels_of(jsonl_file(tmp_path, *rows), label_map=LabelMap.parse("0=1,1=0,2=0")) == [1, 0, 0]


def test_a_map_of_0_and_1_is_one_of_every_spelling_of_them(tmp_path: Path) -> None:
    rows = [
        {"premise": f"P{n}", "hypothesis": "H", "label": label}
        for n, label in enumerate((0, 1, True, False, 1.0, "0.0", "True"))
    ]
    path = jsonl_file(tmp_path, *rows)
    assert labels_of(path) == [0, 1, 1, 0, 1, 0, 1]
    assert labels_of(path, label_map=LabelMap.parse("0=1,1=0")) == [1, 0, 0, 1, 0, 1, 0]
    assert "None" in complaint(
        jsonl_file(tmp_path, rows[0] | {"label": "yes"}), label_map=LabelMap.parse("None=1")
    )


def test_words_without_a_label_map_are_an_error_that_suggests_one(tmp_path: Path) -> None:
    rows = "P,H,1\nP,I,entailment\nP,J,neutral\nP,K,entailment\n"
    assert complaint(csv_file(tmp_path, "premise,hypothesis,label\n" + rows)) == (
        "3: found the labels 'entailment', 'neutral', expected 0 or 1 (map them to 0 and 1, "
        "for example --label_map 1=1,entailment=1,0=0,neutral=0)"
    )
    label_map = LabelMap.parse("1=1,entailment=1,0=0,neutral=0")
    assert labels_of(tmp_path / "pairs.csv", label_map=label_map) == [1, 1, 0, 1]


def test_a_label_outside_the_label_map_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,entailment\nP,I,-\n")
    assert complaint(path, label_map=THREE_WAY) == (
        "3: found the label '-', expected entailment or neutral or contradiction (map them to 0 and 1, "
        "for example --label_map entailment=1,neutral=0,contradiction=0,-=skip)"
    )


@pytest.mark.parametrize(
    "label, found",
    [(2, "'2'"), (-1, "'-1'"), (0.5, "'0.5'"), ("0.5", "'0.5'"), ("yes", "'yes'"), (float("nan"), "'nan'")],
)
def test_a_label_other_than_0_or_1_is_an_error(tmp_path: Path, label: object, found: str) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": label})
    assert complaint(path).startswith(f"1: found the label {found}, expected 0 or 1 (")


def test_labels_may_be_floats_and_booleans(tmp_path: Path) -> None:
    labels = [1.0, 0.0, True, False, "1.0", "0.0", " True", "FALSE"]
    rows = [{"premise": "P", "hypothesis": "H", "label": label} for label in labels]
    assert labels_of(jsonl_file(tmp_path, *rows)) == [1, 0] * 4
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,1.0\nP,I,0.0\nP,J,true\nP,K,False\n")
    assert labels_of(path) == [1, 0, 1, 0]


def test_a_column_of_empty_labels_means_unlabelled(tmp_path: Path) -> None:
    assert labels_of(csv_file(tmp_path, "premise,hypothesis,label\nP,H,\nP,I, \n")) == [None, None]
    assert labels_of(csv_file(tmp_path, "premise,hypothesis\nP,H\n")) == [None]
    assert labels_of(jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": None})) == [None]


@pytest.mark.parametrize("rows, line, labelled", [("P,H,1\nP,I,\n", 3, 2), ("P,H,\nP,I,0\n", 2, 3)])
def test_labels_for_some_pairs_only_are_an_error(tmp_path: Path, rows: str, line: int, labelled: int) -> None:
    assert complaint(csv_file(tmp_path, "premise,hypothesis,label\n" + rows)) == (
        f"{line}: found no label, expected one, as on line {labelled} "
        "(label every pair or none, or leave such pairs out: --label_map 1=1,0=0,nan=skip)"
    )


def test_a_soft_label_is_read_and_takes_the_place_of_a_label(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label,p_entailment\nP,H,1,0.25\nP,I,,1e-3\nP,J,0,\n")
    found = [(example.label, example.p_entailment) for example in read_examples(path)]
    assert found == [(1, 0.25), (None, 0.001), (0, None)]
    path = jsonl_file(tmp_path, *({"premise": "P", "hypothesis": "H", "soft": p} for p in (0, 1, None)))
    columns = ColumnNames.parse("p_entailment=soft")
    read = read_examples(path, PairFormat(columns=columns))
    assert [example.p_entailment for example in read] == [0.0, 1.0, None]


def test_pairs_with_neither_label_are_still_gaps(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label,p_entailment\nP,H,1,\nP,I,,0.3\nP,J,,\n")
    assert complaint(path).startswith("4: found no label, expected one, as on line 2 ")
    label_map = LabelMap.parse("1=1,0=0,nan=skip")
    read = read_examples(path, PairFormat(label_map=label_map))
    assert [(example.label, example.p_entailment) for example in read] == [(1, None), (None, 0.3)]


@pytest.mark.parametrize("value", ["1.01", "-0.1", "nan", "inf", "x", "80 %"])
def test_a_soft_label_outside_0_to_1_is_an_error(tmp_path: Path, value: str) -> None:
    path = csv_file(tmp_path, f"premise,hypothesis,p_entailment\nP,H,0.5\nP,I,{value}\n")
    expected = f"3: found p_entailment '{value}', expected a probability of entailment from 0 to 1"
    assert complaint(path) == expected


@pytest.mark.parametrize("name", ["nan", "NaN"])
def test_pairs_without_a_label_are_left_out_by_the_name_nan(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    label_map = LabelMap.parse(f"1=1,0=0,{name}=skip")
    labels = [None, 1, "", float("nan"), "NaN", " ", 0]
    rows = [{"premise": "P", "hypothesis": "H", "label": label} for label in labels]
    path = jsonl_file(tmp_path, *rows)
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        examples = read_examples(path, PairFormat(label_map=label_map))
    assert [(example.label, line) for example, line in zip(examples, examples.lines, strict=True)] == [
        (1, 2),
        (0, 7),
    ]
    assert sum("skipped 5 pairs of label " in message for message in caplog.messages) == 1
    assert complaint(path, label_map=LabelMap({"nan": None})) == (
        "2: found the labels '1', '0', expected nan "
        "(map them to 0 and 1, for example --label_map 1=1,0=0,nan=skip)"
    )
    # A file to predict without any label keeps its pairs under the run's map.
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": None})
    assert labels_of(path, label_map=label_map) == [None]
    assert labels_of(jsonl_file(tmp_path, *rows[:3]), label_map=label_map) == [1]


def test_a_map_that_gives_gaps_a_label_is_not_used_for_empty_ones(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,1\nP,I,\n")
    assert complaint(path, label_map=LabelMap.parse("1=1,nan=0")).startswith("3: found no label, expected")


def test_a_missing_column_is_an_error_that_lists_the_existing_ones(tmp_path: Path) -> None:
    assert complaint(csv_file(tmp_path, "\npremise,text\nP,H\n")) == (
        "2: found the columns 'premise', 'text', expected hypothesis too "
        "(give their names: --columns hypothesis=NAME)"
    )
    assert complaint(csv_file(tmp_path, "premise;hypothesis\nP;H\n")) == (
        "1: found the columns 'premise;hypothesis', expected premise and hypothesis too "
        '(the delimiter seems to be a semicolon: read it with --delimiter ";")'
    )
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H"}, {"premise": "P"})
    assert complaint(path) == (
        "2: found the columns 'premise', expected hypothesis too "
        "(give their names: --columns hypothesis=NAME)"
    )


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


def test_a_label_map_is_parsed() -> None:
    assert LabelMap.parse("entailment=1,neutral=0, not sure = 0 ,a=b=1,-=skip,-1=skip") == {
        "entailment": 1,
        "neutral": 0,
        "not sure": 0,
        "a=b": 1,
        "-": None,
        "-1": None,
    }
    mapping = {"entailment": 1, "-": "skip"}
    assert str(LabelMap.parse(mapping)) == "entailment=1,-=skip"


@pytest.mark.parametrize("text, part", [("", ""), ("a", "a"), ("a=2", "a=2"), ("=1", "=1"), ("a=1,", "")])
def test_an_invalid_label_map_is_a_config_error(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LabelMap.parse(text)
    assert str(raised.value) == (
        f"--label_map: found {part!r}, expected NAME=0, NAME=1 or NAME=skip, "
        "such as entailment=1,neutral=0,contradiction=0"
    )


def test_a_repeated_name_in_a_label_map_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^--label_map: found 'a' twice, expected each name once$"):
        LabelMap.parse("a=1,a=0")


def test_pairs_that_the_label_map_skips_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "P,H,entailment\nP,I,-\nP,J,-1\nP,K,neutral\nP,L,-\n"
    path = csv_file(tmp_path, "premise,hypothesis,label\n" + rows)
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        examples = read_examples(
            path, PairFormat(label_map=LabelMap.parse("entailment=1,neutral=0,-=skip,-1=skip"))
        )
    assert [(example.hypothesis, example.label) for example in examples] == [("H", 1), ("K", 0)]
    assert list(examples.lines) == [2, 5]
    assert caplog.messages == [f"{path}: skipped 3 pairs of label '-', '-1'"]


@pytest.mark.parametrize(
    "labels, label_map, advice",
    [
        (["entailment", "-", "neutral"], None, "entailment=1,neutral=0,-=skip"),
        (["1", "-1", "0"], None, "1=1,0=0,-1=skip"),
        ([0, 1, 2, -1], None, "0=1,1=0,2=0,-1=skip"),
        (["e", "n", "c"], None, "e=1,n=0,c=0"),
        (["ENTAILMENT", "-"], THREE_WAY, "entailment=1,neutral=0,contradiction=0,-=skip"),
        ([1, -1], LabelMap({"-1": None}), "1=1,0=0,-1=skip"),
        ([1.0, 0.0, "-1.0"], THREE_WAY, "1=1,0=0,-1=skip"),
        ([True, "NaN"], None, "1=1,0=0,nan=skip"),
        (["0", "1"], LabelMap({"0": 1}), "0=1,1=0"),
        (["1", "0.5", "0"], None, "1=1,0=0,0.5=skip"),
        (["1", "00"], None, "1=1,0=0,00=skip"),
        (["Entailment", "ENTAILMENT", "not it"], None, "'Entailment=1,not it=0'"),
        (["1", "entailment", "neutral"], THREE_WAY, "1=1,entailment=1,0=0,neutral=0,contradiction=0"),
    ],
)
def test_the_suggested_label_map_fits_the_files_labels(
    tmp_path: Path, labels: list[object], label_map: LabelMap | None, advice: str
) -> None:
    path = jsonl_file(tmp_path, *({"premise": "P", "hypothesis": "H", "label": label} for label in labels))
    message = complaint(path, label_map=label_map)
    assert message.endswith(f"(map them to 0 and 1, for example --label_map {advice})")
    label_map = LabelMap.parse(advice.strip("'"))
    assert len(labels_of(path, label_map=label_map)) == len(labels) - advice.count("skip")


@pytest.mark.parametrize("labels", [["1", "0"], [1.0, 0.0], [True, False], ["0"]])
def test_labels_of_0_and_1_need_no_map(tmp_path: Path, labels: list[object]) -> None:
    path = jsonl_file(tmp_path, *({"premise": "P", "hypothesis": "H", "label": label} for label in labels))
    assert complaint(path, label_map=THREE_WAY).endswith(
        "expected entailment or neutral or contradiction (labels are 0 and 1 already: leave --label_map out)"
    )


@pytest.mark.parametrize(
    "labels, label_map, advice",
    [
        ([1, 2], None, "say what each label is, 1 is entailment: --label_map '1=?,2=?'"),
        (["red", "blue"], None, "say what each label is, 1 is entailment: --label_map 'red=?,blue=?'"),
        ([[1], [0]], None, "say what each label is, 1 is entailment: --label_map '[1]=?,[0]=?'"),
        (
            ["entailment", "neutral"],
            LabelMap({"entailment": 0}),
            "say what each label is, 1 is entailment: --label_map 'entailment=0,neutral=?'",
        ),
        ([-1, -1], None, "to read the pairs without labels: --columns label= and no --label_map"),
        ([*"abcdfghij"], None, "is this the column of labels? --columns label=NAME names another"),
        (["1" * 5000], None, "is this the column of labels? --columns label=NAME names another"),
        (["yes, it is"], None, "is this the column of labels? --columns label=NAME names another"),
    ],
)
def test_advice_on_labels_that_only_the_user_knows_maps_none_of_them(
    tmp_path: Path, labels: list[object], label_map: LabelMap | None, advice: str
) -> None:
    path = jsonl_file(tmp_path, *({"premise": "P", "hypothesis": "H", "label": label} for label in labels))
    assert complaint(path, label_map=label_map).endswith(f" ({advice})")


def test_a_map_that_gives_every_pair_one_label_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,Entailment\nP,I,neutral\n")
    with caplog.at_level(logging.WARNING, logger=pairs.__name__):
        assert labels_of(path, label_map=LabelMap.parse("entailment=0,neutral=0")) == [0, 0]
        assert labels_of(path, label_map=LabelMap.parse("entailment=1,neutral=skip")) == [1]
    assert caplog.messages == [f"{path}: every pair has label 0 under this label map"]


def test_names_in_a_map_match_in_any_case_unless_they_disagree(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,entailment\nP,I,Neutral\n")
    assert labels_of(path, label_map=LabelMap.parse("ENTAILMENT=1,NEUTRAL=0")) == [1, 0]
    assert labels_of(path, label_map=LabelMap.parse("E=1,entailment=1,Entailment=0,NEUTRAL=0")) == [1, 0]
    label_map = LabelMap.parse("ENTAILMENT=1,Entailment=0,NEUTRAL=0")
    assert complaint(path, label_map=label_map).startswith("2: found the label 'entailment', expected ")


def test_labels_are_found_in_a_map_in_lower_case_and_without_a_decimal_zero(tmp_path: Path) -> None:
    label_map = LabelMap.parse("1=0,0=1,true=1,entailment=1")
    rows = [{"premise": "P", "hypothesis": "H", "label": each} for each in (1.0, "0.0", True, "ENTAILMENT")]
    assert labels_of(jsonl_file(tmp_path, *rows), label_map=label_map) == [0, 1, 1, 1]


def test_ids_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "id,premise,hypothesis\n7,P,H\n1.0,P,I\n 1 ,P,J\n")
    assert [example.id for example in read_examples(path)] == ["7", "1.0", "1"]
    path = jsonl_file(
        tmp_path, *({"id": each, "premise": "P", "hypothesis": "H"} for each in (7, 1.0, "2.50"))
    )
    assert [example.id for example in read_examples(path)] == ["7", "1.0", "2.50"]


def test_columns_are_named_by_the_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_file(tmp_path, "Text,claim,gold_label,Topic,key,premise\nP,H,1,law,k,?\n")
    columns = ColumnNames.parse("premise=text, hypothesis=claim,phenomenon=topic,id=key")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        examples = read_examples(path, PairFormat(columns=columns))
    assert examples == [Example(id="k", premise="P", hypothesis="H", label=1, phenomenon="law")]
    assert caplog.messages == [
        f"{path}: took the column key for id, Text for premise, claim for hypothesis, gold_label for label, "
        "Topic for phenomenon"
    ]


@pytest.mark.parametrize("text", ["", "premise", "=a", "text=a", "label=a,label=b"])
def test_wrong_column_names_are_a_config_error(text: str) -> None:
    part = text.rpartition(",")[2]
    with pytest.raises(ConfigError) as raised:
        ColumnNames.parse(text)
    assert str(raised.value) == (
        f"--columns: found {part!r}, expected COLUMN=NAME for some of "
        "id, premise, hypothesis, label, phenomenon, p_entailment, each once"
    )


def test_a_column_cannot_be_named_for_two_of_ours() -> None:
    with pytest.raises(ConfigError) as raised:
        ColumnNames.parse("premise=Text,id=,label=,hypothesis=text")
    assert str(raised.value) == (
        "--columns: found 'text' for premise and for hypothesis, expected a column of its own for each"
    )


def test_a_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "uid,premise,hypothesis,label,heuristic\n7,P,H,?,x\n7,P,I,?,y\n")
    columns = ColumnNames.parse("id=,label=,phenomenon=")
    assert read_examples(path, PairFormat(columns=columns)) == [
        Example(id=content_id("P", "H"), premise="P", hypothesis="H"),
        Example(id=content_id("P", "I"), premise="P", hypothesis="I"),
    ]


def test_a_named_column_that_is_missing_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,1\n")
    for column in ("premise", "label", "id", "phenomenon"):
        columns = ColumnNames({column: "other"})
        assert complaint(path, columns=columns) == (
            "1: found the columns 'premise', 'hypothesis', 'label', expected 'other' too "
            f"(--columns names it as {column})"
        )


def test_a_label_map_needs_a_column_of_labels(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,verdict\nP,H,entailment\n")
    assert complaint(path, label_map=THREE_WAY) == (
        "1: found the columns 'premise', 'hypothesis', 'verdict', expected label too "
        "(--label_map needs one; give its name: --columns label=NAME)"
    )
    assert labels_of(path, label_map=THREE_WAY, columns=ColumnNames(label="verdict")) == [1]


def test_a_test_file_may_lack_the_labels_that_a_run_has_settings_for(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis\nP,H\n")
    columns = ColumnNames(label="verdict", phenomenon="topic")
    pair_format = PairFormat(label_map=THREE_WAY, columns=columns)
    assert read_examples(path, pair_format, labels_optional=True)[0].label is None
    columns["id"] = "key"
    with pytest.raises(DataError, match=r"expected 'key' too"):
        read_examples(path, pair_format, labels_optional=True)


def test_columns_that_differ_only_in_case_are_an_error_if_they_are_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label,Label\nA dog runs.,An animal moves.,1,0\n")
    assert complaint(path) == (
        "1: found the columns 'label' and 'Label', expected each name once (case makes no difference)"
    )
    path = jsonl_file(tmp_path, {"premise": "P", "Premise ": "Q", "hypothesis": "H"})
    assert complaint(path).startswith(
        "1: found the columns 'premise' and 'Premise ', expected each name once"
    )
    assert labels_of(csv_file(tmp_path, "premise,hypothesis,label,note,Note\nP,H,1,a,b\n")) == [1]


@pytest.mark.parametrize(
    "name, delimiter, separator",
    [("a.csv", ";", ";"), ("a.csv", "tab", "\t"), ("a.csv", "\\t", "\t"), ("a.tsv", "|", "|")],
)
def test_another_delimiter_is_read(tmp_path: Path, name: str, delimiter: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text("premise,hypothesis,label\nA dog runs.,It moves.,1\n".replace(",", separator))
    assert read_examples(path, PairFormat(delimiter=delimiter))[0].hypothesis == "It moves."


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PairFormat(delimiter=delimiter)
    assert str(raised.value) == f"--delimiter: found {delimiter!r}, expected one character, or tab"


def test_semicolons_with_commas_in_the_texts_are_recognised(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "\ufeffpremise;hypothesis;label\r\nA dog, off its lead, runs.;It moves.;1\r\n")
    assert complaint(path) == (
        "2: found 3 fields, expected 1 as in the header "
        '(the delimiter seems to be a semicolon: read it with --delimiter ";")'
    )
    assert read_examples(path, PairFormat(delimiter=";"))[0].premise == "A dog, off its lead, runs."


def test_a_pair_of_each_label_is_shown_with_its_reading() -> None:
    examples = [
        Example(id="a", premise="A dog\nruns.", hypothesis="An animal moves.", label=0),
        Example(id="b", premise="P", hypothesis="H", label=1),
        Example(id="c", premise="Q", hypothesis="H", label=1),
    ]
    assert labelled_pairs_shown(examples) == [
        "label 1, read as entailment: 'P' -> 'H'",
        "label 0, read as no entailment: 'A dog\\nruns.' -> 'An animal moves.'",
    ]
    assert labelled_pairs_shown([Example(id="a", premise="P", hypothesis="H")]) == []


@pytest.mark.parametrize("text", ["[INST] a [/INST]", "</s>", "<|im_end|>", "nan", "\u202e", "a\u2028b"])
def test_texts_that_other_programs_give_a_meaning_stay_as_they_are(tmp_path: Path, text: str) -> None:
    path = csv_file(tmp_path, f"premise,hypothesis,note\n{text},H,\n")
    assert read_examples(path)[0].premise == text
    path = jsonl_file(tmp_path, {"premise": text, "hypothesis": "H", "note": float("nan")})
    assert read_examples(path)[0].premise == text
