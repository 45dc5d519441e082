"""How much memory this process has had at most, and how much there is: the GPU's, else the machine's."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

STATUS, CLEAR, MACHINE = (
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
    Path("/proc/meminfo"),
)
CGROUP = Path("/sys/fs/cgroup/memory.max")


def reset_peak() -> None:
    """Let `peak_bytes` begin anew, where the system can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most that was in use: of the GPU by torch, else this process's resident memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if STATUS.exists():
        return _kilobytes(STATUS, "VmHWM") * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """What is in use now."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return _kilobytes(STATUS, "VmRSS") * 1024 if STATUS.exists() else peak_bytes()


def available_bytes() -> int:
    """What could still be taken, what only caches files on the machine counted in."""
    import torch

    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    if not MACHINE.exists():
        import os

        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    available = _kilobytes(MACHINE, "MemAvailable") * 1024
    limit = CGROUP.read_text(encoding="ascii").strip() if CGROUP.exists() else "max"
    return available if limit == "max" else min(available, int(limit))


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int]:
    """glibc's; elsewhere nothing."""
    import ctypes

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return lambda _: 0
    return trim


def give_back_freed() -> None:
    """Give freed memory back to the system, where the C library would keep it in pieces too small to use."""
    _malloc_trim()(0)


def _kilobytes(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"{path} without {name}"
    return int(found[1])
