"""Checksums of a folder's files, as `sha256sum` writes them; a damaged folder in the cache is made again."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from nlicot.data.atomic_write import build_folder_once, clear_scratch

logger = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, pattern: str = "*") -> None:
    """Write the `SHA256SUMS` of a folder's files; `sha256sum -c SHA256SUMS` checks them, too."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name != CHECKSUMS)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a folder, or None if each file in its `SHA256SUMS` is as it was written."""
    if not folder.is_dir():
        return "not a folder" if folder.exists() else "missing"
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        for expected, name in (line.split("  ", 1) for line in lines):
            if sha256_of(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError) as error:
        return f"not complete ({type(error).__name__})"
    return None if lines else f"{CHECKSUMS} is empty"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_cache(folder: Path, build: Callable[[Path], object]) -> None:
    """Build a folder that can be made again at any time, unless it is there and undamaged."""

    def build_and_seal(fresh: Path) -> None:
        build(fresh)
        write_checksums(fresh)

    clear_scratch(folder.parent)
    if (found := _damage_once(folder)) is not None:
        if folder.exists():
            logger.warning("%s: %s; it is made again", folder, found)
        build_folder_once(folder, build_and_seal, problem=damage)
        _damage_once.cache_clear()


@functools.cache
def _damage_once(folder: Path) -> str | None:
    """Return `damage`; one process checks a folder once."""
    return damage(folder)
