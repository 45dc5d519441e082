"""Measure predictions against true labels, and record the metrics in a run's `metrics.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import write_json
from nlicot.evaluation.metrics import (
    NO_GROUP,
    ClassificationMetrics,
    GroupAccuracy,
    accuracy_by,
    classification_metrics,
    length_bins,
    metrics_to_dict,
)
from nlicot.prediction.faithfulness import Probe
from nlicot.prediction.submission import in_order_of
from nlicot.records import Example, Prediction


def measure(examples: Sequence[Example], predictions: Sequence[Prediction]) -> ClassificationMetrics:
    """Compute metrics of predictions (in any order) against the labels of `examples`."""
    found = in_order_of(examples, predictions)
    return classification_metrics(
        [int(example.label or 0) for example in examples],
        [prediction.predicted_label for prediction in found],
        [prediction.p_entailment for prediction in found],
    )


def record_metrics(
    path: Path,
    split: str,
    metrics: ClassificationMetrics,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
) -> dict[str, Any]:
    """Record a split's metrics in `metrics.json`, next to those of other splits; return them."""
    found = in_order_of(examples, predictions)
    right = [
        prediction.predicted_label == example.label
        for example, prediction in zip(examples, found, strict=True)
    ]
    entry: dict[str, Any] = metrics_to_dict(metrics)
    entry["status"] = dict(Counter(prediction.status for prediction in found))
    entry["by_phenomenon"] = _groups(accuracy_by([example.phenomenon for example in examples], right))
    lengths = [len((prediction.thought_process or "").split()) for prediction in found]
    if any(lengths):
        entry["by_thought_length"] = _groups(accuracy_by(length_bins(lengths), right))
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**content, split: entry})
    return entry


def format_groups(entry: Mapping[str, Any]) -> str:
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


def record_faithfulness(path: Path, split: str, table: Sequence[Probe]) -> None:
    """Record the probe's results with the split's metrics in `metrics.json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content[split]["faithfulness"] = [asdict(probe) for probe in table]
    write_json(path, content)


def _groups(accuracies: Sequence[GroupAccuracy]) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "num": group.num,
            "accuracy": group.accuracy,
            "low": group.interval.low,
            "high": group.interval.high,
        }
        for group in accuracies
    ]


def label_summary(predictions: Sequence[Prediction], metrics_path: Path) -> str:
    """Summarise the proportion of label 1, next to dev's if `metrics.json` has it."""
    proportion = sum(prediction.predicted_label == 1 for prediction in predictions) / len(predictions)
    text = f"label 1: {proportion:.1%}"
    dev = json.loads(metrics_path.read_text(encoding="utf-8")).get("dev") if metrics_path.is_file() else None
    if dev:
        text += (
            f" (on dev {dev['predicted_positive_share']:.1%} were predicted 1 and "
            f"{dev['num_positive'] / dev['support']:.1%} are)"
        )
    truncated = sum(prediction.status == "truncated" for prediction in predictions)
    return text + (f"; {truncated} thoughts were cut off at their token budget" if truncated else "")
