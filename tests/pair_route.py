"""Measure which files of the package one pair goes through: the call closure of a command.

`python tests/pair_route.py predict --ckpt_path RUN/best.ckpt --root DATA` runs the command in this process
and prints each file of `nlicot/` with a function that ran (not counting functions that run during imports).
`docs/architecture.md` lists the files of `predict`; `test_pair_route.py` holds the list to this measurement.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "nlicot"


def files_called(args: Sequence[str]) -> list[str]:
    """Run a command line; return the paths, below the repository, of the files whose functions ran."""
    called: set[str] = set()

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{PACKAGE}/") and path not in called and _is_work(frame):
            called.add(path)

    sys.path.insert(0, str(PACKAGE.parent))
    from nlicot.cli import main

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        code = main(args)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if code:
        raise RuntimeError(f"{' '.join(args)} ended with exit code {code}")
    return sorted(str(Path(path).relative_to(PACKAGE.parent)) for path in called)


def _is_work(frame: FrameType) -> bool:
    """True if a function runs, but not while a module of the package is being imported."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or a class
        return False
    caller = frame.f_back
    while caller is not None and caller.f_code.co_name != "<module>":
        caller = caller.f_back
    return caller is None or not caller.f_code.co_filename.startswith(f"{PACKAGE}/")


if __name__ == "__main__":
    print("\n".join(files_called(sys.argv[1:])))
