from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from nlicot.config_files import SAMPLE
from nlicot.data import root as root_module
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot, working_root
from nlicot.errors import ConfigError, DataError


def test_without_a_root_a_copy_of_the_sample_is_used_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "data" / "try"
    copy.parent.mkdir()
    monkeypatch.setattr(root_module, "TRY_ROOT", copy)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger=root_module.__name__):
        root = working_root(None)
    assert (root, root.is_sample) == (DataRoot(Path("data/try")), False)
    assert read_examples(root.pairs("train")) == read_examples(DataRoot(SAMPLE).pairs("train"))
    (message,) = caplog.messages
    assert message.startswith("SAMPLE DATA: no --root was given, so this works in data/try, a copy of ")
    assert "python -m nlicot split PAIRS.csv, then add --root data" in message
    assert [path.name for path in copy.parent.iterdir()] == ["try"]


def test_the_copy_of_a_read_only_sample_is_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = tmp_path / "shipped" / "sample"
    file = sample / "original_data" / "train.csv"
    file.parent.mkdir(parents=True)
    file.write_text("premise,hypothesis\n")
    file.chmod(0o444)
    file.parent.chmod(0o555)
    monkeypatch.setattr(root_module, "SAMPLE", sample)
    monkeypatch.setattr(root_module, "TRY_ROOT", Path("data", "try"))  # as in an installed package
    monkeypatch.chdir(tmp_path)
    copy = working_root(None).pairs("train")
    assert copy == Path("data/try/original_data/train.csv")
    assert copy.stat().st_mode & copy.parent.stat().st_mode & stat.S_IWUSR
    file.parent.chmod(0o755)


def test_an_existing_copy_of_the_sample_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_module, "TRY_ROOT", tmp_path)
    (tmp_path / "mine").touch()
    assert working_root(None) == DataRoot(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_named_root_is_taken_unless_it_is_the_sample(tmp_path: Path) -> None:
    assert working_root(tmp_path) == DataRoot(tmp_path)
    assert working_root(Path("~/data")) == DataRoot(Path.home() / "data")
    with pytest.raises(ConfigError, match=r"^--root .*: this is the sample itself, which"):
        working_root(SAMPLE)


def test_a_copy_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").touch()  # a file where the folder should be
    monkeypatch.setattr(root_module, "TRY_ROOT", tmp_path / "data" / "try")
    with pytest.raises(ConfigError, match=r"try: the sample cannot be copied there \(.*\); name your own"):
        working_root(None)


def test_git_ignores_the_copy_of_the_sample() -> None:
    rules = (SAMPLE.parents[1] / ".gitignore").read_text().splitlines()
    assert SAMPLE.parent / "try" == root_module.TRY_ROOT
    assert "/data/*" in rules
    assert not [rule for rule in rules if rule.startswith("!/data/try")]


def test_a_data_root_knows_every_path(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    assert root.thoughts("dev") == tmp_path / "original_thoughts" / "dev.jsonl"
    assert root.reflections("dev") == tmp_path / "reflected_thoughts" / "dev.jsonl"
    assert root.scores("dev") == tmp_path / "scored_thoughts" / "dev.jsonl"
    assert root.finetune("reflected") == tmp_path / "finetune" / "reflected.jsonl"


def test_pairs_are_in_a_csv_or_else_in_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    root = DataRoot(tmp_path)
    found = [root.pairs("train").name]
    for name in ("train.json", "train.jsonl", "train.csv"):
        (folder / name).touch()
        found.append(root.pairs("train").name)
        (folder / name).unlink()
    assert found == ["train.csv", "train.json", "train.jsonl", "train.csv"]


@pytest.mark.parametrize("other", ["dev.csv", "dev.jsonl.gz", "dev.parquet"])
def test_two_files_of_one_split_are_an_error(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    for name in ("dev.jsonl", other, "train.csv", "dev.csv.bak"):
        (folder / name).touch()
    root = DataRoot(tmp_path)
    assert root.pairs("train") == folder / "train.csv"
    with pytest.raises(DataError) as raised:
        root.pairs("dev")
    names = " and ".join(sorted(["dev.jsonl", other]))
    assert str(raised.value) == (
        f"{folder}: found {names}, expected one file of dev (move the others to another folder)"
    )


def test_the_sample_is_known_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLE.parent.parent)
    assert DataRoot(Path("data/../data/sample")).is_sample
    assert not DataRoot(Path("data")).is_sample
    assert not DataRoot(tmp_path).is_sample
