"""What predictions are worth: accuracy, F1, calibration and their intervals, as records and as text.

Stands after prediction and before the report. It takes plain sequences, so that the trainer, the
report and a notebook use the same figures; reading predictions and writing files is left to them. The
statistics of the intervals and tests are in `uncertainty`, whose public names are offered here too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nlicot.records import LABEL_NAMES, LABELS
from nlicot.uncertainty import (
    Floats,
    Interval,
    McNemar,
    Metric,
    bootstrap_metrics,
    mcnemar_exact,
    wilson_interval,
)

__all__ = [
    "ClassificationMetrics",
    "Confusion",
    "GroupAccuracy",
    "Interval",
    "McNemar",
    "Metric",
    "accuracy_by",
    "classification_metrics",
    "format_table",
    "length_bins",
    "mcnemar_exact",
    "metrics_to_dict",
    "wilson_interval",
]

Labels = npt.NDArray[np.int64]

NUM_CALIBRATION_BINS = 10
NO_GROUP = "(none)"
TABLE_WIDTH = 80
_UNANSWERED = -1
_SHARES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
}
_SCORES = {"auroc": "AUROC", "expected_calibration_error": "ECE", "brier": "Brier"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Counts of the answered pairs; label 1 (entailment) is the positive class."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationMetrics:
    """The figures of one set of predictions; those that need probabilities are None without them.

    `support` counts all pairs, `num_positive` those whose true label is 1, `num_unanswered` those
    without a predicted label. `predicted_positive_share` is a share of all pairs.
    """

    accuracy: Metric
    precision: Metric
    recall: Metric
    f1: Metric
    macro_f1: Metric
    auroc: Metric | None
    expected_calibration_error: Metric | None
    brier: Metric | None
    confusion: Confusion
    support: int
    num_positive: int
    num_unanswered: int
    predicted_positive_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAccuracy:
    """The accuracy on one group of pairs, with Wilson's interval."""

    name: str
    num: int
    accuracy: float
    interval: Interval


def classification_metrics(
    true_labels: Sequence[int],
    predicted_labels: Sequence[int | None],
    p_entailment: Sequence[float | None] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ClassificationMetrics:
    """Measure predictions against true labels, each figure with a 95 % interval.

    - accuracy, precision, recall and F1 of label 1; macro F1, the mean of both labels' F1. A share of
      nothing is 0.0. A predicted label of None is wrong and never a guess: it counts in accuracy's and
      recall's denominators, not in precision's.
    - AUROC: the share of (positive, negative) pairs ranked rightly by `p_entailment`, ties by half,
      which is the rank sum of Mann & Whitney (Hanley & McNeil 1982, Radiology 143, 29-36). None where
      there is one class only.
    - Expected calibration error: the mean gap between confidence max(p, 1 - p) and how often the
      likelier label is true, over 10 equal-width bins closed above (Guo et al. 2017, eq. 3).
    - Brier: the mean of (p - label)^2 (Brier 1950).

    The last three look at probabilities alone, so a decision threshold does not move them, and are
    None unless every probability is given.

    All intervals are percentile bootstraps, accuracy's too, so that they compare. Two limits of theirs:
    where all pairs are right the interval has no width (see `wilson_interval`), and that of the
    calibration error, which resampling biases upwards, may lie above its value.

    Raises:
        ValueError: no pairs, unequal lengths, a label that is not 0 or 1, or a probability not in [0, 1].
    """
    true, predicted, p = _checked_arrays(true_labels, predicted_labels, p_entailment)

    def statistics(weights: Floats) -> dict[str, Floats]:
        values = _label_statistics(weights, true, predicted)
        return values if p is None else values | _probability_statistics(weights, true, p)

    figures = bootstrap_metrics(statistics, len(true), num_resamples=num_resamples, seed=seed)
    return ClassificationMetrics(
        accuracy=figures["accuracy"],
        precision=figures["precision"],
        recall=figures["recall"],
        f1=figures["f1"],
        macro_f1=figures["macro_f1"],
        auroc=figures.get("auroc"),
        expected_calibration_error=figures.get("expected_calibration_error"),
        brier=figures.get("brier"),
        confusion=Confusion(
            tp=int(np.sum((true == 1) & (predicted == 1))),
            fp=int(np.sum((true == 0) & (predicted == 1))),
            fn=int(np.sum((true == 1) & (predicted == 0))),
            tn=int(np.sum((true == 0) & (predicted == 0))),
        ),
        support=len(true),
        num_positive=int(np.sum(true == 1)),
        num_unanswered=int(np.sum(predicted == _UNANSWERED)),
        predicted_positive_share=float(np.mean(predicted == 1)),
    )


def _checked_arrays(
    true_labels: Sequence[int],
    predicted_labels: Sequence[int | None],
    p_entailment: Sequence[float | None] | None,
) -> tuple[Labels, Labels, Floats | None]:
    lengths = [
        len(true_labels),
        len(predicted_labels),
        *([] if p_entailment is None else [len(p_entailment)]),
    ]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"found sequences of {lengths} items, expected equally many and at least one")
    for name, labels, allowed in (
        ("true_labels", true_labels, (*LABELS,)),
        ("predicted_labels", predicted_labels, (*LABELS, None)),
    ):
        for index, label in enumerate(labels):
            if label not in allowed:
                raise ValueError(f"{name}[{index}] is {label!r}, expected one of {allowed}")
    for index, p in enumerate(p_entailment if p_entailment is not None else ()):
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p_entailment[{index}] is {p!r}, expected a probability from 0 to 1")
    predicted = [_UNANSWERED if label is None else label for label in predicted_labels]
    all_known = p_entailment is not None and all(p is not None for p in p_entailment)
    return (
        np.array(true_labels, dtype=np.int64),
        np.array(predicted, dtype=np.int64),
        np.array(p_entailment, dtype=np.float64) if all_known else None,
    )


def _label_statistics(weights: Floats, true: Labels, predicted: Labels) -> dict[str, Floats]:
    """Map weights `[R, N]` to the figures `[R]` that labels alone decide."""
    groups = [true == 1, true == 0, predicted == 1, predicted == 0]
    hits = [(true == 1) & (predicted == 1), (true == 0) & (predicted == 0)]
    counts = weights @ np.stack(groups + hits, axis=1).astype(np.float64)
    positive, negative, said_yes, said_no, tp, tn = counts.T
    f1 = _share(2 * tp, positive + said_yes)
    return {
        "accuracy": _share(tp + tn, positive + negative),
        "precision": _share(tp, said_yes),
        "recall": _share(tp, positive),
        "f1": f1,
        "macro_f1": (f1 + _share(2 * tn, negative + said_no)) / 2,
    }


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _probability_statistics(weights: Floats, true: Labels, p: Floats) -> dict[str, Floats]:
    """Map weights `[R, N]` to the figures `[R]` that probabilities decide."""
    num_pairs = weights.sum(axis=1)
    confidence = np.maximum(p, 1 - p)
    likelier_is_true = (p > 0.5) == (true == 1)
    upper_edges = np.arange(1, NUM_CALIBRATION_BINS + 1) / NUM_CALIBRATION_BINS
    bins = np.searchsorted(upper_edges, confidence, side="left")
    gaps = np.zeros((len(p), NUM_CALIBRATION_BINS))
    gaps[np.arange(len(p)), bins] = likelier_is_true - confidence
    return {
        "auroc": _auroc(weights, true, p),
        "expected_calibration_error": np.abs(weights @ gaps).sum(axis=1) / num_pairs,
        "brier": weights @ (p - true) ** 2 / num_pairs,
    }


def _auroc(weights: Floats, true: Labels, p: Floats) -> Floats:
    order = np.argsort(p, kind="stable")
    ties_start = np.flatnonzero(np.diff(p[order], prepend=-1.0))
    weights, true = weights[:, order], true[order]
    positives = np.add.reduceat(weights * true, ties_start, axis=1)
    negatives = np.add.reduceat(weights * (1 - true), ties_start, axis=1)
    ranked_below = np.cumsum(negatives, axis=1) - negatives / 2
    num_comparisons = positives.sum(axis=1) * negatives.sum(axis=1)
    undefined = np.full(len(weights), np.nan)
    return np.divide(
        (positives * ranked_below).sum(axis=1), num_comparisons, out=undefined, where=num_comparisons > 0
    )


def accuracy_by(groups: Sequence[str | None], correct: Sequence[bool]) -> list[GroupAccuracy]:
    """The accuracy on each group, sorted by name with numbers by size, pairs without a group last.

    Args:
        groups: each pair's phenomenon or length bin; None is reported as "(none)".
        correct: whether the pair's predicted label is the true one.

    Raises:
        ValueError: unequal lengths.

    >>> [(g.name, g.num, g.accuracy) for g in accuracy_by(["10 words", None, "9 words"], [True, True, False])]
    [('9 words', 1, 0.0), ('10 words', 1, 1.0), ('(none)', 1, 1.0)]
    """
    if len(groups) != len(correct):
        raise ValueError(f"found {len(groups)} groups and {len(correct)} answers, expected equally many")
    members: dict[str | None, list[bool]] = {}
    for group, is_correct in zip(groups, correct, strict=True):
        members.setdefault(group, []).append(bool(is_correct))
    return [
        GroupAccuracy(
            name=NO_GROUP if group is None else group,
            num=len(members[group]),
            accuracy=sum(members[group]) / len(members[group]),
            interval=wilson_interval(sum(members[group]), len(members[group])),
        )
        for group in sorted(members, key=_natural_order)
    ]


def _natural_order(name: str | None) -> tuple[bool, list[str | int]]:
    # Splitting by a captured group alternates text and digits, so that like meets like.
    parts = re.split(r"([0-9]+)", name or "")
    return name is None, [int(part) if place % 2 else part for place, part in enumerate(parts)]


def length_bins(num_words: Sequence[int]) -> list[str]:
    """Each length's bin, the bins being cut at the quartiles; equal lengths share one.

    A quartile is the smallest length that at least that share does not exceed (Hyndman & Fan 1996,
    definition 1), so no bin is empty, and many equal lengths make fewer than four.

    >>> length_bins([1, 12, 34, 50, 51, 70, 90, 200])
    ['1-12 words', '1-12 words', '13-50 words', '13-50 words', '51-70 words', '51-70 words', '71-200 words', '71-200 words']
    """
    if not len(num_words):
        return []
    lengths = np.array(num_words, dtype=np.int64)
    last = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="inverted_cdf"))
    first = [int(lengths.min()), *(int(edge) + 1 for edge in last[:-1])]
    names = [
        f"{low}-{high} words" if low < high else f"{high} word{'s' if high != 1 else ''}"
        for low, high in zip(first, map(int, last), strict=True)
    ]
    return [names[place] for place in np.searchsorted(last, lengths, side="left")]


def metrics_to_dict(metrics: ClassificationMetrics) -> dict[str, Any]:
    """The figures as JSON writes them; those that are None are left out.

    A metric is `{"value": ..., "low": ..., "high": ...}`, all else keeps its field's name and shape.
    """
    flat: dict[str, Any] = {}
    for name, value in asdict(metrics).items():
        if name in _SHARES | _SCORES:
            if value is not None:
                flat[name] = {"value": value["value"], **value["interval"]}
        else:
            flat[name] = value
    return flat


def format_table(metrics: ClassificationMetrics, title: str) -> str:
    """The figures as plain text of at most 80 columns: metrics, label shares, confusion matrix.

    Shares are in percent, the others as they are; a metric that is None has no line.
    """
    lines = [textwrap.fill(title, TABLE_WIDTH), "", f"{'metric':<12}{'value':>8}   95 % interval"]
    for name, heading in (_SHARES | _SCORES).items():
        metric: Metric | None = getattr(metrics, name)
        if metric is not None:
            style = "{:.1%}" if name in _SHARES else "{:.3f}"
            value, low, high = map(style.format, (metric.value, metric.interval.low, metric.interval.high))
            lines.append(f"{heading:<12}{value:>8}   {low:>6} to {high:>6}")
    true_share = metrics.num_positive / metrics.support
    lines += [
        "",
        f"{metrics.support} pairs: {true_share:.1%} are entailment, "
        f"{metrics.predicted_positive_share:.1%} predicted so, {metrics.num_unanswered} unanswered",
        "",
        *_confusion_lines(metrics),
    ]
    return "\n".join(lines)


def _confusion_lines(metrics: ClassificationMetrics) -> list[str]:
    cells = metrics.confusion
    num_negative = metrics.support - metrics.num_positive
    rows: list[tuple[str | int, ...]] = [
        ("true/predicted", LABEL_NAMES[1], LABEL_NAMES[0], "no answer"),
        (LABEL_NAMES[1], cells.tp, cells.fn, metrics.num_positive - cells.tp - cells.fn),
        (LABEL_NAMES[0], cells.fp, cells.tn, num_negative - cells.fp - cells.tn),
    ]
    num_columns = 4 if metrics.num_unanswered else 3
    return [f"{row[0]:<15}" + "".join(f"{cell:>15}" for cell in row[1:num_columns]) for row in rows]
