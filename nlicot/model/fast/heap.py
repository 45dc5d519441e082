"""Memory in use, its peak, and memory available: the GPU's if there is one, else the machine's."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from nlicot.errors import ConfigError
from nlicot.model.fast.threads import CGROUPS, OWN_CGROUPS, cgroup_folders

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")

NUM_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
M_MMAP_THRESHOLD = -3
"""Of `mallopt`, as in glibc's malloc.h."""

CPU_IS_FULL = "can't allocate memory"
"""Part of the message of torch's RuntimeError, which has no class of its own on a CPU."""


def reset_peak() -> None:
    """Restart the peak that `peak_bytes` reports, if the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the peak of the GPU memory torch allocated, else of this process's resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if STATUS.exists():
        return _read_bytes(STATUS, "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the memory in use now."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return _read_bytes(STATUS, "VmRSS") if STATUS.exists() else peak_bytes()


def available_bytes() -> int:
    """Return the memory that can still be allocated, reclaimable caches included."""
    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    if not MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    available = _read_bytes(MEMINFO, "MemAvailable")
    if not OWN_CGROUPS.exists():
        return available
    return max(0, min([available, *cgroup_headrooms(OWN_CGROUPS.read_text(encoding="utf-8"), CGROUPS)]))


def cgroup_headrooms(own_cgroups: str, mounted: Path) -> list[int]:
    """Return the bytes that the limits of this process's control groups leave; arguments as `cgroup_folders`.

    Pages of files that were not used lately count as free: the system takes them back first.
    """
    headrooms = []
    for folder in cgroup_folders("memory", own_cgroups, mounted):
        if (folder / "memory.max").exists():
            limit, used, cached = "memory.max", "memory.current", "inactive_file"
        elif (folder / "memory.limit_in_bytes").exists():
            limit, used, cached = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        most, in_use, stat = (
            (folder / name).read_text(encoding="ascii").strip() for name in (limit, used, "memory.stat")
        )
        if most != "max":
            counts = dict(line.split() for line in stat.splitlines())
            headrooms.append(int(most) - int(in_use) + int(counts.get(cached, 0)))
    return headrooms


def _read_bytes(path: Path, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"{path} without {field}"
    return int(found[1]) * 1024


@contextmanager
def memory_for(work: str, *, remedy: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that fails, on the GPU or the CPU, into a `ConfigError` that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_IS_FULL in str(error)
        if not is_full:
            raise
        raise ConfigError(f"not enough memory for {work}; {remedy()}") from None


def keep_few_primitives() -> None:
    """Have oneDNN keep few compiled products, unless the user has set how many; call it before the first.

    It compiles one for each shape and keeps 1,024, of up to 0.7 MB. A micro-batch rarely has as many rows as
    an earlier one, so nearly all of them serve the layers of one pass, and never again.
    """
    os.environ.setdefault(NUM_PRIMITIVES, "64")


def trim_heap() -> None:
    """Return freed memory to the system; glibc would keep it in fragments too small to reuse."""
    _c_function("malloc_trim")(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Keep large blocks out of the heap, for work between steps of a long training.

    glibc takes them from the system one by one instead. In the heap, small blocks that outlive the work would
    come to lie between the large ones, and part the room that training reuses into fragments. Only for work
    that may be slower: each block's pages are new.
    """
    set_option = _c_function("mallopt")
    set_option(M_MMAP_THRESHOLD, 1 << 17)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, 1 << 25)  # what glibc itself rises to as large blocks are freed
        trim_heap()


@cache
def _c_function(name: str) -> Callable[..., object]:
    """Return a function of glibc, or one that does nothing where there is another C library."""
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except AttributeError:  # musl, macOS
        return lambda *_: None
    return function
