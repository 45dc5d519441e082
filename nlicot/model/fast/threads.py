"""Threads on the processor: as many as its quota allows, and no spinning while other programs need the cores.

torch's threads spin for milliseconds while they wait for each other, which is fastest on an idle machine. If
another program runs on one of their cores, they spin while the last of them waits for that core, and a
training step takes ten times as long. libgomp, their library, has a remedy: with more OpenMP threads than
cores, waiting threads go to sleep almost at once (its manual, GOMP_SPINCOUNT). So while other programs need
the cores, a few more threads are kept that do nothing. The number of threads that compute stays the same, and
so do all results, bit for bit.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

OMP_NUM_THREADS = "OMP_NUM_THREADS"
SPIN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables that set how long waiting threads spin; if the user set one, it is left at that."""
STAT, OWN_CGROUPS, CGROUPS = Path("/proc/stat"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
WATCH_S = 1.0
CROWDED, FREE = 0.35, 0.15
"""Cores in use by others, beyond those that this process leaves free, that count as a crowd, or as none."""
CROWDED_AFTER, FREE_AFTER = 2, 3
"""Number of readings in a row after which it counts."""
COMPUTING = 0.02
"""Cores in use by this process, below which it waits for something else, such as its own compiler."""
SPLIT_SUM = 1 << 16
"""Numbers per thread in a sum that torch divides among all threads (it does from 32,768)."""


@functools.cache
def use_threads() -> None:
    """Compute with as many threads as the CPU quota allows, and watch for other programs from now on."""
    num_cores, num_threads = len(own_cores()), torch.get_num_threads()
    num_chosen = choose_num_threads(num_threads, allowed_cores(), os.environ.get(OMP_NUM_THREADS))
    if num_chosen != num_threads:
        torch.set_num_threads(num_chosen)
    is_set = any(name in os.environ for name in SPIN_SETTINGS)
    if 1 < num_chosen <= num_cores and STAT.exists() and not is_set and not torch.cuda.is_available():
        watch = Watch(num_cores, num_chosen)
        watch.start()
        atexit.register(watch.end)  # a thread that is inside torch when Python ends would abort the process


def choose_num_threads(num_threads: int, num_allowed: int, wanted: str | None) -> int:
    """Return the number of threads: torch's, or fewer if the quota allows fewer and the user wants no number.

    Two threads on a quota of one core are slower than one: they use it up spinning, then both are stopped.
    """
    if num_threads <= num_allowed:
        return num_threads
    if wanted is not None:
        logger.warning(
            "%s=%s: the CPU quota allows %d, and more threads are slower; set it to %d or unset it",
            *(OMP_NUM_THREADS, wanted, num_allowed, num_allowed),
        )
        return num_threads
    logger.info(
        "threads: %d instead of %d, as the CPU quota allows (%s sets another number)",
        *(num_allowed, num_threads, OMP_NUM_THREADS),
    )
    return num_allowed


def own_cores() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def allowed_cores() -> int:
    """Return the number of cores that this process may use: those of its CPU quota, if it has one."""
    num_cores = len(own_cores())
    if not OWN_CGROUPS.exists():
        return num_cores
    return max(1, int(min([num_cores, *cgroup_quotas(OWN_CGROUPS.read_text(encoding="utf-8"), CGROUPS)])))


def cgroup_folders(controller: str, own_cgroups: str, mounted: Path) -> Iterator[Path]:
    """Yield the folders of the groups in `/proc/self/cgroup`, and of those above them.

    Inside a container the paths may be the host's; the container's own group is the mounted root then.

    Args:
        controller: `cpu` or `memory`.
        own_cgroups: the content of `/proc/self/cgroup`.
        mounted: the folder in which control groups are mounted.
    """
    for line in own_cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controller if controllers else mounted  # version 1 names its controllers
        group = root / path.strip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(root)))


def cgroup_quotas(own_cgroups: str, mounted: Path) -> list[float]:
    """Return the CPU quotas, in cores, of the groups of `cgroup_folders`, whose arguments these are."""
    quotas = []
    for folder in cgroup_folders("cpu", own_cgroups, mounted):
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        elif (folder / "cpu.cfs_quota_us").exists():
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
        else:
            continue
        if quota not in ("max", "-1"):
            quotas.append(int(quota) / int(period))
    return quotas


@dataclass(slots=True, kw_only=True)
class Crowd:
    """Decides whether other programs need cores that this process computes on."""

    num_cores: int
    num_threads: int
    is_there: bool = False
    _num_readings: int = 0  # in a row that say otherwise

    def update(self, own: float, others: float) -> bool:
        """Return whether there is a crowd, given the cores in use since the last reading, on average."""
        excess = others - (self.num_cores - self.num_threads)
        if self.is_there:
            says_otherwise, needed = excess <= FREE, FREE_AFTER
        else:
            says_otherwise, needed = excess > CROWDED and own > COMPUTING, CROWDED_AFTER
        self._num_readings = self._num_readings + 1 if says_otherwise else 0
        if self._num_readings == needed:
            self.is_there, self._num_readings = not self.is_there, 0
        return self.is_there


class Watch(threading.Thread):
    """Reads once a second which cores others use, and keeps spare threads while there is a crowd."""

    def __init__(self, num_cores: int, num_threads: int) -> None:
        super().__init__(name="watch", daemon=True)
        self._num_cores, self._num_threads = num_cores, num_threads
        self._ended = threading.Event()

    def run(self) -> None:
        """Watch until the end of the process, or `end`."""
        crowd = Crowd(num_cores=self._num_cores, num_threads=self._num_threads)
        spare: SpareThreads | None = None
        num_changes = 0
        earlier = CpuTimes.now()
        while not self._ended.wait(WATCH_S):
            now = CpuTimes.now()
            if now.at_s <= earlier.at_s:
                continue
            own, others = now.cores_since(earlier)
            earlier = now
            if crowd.update(own, others) is (spare is not None):
                continue
            num_changes += 1
            if spare is None:
                spare = SpareThreads(self._num_cores, self._num_threads)
            else:
                spare.end()
                spare = None
            self._say(num_changes, others)
        if spare is not None:
            spare.end()

    def _say(self, num_changes: int, others: float) -> None:
        if num_changes == 1:
            logger.info(
                "other programs use %.1f of the %d cores: meanwhile, threads that wait sleep and do not spin "
                "(same results; OMP_WAIT_POLICY=active or passive turns this off)",
                *(others, self._num_cores),
            )
        elif num_changes == 2:
            logger.info("other programs no longer need the cores: threads that wait spin again")

    def end(self) -> None:
        """End the watch and its spare threads; returns when they have ended."""
        self._ended.set()
        self.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """A time, and the CPU seconds used up to it: by this process, and by all on the cores it may use."""

    at_s: float
    own_s: float
    all_s: float

    @classmethod
    def now(cls) -> CpuTimes:
        """Read the system's counters."""
        names = {f"cpu{number}" for number in own_cores()}
        ticks = 0
        for line in STAT.read_text(encoding="ascii").splitlines():
            name, *values = line.split(" ")
            if name in names:
                user, nice, system, _, _, irq, soft_irq, *_ = map(int, values)
                ticks += user + nice + system + irq + soft_irq
        return cls(at_s=time.monotonic(), own_s=time.process_time(), all_s=ticks / os.sysconf("SC_CLK_TCK"))

    def cores_since(self, earlier: CpuTimes) -> tuple[float, float]:
        """Return the cores in use on average, by this process and by others."""
        own, total = self.own_s - earlier.own_s, self.all_s - earlier.all_s
        seconds = self.at_s - earlier.at_s
        return own / seconds, (total - own) / seconds


class SpareThreads:
    """Idle OpenMP threads: with those that compute, more than there are cores, until `end`."""

    def __init__(self, num_cores: int, num_threads: int) -> None:
        self._ended = threading.Event()
        num_teams = 1 + (num_cores - num_threads) // (num_threads - 1)  # a team adds all but its first thread
        self._teams = [
            threading.Thread(target=self._hold, args=(num_threads,), daemon=True) for _ in range(num_teams)
        ]
        for team in self._teams:
            team.start()

    def _hold(self, num_threads: int) -> None:
        torch.ones(SPLIT_SUM * num_threads).sum()  # starts a team of its own, which this thread keeps
        self._ended.wait()

    def end(self) -> None:
        """End the threads; returns when they have ended."""
        self._ended.set()
        for team in self._teams:
            team.join()
