"""Accuracy, F1, calibration and other metrics of predictions, with their intervals and paired tests.

Metrics are functions of pair weights, one row of weights per resample: the sample itself (all ones) and its
bootstrap use the same numpy code, many resamples at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from nlicot.records import LABELS

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

CONFIDENCE = 0.95
NUM_CALIBRATION_BINS = 10
NO_GROUP = "(none)"
_MAX_WEIGHTS_PER_CHUNK = 2**19  # 4 MB of float64: measured fastest, and bounds the memory
_UNANSWERED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A value measured on a sample, with its 95 % interval."""

    value: float
    interval: Interval


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
    auroc: Metric | None = None
    expected_calibration_error: Metric | None = None
    brier: Metric | None = None
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
    answers = [_UNANSWERED if label is None else label for label in predicted_labels]
    predicted = np.array(answers, dtype=np.int64)
    p: Floats | None = None
    if p_entailment is not None and all(probability is not None for probability in p_entailment):
        p = np.array(p_entailment, dtype=np.float64)

    def statistics(weights: Floats) -> dict[str, Floats]:
        values = _label_statistics(weights, true, predicted)
        return values if p is None else values | _probability_statistics(weights, true, p)

    return ClassificationMetrics(
        **_bootstrap_metrics(statistics, len(true), num_resamples=num_resamples, seed=seed),
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


def _check_input(
    true_labels: Sequence[int],
    predicted_labels: Sequence[int | None],
    p_entailment: Sequence[float | None] | None,
) -> None:
    given = (true_labels, predicted_labels, p_entailment)
    lengths = [len(values) for values in given if values is not None]
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


def _bootstrap_metrics(
    statistics: Callable[[Floats], dict[str, Floats]], num_items: int, *, num_resamples: int, seed: int
) -> dict[str, Metric]:
    """Return every statistic's value on the sample with its 95 % percentile bootstrap interval.

    Resamples are drawn with replacement and represented by weights, the number of times each item was drawn
    (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13), once for all statistics.

    Args:
        statistics: maps weights `[R, num_items]` to named values `[R]`, NaN if undefined; a name without a
            defined value on the sample gets no metric.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, expected at least 1")
    rng = np.random.default_rng(seed)
    num_rows = max(1, _MAX_WEIGHTS_PER_CHUNK // num_items)
    chunks = [
        statistics(_draw_weights(rng, min(num_rows, num_resamples - start), num_items))
        for start in range(0, num_resamples, num_rows)
    ]
    return {
        name: Metric(
            value=float(value[0]),
            interval=_percentile_interval(np.concatenate([chunk[name] for chunk in chunks])),
        )
        for name, value in statistics(np.ones((1, num_items))).items()
        if not np.isnan(value[0])
    }


def _draw_weights(rng: np.random.Generator, num_rows: int, num_items: int) -> Floats:
    drawn = rng.integers(num_items, size=(num_rows, num_items))
    drawn += np.arange(num_rows)[:, None] * num_items
    counts = np.bincount(drawn.ravel(), minlength=num_rows * num_items)
    return counts.reshape(num_rows, num_items).astype(np.float64)


def _percentile_interval(values: Floats) -> Interval:
    """Ignore resamples with an undefined value; if all are, the interval is [0, 1]."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(low=0.0, high=1.0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def _label_statistics(weights: Floats, true: Labels, predicted: Labels) -> dict[str, Floats]:
    groups = [true == 1, true == 0, predicted == 1, predicted == 0]
    hits = [(true == 1) & (predicted == 1), (true == 0) & (predicted == 0)]
    counts = weights @ np.stack(groups + hits, axis=1).astype(np.float64)
    positive, negative, predicted_positive, predicted_negative, tp, tn = counts.T
    f1 = _ratio(2 * tp, positive + predicted_positive)
    return {
        "accuracy": _ratio(tp + tn, positive + negative),
        "precision": _ratio(tp, predicted_positive),
        "recall": _ratio(tp, positive),
        "f1": f1,
        "macro_f1": (f1 + _ratio(2 * tn, negative + predicted_negative)) / 2,
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _probability_statistics(weights: Floats, true: Labels, p: Floats) -> dict[str, Floats]:
    num_pairs = weights.sum(axis=1)
    confidence = np.maximum(p, 1 - p)
    is_correct = (p > 0.5) == (true == 1)
    upper_edges = np.arange(1, NUM_CALIBRATION_BINS + 1) / NUM_CALIBRATION_BINS
    bins = np.searchsorted(upper_edges, confidence, side="left")
    # A bin's weighted count times |accuracy - confidence| is the absolute sum of its pairs' gaps.
    gaps = np.zeros((len(p), NUM_CALIBRATION_BINS))
    gaps[np.arange(len(p)), bins] = is_correct - confidence
    return {
        "auroc": _auroc(weights, true, p),
        "expected_calibration_error": np.abs(weights @ gaps).sum(axis=1) / num_pairs,
        "brier": (weights @ np.square(p - true)) / num_pairs,
    }


def _auroc(weights: Floats, true: Labels, p: Floats) -> Floats:
    order = np.argsort(p, kind="stable")
    ties_start = np.flatnonzero(np.diff(p[order], prepend=-1.0))
    weights, true = np.take(weights, order, axis=1), true[order]  # 4 times as fast as indexing
    positives = np.add.reduceat(weights * true, ties_start, axis=1)
    negatives = np.add.reduceat(weights * (1 - true), ties_start, axis=1)
    ranked_below = np.cumsum(negatives, axis=1) - negatives / 2
    num_comparisons = positives.sum(axis=1) * negatives.sum(axis=1)
    num_won = (positives * ranked_below).sum(axis=1)
    auroc: Floats = np.full(len(weights), np.nan)
    np.divide(num_won, num_comparisons, out=auroc, where=num_comparisons > 0)
    return auroc


def wilson_interval(successes: int, total: int) -> Interval:
    """Return the 95 % score interval of a proportion (Wilson 1927, JASA 22, 209-212).

    Unlike the bootstrap interval, it has a width if all or none succeed, so it suits small groups.

    Raises:
        ValueError: `total` is below 1, or `successes` is not in 0 to `total`.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}, expected 0 <= successes <= total and total >= 1")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    proportion = successes / total
    centre = proportion + z**2 / (2 * total)
    half_width = z * math.sqrt(proportion * (1 - proportion) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # The ends are exact in theory, but rounding would leave 1e-17 or 0.9999999999999999.
    return Interval(
        low=0.0 if successes == 0 else (centre - half_width) / scale,
        high=1.0 if successes == total else (centre + half_width) / scale,
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
