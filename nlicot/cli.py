"""The entry point: a table of commands; a command's code is imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TextIO

from nlicot import __version__, signals
from nlicot.errors import FULL, ConfigError, DiskFull, Interrupted, NlicotError


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and the libraries on it without the garbage collector.

    They are a million objects that stay. Searching them for garbage again and again takes a quarter of the
    time, and a second more at the end, unless they are frozen.
    """
    if "torch" in sys.modules:  # by a program that calls `main`, whose own objects must not be frozen
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _bars() -> Any:
    """Return the class of all progress bars; None if nothing has drawn one."""
    return getattr(sys.modules.get("tqdm.std"), "tqdm", None)


class AboveBars(logging.StreamHandler[TextIO]):
    """Writes lines above a progress bar, which would otherwise go on at its end."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; progress bars are cleared before it and drawn again after it."""
        bars = _bars()
        with bars.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


def _main_of(module: str) -> Callable[[str, Sequence[str]], int]:
    def run(name: str, args: Sequence[str]) -> int:
        code: int = importlib.import_module(module).main(args)
        return code

    return run


def _fit(name: str, args: Sequence[str]) -> int:
    from nlicot.run.config import parse_fit

    command = parse_fit(args)  # before torch and Lightning, so that help and errors come at once
    _hide_gpus_from_torch(command.settings.trainer.accelerator)
    with quick_imports():
        from nlicot.training.command import fit

    return fit(command)


def _prediction(name: str, args: Sequence[str]) -> int:
    from nlicot.run.config import parse_prediction

    runs = parse_prediction(name, args)
    _hide_gpus_from_torch(runs[0].settings.trainer.accelerator)
    with quick_imports():
        from nlicot.prediction import commands

    code: int = getattr(commands, name)(runs)
    return code


def _hide_gpus_from_torch(accelerator: object) -> None:
    """With `--trainer.accelerator cpu`, let torch find no GPU; else the base would be loaded on it."""
    if accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _export(name: str, args: Sequence[str]) -> int:
    from nlicot.run.config import parse_export

    run = parse_export(args)
    _hide_gpus_from_torch(run.settings.trainer.accelerator)
    with quick_imports():
        from nlicot.export.command import export

    return export(run)


def _teacher(name: str, args: Sequence[str]) -> int:
    from nlicot.teacher.options import parse

    settings = parse(name, args)  # before numpy is imported, so that --help and refusals are fast
    from nlicot.teacher.commands import run

    return run(name, settings)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, its line in `--help`, and the function that runs it."""

    name: str
    summary: str
    run: Callable[[str, Sequence[str]], int]


_split, _datasets = _main_of("nlicot.data.split"), _main_of("nlicot.data.public_sets")
_prepare = _main_of("nlicot.prepare.command")
_inspect, _audit = _main_of("nlicot.inspection.command"), _main_of("nlicot.audit.command")
_report, _sweep = _main_of("nlicot.report.command"), _main_of("nlicot.sweep.command")
_merge_shards = _main_of("nlicot.data.merge_shards")
GROUPS = {
    "data (costs nothing)": [
        Command("split", "make a data root of a CSV of pairs, or of a public set", _split),
        Command("datasets", "the public sets that split knows by name", _datasets),
        Command("prepare", "the examples that fit would train on, as instruction data", _prepare),
        Command("inspect", "training examples token by token, as fit encodes them", _inspect),
        Command("audit", "problems in a data root, before training", _audit),
        Command("merge-shards", "the results of --shard 1/N to N/N as one file", _merge_shards),
    ],
    "teacher (costs money, or the time of a local model)": [
        Command("generate", "a teacher's thought and label for each pair", _teacher),
        Command("reflect", "a stronger teacher's reflections on the wrong thoughts", _teacher),
        Command("score", "a judge's scores, and rewrites of texts that score low", _teacher),
    ],
    "training (costs GPU time)": [
        Command("fit", "train an adapter on a data root", _fit),
        Command("sweep", "fits of several experiments and seeds, and a table of them", _sweep),
    ],
    "evaluation and prediction (costs some GPU time)": [
        Command("validate", "metrics on all dev pairs", _prediction),
        Command("test", "metrics on labelled test pairs", _prediction),
        Command("predict", "predictions for unlabelled pairs, as CSV and JSON lines", _prediction),
        Command("report", "runs side by side, a page of their mistakes, a model card", _report),
    ],
    "other programs": [
        Command("export", "a run's model for peft, transformers or llama.cpp, and a check of it", _export)
    ],
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


PATH_ERRORS = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file, expected a folder",
    errno.EISDIR: "expected a file",
    errno.EEXIST: "a file is in the place of a folder, move it away",
    errno.EACCES: "choose a path that you may use, or change its permissions",
    errno.EROFS: "choose a path that can be written",
}
"""Errors of the file system that a path of the user's can cause in any command, with what to do."""
LONGEST_SHOWN = 200


def usage() -> str:
    """Return the text of `--help`."""
    lines = ["usage: python -m nlicot COMMAND [options]", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {command.name:<14}{command.summary}" for command in commands), ""]
    lines += [
        "Start with a few minutes on the sample data, on a CPU:",
        "  python -m nlicot fit --config configs/label_only.yaml --config configs/overlays/sample.yaml",
        "Options of a command, with an example:",
        "  python -m nlicot COMMAND --help",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (docs/reliability.md lists them)."""
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[AboveBars(sys.stderr)])
    logging.getLogger().setLevel(logging.WARNING)
    is_first_process = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.getLogger("nlicot").setLevel(logging.INFO if is_first_process else logging.ERROR)
    try:
        with signals.handling(signals.raise_stopped):
            code = _run(args)
            sys.stdout.flush()  # here, where an error is handled
            return code
    except Interrupted as stop:
        return _stopped(stop.signum, f"stopped; {stop}")
    except KeyboardInterrupt as stop:
        return _stopped(
            getattr(stop, "signum", signal.SIGINT), "stopped; run the same command to start again"
        )
    except (NlicotError, argparse.ArgumentError) as error:
        _print_last(" ".join(str(error).split()))
        return getattr(error, "exit_code", 2)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "nlicot":
            raise
        _print_last(
            f"{sys.executable} has no module {error.name}; activate the environment "
            "(after `make fit`: . .venv/bin/activate), or: pip install -r requirements.txt"
        )
        return 2
    except RuntimeError as error:
        if "home directory" not in str(error):  # what `Path.expanduser` says
            raise
        _print_last(
            "found a path that starts with ~ and a name, but no user of that name; write the folder out"
        )
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        has_no_temporary = "No usable temporary directory" in str(error)  # libraries ask for one on import
        if error.errno in FULL or has_no_temporary:
            if error.filename is None:
                _write_no_more()
            name = "the folder for temporary files (TMPDIR)" if has_no_temporary else "the output"
            full = DiskFull(error.filename or name, error.strerror)
            _print_last(str(full))
            return DiskFull.exit_code
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        name = str(error.filename)
        name = name if len(name) < LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
        _print_last(f"{name}: {error.strerror}; {PATH_ERRORS[error.errno]}")
        return 2


def _run(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    return _command(args[0]).run(args[0], args[1:])


def _write_no_more() -> None:
    """Discard what is left to print: writing it at the interpreter's end would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _print_last(message: str) -> None:
    """Print a line below a progress bar that was not finished, which it would otherwise continue."""
    for bar in list(getattr(_bars(), "_instances", ())):
        bar.close()
    print(f"nlicot: {message}", file=sys.stderr)


def _stopped(signum: signal.Signals, message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process reports it, and is ended by other codes
        return 0
    if signum is signals.REQUEUEING:
        message += f" ({signals.requeue()})"
    _print_last(message)
    return signals.exit_code(signum)


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: unknown command; {hint}available: {', '.join(COMMANDS)}")
