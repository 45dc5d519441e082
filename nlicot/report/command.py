"""`python -m nlicot report`: a run, or several side by side, as text, files and one page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nlicot.data.atomic_write import refuse_overwriting, write_text
from nlicot.errors import ConfigError
from nlicot.report.compare import compare, to_dict
from nlicot.report.read_runs import read_runs
from nlicot.report.sources import read_audit
from nlicot.report.tables import as_markdown, as_text


def main(args: Sequence[str]) -> int:
    """Print the figures, and write the files that are asked for; returns the exit code."""
    options = _parser().parse_intermixed_args(args)
    named = [*options.runs, *options.compare]
    _check_runs(named, compares=bool(options.compare))
    json_paths = _outputs(options.json, options.out, "comparison.json")
    markdown_paths = _outputs(options.markdown, options.out, "comparison.md")
    single_paths = [path for path in (options.html, options.card) if path]
    _check_outputs([*json_paths, *markdown_paths, *single_paths], overwrite=options.overwrite)
    if options.card and len(named) > 1:
        raise ConfigError(f"--card: found {len(named)} runs, expected the one that the card is of")
    audit = read_audit(options.audit) if options.audit else None
    runs = read_runs(named, options.split, options.checkpoints_root)
    comparison = compare(runs)
    print(as_text(comparison))
    as_json = json.dumps(to_dict(comparison), indent=2, ensure_ascii=False) + "\n"
    for path in json_paths:
        write_text(path, as_json, overwrite=options.overwrite)
    for path in markdown_paths:
        write_text(path, as_markdown(comparison), overwrite=options.overwrite)
    if options.html:
        from nlicot.report.page import as_html

        write_text(options.html, as_html(comparison, runs, audit), overwrite=options.overwrite)
        print(f"\npage         {options.html}")
    if options.card:
        from nlicot.report.card import LICENSES, as_card, base_of

        card = as_card(comparison, runs[0], audit, license_=options.license, dataset=options.dataset)
        write_text(options.card, card, overwrite=options.overwrite)
        print(f"\nmodel card   {options.card}")
        if not options.license and base_of(runs[0]) not in LICENSES:
            print("It names no license, for that of the base is not known here; add --license ID.")
    return 0


def _check_runs(named: Sequence[str], *, compares: bool) -> None:
    if not named:
        raise ConfigError(
            "report: found no run, expected report RUN [RUN ...], or --compare RUN RUN ..., two runs or more"
        )
    if compares and len(named) < 2:
        raise ConfigError(
            f"--compare: found {len(named)} run, expected two or more (of one: report {named[0]})"
        )


def _outputs(path: Path | None, folder: Path | None, name: str) -> list[Path]:
    return [each for each in (path, folder and folder / name) if each]


def _check_outputs(paths: Sequence[Path], *, overwrite: bool) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(
            f"report: found one file named twice among {', '.join(map(str, paths))}, "
            "expected another for each of --out, --json, --markdown, --html and --card"
        )
    refuse_overwriting(*paths, overwrite=overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlicot report",
        description="One run, or several side by side: figures with intervals, seeds of one recipe grouped, "
        "McNemar's exact test for each pair of runs; and one HTML page to look at mistakes. "
        "Example: python -m nlicot report reflected label_only --html report.html",
        exit_on_error=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders of runs, their names, or predictions as JSON lines",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="the same, and refuse fewer than two",
    )
    parser.add_argument("--split", default="dev", help="whose predictions are shown (default: dev)")
    parser.add_argument(
        "--checkpoints_root",
        type=Path,
        default=Path("checkpoints"),
        help="where named runs lie (default: checkpoints)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures and predictions")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write a model card of the one run named")
    parser.add_argument("--license", metavar="ID", help="the card's, such as cc-by-4.0 (default: the base's)")
    parser.add_argument("--dataset", metavar="NAME", help="the card's: what the hub calls the data")
    parser.add_argument(
        "--audit", type=Path, metavar="FILE", help="what `audit --json` found, to be shown with the runs"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write comparison.json and comparison.md there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and ids as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace FILEs that are there")
    return parser
