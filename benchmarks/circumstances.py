"""The circumstances of a benchmark, and measurements that its processes take of themselves."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The project need not be installed to be measured.
sys.path.insert(0, str(Path(__file__).parents[1]))


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
