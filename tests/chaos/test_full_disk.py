"""A full disk: exit code 5, one line with the file; what was finished before is intact, and work goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.commands import contents, finish, leftovers
from tests.chaos.test_kills import CHEAP, FIT, cheap_command, write_pairs
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer

pytestmark = pytest.mark.chaos


def assert_says_full(printed: str, files: list[Path]) -> None:
    (line,) = [line for line in printed.splitlines() if line.startswith("nlicot: ")]
    assert any(line.startswith(f"nlicot: {path}: cannot be written (") for path in files)
    assert "free some disk space" in line


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("proportion", [0.1, 0.9])
def test_commands_on_files(name: str, proportion: float, tmp_path: Path) -> None:
    args, files = cheap_command(name, tmp_path)
    finish(args)
    before = contents(*files)
    limit = int(proportion * min(map(len, before.values())))
    printed = finish([*args, "--overwrite"], code=5, max_file_bytes=limit)
    assert_says_full(printed, files)
    assert contents(*files) == before
    assert leftovers(tmp_path, files[0].parent) == []


@pytest.mark.parametrize("command", ["generate", "export"])
@pytest.mark.parametrize("limit", [0, 4096, 60_000, 300_000])
def test_teacher(command: str, limit: int, tmp_path: Path) -> None:
    write_pairs(tmp_path / "original_data" / "train.csv", 400)
    with FakeServer(keep_seen=False) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", tmp_path, *flags]
        path = tmp_path / "original_thoughts" / "train.jsonl"
        if command == "export":
            finish(args)
            path = tmp_path / "journal.jsonl"
            args = [*args, "--export_journal", path]
        printed = finish(args, code=5, max_file_bytes=limit)
        journal = tmp_path / "journal" / "generate.sqlite"
        assert_says_full(printed, [path, journal, journal.parent])
        assert not path.exists()
        finish(args)
        assert path.read_text().count("\n") >= 400
        assert max(server.counts.values()) <= 2  # what was in flight when the disk was full


def test_fit_and_predict(tmp_path: Path) -> None:
    base = write_small_model(tmp_path / "base")
    args = ["fit", *FIT, f"--checkpoints_root={tmp_path}", f"--model.base={base}", "--trainer.max_epochs=1"]
    run, cache = tmp_path / "run", tmp_path / "cache"
    finish(args, code=5, max_file_bytes=0, cache=cache)  # no library finds a folder for temporary files
    finish(args, code=5, max_file_bytes=600, cache=cache)  # the encoded examples
    finish(args, code=5, max_file_bytes=20_000, cache=cache)  # the checkpoint
    assert not run.exists()
    finish([*args, "--trainer.max_steps=4"], cache=cache)
    before = contents(run / "last.ckpt", run / "best.ckpt", run / "adapter" / "adapter_model.safetensors")
    resume = ["fit", "--resume", run, "--trainer.max_steps=-1"]
    assert_says_full(finish(resume, code=5, max_file_bytes=20_000, cache=cache), [run, run / "last.ckpt"])
    assert contents(*before) == before
    assert leftovers(run) == []
    finish(resume, cache=cache)

    predict = ["predict", "--ckpt_path", run / "best.ckpt"]
    for limit in (0, 300, 4096):
        finish(predict, code=5, max_file_bytes=limit, cache=cache)
        assert not (run / "predictions" / "test.csv").exists()
    printed = finish(predict, cache=cache)
    assert "predictions were made before" in printed


class SmallDisk:
    """A disk of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, num_free: int = 0) -> None:
        """Leave about this number of bytes."""
        with self._filler.open("wb") as file, contextlib.suppress(OSError):
            for _ in itertools.count():
                os.write(file.fileno(), bytes(4096))
        os.truncate(self._filler, max(0, self._filler.stat().st_size - num_free))

    def free(self) -> None:
        """Make room."""
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount one, if this process may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("this process cannot mount a disk")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "num_free"),
    [*((name, 0) for name in CHEAP), *((name, 30_000) for name in CHEAP if name != "audit")],
)  # what audit writes has room in one page
def test_commands_on_files_on_a_full_disk(name: str, num_free: int, disk: SmallDisk, tmp_path: Path) -> None:
    args, files = cheap_command(name, tmp_path, disk.folder)
    finish(args)
    before = contents(*files)
    disk.fill(num_free)
    assert_says_full(finish([*args, "--overwrite"], code=5), files)
    assert contents(*files) == before
    assert leftovers(disk.folder, files[0].parent) == []
    disk.free()
    finish([*args, "--overwrite"])
    assert contents(*files) == before


@pytest.mark.parametrize("command", ["generate", "export"])
@pytest.mark.parametrize("num_free", [0, 200_000])
def test_teacher_on_a_full_disk(command: str, num_free: int, disk: SmallDisk) -> None:
    root = disk.folder
    write_pairs(root / "original_data" / "train.csv", 400)
    journal, output = root / "journal" / "generate.sqlite", root / "original_thoughts" / "train.jsonl"
    with FakeServer(keep_seen=False) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", root, *flags]
        if command == "export":
            finish(args)
            output = root / "exported.jsonl"
            args = [*args, "--export_journal", output]
        disk.fill(num_free)
        # Without any room, its folder cannot be made.
        assert_says_full(finish(args, code=5), [journal, journal.parent, output])
        assert not output.exists()
        disk.free()
        finish(args)
        assert output.read_text().count("\n") >= 400
        assert max(server.counts.values()) <= 2  # what was in flight when the disk was full


@pytest.mark.parametrize("num_free", [0, pytest.param(30_000, marks=pytest.mark.long)])
def test_fit_and_predict_on_a_full_disk(num_free: int, disk: SmallDisk, tmp_path: Path) -> None:
    base, run = write_small_model(tmp_path / "base"), disk.folder / "run"
    fit = [*("fit", *FIT, "--trainer.max_epochs=1"), f"--checkpoints_root={disk.folder}"]
    fit.append(f"--model.base={base}")
    disk.fill(num_free)
    finish(fit, code=5)
    disk.free()
    finish(fit)
    before = contents(run / "last.ckpt", run / "best.ckpt", run / "adapter" / "adapter_model.safetensors")
    assert len(before) == 3
    resume = ["fit", "--resume", run, "--trainer.max_epochs=2"]
    disk.fill(num_free)
    finish(resume, code=5)
    assert contents(*before) == before
    disk.free()
    finish(resume)

    predict = ["predict", "--ckpt_path", run / "best.ckpt"]
    disk.fill(num_free=0)
    finish(predict, code=5)
    assert not (run / "predictions" / "test.csv").exists()
    disk.free()
    finish(predict)
