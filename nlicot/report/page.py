"""Render the report as one HTML file that opens from disk and makes no network request.

Fills `template/page.html` with what the other modules compute; style and scripts are inlined, and a content
security policy forbids other scripts and any loading.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nlicot import __version__
from nlicot.audit.findings import Audit
from nlicot.evaluation.metrics import ClassificationMetrics
from nlicot.records import LABEL_NAMES
from nlicot.report import plots
from nlicot.report.compare import Answers, Comparison, answers_in_order, breakdowns, calibration
from nlicot.report.read_runs import CURVES, Run, TeacherSummary, read_curves, section, teacher_summaries
from nlicot.report.tables import runs_table, seeds_tables, tests_tables
from nlicot.text_tables import printable

SUMMARY_COUNTS = ("num_records", "num_failed", "num_requests", "prompt_tokens", "completion_tokens")
SCRIPTS = ("theme.js", "explorer.js")
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

Cells = list[list[tuple[int, float]]]
"""Rows by true label (1, 0), cells by predicted label (1, 0, none): count and proportion of the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing as SVG, with a title above and a note below."""

    svg: str
    note: str = ""
    title: str = ""


def as_html(comparison: Comparison, runs: Sequence[Run], audit: Audit | None = None) -> str:
    """Render the whole page.

    Args:
        comparison: of these runs.
        audit: an audit of the data, if there is one.

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
    answers = answers_in_order(runs)
    numbers = {run.name: number for number, run in enumerate(runs, start=1)}
    scripts = [_template(name) for name in SCRIPTS]
    return environment.get_template("page.html").render(
        version=__version__,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        comparison=comparison,
        runs_table=runs_table(comparison),
        seeds=seeds_tables(comparison),
        tests=tests_tables(comparison),
        on_sample=any(run.read_json("fit.json").get("on_sample") for run in runs),
        runs_figure=Figure(
            svg=plots.draw_runs(comparison.runs), note="Dotted: always predicting the majority label."
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
        pair_of=_pair_finder([answer.id for answer in runs[0].answers], comparison.split),
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


def _pair_finder(ids: Sequence[str], split: str) -> Callable[[str], str | None]:
    """Return a function that finds the pair of an audit's id, which may start with its split."""
    known = set(ids)

    def pair_of(id_: str) -> str | None:
        bare = id_.removeprefix(f"{split}/")
        return id_ if id_ in known else bare if bare in known else None

    return pair_of


def _curves(runs: Sequence[Run]) -> list[Figure]:
    curves = {number: read_curves(run.folder) for number, run in enumerate(runs, start=1) if run.folder}
    found = []
    for tag, title in CURVES.items():
        lines = {number: of_run[tag] for number, of_run in curves.items() if tag in of_run}
        if lines:
            found.append(Figure(svg=plots.draw_curve(title, lines), note=tag))
    return found


def _calibration(answers: Answers, numbers: dict[str, int]) -> Figure | None:
    by_run = {numbers[name]: bins for name, found in answers.items() if (bins := calibration(found))}
    return Figure(svg=plots.draw_calibration(by_run)) if by_run else None


def _confusion(metrics: ClassificationMetrics) -> Cells:
    cells, num_negative = metrics.confusion, metrics.support - metrics.num_positive
    return _cells(cells.tp, cells.fp, cells.fn, cells.tn, metrics.num_positive, num_negative)


def _cells(tp: int, fp: int, fn: int, tn: int, num_positive: int, num_negative: int) -> Cells:
    rows = [[tp, fn, num_positive - tp - fn], [fp, tn, num_negative - fp - tn]]
    return [[(count, count / max(1, sum(row))) for count in row] for row in rows]


def _teacher(summary: TeacherSummary) -> dict[str, Any]:
    """Return what the page shows of a summary; values that the file lacks are left out."""
    content = summary.content
    facts = [
        (name.removeprefix("num_").replace("_", " "), f"{content[name]:,}")
        for name in SUMMARY_COUNTS
        if isinstance(content.get(name), int)
    ]
    if isinstance(content.get("cost_usd"), int | float):
        facts.append(("cost", f"${content['cost_usd']:.4f}"))
    figures = section(content, "teacher")
    for name, title in (
        ("accuracy", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "F1"),
    ):
        metric = section(figures, name)
        if {"value", "low", "high"} <= metric.keys():
            value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
            facts.append((title, f"{value:.1f} % ({low:.1f} to {high:.1f})"))
    counts = section(figures, "confusion")
    confusion = None
    if all(isinstance(counts.get(name), int) for name in ("tp", "fp", "fn", "tn")):
        tp, fp, fn, tn = (counts[name] for name in ("tp", "fp", "fn", "tn"))
        confusion = _cells(tp, fp, fn, tn, tp + fn, fp + tn)
    return {
        "stage": summary.stage,
        "split": printable(summary.split),
        "path": str(summary.path),
        "models": ", ".join(map(printable, section(content, "by_model"))),
        "facts": facts,
        "confusion": confusion,
        "by_length": [
            (printable(name), group["num"], group["accuracy"])
            for name, group in section(content, "accuracy_by_length").items()
            if isinstance(group, dict) and {"num", "accuracy"} <= group.keys()
        ],
    }


def explorer_content(answers: Answers) -> dict[str, Any]:
    """Return the predictions for `template/explorer.js`, by column, which is half as long as by row."""
    pairs = next(iter(answers.values()))
    return {
        "labels": [LABEL_NAMES[0], LABEL_NAMES[1]],
        "pairs": {
            "id": [pair.id for pair in pairs],
            "premise": [pair.premise or "" for pair in pairs],
            "hypothesis": [pair.hypothesis or "" for pair in pairs],
            "phenomenon": [pair.phenomenon for pair in pairs],
            "label": [pair.true_label for pair in pairs],
        },
        "runs": [
            {
                "name": name,
                "label": [each.predicted_label for each in found],
                "p": [None if each.p_entailment is None else round(each.p_entailment, 4) for each in found],
                "thought": [each.thought_process for each in found],
                "status": [each.status for each in found],
            }
            for name, found in answers.items()
        ],
    }


def as_script_content(content: Any) -> str:
    r"""Write JSON for a script element, escaped so that no text can end the element.

    >>> as_script_content({"premise": "</script><b>"})
    '{"premise":"\\u003c/script\\u003e\\u003cb\\u003e"}'
    """
    written = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # These characters occur only in JSON's strings, and the escapes mean the same there.
    return written.translate(_UNSAFE)
