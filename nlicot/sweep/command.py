"""The command `sweep`: start one fit after another, each in a process of its own, and print a table.

A process of its own gives its memory back, and its crash ends one run only. A signal, or the end of the time,
stops the fit that runs as it would stop a single one, after a step; the same command continues.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals

from nlicot import signals
from nlicot.command_line import CommandParser, Names, PositiveFloat
from nlicot.config_files import find_config
from nlicot.data.atomic_write import make_folder
from nlicot.errors import ConfigError, DiskFull, Interrupted, RunsUnfinished
from nlicot.run.folder import hold_run
from nlicot.sweep.plan import Plan, chosen, is_finished, make_plan, read_experiments
from nlicot.text_tables import listed

OWN_FLAGS = ("out", "only", "seeds", "minutes", "dry_run", "print_config", "help")


def main(args: Sequence[str]) -> int:
    """Check the whole sweep, run it and print its table; returns the exit code."""
    own, passed = _own_and_passed(args)
    settings = _parser().parse(own)
    if settings.file is None:
        raise ConfigError("sweep: found no file, expected sweep FILE.yaml")
    path = find_config(settings.file)
    experiments = chosen(read_experiments(path, seeds=settings.seeds or (), flags=passed), settings.only)
    out = settings.out or Path("checkpoints") / path.stem
    plan = make_plan(path, experiments, out)
    for name, report in plan.reports.items():
        print(f"{name}: {report}")
    if settings.dry_run:
        for run in plan.runs:
            print(f"{run.folder.name} ({run.state}): {_shown(run.args)}")
        return 0
    make_folder(out, label=f"--out {out}")
    with hold_run(out, is_new=False):
        ending = _Ending(settings.minutes)
        with signals.handling(ending):
            failed = _run_all(plan, out, ending)
        _report(plan, out)
    unfinished = [run.folder.name for run in plan.runs if not is_finished(run.folder)]
    if not unfinished:
        return 0
    way = f"continue with: {_shown(['sweep', *args])}"
    left = f"{len(unfinished)} of {len(plan.runs)} runs are not finished"
    if ending.signum is not None:
        raise Interrupted(f"{left}; {way}", ending.signum)
    reason = f"failed: {listed(failed)}" if failed else f"--minutes {settings.minutes:g} are over"
    raise RunsUnfinished(f"{left} ({reason}); {way}")


def _own_and_passed(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into what `sweep` takes, its file first, and the flags of every fit."""
    own: list[str] = []
    passed: list[str] = []
    current = own
    for arg in args:
        if arg.startswith("--"):
            current = own if arg[2:].partition("=")[0].replace("-", "_") in OWN_FLAGS else passed
        current.append(arg)
    return own, passed


def _parser() -> CommandParser:
    parser = CommandParser(
        "sweep",
        description="Fit a list of experiments, each with several seeds, one after another, and compare "
        "them. All are checked before the first one starts; the same command continues after a stop. Flags "
        "of fit go to every run.",
        example="python -m nlicot sweep configs/sweeps/sample.yaml",
    )
    add = parser.add_argument
    add("file", nargs="?", type=Path | None, metavar="FILE.yaml", help="settings of fit, and experiments")
    add(
        "--out",
        type=Path | None,
        default=None,
        help="folder of the runs; default: checkpoints/ and FILE's name",
    )
    add(
        "--only",
        type=Names | None,
        default=None,
        metavar="NAME,NAME",
        help="only these experiments, and their sources",
    )
    add(
        "--seeds",
        type=Names | None,
        default=None,
        metavar="N,N",
        help="seeds of all experiments, instead of FILE's",
    )
    add("--minutes", type=PositiveFloat | None, default=None, help="stop the run that is fitted then")
    add("--dry_run", type=bool, default=False, help="check everything and print the commands")
    return parser


def _shown(args: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "nlicot", *args])


class _Ending:
    """Ends a sweep at a signal or after its time: the fit that runs is stopped, and no other one starts.

    The fit gets SIGTERM and not, in a terminal, Ctrl-C too: two signals would stop it without saving a step.
    """

    def __init__(self, minutes: float | None) -> None:
        self.signum: Signals | None = None
        self.is_over = False
        self._pid: int | None = None
        self._ends_at = None if minutes is None else time.monotonic() + 60 * minutes

    def __call__(self, signum: Signals) -> None:
        """Handle a signal."""
        self.signum = self.signum or signum
        self._end()

    def _end(self) -> None:
        self.is_over = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self._pid, Signals.SIGTERM)

    def run(self, args: Sequence[str]) -> tuple[int, float | None]:
        """Run a command to its end; returns its exit code and, on Linux, its peak memory in MB."""
        sys.stdout.flush()  # or the lines so far would follow those of the new process in a file or pipe
        command = [sys.executable, "-m", "nlicot", *args]
        with subprocess.Popen(command, process_group=0) as process:
            self._pid = process.pid
            if self.is_over:  # since it was looked at
                self._end()
            left_s = None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())
            timer = None if left_s is None else threading.Timer(left_s, self._end)
            if timer:
                timer.start()
            _, status, used = os.wait4(process.pid, 0)
            self._pid = None
            if timer:
                timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_maxrss / 1024 if sys.platform == "linux" else None


def _run_all(plan: Plan, out: Path, ending: _Ending) -> list[str]:
    """Fit what is not finished; returns the names of the runs that failed, or whose source did."""
    from nlicot.sweep.results import Usage, read_usage, record_usage

    usage, failed = read_usage(out), []
    for number, run in enumerate(plan.runs, start=1):
        name, place = run.folder.name, f"[{number}/{len(plan.runs)}]"
        if run.state == "finished":
            print(f"{place} {name}: finished before")
            continue
        if ending.is_over:
            break
        if run.source is not None and not is_finished(run.source):
            print(f"{place} {name}: not started, since {run.source.name} is not finished")
            failed.append(name)
            continue
        print(f"\n{place} {name}: {_shown(run.args)}")
        started = time.monotonic()
        code, peak_mb = ending.run(run.args)
        used = Usage(seconds=time.monotonic() - started, peak_mb=peak_mb)
        # The time of a run whose folder was removed is not that of the new one.
        usage[name] = usage[name] + used if name in usage and run.state != "new" else used
        record_usage(out, usage)
        if code == DiskFull.exit_code:
            raise DiskFull(run.folder, "see above")
        if not ending.is_over and not is_finished(run.folder):
            print(f"{place} {name}: failed with exit code {code}; the sweep goes on")
            failed.append(name)
    return failed


def _report(plan: Plan, out: Path) -> None:
    """Print and write the table of the runs that are finished."""
    from nlicot.sweep.results import as_text, read_rows, read_usage, write_results

    usage = read_usage(out)
    rows = read_rows(plan.runs, usage)
    if not rows:
        return
    print(f"\n{as_text(rows)}")
    paths = write_results(out, plan.runs, rows, usage)
    print(f"\nfigures      {', '.join(map(str, paths))}")
    print(f"TensorBoard  tensorboard --logdir {shlex.quote(str(out))}")
    names = [run.name for row in rows for run in row.runs]
    report = ["report", *names, "--checkpoints_root", str(out), "--html", str(out / "report.html")]
    print(f"next         {_shown(report)}")
