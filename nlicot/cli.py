"""The entry point: a table of commands; a command's code is imported when it is called."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlicot import __version__
from nlicot.errors import ConfigError, NlicotError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: its name, its line in `--help`, and the function that runs it."""

    name: str
    summary: str
    run: Callable[[str, Sequence[str]], int]


def _split(name: str, args: Sequence[str]) -> int:
    from nlicot.data.split import main

    return main(args)


def _prepare(name: str, args: Sequence[str]) -> int:
    from nlicot.prepare.command import main

    return main(args)


def _audit(name: str, args: Sequence[str]) -> int:
    from nlicot.audit.command import main

    return main(args)


def _inspect(name: str, args: Sequence[str]) -> int:
    from nlicot.inspection.command import main

    return main(args)


def _fit(name: str, args: Sequence[str]) -> int:
    from nlicot.run.config import parse_fit

    command = parse_fit(args)  # before torch and Lightning, so that help and errors come at once
    from nlicot.training.command import fit

    return fit(command)


def _prediction(name: str, args: Sequence[str]) -> int:
    from nlicot.run.config import parse_prediction

    runs = parse_prediction(name, args)
    from nlicot.prediction import commands

    functions = {"validate": commands.validate, "test": commands.test, "predict": commands.predict}
    return functions[name](runs)


def _teacher(name: str, args: Sequence[str]) -> int:
    from nlicot.teacher.options import parse

    settings = parse(name, args)  # before numpy is imported, so that --help and refusals are fast
    from nlicot.teacher.commands import run

    return run(name, settings)


def _report(name: str, args: Sequence[str]) -> int:
    from nlicot.report.command import main

    return main(args)


GROUPS: dict[str, list[Command]] = {
    "data (costs nothing)": [
        Command(
            name="split", summary="split a CSV of pairs into train and dev, no premise in both", run=_split
        ),
        Command(
            name="prepare", summary="the examples that fit would train on, as instruction data", run=_prepare
        ),
        Command(
            name="inspect", summary="training examples token by token, as fit encodes them", run=_inspect
        ),
        Command(name="audit", summary="problems in a data root, before training", run=_audit),
    ],
    "teacher (costs money, or the time of a local model)": [
        Command(name="generate", summary="a teacher's thought and label for each pair", run=_teacher),
        Command(
            name="reflect", summary="a stronger teacher's reflections on the wrong thoughts", run=_teacher
        ),
        Command(name="score", summary="a judge's scores, and rewrites of texts that score low", run=_teacher),
    ],
    "training (costs GPU time)": [
        Command(name="fit", summary="train an adapter on a data root", run=_fit),
    ],
    "evaluation and prediction (costs some GPU time)": [
        Command(name="validate", summary="metrics on all dev pairs", run=_prediction),
        Command(name="test", summary="metrics on labelled test pairs", run=_prediction),
        Command(
            name="predict", summary="predictions for unlabelled pairs, as CSV and JSON lines", run=_prediction
        ),
        Command(
            name="report", summary="runs side by side, a page of their mistakes, a model card", run=_report
        ),
    ],
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


def usage() -> str:
    """Return the text of `--help`."""
    lines = ["usage: python -m nlicot COMMAND [options]", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {command.name:<10}{command.summary}" for command in commands), ""]
    lines += [
        "Start with a few minutes on the sample data, on a CPU:",
        "  python -m nlicot fit --config configs/reflected.yaml --config configs/overlays/sample.yaml",
        "Options of a command, with an example:",
        "  python -m nlicot COMMAND --help",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0; 2 for errors the user can fix; 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("nlicot").setLevel(
        logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.ERROR
    )
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    try:
        return _command(args[0]).run(args[0], args[1:])
    except (NlicotError, argparse.ArgumentError) as error:
        print(f"nlicot: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("nlicot: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"{name}: unknown command; {hint}available: {', '.join(COMMANDS)}")
