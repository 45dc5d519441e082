"""The `report` command: one run, or several side by side, as text, files and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from nlicot.audit.findings import from_json
from nlicot.command_line import CommandParser
from nlicot.data.atomic_write import refuse_overwriting, write_text
from nlicot.data.pairs import PairFormat
from nlicot.errors import ConfigError
from nlicot.report.baselines import BASELINES, baselines
from nlicot.report.compare import compare
from nlicot.report.other_systems import read_predictions
from nlicot.report.read_runs import Run, named_apart, read_json, read_runs
from nlicot.report.tables import as_markdown, as_text

SWITCHES = ("overwrite", "print_config", "baselines")
"""Flags that need no value."""


def main(args: Sequence[str]) -> int:
    """Print the figures and write the files that are asked for; returns the exit code."""
    settings = _parser().parse(_runs_first(args))
    named = [*settings.runs, *settings.compare]
    if not named:
        raise ConfigError(
            "report: found no run, expected report RUN [RUN ...], or --compare RUN RUN ..., two runs or more"
        )
    num_others = len(settings.predictions) + len(BASELINES) * settings.baselines
    if settings.compare and len(named) + num_others < 2:
        raise ConfigError(f"--compare: found 1 run, expected two or more (of one: report {named[0]})")
    if settings.card and len(named) + num_others > 1:
        raise ConfigError(
            f"--card: found {len(named) + num_others} runs, expected the one that the card describes"
        )
    if settings.train_pairs and not settings.baselines:
        raise ConfigError("--train_pairs: found it without --baselines, expected both")
    out = settings.out
    json_paths = [path for path in (settings.json, out and out / "comparison.json") if path]
    markdown_paths = [path for path in (settings.markdown, out and out / "comparison.md") if path]
    paths = [*json_paths, *markdown_paths, *(path for path in (settings.html, settings.card) if path)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(
            f"report: found one file named twice among {', '.join(map(str, paths))}, "
            "expected a different one for each of --out, --json, --markdown, --html and --card"
        )
    refuse_overwriting(*paths, overwrite=settings.overwrite)
    audit = from_json(read_json(settings.audit), settings.audit) if settings.audit else None
    comparison = compare(_all_runs(settings, named))
    print(as_text(comparison))
    as_json = json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n"
    written = dict.fromkeys(json_paths, as_json) | dict.fromkeys(markdown_paths, as_markdown(comparison))
    for path, text in written.items():
        write_text(path, text, overwrite=settings.overwrite)
    if settings.html:
        from nlicot.report.page import as_html

        write_text(settings.html, as_html(comparison, audit), overwrite=settings.overwrite)
        print(f"\npage         {settings.html}")
    if settings.card:
        from nlicot.report.card import LICENSES, as_card, base_of

        (run,) = comparison.runs
        card = as_card(run, audit, license_=settings.license, dataset=settings.dataset)
        write_text(settings.card, card, overwrite=settings.overwrite)
        print(f"\nmodel card   {settings.card}")
        if not settings.license and base_of(run) not in LICENSES:
            print("It names no license, since the license of the base is unknown; add --license ID.")
    return 0


def _all_runs(settings: Namespace, named: Sequence[str]) -> list[Run]:
    """Read the runs, then other systems' predictions of their pairs, and make the baselines."""
    runs = read_runs(named, settings.split, settings.checkpoints_root)
    given = [*(run.name for run in runs), *settings.predictions]
    for name in settings.predictions:
        runs.append(read_predictions(Path(name).expanduser(), runs[0], PairFormat.of(settings)))
    if settings.baselines:
        train_path = settings.train_pairs and settings.train_pairs.expanduser()
        runs += baselines(runs[0], train_path, PairFormat.of(settings))
        given += BASELINES
    return named_apart(runs, given)


def _runs_first(args: Sequence[str]) -> list[str]:
    """Move runs between flags to the front: jsonargparse parses positional arguments only in one place."""
    runs: list[str] = []
    flags: list[str] = []
    values_left = 0  # of the flag before
    for arg in args:
        if arg.startswith("--"):
            takes_none = "=" in arg or arg[2:].replace("-", "_") in SWITCHES
            values_left = 0 if takes_none else len(args) if arg == "--compare" else 1
            flags.append(arg)
        elif values_left or arg in ("true", "false"):
            values_left = max(0, values_left - 1)
            flags.append(arg)
        else:
            runs.append(arg)
    return [*runs, *flags]


def _parser() -> CommandParser:
    parser = CommandParser(
        "report",
        description="Report one run, or several side by side: figures with intervals, seeds of one recipe "
        "grouped, McNemar's exact test for each pair of runs, and one HTML page to look at mistakes.",
        example="python -m nlicot report reflected label_only --html report.html",
    )
    add = parser.add_argument
    what = "run folders, names of runs, or .jsonl predictions"
    add("runs", nargs="*", type=str, default=[], metavar="RUN", help=what)
    add("--compare", nargs="+", type=str, default=[], metavar="RUN", help="the same, but two runs or more")
    parser.add_repeated("predictions", metavar="FILE", help="another system's predictions; repeat for more")
    add("--baselines", type=bool, default=False, help="add the majority label and two linear models")
    what = "pairs that the baselines learn from (default: those of the first run)"
    add("--train_pairs", type=Path | None, default=None, metavar="FILE", help=what)
    parser.add_class_arguments(PairFormat)
    add("--split", type=str, default="dev", help="the split whose predictions are shown")
    add("--checkpoints_root", type=Path, default=Path("checkpoints"), help="the folder of named runs")
    for name, metavar, text in (
        ("html", "FILE", "write a page with figures and predictions"),
        ("card", "FILE", "write a model card of the one run"),
        ("audit", "FILE", "findings from `audit --json`, to show with the runs"),
        ("out", "FOLDER", "write comparison.json and comparison.md to this folder"),
        ("json", "FILE", "write all figures and ids as JSON"),
        ("markdown", "FILE", "write the tables as Markdown"),
    ):
        add(f"--{name}", type=Path | None, default=None, metavar=metavar, help=text)
    add("--license", type=str | None, default=None, metavar="ID", help="the card's, such as cc-by-4.0")
    add("--dataset", type=str | None, default=None, metavar="NAME", help="the data's name on the hub")
    add("--overwrite", type=bool, default=False, help="replace existing FILEs")
    return parser
