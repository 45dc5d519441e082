"""`python -m nlicot report`: runs side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nlicot.errors import ConfigError
from nlicot.report.compare import compare, to_dict
from nlicot.report.runs import read_runs
from nlicot.report.tables import as_markdown, as_text
from nlicot.writing import refuse_overwriting, write_text


def main(args: Sequence[str]) -> int:
    """Print the comparison, and write it where asked; returns the exit code."""
    options = _parser().parse_args(args)
    if not options.compare:
        raise ConfigError("report: found no --compare, expected --compare RUN RUN ..., two runs or more")
    json_paths = _outputs(options.json, options.out, "comparison.json")
    markdown_paths = _outputs(options.markdown, options.out, "comparison.md")
    _check_outputs([*json_paths, *markdown_paths], overwrite=options.overwrite)
    comparison = compare(read_runs(options.compare, options.split, options.checkpoints_root))
    print(as_text(comparison))
    as_json = json.dumps(to_dict(comparison), indent=2, ensure_ascii=False) + "\n"
    for path in json_paths:
        write_text(path, as_json, overwrite=options.overwrite)
    for path in markdown_paths:
        write_text(path, as_markdown(comparison), overwrite=options.overwrite)
    return 0


def _outputs(path: Path | None, folder: Path | None, name: str) -> list[Path]:
    return [each for each in (path, folder and folder / name) if each]


def _check_outputs(paths: Sequence[Path], *, overwrite: bool) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(
            f"report: found one file named twice among {', '.join(map(str, paths))}, "
            "expected another for each of --out, --json and --markdown"
        )
    refuse_overwriting(*paths, overwrite=overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlicot report",
        description="Runs side by side: figures with intervals, seeds of one recipe grouped, McNemar's exact "
        "test for each pair of runs. Example: python -m nlicot report --compare reflected label_only",
        exit_on_error=False,
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        metavar="RUN",
        help="folders of runs, their names, or predictions as JSON lines",
    )
    parser.add_argument("--split", default="dev", help="whose predictions are compared (default: dev)")
    parser.add_argument(
        "--checkpoints_root",
        type=Path,
        default=Path("checkpoints"),
        help="where named runs lie (default: checkpoints)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write comparison.json and comparison.md there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and ids as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace FILEs that are there")
    return parser
