"""Threshold and temperature: what is known is found again, and picking on noise is not believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nlicot.errors import ConfigError
from nlicot.prediction import calibration as threshold
from nlicot.prediction.calibration import Decision, fit_decision, tune
from nlicot.records import Prediction

THOUGHTFUL = Prediction(
    id="a",
    predicted_label=1,
    p_entailment=0.6,
    thought_process="x",
    status="closed",
    completion='{"thought_process": "x", "predicted_label": 1}',
)


def _simulated(temperature: float, shift: float = 0.0, num: int = 4000) -> tuple[list[int], list[float]]:
    """Labels drawn from sigmoid(logit), and the probabilities of a model whose logits are sharper."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, num)
    labels = (draw.random(num) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels.tolist(), (1 / (1 + np.exp(-(logits * temperature + shift)))).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_known_temperature_is_found_again(temperature: float) -> None:
    labels, p = _simulated(temperature)
    assert fit_decision(np.array(labels), np.array(p)).temperature == pytest.approx(temperature, rel=0.1)


def test_shifted_model_gets_its_threshold() -> None:
    labels, p = _simulated(1.0, shift=2.0)
    tuned = tune(labels, p)
    assert tuned.decision.threshold > 0.6
    assert tuned.cross_fitted.accuracy.value > tuned.plain.accuracy.value + 0.03


def test_cut_is_midway_between_neighbours_and_nearest_to_the_middle() -> None:
    labels, p = [0] * 5 + [1] * 5, [0.1] * 5 + [0.6] * 5
    found = fit_decision(np.array(labels), np.array(p))
    calibrated = found.calibrated(np.array([0.1, 0.6]))
    assert calibrated[0] < found.threshold <= calibrated[1]
    assert found.threshold == 0.5


def test_noise_flatters_in_sample_and_not_cross_fitted() -> None:
    draw = np.random.default_rng(1)
    labels, p = draw.integers(0, 2, 60).tolist(), draw.random(60).tolist()
    tuned = tune(labels, p)
    assert tuned.in_sample.accuracy.value > tuned.cross_fitted.accuracy.value
    assert tune(labels, p) == tuned


def test_plain_decision_changes_nothing() -> None:
    prediction = Prediction(
        id="a",
        predicted_label=1,
        p_entailment=0.123456789 + 0.5,
        thought_process=None,
        status="label_only",
        completion='{"predicted_label": 1}',
    )
    assert Decision().apply(prediction) == prediction


def test_decision_changes_label_probability_and_completion_together() -> None:
    found = Decision(threshold=0.9, temperature=0.5).apply(THOUGHTFUL)
    assert found.predicted_label == 0
    assert found.p_entailment == pytest.approx(0.36 / (0.36 + 0.16))
    assert found.completion == '{"thought_process": "x", "predicted_label": 0}'
    text = '{"draft_label": 1, "thought_process": "x", "predicted_label": %s}'
    drafted = replace(THOUGHTFUL, completion=text % 1, draft_label=1)
    assert Decision(threshold=0.9).apply(drafted).completion == text % 0


def test_agreement_is_that_with_the_label_that_was_decided() -> None:
    prediction = replace(THOUGHTFUL, agreement=0.75)
    assert Decision(threshold=0.5).apply(prediction).agreement == 0.75
    assert Decision(threshold=0.7).apply(prediction).agreement == 0.25


@pytest.mark.parametrize(("p", "label"), [(0.7, 1), (0.6999, 0)])
def test_at_exactly_the_threshold_the_label_is_1(p: float, label: int) -> None:
    prediction = Prediction(
        id="a", predicted_label=1, p_entailment=p, thought_process=None, status="label_only", completion=""
    )
    assert Decision(threshold=0.7).apply(prediction).predicted_label == label


@pytest.mark.parametrize(("labels", "p"), [([1, 1, 1], [0.2, 0.5, 0.9]), ([0, 1, 0], [0.3, 0.3, 0.3])])
def test_nothing_to_pick_gives_the_plain_decision(labels: list[int], p: list[float]) -> None:
    assert fit_decision(np.array(labels), np.array(p)) == Decision()


def test_too_few_pairs_of_a_label_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 2 pairs of label 0"):
        tune([0, 0, *[1] * 20], [0.5] * 22)


def test_stored_decision_is_read_again_and_broken_ones_are_refused(tmp_path: Path) -> None:
    labels, p = _simulated(2.0, num=200)
    tuned = tune(labels, p)
    path = tmp_path / "decision.json"
    threshold.store(path, tuned, split="dev", num_pairs=200)
    assert threshold.load(path) == tuned.decision
    for broken in ("{", "[]", '{"threshold": 2, "temperature": 1}', '{"threshold": 0.5}'):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"decision\.json"):
            threshold.load(path)
