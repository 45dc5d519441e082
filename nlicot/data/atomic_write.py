"""Write files atomically: each appears complete or not at all, and replaces nothing unless asked to."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nlicot.errors import ConfigError


def refuse_overwriting(*paths: Path, overwrite: bool = False) -> None:
    """Check, before any work is done, that no finished output would be lost."""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, expected the name of a file to write")
        check_folder(path.parent, label=f"{path} cannot be written")
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
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror} ({target.parent})") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def build_folder_once(folder: Path, build: Callable[[Path], object], *, marker: str) -> None:
    """Build `folder` under another name and rename it, unless it is complete, that is, has the file `marker`.

    Several processes may do so at once: the first to finish wins, and the others use its folder.
    """
    if (folder / marker).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        fresh = Path(temporary) / folder.name
        fresh.mkdir()
        build(fresh)
        if (folder / marker).is_file():
            return
        if folder.is_dir():  # left incomplete by another version
            shutil.rmtree(folder)
        try:
            fresh.rename(folder)
        except OSError:
            if not (folder / marker).is_file():
                raise
