"""Metrics as text, as JSON content, and in a run's `metrics.json`."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import write_json
from nlicot.evaluation.metrics import (
    NO_GROUP,
    ClassificationMetrics,
    Metric,
    accuracy_by,
    classification_metrics,
    length_bins,
)
from nlicot.records import LABEL_NAMES, Example, Prediction

TABLE_WIDTH = 80
PERCENTAGES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
}
SCORES = {"auroc": "AUROC", "expected_calibration_error": "ECE", "brier": "Brier"}


def record_metrics(
    path: Path, split: str, pairs_path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> str:
    """Measure predictions and record the metrics in `metrics.json`, next to those of other splits.

    Args:
        path: the `metrics.json`.
        split: name of the split.
        pairs_path: the file of the pairs, for the title.
        examples: labelled pairs.
        predictions: their predictions, in the same order.

    Returns:
        The metrics as text.
    """
    labels = [prediction.predicted_label for prediction in predictions]
    metrics = classification_metrics(
        [int(example.label or 0) for example in examples],
        labels,
        [prediction.p_entailment for prediction in predictions],
    )
    right = [label == example.label for label, example in zip(labels, examples, strict=True)]
    lengths = [len((prediction.thought_process or "").split()) for prediction in predictions]
    entry = metrics_to_dict(metrics)
    entry["status"] = dict(Counter(prediction.status for prediction in predictions))
    entry["by_phenomenon"] = _groups([example.phenomenon for example in examples], right)
    if any(lengths):
        entry["by_thought_length"] = _groups(length_bins(lengths), right)
    write_json(path, {**read_metrics(path), split: entry})
    title = f"{split}: {len(examples)} pairs of {pairs_path}"
    return f"{format_table(metrics, title)}\n{_format_groups(entry)}"


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a `metrics.json`: the metrics by split, empty without the file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _groups(groups: Sequence[str | None], right: Sequence[bool]) -> list[dict[str, Any]]:
    found = [asdict(group) for group in accuracy_by(groups, right)]
    for group in found:
        group.update(group.pop("interval"))
    return found


def _format_groups(entry: dict[str, Any]) -> str:
    """Format accuracy by thought length, and by phenomenon if the pairs have one."""
    lines = []
    for key, title in (("by_thought_length", "by length of the thought"), ("by_phenomenon", "by phenomenon")):
        groups = entry.get(key, [])
        if [group["name"] for group in groups] in ([], [NO_GROUP]):
            continue
        lines += ["", title]
        lines += [
            f"  {group['name']:<28}{group['accuracy']:>7.1%} of {group['num']:<5}"
            f" {group['low']:.1%} to {group['high']:.1%}"
            for group in groups
        ]
    return "\n".join(lines)


def label_summary(predictions: Sequence[Prediction], metrics_path: Path) -> str:
    """Summarise the proportion of label 1, next to dev's if `metrics.json` has it."""
    proportion = sum(prediction.predicted_label == 1 for prediction in predictions) / len(predictions)
    text = f"label 1: {proportion:.1%}"
    dev = read_metrics(metrics_path).get("dev")
    if dev:
        text += (
            f" (on dev {dev['predicted_positive_share']:.1%} were predicted 1 and "
            f"{dev['num_positive'] / dev['support']:.1%} are)"
        )
    truncated = sum(prediction.status == "truncated" for prediction in predictions)
    return text + (f"; {truncated} thoughts were cut off at their token budget" if truncated else "")


def metrics_to_dict(metrics: ClassificationMetrics) -> dict[str, Any]:
    """Return the metrics as JSON content, without those that are None.

    A metric becomes `{"value": ..., "low": ..., "high": ...}`; everything else keeps its name and shape.
    """
    return {
        name: {"value": value["value"], **value["interval"]} if name in PERCENTAGES | SCORES else value
        for name, value in asdict(metrics).items()
        if value is not None
    }


def format_table(metrics: ClassificationMetrics, title: str) -> str:
    """Format the metrics as text of at most 80 columns, with label proportions and confusion matrix."""
    lines = [textwrap.fill(title, TABLE_WIDTH), "", f"{'metric':<12}{'value':>8}   95 % interval"]
    for name, heading in (PERCENTAGES | SCORES).items():
        metric: Metric | None = getattr(metrics, name)
        if metric is not None:
            style = "{:.1%}" if name in PERCENTAGES else "{:.3f}"
            value, low, high = map(style.format, (metric.value, metric.interval.low, metric.interval.high))
            lines.append(f"{heading:<12}{value:>8}   {low:>6} to {high:>6}")
    cells, num_positive, num_pairs = metrics.confusion, metrics.num_positive, metrics.support
    num_columns = 4 if metrics.num_unanswered else 3
    rows = (
        ("true/predicted", LABEL_NAMES[1], LABEL_NAMES[0], "no answer"),
        (LABEL_NAMES[1], cells.tp, cells.fn, num_positive - cells.tp - cells.fn),
        (LABEL_NAMES[0], cells.fp, cells.tn, num_pairs - num_positive - cells.fp - cells.tn),
    )
    lines += [
        "",
        f"{num_pairs} pairs: {num_positive / num_pairs:.1%} are entailment, "
        f"{metrics.predicted_positive_share:.1%} predicted so, {metrics.num_unanswered} unanswered",
        "",
        *(f"{row[0]:<15}" + "".join(f"{cell:>15}" for cell in row[1:num_columns]) for row in rows),
    ]
    return "\n".join(lines)
