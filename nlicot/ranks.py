"""The rank of this process among those that train or predict together, and the end of all if one is lost.

Lightning starts the other processes of a machine itself, with `LOCAL_RANK`. On several machines, `srun` or
`torchrun` starts all of them, or the user starts one on each machine, with `NODE_RANK`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from nlicot.errors import ConfigError, LostProcess

OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"
"""The logger of the thread in which Lightning kills all processes of a machine once one of them ended."""
LOST_CONNECTION = re.compile(
    r"connection (closed|reset)|broken pipe|socket (closed|timeout)|remote process exited", re.IGNORECASE
)
"""In the messages of gloo and NCCL if the process at the other end is gone."""
OF_TORCHRUN, OF_SRUN = "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"
"""Variables with the number of processes that a launcher started."""
WATCH_EVERY_S = 1.0
GRACE_S = 5.0
"""Seconds for a process to notice by itself that another one is gone, or to be seen as gone."""


def is_first() -> bool:
    """Return whether this process is the one that makes folders, writes files and prints."""
    names = ("RANK", "NODE_RANK", "LOCAL_RANK", *(("SLURM_PROCID",) if _is_one_of_srun() else ()))
    return all(os.environ.get(name, "0") == "0" for name in names)


def started_by_launcher() -> bool:
    """Return whether another program, or the user, starts several processes of one command."""
    return "RANK" in os.environ or os.environ.get("NODE_RANK", "0") != "0" or _is_one_of_srun()


def check_num_processes(world_size: int) -> None:
    """Refuse to run once in each of several processes, or to wait for some that nobody starts."""
    name = OF_TORCHRUN if "RANK" in os.environ else OF_SRUN
    num = os.environ.get(name, "")
    if started_by_launcher() and num.isdecimal() and int(num) != world_size:
        raise ConfigError(
            f"--trainer.devices, --trainer.num_nodes: found {world_size} processes in all, expected {num}, "
            f"the number that was started ({name}); to train on several add --config "
            "configs/overlays/ddp.yaml"
        )


def _is_one_of_srun() -> bool:
    """As Lightning decides it: an interactive job's processes are started by hand."""
    is_interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return os.environ.get("SLURM_NTASKS", "1") != "1" and not is_interactive


@contextlib.contextmanager
def ending_together(strategy: Any, way: Callable[[], str]) -> Iterator[None]:
    """End all processes with one message if one of them is lost, or this one fails.

    Args:
        strategy: Lightning's, whose launcher may have started the other processes of this machine.
        way: returns what to do then.
    """
    parent = os.getppid()

    def message() -> str:
        return f"one of several processes ended (killed, or out of memory?), so all end; {way()}"

    def reports() -> bool:
        """Return whether this process is the first, or the second after the first one was lost."""
        if is_first():
            return True
        deadline = time.monotonic() + GRACE_S
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.05)
        return os.environ.get("LOCAL_RANK") == "1" and os.getppid() != parent

    def watch_parent() -> None:
        while not over.wait(WATCH_EVERY_S):
            if os.getppid() != parent and not over.wait(GRACE_S):
                if reports():
                    print(f"nlicot: {message()}", file=sys.stderr, flush=True)
                os._exit(LostProcess.exit_code)

    observer, over = logging.getLogger(OBSERVER), threading.Event()
    handler = _Report(message, strategy)
    before = observer.level, observer.propagate
    observer.addHandler(handler)
    observer.setLevel(logging.INFO)
    observer.propagate = False
    if os.environ.get("LOCAL_RANK", "0") != "0":
        threading.Thread(target=watch_parent, daemon=True).start()
    try:
        yield
    except BaseException as error:
        _end(getattr(strategy.launcher, "procs", []))
        if not (isinstance(error, RuntimeError) and LOST_CONNECTION.search(str(error))):
            raise
        if not reports():
            raise SystemExit(LostProcess.exit_code) from None
        raise LostProcess(message()) from None
    finally:
        over.set()
        observer.removeHandler(handler)
        observer.level, observer.propagate = before


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.kill()
    processes.clear()  # or Lightning would see that they ended, and kill this one


class _Report(logging.Handler):
    """Prints a message in place of Lightning's own and ends all, before Lightning kills this process."""

    def __init__(self, message: Callable[[], str], strategy: Any) -> None:
        super().__init__()
        self._message, self._strategy = message, strategy

    def emit(self, record: logging.LogRecord) -> None:
        print(f"nlicot: {self._message()}", file=sys.stderr, flush=True)
        _end(self._strategy.launcher.procs)
        os._exit(LostProcess.exit_code)
