"""The report as one HTML file that opens from disk and asks no network for anything.

Gathers what the other modules compute, and fills `template/page.html`; style and scripts are inlined, and
a content security policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nlicot import __version__
from nlicot.evaluation.metrics import ClassificationMetrics
from nlicot.records import LABEL_NAMES
from nlicot.report import plots
from nlicot.report.breakdowns import Breakdown, breakdowns, calibration
from nlicot.report.compare import Comparison, in_order
from nlicot.report.curves import CURVES, read_curves
from nlicot.report.explorer import as_script_content, explorer_content
from nlicot.report.read_runs import ComparedRun, section
from nlicot.report.sources import Audit, AuditSection, TeacherSummary, fit_summary, teacher_summaries
from nlicot.report.tables import runs_table, seeds_tables, tests_tables
from nlicot.text_tables import printable

COMMONER = "Dotted: what always giving the commoner label would reach."
COUNTS = ("num_records", "num_failed", "num_requests", "prompt_tokens", "completion_tokens")
"""Of a stage's summary."""
SCRIPTS = ("theme.js", "explorer.js")


Cells = list[list[tuple[int, float]]]
"""Rows by true label (1, 0), cells by predicted label (1, 0, none): the count, and its share of the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing as SVG, and what stands below it."""

    svg: str
    note: str = ""
    title: str = ""


def as_html(comparison: Comparison, runs: Sequence[ComparedRun], audit: Audit | None = None) -> str:
    """The whole page.

    Args:
        comparison: of these runs.
        audit: what an audit of the data found, where there was one.

    Raises:
        DataError: a file of a run's folder or its data root is broken.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nlicot.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids = [answer.id for answer in runs[0].answers]
    answers = {run.name: in_order(run, ids) for run in runs}
    numbers = {run.name: number for number, run in enumerate(runs, start=1)}
    scripts = [_template(name) for name in SCRIPTS]
    return environment.get_template("page.html").render(
        version=__version__,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        comparison=comparison,
        runs_table=runs_table(comparison),
        seeds=seeds_tables(comparison),
        tests=tests_tables(comparison),
        numbers=numbers,
        on_sample=any(fit_summary(run).get("on_sample") for run in runs),
        runs_figure=Figure(
            svg=plots.draw_runs(comparison.runs),
            note="Dotted: what always giving the commoner label would reach.",
        ),
        curves=_curves(runs),
        confusions=[_confusion(row.metrics) for row in comparison.runs],
        label_names=LABEL_NAMES,
        calibration=_calibration(answers, numbers),
        breakdowns=[
            Figure(svg=plots.draw_breakdown(found, numbers), title=found.title, note=found.note)
            for found in breakdowns(answers)
        ],
        teacher=[_teacher(summary) for summary in teacher_summaries(runs)],
        audit=audit,
        audit_sections=[(found, _by_length(found)) for found in audit.sections] if audit else [],
        pair_of=_links(ids, comparison.split),
        explorer=as_script_content(explorer_content(answers)),
        style=_template("page.css"),
        scripts=scripts,
        script_hashes=[_csp_hash(script) for script in scripts],
        num_series=plots.NUM_SERIES,
    )


def _template(name: str) -> str:
    return resources.files("nlicot.report").joinpath("template", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _links(ids: Sequence[str], split: str) -> Callable[[str], str | None]:
    """What finds the pair of an audit's id, which may have its split in front."""
    known = set(ids)

    def pair_of(id_: str) -> str | None:
        bare = id_.removeprefix(f"{split}/")
        return id_ if id_ in known else bare if bare in known else None

    return pair_of


def _by_length(audited: AuditSection) -> Figure | None:
    if not audited.by_length:
        return None
    drawn = Breakdown(
        title="Teacher, by length of the thought", note="", by_run={"teacher": audited.by_length}
    )
    return Figure(svg=plots.draw_breakdown(drawn, {"teacher": plots.NUM_SERIES}))


def _curves(runs: Sequence[ComparedRun]) -> list[Figure]:
    by_run = {
        number: read_curves(run.folder) for number, run in enumerate(runs, start=1) if run.folder is not None
    }
    return [
        Figure(svg=plots.draw_curve(CURVES[tag], lines), note=tag)
        for tag, lines in plots.chosen_curves(CURVES, by_run).items()
    ]


def _calibration(answers: dict[str, Any], numbers: dict[str, int]) -> Figure | None:
    by_run = {numbers[name]: bins for name, found in answers.items() if (bins := calibration(found))}
    return Figure(svg=plots.draw_calibration(by_run)) if by_run else None


def _confusion(metrics: ClassificationMetrics) -> Cells:
    cells, num_negative = metrics.confusion, metrics.support - metrics.num_positive
    return _cells(cells.tp, cells.fp, cells.fn, cells.tn, metrics.num_positive, num_negative)


def _cells(tp: int, fp: int, fn: int, tn: int, num_positive: int, num_negative: int) -> Cells:
    rows = [[tp, fn, num_positive - tp - fn], [fp, tn, num_negative - fp - tn]]
    return [[(count, count / max(1, sum(row))) for count in row] for row in rows]


def _teacher(summary: TeacherSummary) -> dict[str, Any]:
    """What of a stage's summary the page shows, as pairs of name and text; only what the file has."""
    content = summary.content
    facts = [
        (name.removeprefix("num_").replace("_", " "), f"{content[name]:,}")
        for name in COUNTS
        if isinstance(content.get(name), int)
    ]
    if isinstance(content.get("cost_usd"), int | float):
        facts.append(("cost", f"${content['cost_usd']:.4f}"))
    figures = section(content, "teacher")
    for name in ("accuracy", "precision", "recall", "f1"):
        metric = section(figures, name)
        if {"value", "low", "high"} <= metric.keys():
            low, high = 100 * metric["low"], 100 * metric["high"]
            facts.append(
                (name.replace("f1", "F1"), f"{100 * metric['value']:.1f} % ({low:.1f} to {high:.1f})")
            )
    return {
        "stage": summary.stage,
        "split": printable(summary.split),
        "path": str(summary.path),
        "models": ", ".join(map(printable, section(content, "by_model"))),
        "facts": facts,
        "confusion": _told_confusion(section(figures, "confusion")),
        "by_length": [
            (printable(name), group["num"], group["accuracy"])
            for name, group in section(content, "accuracy_by_length").items()
            if isinstance(group, dict) and {"num", "accuracy"} <= group.keys()
        ],
    }


def _told_confusion(confusion: dict[str, Any]) -> Cells | None:
    found = [count for name in ("tp", "fp", "fn", "tn") if isinstance(count := confusion.get(name), int)]
    if len(found) < 4:
        return None
    tp, fp, fn, tn = found
    return _cells(tp, fp, fn, tn, tp + fn, fp + tn)
