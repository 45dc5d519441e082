"""Tune threshold and temperature on dev, measure the gain by cross-fitting, and store them with the run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nlicot import completion
from nlicot.data.atomic_write import write_json
from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import (
    THRESHOLD,
    ClassificationMetrics,
    Floats,
    Labels,
    classification_metrics,
    entails,
)
from nlicot.records import Prediction
from nlicot.run.folder import TUNED_WITH

EPSILON = 1e-6
"""Probabilities are clipped this far from 0 and 1 before taking logits."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
NUM_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How p(entailment) becomes a label: sigmoid(logit(p) / temperature) >= threshold."""

    threshold: float = THRESHOLD
    temperature: float = 1.0

    def calibrated(self, p: Floats) -> Floats:
        """Return the probabilities at this temperature."""
        if self.temperature == 1:
            return p
        return np.asarray(1 / (1 + np.exp(-(_logit(p) / self.temperature))), dtype=np.float64)

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the label and probability of this decision."""
        if prediction.p_entailment is None:
            return prediction
        p = float(self.calibrated(np.array([prediction.p_entailment]))[0])
        label = int(entails(p, self.threshold))
        agreement = prediction.agreement
        if agreement is not None and label != prediction.predicted_label:
            agreement = 1 - agreement  # of the votes: each has its own label, at 0.5
        form = completion.form_of(prediction.completion)
        rendered = completion.render(prediction.thought_process, label, form, prediction.draft_label)
        return replace(
            prediction, predicted_label=label, p_entailment=p, completion=rendered, agreement=agreement
        )


def _logit(p: Floats) -> Floats:
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The decision fitted on all pairs; metrics without it, cross-fitted, and (optimistic) in-sample."""

    decision: Decision
    plain: ClassificationMetrics
    cross_fitted: ClassificationMetrics
    in_sample: ClassificationMetrics


def fit_decision(true: Labels, p: Floats) -> Decision:
    """Fit the temperature with the least log-loss (Guo et al. 2017), then the most accurate threshold.

    If all labels or all probabilities are equal, return the plain decision.
    """
    if len(np.unique(true)) < 2 or len(np.unique(p)) < 2:
        return Decision()
    tempered = Decision(temperature=_best_temperature(true, p))
    return replace(tempered, threshold=_best_threshold(true, tempered.calibrated(p)))


def _best_temperature(true: Labels, p: Floats) -> float:
    """Golden-section search over log temperature: the loss is unimodal in 1 / temperature."""
    logits = _logit(p) * np.where(true == 1, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -logits / math.exp(log_temperature)).mean())

    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _best_threshold(true: Labels, p: Floats) -> float:
    """Among midpoints between neighbours, the one with the best accuracy; ties go to the nearest to 0.5."""
    values = np.unique(p)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2, [(values[-1] + 1) / 2], [0.5]])
    order = np.argsort(p)
    ones_below = np.concatenate([[0], np.cumsum(true[order])])
    num_below = np.searchsorted(p[order], cuts, side="left")
    num_right = (num_below - ones_below[num_below]) + (ones_below[-1] - ones_below[num_below])
    best = cuts[num_right == num_right.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def check_labels(true_labels: Sequence[int], *, num_folds: int = NUM_FOLDS) -> None:
    """Refuse labels that leave a fold without one of them."""
    counts = [sum(label == each for each in true_labels) for label in (0, 1)]
    if min(counts) < num_folds:
        raise ConfigError(
            f"--tune_threshold: found {counts[0]} pairs of label 0 and {counts[1]} of label 1, "
            f"expected at least {num_folds} of each"
        )


def tune(
    true_labels: Sequence[int], p_entailment: Sequence[float], *, num_folds: int = NUM_FOLDS, seed: int = 0
) -> Tuned:
    """Fit a decision, and measure it by cross-fitting: each fold with a decision fitted on the others."""
    check_labels(true_labels, num_folds=num_folds)
    true = np.array(true_labels, dtype=np.int64)
    p = np.array(p_entailment, dtype=np.float64)
    fold_of = _folds(true, num_folds, seed)
    decided, calibrated = np.zeros_like(true), np.zeros_like(p)
    for fold in range(num_folds):
        held_out = fold_of == fold
        decision = fit_decision(true[~held_out], p[~held_out])
        calibrated[held_out] = decision.calibrated(p[held_out])
        decided[held_out] = entails(calibrated[held_out], decision.threshold)
    decision = fit_decision(true, p)
    return Tuned(
        decision=decision,
        plain=_measured(true, p, Decision()),
        cross_fitted=classification_metrics(true.tolist(), decided.tolist(), calibrated.tolist()),
        in_sample=_measured(true, p, decision),
    )


def _folds(true: Labels, num_folds: int, seed: int) -> Labels:
    fold_of = np.zeros_like(true)
    generator = random.Random(seed)
    for indices in (np.flatnonzero(true == label).tolist() for label in (0, 1)):
        generator.shuffle(indices)
        fold_of[indices] = np.arange(len(indices)) % num_folds
    return fold_of


def _measured(true: Labels, p: Floats, decision: Decision) -> ClassificationMetrics:
    calibrated = decision.calibrated(p)
    labels = entails(calibrated, decision.threshold).astype(int)
    return classification_metrics(true.tolist(), labels.tolist(), calibrated.tolist())


def format_tuned(tuned: Tuned) -> str:
    """Format plain, cross-fitted and in-sample metrics in at most 80 columns."""
    lines = [f"{'threshold':<16}{'accuracy':>8}{'':>18}{'macro F1':>10}{'ECE':>8}{'Brier':>8}"]
    for name, metrics in (
        ("0.5, untuned", tuned.plain),
        ("cross-fitted", tuned.cross_fitted),
        ("in-sample", tuned.in_sample),
    ):
        accuracy = metrics.accuracy
        span = f"({accuracy.interval.low:.1%} to {accuracy.interval.high:.1%})"
        scores = (metrics.expected_calibration_error, metrics.brier)
        ece, brier = ("" if metric is None else f"{metric.value:.3f}" for metric in scores)
        lines.append(
            f"{name:<16}{accuracy.value:>8.1%}{span:>18}{metrics.macro_f1.value:>10.1%}{ece:>8}{brier:>8}"
        )
    decision = tuned.decision
    lines.append(f"threshold {decision.threshold:.3f}, temperature {decision.temperature:.2f}")
    if tuned.cross_fitted.accuracy.value <= tuned.plain.accuracy.value:
        lines.append("cross-fitted accuracy is not above the untuned one: tuning does not help here")
    return "\n".join(lines)


def store(
    path: Path, tuned: Tuned, *, split: str, num_pairs: int, tuned_with: Mapping[str, Any] | None = None
) -> None:
    """Store the decision in its run's `decision.json`, with what made the probabilities (see `load`)."""
    content = {
        **asdict(tuned.decision),
        TUNED_WITH: dict(tuned_with or {}),
        "split": split,
        "num_pairs": num_pairs,
        "accuracy_plain": tuned.plain.accuracy.value,
        "accuracy_cross_fitted": tuned.cross_fitted.accuracy.value,
        "accuracy_in_sample": tuned.in_sample.accuracy.value,
    }
    write_json(path, content)


def load(path: Path, used_with: Mapping[str, Any] | None = None) -> Decision:
    """Load the decision stored in a run's `decision.json`.

    Args:
        used_with: what makes the probabilities now; where it differs from what `store` got, the decision is
            refused, because it holds for other probabilities.
    """
    remedy = "run `validate --tune_threshold` again or remove the file"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        decision = Decision(threshold=float(found["threshold"]), temperature=float(found["temperature"]))
        tuned_with = dict(found.get(TUNED_WITH, {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no valid threshold and temperature ({error}); {remedy}") from error
    if not (0 <= decision.threshold <= 1 and decision.temperature > 0):
        raise ConfigError(
            f"{path}: found threshold {decision.threshold} and temperature {decision.temperature}, expected "
            f"one from 0 to 1 and one above 0; {remedy}"
        )
    for name, now in (used_with or {}).items():
        if name in tuned_with and tuned_with[name] != now:
            raise ConfigError(
                f"{path}: found a threshold that was tuned with {name} {tuned_with[name]}, expected {now}; "
                f"{remedy}"
            )
    return decision
