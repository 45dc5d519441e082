"""Accuracy, F1, calibration and other metrics of predictions, with intervals, tests, text and JSON.

Metrics are functions of pair weights, one row of weights per resample: the sample itself (all ones) and its
bootstrap use the same numpy code, many resamples at a time.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from nlicot.data.atomic_write import write_json
from nlicot.data.pairs import LabelMap
from nlicot.errors import DataError
from nlicot.evaluation.drafts import summarize_drafts
from nlicot.records import LABEL_NAMES, LABELS, Example, Prediction, Thought

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

PERCENTAGES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
}
SCORES = {"auroc": "AUROC", "expected_calibration_error": "ECE", "brier": "Brier"}
CONFIDENCE = 0.95
NUM_CALIBRATION_BINS = 10
NO_GROUP = "(none)"
MADE_WITH = "made_with"
"""Key in `metrics.json`: what made the predictions; the files of earlier versions lack it."""
MIN_PAIRS_OF_A_LABEL = 10
MIN_PAIRS_ALL_WRONG = 3
THRESHOLD = 0.5
TABLE_WIDTH = 80
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
    """Counts of answered pairs, with label 1 (entailment) as the positive class."""

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

    @property
    def majority(self) -> float:
        """The accuracy of always predicting the majority label."""
        return max(self.num_positive, self.support - self.num_positive) / self.support


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAccuracy:
    """The accuracy on one group of pairs, with Wilson's interval."""

    name: str
    num: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How many of a label's answered pairs are right."""

    label: int
    num_right: int
    num: int

    @property
    def proportion(self) -> float:
        """The recall; 0 without any pair."""
        return self.num_right / self.num if self.num else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the recall."""
        return wilson_interval(self.num_right, self.num)


def entails(p_entailment: Any, threshold: float = THRESHOLD) -> Any:
    """Return whether p(entailment) means label 1: p >= threshold, so a p of exactly 0.5 does.

    The one rule for labels, votes, calibration error and the label accuracy in training; `p_entailment` is a
    number, an array or a tensor.

    >>> entails(0.5), entails(0.499), entails(0.6, threshold=0.7)
    (True, False, False)
    """
    return p_entailment >= threshold


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
      label that `entails` gives, in 10 equal-width bins closed above (Guo et al. 2017, eq. 3).
    - Brier: the mean of (p - label)^2, half of the sum over both labels in Brier 1950.

    The last three do not depend on a decision threshold and are None unless every probability is given. If
    all pairs are correct, a bootstrap interval has no width (see `wilson_interval`); resampling biases the
    calibration error upwards, so its interval may be above its value.
    """
    _check_input(true_labels, predicted_labels, p_entailment)
    true = np.array(true_labels, dtype=np.int64)
    predicted = np.array([_UNANSWERED if label is None else label for label in predicted_labels])
    p: Floats | None = None
    if p_entailment is not None and all(probability is not None for probability in p_entailment):
        p = np.array(p_entailment, dtype=np.float64)

    def statistics(weights: Floats) -> dict[str, Floats]:
        values = _label_statistics(weights, true, predicted)
        return values if p is None else values | _probability_statistics(weights, true, p)

    def count(label: int, answer: int) -> int:
        return int(np.sum((true == label) & (predicted == answer)))

    return ClassificationMetrics(
        **_bootstrap_metrics(statistics, len(true), num_resamples=num_resamples, seed=seed),
        confusion=Confusion(tp=count(1, 1), fp=count(0, 1), fn=count(1, 0), tn=count(0, 0)),
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
    (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13), once for all statistics, which
    map weights `[R, num_items]` to named values `[R]`, NaN if undefined; a name without a defined value on
    the sample gets no metric.
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
    hits = [groups[0] & groups[2], groups[1] & groups[3]]
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
    is_correct = entails(p) == (true == 1)
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


def label_recalls(answers: Iterable[tuple[int | None, int | None]]) -> tuple[Recall, ...]:
    """Return the recall of each label from true labels and answers; skip those with one missing."""
    num_of = Counter(answers)
    return tuple(
        Recall(label=label, num_right=num_of[label, label], num=sum(num_of[label, said] for said in LABELS))
        for label in LABELS
    )


def look_reversed(recalls: Sequence[Recall]) -> bool:
    """Return whether answers miss both labels more often than guesses of any bias would.

    Both intervals must be below 0.5. If a label has fewer than 10 pairs, every answer must be wrong: with at
    least 3 pairs of each label, guesses are in at most 1 of 64 cases.
    """
    fewest = min(recall.num for recall in recalls)
    if fewest < MIN_PAIRS_OF_A_LABEL:
        return fewest >= MIN_PAIRS_ALL_WRONG and not any(recall.num_right for recall in recalls)
    return all(recall.interval.high < 0.5 for recall in recalls)


def format_recalls(recalls: Sequence[Recall]) -> str:
    """Format the recalls in words, of the labels that some pair has.

    >>> format_recalls(label_recalls([(0, 1), (0, 0), (1, 1)]))
    '100 % of label 1 and 50 % of label 0'
    """
    return " and ".join(
        f"{100 * each.proportion:.0f} % of label {each.label}" for each in reversed(recalls) if each.num
    )


def format_mistakes(mistakes: Iterable[tuple[Example | Thought, int]], who: str) -> list[str]:
    """Format pairs with the label that their file gives them, of which `who` says the other."""
    lines = []
    for pair, label in mistakes:
        other = 1 - label
        lines.append(f"    {pair.id}: {pair.premise!r} / {pair.hypothesis!r}")
        lines.append(f"      {who}: {other} ({LABEL_NAMES[other]}), file: {label} ({LABEL_NAMES[label]})")
    return lines


def reversed_labels_warning(
    examples: Sequence[Example], answers: Sequence[int | None], label_map: LabelMap | None
) -> str:
    """Return a warning if the labels of pairs, read by `label_map`, look reversed; else an empty text."""
    recalls = label_recalls(zip((example.label for example in examples), answers, strict=True))
    if not look_reversed(recalls):
        return ""
    accuracy = sum(each.num_right for each in recalls) / sum(each.num for each in recalls)
    mistakes = [
        next(
            (example, label)
            for example, answer in zip(examples, answers, strict=True)
            if (example.label, answer) == (label, 1 - label)
        )
        for label in LABELS
    ]
    return "\n".join(
        (
            f"labels look reversed: the model finds {format_recalls(recalls)}; "
            f"with --label_map {LabelMap.exchanged(label_map)} it is right on {100 * (1 - accuracy):.1f} %",
            *format_mistakes(mistakes, "model"),
        )
    )


def accuracy_by(groups: Sequence[str | None], correct: Sequence[bool]) -> list[GroupAccuracy]:
    """Return the accuracy on each group, in natural order of the names, pairs without a group last."""
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


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the p-value of the difference between two models that answered the same items.

    The exact two-sided binomial test, p = 1/2, on the items that only one of them answered correctly (McNemar
    1947, Psychometrika 12, 153-157). It sums integers, so it neither approximates nor underflows early.
    """
    num = only_a + only_b
    term = tail = 1  # each binomial coefficient from the one before: 20,000 of them take a tenth of a second
    for k in range(min(only_a, only_b)):
        term = term * (num - k) // (k + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**num))


def record_metrics(
    path: Path,
    split: str,
    pairs_path: Path,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    made_with: Mapping[str, Any],
) -> str:
    """Record metrics of labelled pairs in the `metrics.json` at `path`; return them as text.

    `examples` and `predictions` are in the same order; `pairs_path` is for the title, and `made_with` is
    recorded too.
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
    entry["by_phenomenon"] = groups_to_dicts(accuracy_by([example.phenomenon for example in examples], right))
    if any(lengths):
        entry["by_thought_length"] = groups_to_dicts(accuracy_by(length_bins(lengths), right))
    true_labels = [example.label for example in examples]
    drafts = summarize_drafts(true_labels, [prediction.draft_label for prediction in predictions], labels)
    if drafts:
        entry["drafts"] = asdict(drafts)
    entry[MADE_WITH] = dict(made_with)
    write_json(path, {**read_metrics(path), split: entry})
    title = f"{split}: {len(examples)} pairs of {pairs_path}"
    parts = [f"{format_table(metrics, title)}\n{_format_groups(entry)}", in_words(metrics)]
    return "\n\n".join([*parts, str(drafts)] if drafts else parts)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a `metrics.json`: the metrics by split, empty without the file."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        for entry in content.values():
            entry["accuracy"]
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise DataError(f"not as `validate` writes it ({error})", path=path, remedy="move it away") from None
    return content


def groups_to_dicts(groups: Sequence[GroupAccuracy]) -> list[dict[str, Any]]:
    """Return JSON content, with the interval's ends next to the accuracy."""
    return [{"name": g.name, "num": g.num, "accuracy": g.accuracy, **asdict(g.interval)} for g in groups]


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


def label_summary(predictions: Sequence[Prediction], dev: Mapping[str, Any] | None) -> str:
    """Summarise the proportion of label 1, next to dev's if its metrics are there."""
    proportion = sum(prediction.predicted_label == 1 for prediction in predictions) / len(predictions)
    text = f"label 1: {proportion:.1%}"
    if dev:
        text += (
            f" (on dev {dev['predicted_positive_share']:.1%} were predicted 1 and "
            f"{dev['num_positive'] / dev['support']:.1%} are)"
        )
    truncated = sum(prediction.status == "truncated" for prediction in predictions)
    return text + (f"; {truncated} thoughts were cut off at their token budget" if truncated else "")


def metrics_to_dict(metrics: ClassificationMetrics) -> dict[str, Any]:
    """Return JSON content without None; a metric becomes `{"value": ..., "low": ..., "high": ...}`."""
    return {
        name: {"value": value["value"], **value["interval"]} if name in PERCENTAGES | SCORES else value
        for name, value in asdict(metrics).items()
        if value is not None
    }


def in_words(metrics: ClassificationMetrics) -> str:
    """Say whether the accuracy's interval is above chance: above always predicting the majority label."""
    accuracy, chance = metrics.accuracy, metrics.majority
    low, high = accuracy.interval.low, accuracy.interval.high
    verdict = "not distinguishable from chance"
    if low > chance:
        verdict = "above chance"
    elif high < chance:
        verdict = "below chance"
    return (
        f"accuracy {accuracy.value:.1%} ({low:.1%} to {high:.1%} with 95 % confidence): {verdict}; "
        f"always predicting the majority label gets {chance:.1%}"
    )


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
