from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nlicot.model.fast.threads import (
    CROWDED,
    FREE,
    Crowd,
    allowed_cores,
    cgroup_quotas,
    choose_num_threads,
    own_cores,
)
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[3]
needs_two_cores = pytest.mark.skipif(
    sys.platform != "linux" or allowed_cores() < 2, reason="needs Linux and two cores"
)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_the_quota_of_version_2_is_that_of_the_own_group_and_of_those_above(tmp_path: Path) -> None:
    written(tmp_path / "user" / "shell" / "cpu.max", "150000 100000\n")
    written(tmp_path / "user" / "cpu.max", "max 100000\n")
    written(tmp_path / "cpu.max", "400000 100000\n")
    assert cgroup_quotas("0::/user/shell\n", tmp_path) == [1.5, 4.0]
    assert cgroup_quotas("0::/user\n", tmp_path) == [4.0]


def test_the_quota_of_version_1_is_in_two_files(tmp_path: Path) -> None:
    for name, value in (("quota", "-1"), ("period", "100000")):
        written(tmp_path / "cpu" / f"cpu.cfs_{name}_us", f"{value}\n")
    for name, value in (("quota", "25000"), ("period", "50000")):
        written(tmp_path / "cpu" / "job" / f"cpu.cfs_{name}_us", f"{value}\n")
    assert cgroup_quotas("5:cpuset:/elsewhere\n4:cpu,cpuacct:/job\n0::/\n", tmp_path) == [0.5]
    assert cgroup_quotas("4:cpu,cpuacct:/\n", tmp_path) == []


def test_in_a_container_the_quota_is_at_the_mounted_root(tmp_path: Path) -> None:
    written(tmp_path / "cpu.max", "200000 100000\n")
    assert cgroup_quotas("0::/docker/0123\n", tmp_path) == [2.0]


def states(crowd: Crowd, readings: Sequence[tuple[float, float]]) -> str:
    return "".join(".c"[crowd.update(own, others)] for own, others in readings)


@pytest.mark.parametrize(
    ("num_cores", "num_threads", "readings", "expected"),
    [
        (2, 2, [(1.3, 0.7)] * 3, ".cc"),
        (2, 2, [(1.3, 0.7), (1.8, 0.0), (1.3, 0.7), (1.3, 0.7)], "...c"),  # a moment does not count
        (2, 2, [(1.8, CROWDED)] * 3, "..."),
        (2, 2, [(1.3, 0.7)] * 2 + [(1.5, FREE)] * 3 + [(1.8, 0.0)], ".ccc.."),
        (2, 2, [(1.3, 0.7)] * 2 + [(1.5, 0.0)] * 2 + [(1.5, 0.2)] + [(1.5, 0.0)] * 2, ".cccccc"),
        (2, 2, [(0.5, 1.5)] * 3, ".cc"),  # its two threads may share a core with a busy process
        (2, 2, [(0.01, 1.9)] * 3, "..."),  # this process waits for something else
        (16, 8, [(8.0, 8.3)] * 2, ".."),  # eight cores are left for eight threads
        (16, 8, [(7.0, 8.4)] * 2, ".c"),
    ],
)
def test_a_crowd_is_there_if_others_need_cores_of_this_process_for_a_while(
    num_cores: int, num_threads: int, readings: list[tuple[float, float]], expected: str
) -> None:
    assert states(Crowd(num_cores=num_cores, num_threads=num_threads), readings) == expected


def run(code: str, **variables: str) -> str:
    """Run Python code with OpenMP's defaults, and these variables."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_two_cores
def test_with_spare_threads_waiting_threads_sleep_and_results_stay_the_same() -> None:
    code = """
import time, torch
from nlicot.model.fast.threads import SpareThreads, own_cores

numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))

def seconds_spent_waiting():
    started = time.process_time()
    for _ in range(40):
        numbers.sum()
        time.sleep(0.005)  # the other thread waits for the next sum
    return time.process_time() - started

total = float(numbers.sum())
spinning = max(seconds_spent_waiting() for _ in range(3))
spare = SpareThreads(len(own_cores()), 2)
asleep, same = min(seconds_spent_waiting() for _ in range(3)), float(numbers.sum()) == total
spare.end()
print(spinning > 2 * asleep, max(seconds_spent_waiting() for _ in range(3)) > 2 * asleep, same)
"""
    assert run(code, OMP_NUM_THREADS="2") == "True True True\n"


@needs_two_cores
def test_spare_threads_end_and_leave_none() -> None:
    code = """
import os, time, torch
from nlicot.model.fast.threads import SpareThreads, own_cores

def num_threads():
    return len(os.listdir("/proc/self/task"))

torch.ones(1 << 20).sum()
before = num_threads()
for _ in range(20):
    spare = SpareThreads(len(own_cores()), 2)
    spare.end()
ends = time.monotonic() + 30
while num_threads() > before and time.monotonic() < ends:  # those of a team end after its first thread
    time.sleep(0.01)
print(num_threads() - before)
"""
    assert run(code, OMP_NUM_THREADS="2") == "0\n"


USE_THREADS = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from nlicot.model.fast.threads import use_threads
use_threads()
"""


@needs_two_cores
def test_next_to_busy_processes_it_says_that_threads_sleep() -> None:
    code = f"""
import logging, subprocess, sys, time, torch
from nlicot.model.fast.threads import use_threads

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("nlicot").addHandler(handler)
logging.getLogger("nlicot").setLevel(logging.INFO)
use_threads()
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range({len(own_cores())})]
ends = time.monotonic() + 60
while not messages and time.monotonic() < ends:
    torch.ones(1 << 20).sum()
for process in busy:
    process.kill()
print(*messages)
"""
    line = run(code)
    assert line.startswith("other programs use ")
    assert "OMP_WAIT_POLICY" in line


@needs_two_cores
def test_a_process_ends_as_it_should_while_spare_threads_start() -> None:
    code = """
import os, threading, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # one team of spare threads
from nlicot.model.fast import threads

threads.WATCH_S, threads.CROWDED, threads.COMPUTING = 0.01, -9.0, -1.0  # a crowd, whatever else runs
threads.SPLIT_SUM = 1 << 25  # its first sum takes a while
threads.use_threads()
ends = time.monotonic() + 30
while threading.active_count() < 3 and time.monotonic() < ends:
    time.sleep(0.001)
print(threading.active_count())
"""
    assert run(code, OMP_NUM_THREADS="2") == "3\n"


def test_readings_at_one_time_are_passed_over() -> None:
    code = """
import time
from nlicot.model.fast import threads

readings = []
def same_time():
    readings.append(7.0)
    return 7.0

threads.WATCH_S = 0.001
time.monotonic = same_time
watch = threads.Watch(2, 2)
watch.start()
while watch.is_alive() and len(readings) < 5:
    time.sleep(0.001)
print(watch.is_alive())
watch.end()
"""
    assert run(code) == "True\n"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_nothing_is_watched_if_the_user_sets_how_threads_wait(name: str) -> None:
    code = """
import threading
from nlicot.model.fast.threads import use_threads
use_threads()
print([thread.name for thread in threading.enumerate()])
"""
    value = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}[name]
    assert run(code, **{name: value}) == "['MainThread']\n"


@pytest.mark.parametrize(
    ("num_allowed", "wanted", "expected", "said"),
    [
        (8, None, 8, ""),
        (
            2,
            None,
            2,
            "threads: 2 instead of 8, as the CPU quota allows (OMP_NUM_THREADS sets",
        ),
        (8, "8", 8, ""),
        (2, "8", 8, "OMP_NUM_THREADS=8: the CPU quota allows 2"),
    ],
)
def test_threads_follow_the_quota_unless_the_user_sets_their_number(
    num_allowed: int, wanted: str | None, expected: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choose_num_threads(8, num_allowed, wanted) == expected
    assert caplog.text.count("\n") == bool(said)
    assert said in caplog.text
