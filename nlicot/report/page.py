"""Render the report as one HTML file; its content security policy forbids all loading and foreign scripts."""

from __future__ import annotations

import base64
import datetime
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from nlicot import __version__
from nlicot.audit.findings import Audit
from nlicot.config_files import section
from nlicot.evaluation.metrics import PERCENTAGES
from nlicot.records import LABEL_NAMES
from nlicot.report import plots
from nlicot.report.compare import Answers, Comparison, breakdowns, calibration
from nlicot.report.read_runs import CURVES, Run, interpreting, read_curves, read_json
from nlicot.report.tables import provenance, rendered, runs_table, seeds_tables, tests_tables
from nlicot.text_tables import printable

SUMMARY_COUNTS = ("num_records", "num_failed", "num_requests", "prompt_tokens", "completion_tokens")
TEACHER_STAGES = {"thoughts": "generate", "reflections": "reflect", "score": "score"}
"""Folders of a data root's `logs/`, and the command that writes summaries there."""
INLINED = ("page.css", "theme.js", "explorer.js")
MAX_PAIRS = 40_000
"""Pairs whose texts and predictions the page holds: with thoughts of one run about 25 MB."""


def as_html(comparison: Comparison, audit: Audit | None) -> str:
    """Render the whole page."""
    runs = comparison.runs
    answers = {run.name: run.answers for run in runs}
    held = _held(answers)
    numbers = {run.name: number for number, run in enumerate(runs, start=1)}
    bins = {numbers[run.name]: found for run in runs if (found := calibration(run.answers))}
    template = resources.files("nlicot.report").joinpath("template")
    style, *scripts = (template.joinpath(name).read_text(encoding="utf-8") for name in INLINED)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return rendered(
        "page.html",
        version=__version__,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        comparison=comparison,
        runs_table=runs_table(comparison.runs),
        seeds=seeds_tables(comparison),
        tests=tests_tables(comparison),
        provenance=provenance(comparison),
        on_sample=any(run.read_json("fit.json").get("on_sample") for run in runs),
        runs_figure=plots.draw_runs(runs),
        curves=_curves(runs),
        confusions=[
            _confusion(asdict(run.metrics.confusion), run.metrics.num_positive, run.metrics.support)
            for run in runs
        ],
        label_names=LABEL_NAMES,
        calibration=plots.draw_calibration(bins) if bins else None,
        breakdowns=[(found, plots.draw_breakdown(found, numbers)) for found in breakdowns(answers)],
        teacher=_teacher(runs),
        audit=audit,
        known_ids={answer.id for answer in held[runs[0].name]},
        num_held=len(held[runs[0].name]),
        explorer=_explorer_content(held),
        style=style,
        scripts=scripts,
        script_hashes=[f"sha256-{each}" for each in hashes],
        num_series=plots.NUM_SERIES,
    )


def _curves(runs: Sequence[Run]) -> dict[str, str]:
    """Return a drawing for each tag that a run logged."""
    curves = {number: read_curves(run.folder) for number, run in enumerate(runs, start=1) if run.folder}
    return {
        tag: plots.draw_curve(title, lines)
        for tag, title in CURVES.items()
        if (lines := {number: of_run[tag] for number, of_run in curves.items() if tag in of_run})
    }


def _confusion(counts: Mapping[str, int], num_positive: int, num: int) -> list[list[int]]:
    """Return rows by true label (1, 0) of counts by predicted label (1, 0, none)."""
    tp, fp, fn, tn = (counts[name] for name in ("tp", "fp", "fn", "tn"))
    return [[tp, fn, num_positive - tp - fn], [fp, tn, num - num_positive - fp - tn]]


def _teacher(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Read the newest summary of each stage and split in the logs of the runs' data roots."""
    roots = dict.fromkeys(run.config.get("root") for run in runs)
    found = []
    for root, (folder, stage) in product(filter(None, roots), TEACHER_STAGES.items()):
        # Names start with the time, so the last one of a split is the newest.
        newest = {
            path.name.removesuffix(".summary.json").split("-", 2)[-1]: path
            for path in sorted((Path(root).expanduser() / "logs" / folder).glob("*.summary.json"))
        }
        for split, path in newest.items():
            with interpreting(path):
                summary = _summary(read_json(path))
            found.append({"stage": stage, "split": printable(split), "path": str(path), **summary})
    return found


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a summary; values that the file lacks are left out."""
    metrics = section(content, "teacher")
    facts = [
        (name.removeprefix("num_").replace("_", " "), f"{content[name]:,}")
        for name in SUMMARY_COUNTS
        if isinstance(content.get(name), int)
    ]
    if isinstance(content.get("cost_usd"), int | float):
        facts.append(("cost", f"${content['cost_usd']:.4f}"))
    for name in ("accuracy", "precision", "recall", "f1"):
        if metric := section(metrics, name):
            value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
            facts.append((PERCENTAGES[name], f"{value:.1f} % ({low:.1f} to {high:.1f})"))
    counts = section(metrics, "confusion")
    return {
        "models": ", ".join(map(printable, section(content, "by_model"))),
        "facts": facts,
        "confusion": counts and _confusion(counts, counts["tp"] + counts["fn"], sum(counts.values())),
        "by_length": [
            (printable(name), f"{100 * group['accuracy']:.1f} % of {group['num']}")
            for name, group in section(content, "accuracy_by_length").items()
        ],
    }


def _held(answers: Answers) -> Answers:
    """Return the answers that the page holds: those to `MAX_PAIRS` pairs drawn with seed 0, or all."""
    num_pairs = len(next(iter(answers.values())))
    if num_pairs <= MAX_PAIRS:
        return answers
    drawn = sorted(random.Random(0).sample(range(num_pairs), MAX_PAIRS))
    return {name: [of_run[index] for index in drawn] for name, of_run in answers.items()}


def _explorer_content(answers: Answers) -> dict[str, Any]:
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
