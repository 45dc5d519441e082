"""Damage to files: each is one that a disk, an interrupted copy or an editor causes."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

NUM_FLIPS = int(os.environ.get("NLICOT_CHAOS_PLACES", "10"))
"""Places in a file at which four bytes are changed; `make chaos-short` sets 1."""


def damages(path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield names of damages and functions that do them to the file, which is intact before each."""
    content = path.read_bytes()

    def written(damaged: bytes) -> Callable[[], None]:
        return lambda: _replace(path, damaged)

    for number in range(NUM_FLIPS):
        place = (2 * number + 1) * len(content) // (2 * NUM_FLIPS)
        flipped = content[:place] + bytes(each ^ 0x15 for each in content[place : place + 4])
        yield f"four bytes at {place}", written(flipped + content[place + 4 :])
    for size in (0, 1, len(content) // 2, max(0, len(content) - 1)):
        yield f"cut to {size} bytes", written(content[:size])
    yield "zeros", written(bytes(len(content)))
    yield "a page of zeros in the middle", written(_zeroed(content))
    yield "text", written(b"hello\n")
    yield "an empty object", written(b"{}")
    yield "a list", written(b"[1, 2]")
    yield "not UTF-8", written(b"\xff\xfe\x00caf\xe9")
    yield "a pickle of something else", written(pickle.dumps({"state_dict": [1], "code": Path}))
    yield "a folder", lambda: _replace(path, None)


def _zeroed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(len(content[middle : middle + 512])) + content[middle + 512 :]


def _replace(path: Path, content: bytes | None) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def restore(folder: Path, copy: Path) -> None:
    """Make a folder equal to its copy."""
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
