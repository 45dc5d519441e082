from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlicot import ranks
from nlicot.errors import ConfigError, LostProcess
from tests.time_limits import HANGS_S

SRUN = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "fit"}
VARIABLES = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME")


@pytest.mark.parametrize(
    ("variables", "is_first", "by_launcher"),
    [
        ({}, True, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, False),  # Lightning sets both
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, False),
        ({"NODE_RANK": "1"}, False, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False, True),
        ({**SRUN, "SLURM_PROCID": "0"}, True, True),
        ({**SRUN, "SLURM_PROCID": "1"}, False, True),
        ({**SRUN, "SLURM_PROCID": "1", "SLURM_JOB_NAME": "interactive"}, True, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "3"}, False, False),
    ],
)
def test_the_first_process_is_known_however_processes_are_started(
    variables: dict[str, str], is_first: bool, by_launcher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (ranks.is_first(), ranks.started_by_launcher()) == (is_first, by_launcher)


@pytest.mark.parametrize(
    ("variables", "started"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "4, the number that was started (WORLD_SIZE)"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "2"}, "2, the number that was started (SLURM_STEP_NUM_TASKS)"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "fit"}, ""),  # a batch job that starts one without srun
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ""),  # Lightning sets both
    ],
)
def test_each_of_several_processes_refuses_to_train_alone(
    variables: dict[str, str], started: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*VARIABLES, "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not started:
        ranks.check_num_processes(1)
        return
    ranks.check_num_processes(int(started[0]))
    with pytest.raises(ConfigError) as caught:
        ranks.check_num_processes(1)
    assert f"found 1 processes in all, expected {started}" in str(caught.value)


def test_other_errors_pass_and_end_the_processes_that_were_started() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        strategy = SimpleNamespace(launcher=SimpleNamespace(procs=[other]))
        with pytest.raises(RuntimeError, match="out of range"), ranks.ending_together(strategy, lambda: ""):
            raise RuntimeError("index out of range")
        assert other.wait(timeout=HANGS_S) < 0


OBSERVED = """
import os, subprocess, sys, time
from types import SimpleNamespace
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from nlicot import ranks
sleeping = [sys.executable, "-c", "import time; time.sleep(3600)"]
others = [subprocess.Popen(sleeping), subprocess.Popen(sleeping)]
with ranks.ending_together(SimpleNamespace(launcher=SimpleNamespace(procs=others)), lambda: "run it again"):
    _ChildProcessObserver(os.getpid(), others, sleep_period=0.1).start()
    others[1].kill()
    time.sleep(3600)
"""


def test_lightning_does_not_kill_the_first_process_before_it_returns_its_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,  # until the others have ended too
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == LostProcess.exit_code
    assert done.stdout == (
        "nlicot: one of several processes ended (killed, or out of memory?), so all end; run it again\n"
    )


WAITING = """
import time
from types import SimpleNamespace
from nlicot import ranks
with ranks.ending_together(SimpleNamespace(launcher=None), lambda: "run it again"):
    print("waiting", flush=True)
    time.sleep(120)
"""
STARTING = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.slow
def test_a_process_that_waits_ends_after_the_one_that_started_it_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "LOCAL_RANK": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", STARTING, WAITING],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "waiting\n"
        first.kill()
        killed_at = time.monotonic()
        assert first.stdout.read() == (  # until the other one ends
            "nlicot: one of several processes ended (killed, or out of memory?), so all end; run it again\n"
        )
    assert time.monotonic() - killed_at < 60
