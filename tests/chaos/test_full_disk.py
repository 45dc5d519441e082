"""A full disk: exit code 5, one line with the file; what was finished before is intact, and work goes on."""

from __future__ import annotations

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
        finish(args, code=5, max_file_bytes=limit)
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
    finish(resume, code=5, max_file_bytes=20_000, cache=cache)
    assert contents(*before) == before
    assert leftovers(run) == []
    finish(resume, cache=cache)

    predict = ["predict", "--ckpt_path", run / "best.ckpt"]
    for limit in (0, 300, 4096):
        finish(predict, code=5, max_file_bytes=limit, cache=cache)
        assert not (run / "predictions" / "test.csv").exists()
    printed = finish(predict, cache=cache)
    assert "predictions were made before" in printed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, if this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("this process cannot mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("num_free", [0, 30_000, 200_000])
def test_disk_that_is_full(num_free: int, small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb") as file:
            try:
                for _ in itertools.count():
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                file.truncate(max(0, filler.stat().st_size - num_free))

    base = write_small_model(tmp_path / "base")
    args = ["fit", *FIT, f"--checkpoints_root={small_disk}", f"--model.base={base}", "--trainer.max_epochs=1"]
    fill()
    finish(args, code=5)
    filler.unlink()
    finish(args)
    fill()
    finish(["predict", "--ckpt_path", small_disk / "run" / "best.ckpt"], code=5)
    filler.unlink()
    finish(["predict", "--ckpt_path", small_disk / "run" / "best.ckpt"])
