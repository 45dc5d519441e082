"""Handlers of the signals that stop a command; tests/chaos/test_signals.py sends them to whole commands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from signal import Signals

import pytest

from nlicot import cli, signals
from nlicot.errors import Interrupted


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """A job in the background, or under `nohup`, starts with some of them ignored."""
    before = [(signum, signal.signal(signum, signal.SIG_DFL)) for signum in signals.STOPPING]
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", signals.STOPPING)
def test_a_signal_raises_and_the_handlers_before_come_back(signum: Signals) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(signals.Stopped) as stopped, signals.handling(signals.raise_stopped):
        os.kill(os.getpid(), signum)
    assert stopped.value.signum is signum
    assert signal.getsignal(signum) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handling(signals.raise_stopped):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_is_finished_after_the_first_signal_and_not_after_the_second() -> None:
    stop = signals.Deferred()
    with pytest.raises(signals.Stopped), signals.handling(stop):
        stop.waits = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum is signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_work_to_finish_the_first_signal_stops() -> None:
    with pytest.raises(signals.Stopped), signals.handling(signals.Deferred()):
        os.kill(os.getpid(), signal.SIGHUP)


def test_sigusr1_is_handled_in_a_slurm_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    with signals.handling(signals.raise_stopped):
        assert signal.getsignal(signal.SIGUSR1) is before
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(signals.Stopped), signals.handling(signals.raise_stopped):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_task_of_an_array_has_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOB_ID", "18"), ("ARRAY_JOB_ID", "17"), ("ARRAY_TASK_ID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert signals.slurm_job() == "17_1"


def test_a_job_that_cannot_be_requeued_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "")
    assert signals.requeue() == "job 17 could not be requeued: scontrol: No such file or directory"
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert signals.requeue() == "the first process requeues job 17"


@pytest.mark.parametrize(("signum", "code"), [(Signals.SIGTERM, 143), (Signals.SIGHUP, 129)])
def test_exit_code_of_an_interrupted_command(signum: Signals, code: int) -> None:
    assert Interrupted("stopped", signum).exit_code == signals.exit_code(signum) == code
    assert cli._stopped(signum, "stopped") == code
