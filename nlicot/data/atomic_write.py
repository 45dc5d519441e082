"""Write files atomically: each appears complete or not at all, and replaces nothing unless asked to.

What is being written is in a scratch folder next to its final name. A killed process does not remove it; the
next one that writes there removes it.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from nlicot.errors import FULL, ConfigError, DiskFull

Problem: TypeAlias = Callable[[Path], str | None]
"""Returns what is wrong with a folder, or None."""
SCRATCH = ".nlicot.tmp"
"""End of a scratch folder's name."""


def refuse_overwriting(*paths: Path, overwrite: bool = False) -> None:
    """Check, before any work, that no finished output would be lost; clear what killed writers left."""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, expected the name of a file to write")
        check_folder(path.parent, label=f"{path} cannot be written")
        clear_scratch(path.resolve().parent)
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{', '.join(existing)} exists already; add --overwrite to replace it")


def check_folder(folder: Path, *, label: str) -> None:
    """Check, before any work is done, that no part of a folder's path is a file; `label` as below."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{label}: {existing} is a file, expected a folder")


def make_folder(folder: Path, *, label: str) -> None:
    """Make a folder, and those above it, unless it exists; `label` starts the message of a refusal."""
    check_folder(folder, label=label)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{label}: cannot be made: {error.strerror}") from None


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text` as UTF-8, completely or not at all."""
    with _atomic(path, overwrite) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write one of the program's own JSON documents, replacing an earlier one."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", overwrite=True)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, overwrite: bool = False) -> None:
    """Write one JSON object per line as `rows` yields them."""
    with _atomic(path, overwrite) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], *, overwrite: bool = False
) -> None:
    """Write a CSV with lines that end in "\\n"; None becomes an empty cell."""
    with _atomic(path, overwrite) as file:
        writer = csv.writer(_UnixLines(file), lineterminator="\r\n")
        writer.writerow(header)
        writer.writerows(rows)


class _UnixLines:
    """Replaces the line ending of a CSV writer's rows by "\\n".

    With "\\n" as its own line terminator, the csv module of Python 3.11 and 3.12 leaves a single "\\r" in a
    text unquoted, and the row is read back as two.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")


@contextlib.contextmanager
def _atomic(path: Path, overwrite: bool) -> Iterator[TextIO]:
    refuse_overwriting(path, overwrite=overwrite)
    target = path.resolve()  # so that a link stays a link
    with disk_errors(path), contextlib.ExitStack() as opened:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = opened.enter_context(scratch_folder(target)) / target.name
            file = fresh.open("x", encoding="utf-8", newline="")
        except OSError as error:
            if error.errno in FULL:
                raise
            raise ConfigError(f"{path} cannot be written: {error.strerror} ({target.parent})") from None
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise `DiskFull` with the path that is being written if its disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(path, error.strerror) from None


def check_disk_space(target: Path, num_bytes: int) -> None:
    """Raise `DiskFull` if the disk of a path has less space; parents that do not exist are skipped."""
    free = shutil.disk_usage(next(path for path in target.resolve().parents if path.exists())).free
    if free < num_bytes:
        sizes = f"{num_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise DiskFull(target, sizes, kept="nothing was written")


def publish_folder(fresh: Path, target: Path) -> None:
    """Rename a finished folder, once its files are on the disk; raises `ConfigError` if `target` exists."""
    for path in fresh.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    refuse_existing(target)
    fresh.rename(target)


def refuse_existing(target: Path) -> None:
    """Raise `ConfigError` if a folder that is about to be made exists."""
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already; name another folder (--out), or remove it")


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder next to `target`, to write in and rename from; it is removed at the end."""
    clear_scratch(target.parent)
    with contextlib.ExitStack() as at_end:
        while True:
            folder = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}{SCRATCH}")
            # Before it is made, as a signal may come right after.
            at_end.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir()
            # Another process may take it for one that was left, and remove it before or while it is locked.
            with contextlib.suppress(FileNotFoundError):
                at_end.callback(os.close, _hold(folder))
                if folder.exists():
                    break
        yield folder


def clear_scratch(parent: Path) -> None:
    """Remove the scratch folders in `parent` of processes that were killed."""
    for folder in parent.glob(f".*{SCRATCH}"):
        with contextlib.suppress(OSError):  # in use, without a lock, or removed by another process
            held = _hold(folder, wait=False)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _hold(folder: Path, *, wait: bool = True) -> int:
    """Lock a folder until the descriptor that is returned is closed, or the process ends in any way."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            os.close(held)
            raise  # so that no folder is removed where a file system has no locks
    return held


def build_folder_once(folder: Path, build: Callable[[Path], object], *, problem: Problem) -> None:
    """Build `folder` under another name and rename it, unless it exists and has no `problem`.

    Several processes may do so at once: the first to finish wins, and the others use its folder.
    """
    if problem(folder) is None:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), scratch_folder(folder) as scratch:
        fresh = scratch / folder.name
        fresh.mkdir()
        build(fresh)
        if problem(folder) is None:
            return
        if folder.exists():  # damaged, or left incomplete by another version
            folder.rename(scratch / "earlier")
        try:
            fresh.rename(folder)
        except OSError:
            if problem(folder) is not None:
                raise
