from __future__ import annotations

import csv
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nlicot.data import atomic_write
from nlicot.data.atomic_write import (
    SCRATCH,
    clear_scratch,
    refuse_overwriting,
    scratch_folder,
    write_csv,
    write_jsonl,
    write_text,
)
from nlicot.data.rows import read_rows
from nlicot.errors import ConfigError, DiskFull
from tests.data.test_rows import written
from tests.teacher.engine.test_journal import no_file_grows_beyond


def test_write_csv_output_reads_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    texts = ["plain", "a, b", 'a "quoted" word', "two\nlines", "a lone \r return", "\r\n", " é ", "#"]
    write_csv(path, ["text", "label"], [[text, None] for text in texts])
    assert [row.fields["text"] for row in read_rows(path)] == texts


def test_csv_lines_end_in_a_newline_and_quotes_are_few(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["a", "b"], [["x, y", 1], ["é", None]])
    assert (tmp_path / "a.csv").read_bytes() == 'a,b\n"x, y",1\né,\n'.encode()


def test_jsonl_has_one_object_per_line_without_escapes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", iter([{"a": "é\n"}, {"b": [1, None]}]))
    assert (tmp_path / "a.jsonl").read_bytes() == '{"a": "é\\n"}\n{"b": [1, null]}\n'.encode()


def test_jsonl_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        write_jsonl(tmp_path / "a.jsonl", [{"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "old")
    with pytest.raises(ConfigError) as raised:
        write_text(path, "new")
    assert str(raised.value) == f"{path} exists already; add --overwrite to replace it"
    assert path.read_text() == "old"
    write_text(path, "new", overwrite=True)
    assert path.read_text() == "new"


def test_all_existing_outputs_are_listed(tmp_path: Path) -> None:
    first, second = written(tmp_path, "a", ""), written(tmp_path, "b", "")
    with pytest.raises(ConfigError) as raised:
        refuse_overwriting(first, tmp_path / "c", second)
    assert str(raised.value) == f"{first}, {second} exists already; add --overwrite to replace it"
    refuse_overwriting(first, second, overwrite=True)


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        write_text(tmp_path, "text", overwrite=True)
    assert str(raised.value) == f"{tmp_path} is a folder, expected the name of a file to write"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = written(tmp_path, "a.jsonl", "old")

    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise failure

    with pytest.raises(failure):
        write_jsonl(path, rows(), overwrite=True)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.jsonl": "old"}


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    seen_while_writing = []

    def rows() -> Iterator[dict[str, Any]]:
        seen_while_writing.append((path.exists(), [entry.suffix for entry in tmp_path.iterdir()]))
        yield {"a": 1}

    write_jsonl(path, rows())
    assert seen_while_writing == [(False, [".tmp"])]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    written(tmp_path, "usual", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "usual").stat().st_mode
    )


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target = written(tmp_path, "target", "old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "new", overwrite=True)
    assert (link.is_symlink(), target.read_text()) == (True, "new")


def test_an_unwritable_folder_is_a_config_error(tmp_path: Path) -> None:
    written(tmp_path, "file", "")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(ConfigError) as raised:
        write_text(path, "text")
    assert str(raised.value) == f"{path} cannot be written: {path.parent} is a file, expected a folder"


def test_a_million_characters_survive_both_formats(tmp_path: Path) -> None:
    text = 'x,"\n' * 250_000
    write_csv(tmp_path / "a.csv", ["a"], [[text]])
    write_jsonl(tmp_path / "a.jsonl", [{"a": text}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [text]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"a": text}


# ---------------------------------------------------------- scratch folders


def killed_writer(target: Path) -> Path:
    """Write half of a file in a process that is killed; return its scratch folder."""
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from nlicot.data.atomic_write import write_jsonl\n"
        "def rows():\n"
        "    yield {'a': 1}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "    yield {'a': 2}\n"
        f"write_jsonl(Path({str(target)!r}), rows())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    (scratch,) = target.parent.glob(f".*{SCRATCH}")
    return scratch


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    scratch = killed_writer(path)
    assert not path.exists()
    refuse_overwriting(tmp_path / "b.jsonl")
    assert not scratch.exists()


def test_what_a_running_process_writes_is_not_removed(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "a") as scratch:
        clear_scratch(tmp_path)
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_folder_that_another_process_removes_at_once_is_made_again(
    is_locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, removed = atomic_write._hold, []

    def late(folder: Path, **options: Any) -> int:
        if not removed:
            removed.append(folder)
            held = hold(folder) if is_locked else -1
            folder.rmdir()
            if is_locked:
                return held
        return hold(folder, **options)

    monkeypatch.setattr(atomic_write, "_hold", late)
    with scratch_folder(tmp_path / "a") as scratch:
        assert scratch.is_dir()
        assert scratch != removed[0]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_a_scratch_folder_is_made_leaves_none(tmp_path: Path) -> None:
    def make(stop_at: int) -> int:
        """Make a scratch folder, stopped at line number `stop_at` that runs; return the number of lines."""
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if frame.f_code is scratch_folder.__wrapped__.__code__ and event == "line":  # type: ignore[attr-defined]
                count += 1
                if count == stop_at:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with scratch_folder(tmp_path / "a"):
                sys.settrace(before)
        finally:
            sys.settrace(before)
        return count

    num_lines = make(0)
    assert num_lines >= 8
    for stop_at in range(1, num_lines + 1):
        with pytest.raises(KeyboardInterrupt):
            make(stop_at)
        assert list(tmp_path.iterdir()) == [], stop_at


def test_a_full_disk_is_reported_with_the_final_name(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "old")
    with no_file_grows_beyond(1000), pytest.raises(DiskFull) as full:
        write_jsonl(path, ({"a": number} for number in range(10_000)), overwrite=True)
    assert str(full.value) == (
        f"{path}: cannot be written (File too large); nothing that was finished is lost, free some disk "
        "space and run the same command again"
    )
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.jsonl": "old"}
