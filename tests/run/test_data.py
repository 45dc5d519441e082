"""Pairs of a data root, read as the settings of a run say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nlicot.data.pairs import ColumnNames, LabelMap
from nlicot.errors import ConfigError, DataError
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import Example
from nlicot.run.data import RunData
from nlicot.settings import DataSettings, RunSettings

FORMAT = {
    "label_map": LabelMap.parse("yes=1,no=0,-=skip"),
    "columns": ColumnNames.parse("premise=text,label=verdict,phenomenon=topic,id=key"),
    "delimiter": ";",
}


@pytest.fixture
def data(tmp_path: Path) -> RunData:
    folder = tmp_path / "original_data"
    folder.mkdir()
    rows = "text;hypothesis;verdict;topic;key\nA, B;H;yes;law;a\nC;I;-;law;b\nD;J;no;art;c\n"
    (folder / "train.csv").write_text(rows)
    (folder / "dev.tsv").write_text(rows.replace("D;", "E;").replace("A, B", "F").replace(";", "|"))
    (folder / "test.jsonl").write_text('{"text": "G", "hypothesis": "H", "key": 7}\n')
    return RunData(RunSettings(root=tmp_path, **FORMAT))


def test_pairs_of_train_are_read_in_the_runs_format(data: RunData) -> None:
    assert data.read_pairs("train") == [
        Example(id="a", premise="A, B", hypothesis="H", label=1, phenomenon="law"),
        Example(id="c", premise="D", hypothesis="J", label=0, phenomenon="art"),
    ]


def test_test_pairs_may_lack_labels_and_phenomena(data: RunData) -> None:
    assert data.read_pairs("test") == [Example(id="7", premise="G", hypothesis="H")]
    data.check_apart_from_train("test")


def test_another_delimiter_than_the_runs_is_named(data: RunData) -> None:
    with pytest.raises(DataError) as raised:
        data.read_pairs("dev")
    assert str(raised.value).endswith('(the delimiter seems to be a |: read it with --delimiter "|")')


def run_data(root: Path, **data: Any) -> RunData:
    return RunData(RunSettings(root=root, data=DataSettings(**data)))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A root with three training pairs and one for dev."""
    folder = tmp_path / "root" / "original_data"
    folder.mkdir(parents=True)
    rows = "".join(f"{n},Premise {n}.,Hypothesis {n}.,{n % 2}\n" for n in range(3))
    (folder / "train.csv").write_text(f"id,premise,hypothesis,label\n{rows}")
    (folder / "dev.csv").write_text("id,premise,hypothesis,label\nd,Dev one.,It is dev.,1\n")
    return tmp_path / "root"


def prepared(root: Path, *, split: str = "train") -> Path:
    """Write the examples of `label_only` as `prepare` does."""
    path = root / f"{split}.prepared.jsonl"
    data = run_data(root, builder="label_only")
    data.read_for_fit()
    rows = [
        {name: value for name, value in asdict(each).items() if value is not None}
        for each in data.built[split]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prepared_examples_of_dev_are_refused(labelled: Path) -> None:
    path = prepared(labelled, split="dev")
    with pytest.raises(DataError, match=r"the prompts of 1 pair of dev, such as 'd', expected none of them"):
        run_data(labelled, builder="label_only", prepared=str(path)).read_for_fit()
    run_data(labelled, builder="label_only", prepared=str(path), allow_overlap=True).read_for_fit()


def test_a_limit_holds_for_prepared_examples_too(labelled: Path) -> None:
    data = run_data(labelled, builder="label_only", prepared=str(prepared(labelled)), limit_train=2)
    data.read_for_fit()
    assert [example.id for example in data.built["train"]] == ["0", "1"]


def test_a_temperature_for_prepared_examples_is_refused(labelled: Path) -> None:
    data = run_data(
        labelled, builder="label_only", prepared=str(prepared(labelled)), soft_label_temperature=5.0
    )
    with pytest.raises(ConfigError, match=r"--data\.soft_label_temperature: found it with --data.prepared"):
        data.read_for_fit()


def test_a_dev_loss_of_what_is_not_prepared_is_logged(
    labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thoughts = labelled / "original_thoughts"
    thoughts.mkdir()
    row = {
        "id": "d",
        "premise": "Dev one.",
        "hypothesis": "It is dev.",
        "thought_process": "So.",
        "predicted_label": 1,
    }
    (thoughts / "dev.jsonl").write_text(json.dumps(row) + "\n")
    path = prepared(labelled)
    run_data(labelled, builder="label_only", prepared=str(path)).read_for_fit()
    assert "the dev loss measures what is not learnt" not in caplog.text
    run_data(labelled, builder="correct_only", prepared=str(path)).read_for_fit()
    assert f"{path} has no example of thought_first, which dev is built with" in caplog.text


def test_one_text_of_the_definitions_leaves_the_other_of_the_prompts(tmp_path: Path) -> None:
    own = StudentPrompts(definitions=LabelDefinitions(entailment="it follows", no_entailment="it conflicts"))
    given = LabelDefinitions(entailment="it follows or fits", no_entailment=LabelDefinitions().no_entailment)
    data = RunData(RunSettings(root=tmp_path, definitions=given, data=DataSettings(prompts=own)))
    expected = LabelDefinitions(entailment="it follows or fits", no_entailment="it conflicts")
    assert data.prompts.definitions == expected


def test_soft_labels_count_only_where_the_builder_makes_an_example(labelled: Path) -> None:
    thoughts = labelled / "original_thoughts"
    thoughts.mkdir()
    rows = [
        {"id": str(n), "premise": f"Premise {n}.", "hypothesis": f"Hypothesis {n}.", "thought_process": "So."}
        | {"predicted_label": 1}
        for n in range(3)
    ]
    (thoughts / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev = {
        "id": "d",
        "premise": "Dev one.",
        "hypothesis": "It is dev.",
        "thought_process": "So.",
        "predicted_label": 1,
    }
    (thoughts / "dev.jsonl").write_text(json.dumps(dev) + "\n")
    soft = labelled / "soft.jsonl"
    soft.write_text("".join(json.dumps({"id": str(n), "p_entailment": 0.7}) + "\n" for n in range(2)))
    data = run_data(labelled, builder="label_first", soft_labels=str(soft))
    data.read_for_fit()  # the thoughts of pairs 0 and 2 are wrong
    assert data.soft_labels is not None and data.soft_labels.num_pairs == 1
