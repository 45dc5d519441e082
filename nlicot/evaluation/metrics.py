"""Accuracy, F1, calibration and other metrics of predictions, as records, as a dict and as a table.

Inputs are plain sequences, so that training, the report and notebooks share these functions.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nlicot.evaluation.bootstrap import (
    Floats,
    Interval,
    Labels,
    Metric,
    bootstrap_metrics,
    label_statistics,
    probability_statistics,
    wilson_interval,
)
from nlicot.records import LABEL_NAMES, LABELS

NO_GROUP = "(none)"
TABLE_WIDTH = 80
_UNANSWERED = -1
PERCENTAGES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
}
SCORES = {"auroc": "AUROC", "expected_calibration_error": "ECE", "brier": "Brier"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Counts of answered pairs, with label 1 (entailment) as the positive class.

    Pairs without a predicted label are in none of the four, so recall can be lower than tp / (tp + fn).
    """

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationMetrics:
    """The metrics of one set of predictions; those of probabilities are None without them.

    `support` counts all pairs, `num_positive` those with the true label 1, `num_unanswered` those without a
    predicted label. `predicted_positive_share` is a proportion of all pairs.
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
    """Compare predictions with true labels; each metric has a 95 % percentile bootstrap interval.

    - Accuracy; precision, recall and F1 of label 1; macro F1, the mean of both labels' F1. 0 / 0 is 0.0. A
      predicted label of None is wrong: it counts for accuracy and recall, not for precision.
    - AUROC: the proportion of (positive, negative) pairs ranked correctly by `p_entailment`, ties counting
      half, which is the rank sum of Mann & Whitney (Hanley & McNeil 1982, Radiology 143, 29-36). None if
      there is only one class.
    - Expected calibration error: the mean gap between confidence max(p, 1 - p) and the accuracy of the
      likelier label, in 10 equal-width bins closed above (Guo et al. 2017, eq. 3). At p = 0.5 the likelier
      label is 0.
    - Brier: the mean of (p - label)^2, half of the sum over both labels in Brier 1950.

    The last three do not depend on a decision threshold and are None unless every probability is given. If
    all pairs are correct, a bootstrap interval has no width (see `wilson_interval`); resampling biases the
    calibration error upwards, so its interval may be above its value.

    Raises:
        ValueError: no pairs, unequal lengths, a label that is not 0 or 1, or a probability not in [0, 1].
    """
    _check_input(true_labels, predicted_labels, p_entailment)
    true = np.array(true_labels, dtype=np.int64)
    predicted = np.array(
        [_UNANSWERED if label is None else label for label in predicted_labels], dtype=np.int64
    )
    p: Floats | None = None
    if p_entailment is not None and all(probability is not None for probability in p_entailment):
        p = np.array(p_entailment, dtype=np.float64)

    def statistics(weights: Floats) -> dict[str, Floats]:
        values = label_statistics(weights, true, predicted)
        return values if p is None else values | probability_statistics(weights, true, p)

    measured = bootstrap_metrics(statistics, len(true), num_resamples=num_resamples, seed=seed)
    return ClassificationMetrics(
        accuracy=measured["accuracy"],
        precision=measured["precision"],
        recall=measured["recall"],
        f1=measured["f1"],
        macro_f1=measured["macro_f1"],
        auroc=measured.get("auroc"),
        expected_calibration_error=measured.get("expected_calibration_error"),
        brier=measured.get("brier"),
        confusion=_confusion(true, predicted),
        support=len(true),
        num_positive=int(np.sum(true == 1)),
        num_unanswered=int(np.sum(predicted == _UNANSWERED)),
        predicted_positive_share=float(np.mean(predicted == 1)),
    )


def _check_input(
    true_labels: Sequence[int],
    predicted_labels: Sequence[int | None],
    p_entailment: Sequence[float | None] | None,
) -> None:
    lengths = [len(true_labels), len(predicted_labels)]
    if p_entailment is not None:
        lengths.append(len(p_entailment))
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"found sequences of {lengths} items, expected equally many and at least one")
    for index, label in enumerate(true_labels):
        if label not in LABELS:
            raise ValueError(f"true_labels[{index}] is {label!r}, expected 0 or 1")
    for index, predicted in enumerate(predicted_labels):
        if predicted is not None and predicted not in LABELS:
            raise ValueError(f"predicted_labels[{index}] is {predicted!r}, expected 0, 1 or None")
    for index, p in enumerate([] if p_entailment is None else p_entailment):
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"p_entailment[{index}] is {p!r}, expected a probability from 0 to 1")


def _confusion(true: Labels, predicted: Labels) -> Confusion:
    return Confusion(
        tp=int(np.sum((true == 1) & (predicted == 1))),
        fp=int(np.sum((true == 0) & (predicted == 1))),
        fn=int(np.sum((true == 1) & (predicted == 0))),
        tn=int(np.sum((true == 0) & (predicted == 0))),
    )


def accuracy_by(groups: Sequence[str | None], correct: Sequence[bool]) -> list[GroupAccuracy]:
    """Return the accuracy on each group, in natural order of the names, pairs without a group last.

    Args:
        groups: each pair's phenomenon or length bin; None is reported as "(none)".
        correct: True for each pair with the correct predicted label.

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
    # Splitting by a captured group alternates text and digits, so only like types are compared.
    parts = re.split(r"([0-9]+)", name or "")
    return name is None, [int(part) if index % 2 else part for index, part in enumerate(parts)]


def length_bins(num_words: Sequence[int]) -> list[str]:
    """Return the name of each length's bin; bins are cut at the quartiles.

    Quartiles follow Hyndman & Fan 1996, definition 1, so equal lengths share a bin, no bin is empty, and many
    equal lengths result in fewer than four.

    >>> length_bins([12, 34, 34, 60])
    ['12 words', '13-34 words', '13-34 words', '35-60 words']
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
    return [names[index] for index in np.searchsorted(last, lengths, side="left")]


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """The number of items that only one of two models got right, and the p-value of the difference."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar_exact(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> McNemar:
    """Test whether two models that answered the same items differ in accuracy.

    The exact two-sided binomial test, p = 1/2, on the items that only one of them answered correctly (McNemar
    1947, Psychometrika 12, 153-157). It sums integers, so it neither approximates nor underflows early.

    Args:
        correct_a: True for each item that model A answered correctly.
        correct_b: the same for model B, in the same order.

    Raises:
        ValueError: no items, or unequal lengths.

    >>> mcnemar_exact([True, True, True, True, False], [False, False, False, True, False])
    McNemar(only_a=3, only_b=0, p_value=0.25)
    """
    if len(correct_a) != len(correct_b) or not len(correct_a):
        raise ValueError(
            f"found {len(correct_a)} and {len(correct_b)} answers, expected equally many and at least one"
        )
    only_a = sum(1 for a, b in zip(correct_a, correct_b, strict=True) if a and not b)
    only_b = sum(1 for a, b in zip(correct_a, correct_b, strict=True) if b and not a)
    num_discordant = only_a + only_b
    binomial, tail = 1, 1
    for k in range(min(only_a, only_b)):
        binomial = binomial * (num_discordant - k) // (k + 1)
        tail += binomial
    return McNemar(only_a=only_a, only_b=only_b, p_value=min(1.0, 2 * tail / 2**num_discordant))


def metrics_to_dict(metrics: ClassificationMetrics) -> dict[str, Any]:
    """Return the metrics as JSON content, without those that are None.

    A metric becomes `{"value": ..., "low": ..., "high": ...}`; everything else keeps its name and shape.
    """
    flat: dict[str, Any] = {}
    for name, value in asdict(metrics).items():
        if name in PERCENTAGES | SCORES:
            if value is not None:
                flat[name] = {"value": value["value"], **value["interval"]}
        else:
            flat[name] = value
    return flat


def format_table(metrics: ClassificationMetrics, title: str) -> str:
    """Format the metrics as text of at most 80 columns, with label proportions and confusion matrix."""
    lines = [textwrap.fill(title, TABLE_WIDTH), "", f"{'metric':<12}{'value':>8}   95 % interval"]
    for name, heading in (PERCENTAGES | SCORES).items():
        metric: Metric | None = getattr(metrics, name)
        if metric is not None:
            style = "{:.1%}" if name in PERCENTAGES else "{:.3f}"
            value, low, high = map(style.format, (metric.value, metric.interval.low, metric.interval.high))
            lines.append(f"{heading:<12}{value:>8}   {low:>6} to {high:>6}")
    positive = metrics.num_positive / metrics.support
    lines += [
        "",
        f"{metrics.support} pairs: {positive:.1%} are entailment, "
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
