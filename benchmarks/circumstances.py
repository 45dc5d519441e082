"""The circumstances of a benchmark, and measurements that its processes take of themselves."""

from __future__ import annotations

import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
# The project need not be installed to be measured.
sys.path.insert(0, str(PROJECT))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Time and memory that a process used until its end."""

    seconds: float
    cpu_s: float
    peak_mb: float


def with_usage(
    command: Sequence[str], *, codes: Sequence[int] = (0,), environment: Mapping[str, str] | None = None
) -> Usage:
    """Run a command in the project's folder, without its output; its peak is the kernel's figure.

    Exits with the command's last lines if its exit code is not one of `codes`.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in codes:
            output.seek(0)
            said = output.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}\n{said}")
    return Usage(seconds=seconds, cpu_s=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024)


def now() -> float:
    """Return the time in seconds, after all work on a GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(dtype: str = "auto") -> float:
    """Measure the operations per second of a matrix product, on this process' threads or its GPU.

    `auto` is the number format that the project computes in on this machine.
    """
    import torch

    from nlicot.model.loaded_model import compute_dtype

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 2048
    place: dict[str, Any] = {
        "dtype": getattr(torch, compute_dtype(dtype)),
        "device": "cuda" if on_gpu else "cpu",
    }
    left, right = (torch.randn(size, size, **place) for _ in range(2))
    rates = []
    for _ in range(12):
        started = now()
        left @ right
        rates.append(2 * size**3 / (now() - started))
    return statistics.median(rates[4:])


def peak_mb() -> float:
    """Return this process's peak resident memory, without memory inherited before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, "/proc/self/status without VmHWM"
    return int(found[1]) / 1024


def processor() -> str:
    """Return the processor's name and the number of cores this process may use."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*: (.+)", about)
    name = found[1] if found else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
