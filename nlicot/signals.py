"""Signals that stop a command: SIGTERM and SIGHUP like Ctrl-C, and SIGUSR1 in a SLURM job, which is requeued.

A command stops where it is, by `Stopped`, unless it is at work that it can finish first (`Deferred`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from signal import Signals

STOPPING = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP)
REQUEUEING = Signals.SIGUSR1
"""The signal that SLURM sends before a job's end with `sbatch --signal=B:USR1@120`."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the command: like Ctrl-C, it passes all code that catches errors."""

    def __init__(self, signum: Signals) -> None:
        super().__init__(signum)
        self.signum = signum


def exit_code(signum: Signals) -> int:
    """Return the exit code that a shell reports for a process that a signal ended.

    >>> [exit_code(each) for each in STOPPING]
    [130, 143, 129]
    """
    return 128 + signum


def raise_stopped(signum: Signals) -> None:
    """Stop the command where it is."""
    raise Stopped(signum)


class Deferred:
    """Notes the first signal, for work that can stop in a moment; the second one stops it where it is."""

    def __init__(self) -> None:
        self.signum: Signals | None = None
        self.waits = False  # true while the work can finish something first

    def __call__(self, signum: Signals) -> None:
        """Handle a signal."""
        is_first, self.signum = self.signum is None, signum
        if not (self.waits and is_first):
            raise Stopped(signum)


@contextlib.contextmanager
def handling(handler: Callable[[Signals], object]) -> Iterator[None]:
    """Call `handler` with each signal that stops a command."""
    before = {each: signal.getsignal(each) for each in (*STOPPING, REQUEUEING)}
    install(handler)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, earlier in before.items():
                signal.signal(each, signal.SIG_DFL if earlier is None else earlier)


def install(handler: Callable[[Signals], object]) -> None:
    """Set the handler of the signals that stop a command, unless they are ignored, as by `nohup`."""
    if threading.current_thread() is not threading.main_thread():  # a notebook's
        return
    for each in (*STOPPING, REQUEUEING) if slurm_job() else STOPPING:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, frame: handler(Signals(number)))


def slurm_job() -> str | None:
    """Return the id of the SLURM job, or of the task of a job array, that this process belongs to."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Ask SLURM to start this job again, once for all its processes; returns a few words about it."""
    import subprocess  # slow to import, for a rare event

    job = slurm_job()
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return f"the first process requeues job {job}"
    try:
        done = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} could not be requeued: scontrol: {error.strerror}"
    problem = " ".join(done.stderr.split())
    return f"job {job} could not be requeued: {problem}" if done.returncode else f"job {job} is requeued"
