"""A comparison as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from nlicot.metrics import Metric
from nlicot.report.compare import Comparison

RUNS = ("run", "builder", "seed", "accuracy", "macro F1", "AUROC", "ECE")
GROUPS = ("seeds of one recipe", "accuracy: mean, range, sd", "macro F1: mean")
TESTS = ("McNemar", "only the first", "only the second", "p", "p (Holm)")


def as_text(comparison: Comparison) -> str:
    """Tables for a terminal."""
    parts = [f"{comparison.split}: {comparison.num_pairs} pairs, 95 % intervals in brackets"]
    parts += ["\n".join(_aligned(header, rows)) for header, rows in _tables(comparison)]
    return "\n\n".join(parts)


def as_markdown(comparison: Comparison) -> str:
    """The same tables in Markdown."""
    parts = [f"**{comparison.split}**: {comparison.num_pairs} pairs, 95 % intervals in brackets"]
    for header, rows in _tables(comparison):
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _tables(comparison: Comparison) -> list[tuple[Sequence[str], list[list[str]]]]:
    tables: list[tuple[Sequence[str], list[list[str]]]] = [(RUNS, _runs(comparison))]
    if any(len(group.names) > 1 for group in comparison.groups):
        tables.append((GROUPS, _groups(comparison)))
    return [*tables, (TESTS, _tests(comparison))]


def _runs(comparison: Comparison) -> list[list[str]]:
    return [
        [
            row.name,
            row.builder,
            "" if row.seed is None else str(row.seed),
            _percent(row.metrics.accuracy),
            _percent(row.metrics.macro_f1),
            _number(row.metrics.auroc),
            _number(row.metrics.expected_calibration_error),
        ]
        for row in comparison.runs
    ]


def _groups(comparison: Comparison) -> list[list[str]]:
    return [
        [
            ", ".join(group.names),
            f"{group.mean_accuracy:.1%}, {group.lowest_accuracy:.1%} to {group.highest_accuracy:.1%}"
            + ("" if group.sd_accuracy is None else f", {group.sd_accuracy:.1%}"),
            f"{group.mean_macro_f1:.1%}",
        ]
        for group in comparison.groups
    ]


def _tests(comparison: Comparison) -> list[list[str]]:
    return [
        [
            f"{test.first} : {test.second}",
            _ids(test.only_first),
            _ids(test.only_second),
            _p(test.p_value),
            _p(test.p_holm),
        ]
        for test in comparison.tests
    ]


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(" ".join(id_.split()) for id_ in ids[:2])
    more = ", ..." if len(ids) > 2 else ""
    return f"{len(ids)} ({shown}{more})" if ids else "0"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _percent(metric: Metric) -> str:
    return f"{metric.value:.1%} ({metric.interval.low:.1%} to {metric.interval.high:.1%})"


def _number(metric: Metric | None) -> str:
    if metric is None:
        return ""
    return f"{metric.value:.3f} ({metric.interval.low:.3f} to {metric.interval.high:.3f})"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
