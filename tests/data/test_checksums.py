"""Folders with checksums: damage is found, and a folder in the cache is made again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nlicot.data.checksums import _damage_once, build_cache, damage, write_checksums


def build(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "a.txt").write_text("first")
    (folder / "inner" / "b.bin").write_bytes(bytes(1000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "thing"
    build_cache(path, build)
    return path


def test_an_intact_folder_has_no_damage(folder: Path) -> None:
    assert damage(folder) is None


def test_sha256sum_reads_the_checksums(folder: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("sha256sum is not installed")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a.txt is damaged": lambda folder: (folder / "a.txt").write_text("First"),
    "inner/b.bin is damaged": lambda folder: (folder / "inner" / "b.bin").write_bytes(b""),
    "not complete (FileNotFoundError)": lambda folder: (folder / "a.txt").unlink(),
    "not complete (ValueError)": lambda folder: (folder / "SHA256SUMS").write_text("nothing\n"),
    "SHA256SUMS is empty": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "not a folder": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "missing": shutil.rmtree,
}


@pytest.mark.parametrize("found", DAMAGES)
def test_damage_is_found_and_the_folder_made_again(found: str, folder: Path) -> None:
    DAMAGES[found](folder)
    assert damage(folder) == found
    _damage_once.cache_clear()  # as in the next process
    build_cache(folder, build)
    assert damage(folder) is None
    assert [path.name for path in folder.parent.iterdir()] == ["thing"]


def test_a_folder_is_built_once(folder: Path) -> None:
    def refuse(fresh: Path) -> None:
        raise AssertionError

    build_cache(folder, refuse)


def test_files_without_a_checksum_are_not_damage(folder: Path) -> None:
    write_checksums(folder)
    (folder / "more").write_text("")
    assert damage(folder) is None
