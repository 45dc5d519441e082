"""Pairs of a data root, read as the settings of a run say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlicot.data.pairs import ColumnNames, LabelMap
from nlicot.errors import DataError
from nlicot.records import Example
from nlicot.run.data import RunData
from nlicot.settings import RunSettings

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
