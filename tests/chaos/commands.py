"""Run commands as separate processes, kill them, and look for what they left."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nlicot.data.atomic_write import SCRATCH
from nlicot.signals import STOPPING
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("NLICOT_CHAOS_KILLS", "2"))
"""Kills of each command; `make chaos` sets 20."""


def stop_at_signals() -> None:
    """Ignore no signal: a job in the background, or under `nohup`, starts with some of them ignored."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_DFL)


def start(
    args: Sequence[object], *, cache: Path | None = None, max_file_bytes: int | None = None, **options: object
) -> subprocess.Popen[str]:
    """Start a command; no file that it writes may grow beyond `max_file_bytes`, as on a full disk."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
    if cache is not None:
        environment["NLICOT_CACHE"] = str(cache)

    def prepare() -> None:
        stop_at_signals()
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "nlicot", *map(str, args)],
        **{  # type: ignore[call-overload]
            "cwd": PROJECT,
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "errors": "replace",
            "preexec_fn": prepare,
            **options,
        },
    )


def finish(args: Sequence[object], *, code: int = 0, **options: object) -> str:
    """Run a command to its end, and return what it printed."""
    with start(args, **options) as process:  # type: ignore[arg-type]
        try:
            printed, _ = process.communicate(timeout=HANGS_S)
        finally:
            process.kill()
    assert process.returncode == code, f"exit code {process.returncode}: {printed[-3000:]}"
    assert "Traceback" not in printed, printed
    return printed


def kill_at_random(
    args: Sequence[object],
    chance: random.Random,
    *,
    duration_s: float,
    folders: Sequence[Path],
    **options: object,
) -> bool:
    """Kill a command at a random moment, half of the time while it writes; return whether it still ran."""
    with start(args, stdout=subprocess.DEVNULL, **options) as process:  # type: ignore[arg-type]
        ends_at = time.monotonic() + chance.uniform(0.0, duration_s)
        if chance.random() < 0.5:
            while process.poll() is None and not leftovers(*folders):
                time.sleep(0.0005)
            ends_at = time.monotonic() + chance.uniform(0.0, 0.02)
        while process.poll() is None and time.monotonic() < ends_at:
            time.sleep(0.0005)
        process.kill()
        process.wait()
        return process.returncode == -signal.SIGKILL


def leftovers(*folders: Path) -> list[Path]:
    """Return the temporary files and folders in some folders and right below them."""
    found = [path for folder in folders for path in _entries(folder)]
    found += [path for folder in found for path in _entries(folder)]
    return [path for path in found if path.name.startswith(".") and path.name.endswith(SCRATCH)]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed since it was listed, or a file
        return []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a process does; fail if it ends before."""
    ends_at = time.monotonic() + HANGS_S
    while not condition():
        assert process.poll() is None, (
            f"exit code {process.returncode}: {process.stdout and process.stdout.read()}"
        )
        assert time.monotonic() < ends_at, "it hangs"
        time.sleep(0.001)


def contents(*paths: Path) -> Mapping[Path, bytes]:
    """Return the content of those files that exist."""
    return {path: path.read_bytes() for path in paths if path.exists()}
