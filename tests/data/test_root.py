from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nlicot.data import pairs
from nlicot.data import root as storage
from nlicot.data.root import (
    SAMPLE_ROOT,
    DataRoot,
    parse_label_map,
    read_examples,
    read_reflections,
    read_scores,
    read_thoughts,
    working_root,
)
from nlicot.errors import ConfigError, DataError
from nlicot.records import (
    Example,
    Provenance,
    Reflection,
    Score,
    Thought,
    Usage,
    content_id,
    to_json_dict,
)

THREE_WAY = {"entailment": 1, "neutral": 0, "contradiction": 0}

THOUGHT = {"id": "a", "premise": "P", "hypothesis": "H", "thought_process": "T", "predicted_label": 0}
REFLECTION = {
    **THOUGHT,
    "true_label": 1,
    "error_analysis": "E",
    "improved_thought_process": "I",
    "reflected_label": 1,
}


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


def test_pairs_are_read_as_they_stand(tmp_path: Path) -> None:
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


def test_other_peoples_column_names_are_taken_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_our_own_column_name_goes_before_an_alias(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_file(tmp_path, "true_label,gold_label,Label,premise,hypothesis\n0,0,1,P,H\n")
    with caplog.at_level(logging.INFO, logger=pairs.__name__):
        assert labels_of(path) == [1]
    assert caplog.messages == []
    assert labels_of(csv_file(tmp_path, "true_label,gold_label,premise,hypothesis\n0,1,P,H\n")) == [1]


def test_pairs_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis\nP,H\nA dog runs.,An animal moves.\n")
    assert [example.id for example in read_examples(path)] == [content_id("P", "H"), "pair-3a39140c0fd4"]
    assert read_examples(path, id_prefix="test-")[1].id == "test-pair-3a39140c0fd4"


def test_a_pair_that_comes_again_is_kept_under_its_own_id(tmp_path: Path) -> None:
    base = content_id("P", "H")
    rows = f"P,H,,1\nP,H,,0\nQ,H,own,1\nP,H,,1\nP,H,{base}-3,1\n"
    path = csv_file(tmp_path, "premise,hypothesis,id,label\n" + rows)
    ids = [example.id for example in read_examples(path)]
    assert ids == [base, f"{base}-2", "own", f"{base}-4", f"{base}-3"]


def test_an_id_that_comes_again_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, 'id,premise,hypothesis\na,"P\n",H\nb,P,H\n a ,P,H\n')
    assert complaint(path) == "5: found the id 'a' again, after line 2, expected an id once"


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
        "3: found the labels 'entailment', 'neutral', expected 0 or 1 (say what it means, "
        "for example --label-map entailment=1,neutral=0,contradiction=0)"
    )


def test_a_label_outside_the_label_map_is_an_error(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "premise,hypothesis,label\nP,H,entailment\nP,I,-\n")
    assert complaint(path, label_map=THREE_WAY) == (
        "3: found the label '-', expected entailment or neutral or contradiction (say what it means, "
        "for example --label-map entailment=1,neutral=0,contradiction=0)"
    )


@pytest.mark.parametrize(
    "label, found", [(2, "'2'"), (-1, "'-1'"), (1.0, "'1.0'"), ("0.0", "'0.0'"), (float("nan"), "'nan'")]
)
def test_a_label_other_than_0_or_1_is_an_error(tmp_path: Path, label: object, found: str) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": label})
    assert complaint(path).startswith(f"1: found the label {found}, expected 0 or 1 (")


def test_true_is_no_label(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": True})
    assert complaint(path).startswith("1: found the label 'True', expected 0 or 1 (")


def test_a_column_of_empty_labels_means_unlabelled(tmp_path: Path) -> None:
    assert labels_of(csv_file(tmp_path, "premise,hypothesis,label\nP,H,\nP,I, \n")) == [None, None]
    assert labels_of(csv_file(tmp_path, "premise,hypothesis\nP,H\n")) == [None]
    assert labels_of(jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "label": None})) == [None]


@pytest.mark.parametrize("rows, line, labelled", [("P,H,1\nP,I,\n", 3, 2), ("P,H,\nP,I,0\n", 2, 3)])
def test_labels_for_some_pairs_only_are_an_error(tmp_path: Path, rows: str, line: int, labelled: int) -> None:
    assert complaint(csv_file(tmp_path, "premise,hypothesis,label\n" + rows)) == (
        f"{line}: found no label, expected one, as line {labelled} has (label every pair or none)"
    )


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
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


def test_text_that_no_file_could_hold_is_an_error(tmp_path: Path) -> None:
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


def test_a_label_map_is_parsed() -> None:
    assert parse_label_map("entailment=1,neutral=0, not sure = 0 ,a=b=1") == {
        "entailment": 1,
        "neutral": 0,
        "not sure": 0,
        "a=b": 1,
    }


@pytest.mark.parametrize("text, part", [("", ""), ("a", "a"), ("a=2", "a=2"), ("=1", "=1"), ("a=1,", "")])
def test_nonsense_in_a_label_map_is_a_config_error(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_label_map(text)
    assert str(raised.value) == (
        f"--label-map: found {part!r}, expected NAME=0 or NAME=1 "
        "(--label-map entailment=1,neutral=0,contradiction=0)"
    )


def test_a_name_twice_in_a_label_map_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^--label-map: found 'a' twice, expected each name once$"):
        parse_label_map("a=1,a=0")


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


def test_a_thought_that_lacks_a_field_is_an_error(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"premise": "P", "hypothesis": "H", "thought_process": "T"})
    with pytest.raises(DataError) as raised:
        read_thoughts(path)
    assert str(raised.value) == (
        f"{path}:1: found no predicted_label among 'premise', 'hypothesis', 'thought_process', "
        "expected 0 or 1"
    )


def test_a_thoughts_file_without_thoughts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no rows, expected a thought on each line$"):
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


def test_an_older_reflections_predicted_label_stands_in_for_its_reflected_one(tmp_path: Path) -> None:
    older = {name: value for name, value in REFLECTION.items() if name != "reflected_label"}
    path = jsonl_file(
        tmp_path, {**REFLECTION, "predicted_label": 0}, {**older, "id": 1, "predicted_label": 1}
    )
    assert [reflection.reflected_label for reflection in read_reflections(path)] == [1, 1]


def test_a_reflections_file_may_be_empty(tmp_path: Path) -> None:
    assert read_reflections(jsonl_file(tmp_path)) == []


def test_the_round_of_a_text_is_written_where_it_is_not_the_first_and_read_back(tmp_path: Path) -> None:
    first, later = (
        Thought(id="a", round=number, premise="P", hypothesis="H", thought_process="T", predicted_label=0)
        for number in (0, 2)
    )
    assert ("round" in to_json_dict(first), to_json_dict(later)["round"]) == (False, 2)
    assert read_thoughts(jsonl_file(tmp_path, to_json_dict(first), to_json_dict(later))) == [first, later]
    reflections = read_reflections(jsonl_file(tmp_path, REFLECTION, {**REFLECTION, "round": 1}))
    assert [reflection.round for reflection in reflections] == [0, 1]
    assert [to_json_dict(reflection).get("round") for reflection in reflections] == [None, 1]


def test_scores_are_read_with_the_texts_written_anew_between_them(tmp_path: Path) -> None:
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


def test_what_a_judge_writes_is_read_back_as_it_was(tmp_path: Path) -> None:
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
                      "of a regeneration"),
    ],
)  # fmt: skip
def test_a_score_that_cannot_be_used_is_an_error(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = jsonl_file(tmp_path, {"id": "a", "score": 3}, row)
    with pytest.raises(DataError) as raised:
        read_scores(path)
    assert str(raised.value) == f"{path}:2: found {found}"


def test_without_a_root_a_copy_of_the_sample_is_worked_in_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "data" / "try"
    copy.parent.mkdir()
    monkeypatch.setattr(storage, "TRY_ROOT", copy)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger=storage.__name__):
        root = working_root(None)
    assert (root, root.is_sample) == (DataRoot(Path("data/try")), False)
    assert read_examples(root.pairs("train")) == read_examples(DataRoot(SAMPLE_ROOT).pairs("train"))
    (message,) = caplog.messages
    assert message.startswith("SAMPLE DATA: no --root was given, so this works in data/try, a copy of ")
    assert "python -m nlicot split PAIRS.csv, then add --root data" in message
    assert [path.name for path in copy.parent.iterdir()] == ["try"]


def test_a_copy_of_the_sample_that_is_there_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TRY_ROOT", tmp_path)
    (tmp_path / "mine").touch()
    assert working_root(None) == DataRoot(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_named_root_is_taken_unless_it_is_the_sample(tmp_path: Path) -> None:
    assert working_root(tmp_path) == DataRoot(tmp_path)
    assert working_root(Path("~/data")) == DataRoot(Path.home() / "data")
    with pytest.raises(ConfigError, match=r"^--root .*: found the sample itself, which no command writes to"):
        working_root(SAMPLE_ROOT)


def test_a_copy_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").touch()  # a file where the folder should be
    monkeypatch.setattr(storage, "TRY_ROOT", tmp_path / "data" / "try")
    with pytest.raises(ConfigError, match=r"try: the sample cannot be copied there \(.*\); name a folder of"):
        working_root(None)


def test_git_ignores_the_copy_of_the_sample() -> None:
    rules = (SAMPLE_ROOT.parents[1] / ".gitignore").read_text().splitlines()
    assert SAMPLE_ROOT.parent / "try" == storage.TRY_ROOT
    assert "/data/*" in rules
    assert not [rule for rule in rules if rule.startswith("!/data/try")]


def test_a_data_root_says_where_everything_lies(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    assert root.thoughts("dev") == tmp_path / "original_thoughts" / "dev.jsonl"
    assert root.reflections("dev") == tmp_path / "reflected_thoughts" / "dev.jsonl"
    assert root.scores("dev") == tmp_path / "scored_thoughts" / "dev.jsonl"
    assert root.finetune("reflected") == tmp_path / "finetune" / "reflected.jsonl"


def test_pairs_lie_in_a_csv_or_else_in_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    root = DataRoot(tmp_path)
    found = [root.pairs("train").name]
    for name in ("train.json", "train.jsonl", "train.csv"):
        (folder / name).touch()
        found.append(root.pairs("train").name)
    assert found == ["train.csv", "train.json", "train.jsonl", "train.csv"]


def test_the_sample_is_known_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLE_ROOT.parent.parent)
    assert DataRoot(Path("data/../data/sample")).is_sample
    assert not DataRoot(Path("data")).is_sample
    assert not DataRoot(tmp_path).is_sample


@pytest.mark.parametrize("split, num_pairs", [("train", 5237), ("dev", 500), ("test", 3302)])
def test_the_shared_tasks_pairs_load(real_data: Path, split: str, num_pairs: int) -> None:
    examples = read_examples(real_data / "comp34812" / f"{split}.csv")
    assert len(examples) == num_pairs
    assert len({example.id for example in examples}) == num_pairs
    assert {example.label for example in examples} == ({None} if split == "test" else {0, 1})


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


def test_the_predecessors_files_load_unchanged(real_data: Path) -> None:
    folder = real_data / "original"
    assert len(read_examples(folder / "sample.csv")) == 100
    assert len(read_thoughts(folder / "sample_thoughts.json")) == 100
    assert len(read_reflections(folder / "sample_reflections.json")) == 33
