"""Render a comparison as plain text and as Markdown.

Runs are numbered, so that only one table has their names and the text stays within about 100 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nlicot.evaluation.metrics import Interval
from nlicot.report.compare import Comparison
from nlicot.report.read_runs import Member, Run
from nlicot.text_tables import Table, aligned, escaped, piped, printable

MAX_IDS = 3
MAX_ID_LENGTH = 20
MAX_CELL_LENGTH = len("correct_only-20261124-001416")  # of plain text
NONE = "-"


def as_text(comparison: Comparison) -> str:
    """Render tables for a terminal."""
    runs = runs_table(comparison.runs)
    tables = [
        runs.columns("", "run", "builder", "seed", "accuracy %", "macro F1 %"),
        runs.columns("", "F1 %", "AUROC", "ECE", "Brier"),
        *seeds_tables(comparison),
        *tests_tables(comparison),
    ]
    blocks = [[_title(comparison)]]
    for table in tables:
        rows = [[shortened(cell, MAX_CELL_LENGTH) for cell in row] for row in table.rows]
        blocks.append(aligned(Table(header=table.header, rows=rows)))
    return _joined([*blocks, _right_in_one_only(comparison), provenance(comparison)])


def as_markdown(comparison: Comparison) -> str:
    """Render the same as Markdown, with all figures of a run in one row."""
    tables = [runs_table(comparison.runs), *seeds_tables(comparison), *tests_tables(comparison)]
    lines = [*_right_in_one_only(comparison), *provenance(comparison)]
    lists = [f"- {escaped(line)}" for line in lines]
    return _joined([[escaped(_title(comparison))], *map(piped, tables), lists]) + "\n"


def _joined(blocks: list[list[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _title(comparison: Comparison) -> str:
    return f"{printable(comparison.split)}: {comparison.num_pairs} pairs, 95 % intervals in brackets"


def runs_table(runs: Sequence[Run]) -> Table:
    """Return the figures of the runs, numbered, one row each."""
    header = ("", "run", "builder", "seed", "accuracy %", "F1 %", "macro F1 %", "AUROC", "ECE", "Brier")
    rows = []
    for number, run in enumerate(runs, start=1):
        metrics = run.metrics
        percentages = (
            _percent(metric.value, metric.interval.low, metric.interval.high)
            for metric in (metrics.accuracy, metrics.f1, metrics.macro_f1)
        )
        scores = (
            with_interval(metric.value, metric.interval) if metric else NONE
            for metric in (metrics.auroc, metrics.expected_calibration_error, metrics.brier)
        )
        names = (printable(run.name), printable(run.builder or NONE))
        rows.append([str(number), *names, NONE if run.seed is None else str(run.seed), *percentages, *scores])
    return Table(header=header, rows=rows)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def with_interval(value: float, interval: Interval) -> str:
    """Format a figure with its interval, to three digits."""
    return f"{value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def seeds_tables(comparison: Comparison) -> list[Table]:
    """Return the table of seeds; none if every recipe has only one run."""
    if len(comparison.groups) == len(comparison.runs):
        return []
    number_of = _numbers(comparison)
    header = ("runs", "builder", "accuracy %: mean (min to max)", "sd", "macro F1 %: mean (min to max)", "sd")
    rows = []
    for group in comparison.groups:
        row = [", ".join(number_of[name] for name in group.names), printable(group.builder or NONE)]
        for spread in (group.accuracy, group.macro_f1):
            row.append(_percent(spread.mean, spread.lowest, spread.highest))
            row.append(NONE if spread.sd is None else f"{100 * spread.sd:.1f}")
        rows.append(row)
    return [Table(header=header, rows=rows)]


def p_value_text(p: float) -> str:
    """Return a p-value with three decimals, or its order of magnitude.

    >>> p_value_text(0.0213), p_value_text(0.00004)
    ('0.021', '4e-05')
    """
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def tests_tables(comparison: Comparison) -> list[Table]:
    """Return the table of McNemar's tests; none for one run."""
    number_of = _numbers(comparison)
    rows = []
    for test in comparison.tests:
        runs = f"{number_of[test.first]} : {number_of[test.second]}"
        counts = (str(len(ids)) for ids in (test.only_first, test.only_second))
        p_values = map(p_value_text, (test.p_value, test.p_holm))
        rows.append([runs, *counts, *p_values])
    table = Table(header=("McNemar", "only first right", "only second right", "p", "p (Holm)"), rows=rows)
    if len(rows) == 1:  # a single test needs no correction
        table = table.columns(*table.header[:-1])
    return [table] if rows else []


def _right_in_one_only(comparison: Comparison) -> list[str]:
    number_of = _numbers(comparison)
    lines = []
    for test in comparison.tests:
        first, second = number_of[test.first], number_of[test.second]
        for right, wrong, ids in ((first, second, test.only_first), (second, first, test.only_second)):
            if ids:
                shown = [shortened(printable(id_), MAX_ID_LENGTH) for id_ in ids[:MAX_IDS]]
                more = ["..."] if len(ids) > MAX_IDS else []
                lines.append(f"right in {right}, wrong in {wrong}: {', '.join(shown + more)}")
    return lines


def provenance(comparison: Comparison) -> list[str]:
    """Return lines on drafts, members of an ensemble, and what a run or a member started from and learnt."""
    lines = []
    for number, run in enumerate(comparison.runs, start=1):
        if run.drafts:
            lines.append(f"{number} has drafts: {run.drafts}")
        if run.members:
            lines.append(f"{number} averages {', '.join(map(str, run.members))}")
        learners: dict[str, Run | Member] = {str(number): run}
        learners |= {f"{number}'s {printable(member.checkpoint)}": member for member in run.members}
        for name, each in learners.items():
            if each.origin:
                lines.append(f"{name} started from {each.origin}")
            if each.soft_labels:
                lines.append(f"{name} learnt {each.soft_labels}")
    return lines


def _numbers(comparison: Comparison) -> dict[str, str]:
    return {run.name: str(number) for number, run in enumerate(comparison.runs, start=1)}


def rendered(template: str, *, finalize: Callable[[Any], Any] | None = None, **content: Any) -> str:
    """Fill a file of `template/`; HTML is escaped, other text only by `finalize`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nlicot.report", "template"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(template).render(content)


def shortened(text: str, max_length: int) -> str:
    """Cut the middle out of a long text: start and end distinguish runs of one recipe.

    >>> shortened("correct_only-20261124-001416", 20)
    'correct_...24-001416'
    """
    if len(text) <= max_length:
        return text
    num_kept = max_length - len("...")
    return f"{text[: num_kept // 2]}...{text[-(num_kept - num_kept // 2) :]}"
