"""`python -m nlicot report`: runs side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nlicot.report.compare import compare, to_dict
from nlicot.report.runs import read_run
from nlicot.report.tables import as_markdown, as_text
from nlicot.writing import refuse_overwriting, write_text


def main(args: Sequence[str]) -> int:
    """Print the comparison, and write it where asked; returns the exit code."""
    options = _parser().parse_args(args)
    outputs = [path for path in (options.json, options.markdown) if path]
    refuse_overwriting(*outputs, overwrite=options.overwrite)
    runs = [read_run(named, options.split, options.checkpoints_root) for named in options.compare]
    comparison = compare(runs, options.split)
    print(as_text(comparison))
    if options.json:
        text = json.dumps(to_dict(comparison), indent=2, ensure_ascii=False) + "\n"
        write_text(options.json, text, overwrite=options.overwrite)
    if options.markdown:
        write_text(options.markdown, as_markdown(comparison), overwrite=options.overwrite)
    return 0


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
        metavar="RUN",
        required=True,
        help="folders of runs, their names, or predictions as JSON lines",
    )
    parser.add_argument("--split", default="dev", help="whose predictions are compared (default: dev)")
    parser.add_argument(
        "--checkpoints_root", type=Path, default=Path("checkpoints"), help="where named runs lie"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and ids as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace FILEs that are there")
    return parser
