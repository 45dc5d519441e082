"""Render a comparison as plain text and as Markdown.

Runs are numbered, so that only one table has their names and the text stays within about 100 columns.
"""

from __future__ import annotations

from nlicot.evaluation.bootstrap import Metric
from nlicot.report.compare import Comparison, RunFigures, Spread
from nlicot.text_tables import Table, escaped, piped, printable

MAX_IDS = 3
MAX_ID_LENGTH = 20
MAX_LENGTHS = {"run": len("correct_only-20261124-001416"), "builder": 14}
"""Maximum length of a cell in plain text, by column."""
NONE = "-"


def as_text(comparison: Comparison) -> str:
    """Render tables for a terminal."""
    runs = runs_table(comparison)
    tables = [
        runs.columns("", "run", "builder", "seed", "accuracy %", "macro F1 %"),
        runs.columns("", "F1 %", "AUROC", "ECE", "Brier"),
        *seeds_tables(comparison),
        *tests_tables(comparison),
    ]
    parts = [_title(comparison), *map(_aligned, tables), "\n".join(_right_in_one_only(comparison))]
    return "\n\n".join(part for part in parts if part)


def as_markdown(comparison: Comparison) -> str:
    """Render the same as Markdown, with all figures of a run in one row."""
    tables = [runs_table(comparison), *seeds_tables(comparison), *tests_tables(comparison)]
    lists = "\n".join(f"- {escaped(line)}" for line in _right_in_one_only(comparison))
    parts = [escaped(_title(comparison)), *("\n".join(piped(table)) for table in tables), lists]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(comparison: Comparison) -> str:
    return f"{printable(comparison.split)}: {comparison.num_pairs} pairs, 95 % intervals in brackets"


def runs_table(comparison: Comparison) -> Table:
    """Return the figures of the runs, numbered, one row each."""
    header = ("", "run", "builder", "seed", "accuracy %", "F1 %", "macro F1 %", "AUROC", "ECE", "Brier")
    rows = [[str(number), *_run(row)] for number, row in enumerate(comparison.runs, start=1)]
    return Table(header=header, rows=rows)


def _run(row: RunFigures) -> list[str]:
    metrics = row.metrics
    return [
        printable(row.name),
        printable(row.builder or NONE),
        NONE if row.seed is None else str(row.seed),
        *(_percent(metric) for metric in (metrics.accuracy, metrics.f1, metrics.macro_f1)),
        *(_number(metric) for metric in (metrics.auroc, metrics.expected_calibration_error, metrics.brier)),
    ]


def seeds_tables(comparison: Comparison) -> list[Table]:
    """Return the table of seeds; none if every recipe has only one run."""
    if all(len(group.names) == 1 for group in comparison.groups):
        return []
    number_of = _numbers(comparison)
    header = ("runs", "builder", "accuracy %: mean (min to max)", "sd", "macro F1 %: mean (min to max)", "sd")
    rows = [
        [
            ", ".join(number_of[name] for name in group.names),
            printable(group.builder or NONE),
            *_spread(group.accuracy),
            *_spread(group.macro_f1),
        ]
        for group in comparison.groups
    ]
    return [Table(header=header, rows=rows)]


def tests_tables(comparison: Comparison) -> list[Table]:
    """Return the table of McNemar's tests; none for one run."""
    if not comparison.tests:
        return []
    number_of = _numbers(comparison)
    rows = [
        [
            f"{number_of[test.first]} : {number_of[test.second]}",
            str(len(test.only_first)),
            str(len(test.only_second)),
            _p(test.p_value),
            _p(test.p_holm),
        ]
        for test in comparison.tests
    ]
    table = Table(header=("McNemar", "only first right", "only second right", "p", "p (Holm)"), rows=rows)
    # A single test needs no correction.
    return [table if len(rows) > 1 else table.columns(*table.header[:-1])]


def _right_in_one_only(comparison: Comparison) -> list[str]:
    number_of = _numbers(comparison)
    lines = []
    for test in comparison.tests:
        first, second = number_of[test.first], number_of[test.second]
        for right, wrong, ids in ((first, second, test.only_first), (second, first, test.only_second)):
            if ids:
                shown = ", ".join(shortened(printable(id_), MAX_ID_LENGTH) for id_ in ids[:MAX_IDS])
                more = ", ..." if len(ids) > MAX_IDS else ""
                lines.append(f"right in {right}, wrong in {wrong}: {shown}{more}")
    return lines


def _numbers(comparison: Comparison) -> dict[str, str]:
    return {row.name: str(number) for number, row in enumerate(comparison.runs, start=1)}


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _percent(metric: Metric) -> str:
    interval = metric.interval
    return f"{100 * metric.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _number(metric: Metric | None) -> str:
    if metric is None:
        return NONE
    return f"{metric.value:.3f} ({metric.interval.low:.3f} to {metric.interval.high:.3f})"


def _spread(spread: Spread) -> list[str]:
    sd = NONE if spread.sd is None else f"{100 * spread.sd:.1f}"
    return [f"{100 * spread.mean:.1f} ({100 * spread.lowest:.1f} to {100 * spread.highest:.1f})", sd]


def shortened(text: str, max_length: int) -> str:
    """Cut the middle out of a long text: start and end distinguish runs of one recipe.

    >>> shortened("correct_only-20261124-001416", 20)
    'correct_...24-001416'
    """
    if len(text) <= max_length:
        return text
    num_kept = max_length - len("...")
    return f"{text[: num_kept // 2]}...{text[-(num_kept - num_kept // 2) :]}"


def _aligned(table: Table) -> str:
    max_lengths = [MAX_LENGTHS.get(name) for name in table.header]
    rows = [
        [cell if most is None else shortened(cell, most) for cell, most in zip(row, max_lengths, strict=True)]
        for row in (table.header, *table.rows)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
