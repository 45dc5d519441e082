"""Metrics against hand computation and second implementations (scikit-learn, torchmetrics, scipy)."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np
import pytest

from nlicot.evaluation import metrics as evaluation_metrics
from nlicot.evaluation.metrics import (
    ClassificationMetrics,
    Confusion,
    Interval,
    accuracy_by,
    classification_metrics,
    entails,
    format_table,
    in_words,
    label_recalls,
    length_bins,
    look_reversed,
    mcnemar_exact,
    metrics_to_dict,
    reversed_labels_warning,
    wilson_interval,
)
from nlicot.records import Example

TRUE = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
PREDICTED = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]


def random_predictions(seed: int, num: int = 300) -> tuple[list[int], list[int], list[float]]:
    """Labels and two-decimal probabilities (hence ties), none where two definitions of a bin differ."""
    rng = np.random.default_rng(seed)
    true = rng.integers(2, size=num)
    p = np.round(np.clip(0.3 * true + 0.7 * rng.random(num), 0.01, 0.99), 2)
    p = np.where(np.isclose(p * 10, np.round(p * 10)), p + 0.005, p)
    return true.tolist(), (p > 0.5).astype(int).tolist(), p.tolist()


def values(metrics: ClassificationMetrics) -> dict[str, float]:
    return {
        name: entry["value"]
        for name, entry in metrics_to_dict(metrics).items()
        if isinstance(entry, dict) and "value" in entry
    }


# --- values -----------------------------------------------------------------------------------------


def test_label_metrics_equal_hand_computed_fractions():
    metrics = classification_metrics(TRUE, PREDICTED)
    assert metrics.confusion == Confusion(tp=3, fp=1, fn=1, tn=5)
    assert values(metrics) == pytest.approx(
        {
            "accuracy": 8 / 10,
            "precision": 3 / 4,
            "recall": 3 / 4,
            "f1": 3 / 4,
            "macro_f1": (3 / 4 + 5 / 6) / 2,
        },
        abs=1e-15,
    )
    assert (metrics.support, metrics.num_positive, metrics.num_unanswered) == (10, 4, 0)
    assert metrics.predicted_positive_share == 0.4


def test_missing_answer_is_wrong_but_not_a_guess():
    metrics = classification_metrics([1, 1, 1, 0, 0, 0], [1, None, 0, 0, None, 1])
    assert metrics.confusion == Confusion(tp=1, fp=1, fn=1, tn=1)
    assert metrics.num_unanswered == 2
    assert metrics.accuracy.value == pytest.approx(2 / 6)
    assert metrics.precision.value == pytest.approx(1 / 2)
    assert metrics.recall.value == pytest.approx(1 / 3)
    assert metrics.f1.value == pytest.approx(2 / 5)
    assert metrics.macro_f1.value == pytest.approx((2 / 5 + 2 / 5) / 2)
    assert metrics.predicted_positive_share == pytest.approx(2 / 6)


def test_all_unanswered_scores_zero():
    metrics = classification_metrics([1, 0], [None, None])
    assert set(values(metrics).values()) == {0.0}
    assert metrics.num_unanswered == 2


def test_zero_divided_by_zero_is_zero():
    metrics = classification_metrics([0, 0, 0], [0, 0, 0])
    assert values(metrics) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "macro_f1": 0.5}


def test_probability_metrics_equal_hand_computed_values():
    metrics = classification_metrics([1, 1, 0, 0], [1, 0, 0, 1], [0.9, 0.4, 0.4, 0.65])
    # Of the four (positive, negative) pairs, two are won (0.9 over both), one is tied, one is lost.
    assert metrics.auroc is not None
    assert metrics.auroc.value == 2.5 / 4
    # Bin (0.5, 0.6]: two at 0.6, one right: 0.2. (0.6, 0.7]: one at 0.65, wrong: 0.65. (0.8, 0.9]: 0.1.
    assert metrics.expected_calibration_error is not None
    assert metrics.expected_calibration_error.value == pytest.approx((0.2 + 0.65 + 0.1) / 4)
    assert metrics.brier is not None
    assert metrics.brier.value == pytest.approx((0.01 + 0.36 + 0.16 + 0.4225) / 4)


@pytest.mark.parametrize(("p", "label", "gap"), [(0.0, 0, 0.0), (1.0, 1, 0.0), (0.5, 0, 0.5), (0.5, 1, 0.5)])
def test_calibration_error_at_the_ends_of_the_scale(p: float, label: int, gap: float):
    metrics = classification_metrics([label], [label], [p])
    assert metrics.expected_calibration_error is not None
    assert metrics.expected_calibration_error.value == gap


def test_at_exactly_one_half_the_label_is_1():
    assert [entails(p) for p in (0.0, math.nextafter(0.5, 0), 0.5, 1.0)] == [False, False, True, True]
    # Confidence 0.5 and label 1: of three pairs two are right, so the gap is 2/3 - 1/2.
    metrics = classification_metrics([1, 1, 0], [1, 1, 1], [0.5, 0.5, 0.5])
    assert metrics.expected_calibration_error is not None
    assert metrics.expected_calibration_error.value == pytest.approx(2 / 3 - 1 / 2)
    assert metrics.accuracy.value == pytest.approx(2 / 3)


def test_calibration_bins_are_closed_above():
    # 0.6 and 0.7 fall into different bins, so their gaps of +0.4 and -0.7 do not cancel.
    metrics = classification_metrics([1, 0], [1, 1], [0.6, 0.7])
    assert metrics.expected_calibration_error is not None
    assert metrics.expected_calibration_error.value == pytest.approx((0.4 + 0.7) / 2)
    # 0.65 and 0.7 share one: they do.
    metrics = classification_metrics([1, 0], [1, 1], [0.65, 0.7])
    assert metrics.expected_calibration_error is not None
    assert metrics.expected_calibration_error.value == pytest.approx((0.7 - 0.35) / 2)


def test_decision_threshold_does_not_change_probability_metrics():
    true, predicted, p = random_predictions(3)
    cautious = [int(probability > 0.8) for probability in p]
    usual, moved = classification_metrics(true, predicted, p), classification_metrics(true, cautious, p)
    assert (usual.auroc, usual.expected_calibration_error, usual.brier) == (
        moved.auroc,
        moved.expected_calibration_error,
        moved.brier,
    )
    assert usual.accuracy != moved.accuracy


def test_probability_metrics_need_every_probability():
    metrics = classification_metrics([1, 0], [1, 0], [0.9, None])
    assert (metrics.auroc, metrics.expected_calibration_error, metrics.brier) == (None, None, None)


def test_auroc_is_none_with_one_class_only():
    metrics = classification_metrics([1, 1], [1, 1], [0.9, 0.7])
    assert metrics.auroc is None
    assert metrics.brier is not None
    assert metrics.brier.value == pytest.approx((0.01 + 0.09) / 2)


# --- second implementations -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed: int):
    sklearn = pytest.importorskip("sklearn.metrics")
    true, predicted, p = random_predictions(seed)
    assert values(classification_metrics(true, predicted, p, num_resamples=1)) == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(true, predicted),
            "precision": sklearn.precision_score(true, predicted),
            "recall": sklearn.recall_score(true, predicted),
            "f1": sklearn.f1_score(true, predicted),
            "macro_f1": sklearn.f1_score(true, predicted, average="macro"),
            "auroc": sklearn.roc_auc_score(true, p),
            "expected_calibration_error": torchmetrics_calibration_error(true, p),
            "brier": sklearn.brier_score_loss(true, p),
        },
        abs=1e-6,  # torchmetrics counts in float32
    )


def torchmetrics_calibration_error(true: list[int], p: list[float]) -> float:
    torch, torchmetrics = pytest.importorskip("torch"), pytest.importorskip("torchmetrics")
    error = torchmetrics.classification.MulticlassCalibrationError(num_classes=2, n_bins=10, norm="l1")
    both = torch.tensor([[1 - probability, probability] for probability in p], dtype=torch.float64)
    return float(error(both, torch.tensor(true)))


def test_missing_answers_equal_scikit_learn_with_a_third_label():
    sklearn = pytest.importorskip("sklearn.metrics")
    true, predicted, _ = random_predictions(7)
    some = [None if index % 5 == 0 else label for index, label in enumerate(predicted)]
    third = [2 if label is None else label for label in some]
    metrics = classification_metrics(true, some, num_resamples=1)
    ours = [metrics.precision.value, metrics.recall.value, metrics.f1.value]
    theirs = sklearn.precision_recall_fscore_support(true, third, labels=[1], zero_division=0)
    assert ours == pytest.approx([float(figure[0]) for figure in theirs[:3]])
    assert metrics.accuracy.value == pytest.approx(sklearn.accuracy_score(true, third))
    assert metrics.macro_f1.value == pytest.approx(
        sklearn.f1_score(true, third, labels=[0, 1], average="macro", zero_division=0)
    )


def test_metrics_equal_torchmetrics():
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    true, predicted, p = random_predictions(11)
    found = values(classification_metrics(true, predicted, p, num_resamples=1))
    labels = torch.tensor(predicted), torch.tensor(true)
    for name, metric in {
        "accuracy": classification.BinaryAccuracy(),
        "precision": classification.BinaryPrecision(),
        "recall": classification.BinaryRecall(),
        "f1": classification.BinaryF1Score(),
        "macro_f1": classification.MulticlassF1Score(num_classes=2, average="macro"),
    }.items():
        assert found[name] == pytest.approx(float(metric(*labels)), abs=1e-6), name
    auroc = float(classification.BinaryAUROC()(torch.tensor(p, dtype=torch.float64), torch.tensor(true)))
    assert found["auroc"] == pytest.approx(auroc, abs=1e-6)


# --- intervals --------------------------------------------------------------------------------------


def test_bootstrap_is_deterministic_by_seed():
    true, predicted, p = random_predictions(0)
    assert classification_metrics(true, predicted, p, seed=1) == classification_metrics(
        true, predicted, p, seed=1
    )
    assert classification_metrics(true, predicted, p, seed=1) != classification_metrics(
        true, predicted, p, seed=2
    )


def test_bootstrap_does_not_depend_on_how_it_is_chunked(monkeypatch: pytest.MonkeyPatch):
    true, predicted, p = random_predictions(0)
    whole = metrics_to_dict(classification_metrics(true, predicted, p, num_resamples=101))
    monkeypatch.setattr(evaluation_metrics, "_MAX_WEIGHTS_PER_CHUNK", 7 * len(true))
    chunked = metrics_to_dict(classification_metrics(true, predicted, p, num_resamples=101))
    for name in values(classification_metrics(true, predicted, p, num_resamples=1)):
        assert chunked[name] == pytest.approx(whole[name], abs=1e-12), name


def test_label_intervals_do_not_depend_on_probabilities_being_given():
    true, predicted, p = random_predictions(0)
    assert (
        classification_metrics(true, predicted, p).accuracy
        == classification_metrics(true, predicted).accuracy
    )


def test_bootstrap_equals_metrics_of_resampled_items():
    """Weights are only a fast way to resample: item by item, the interval is the same."""
    true, predicted, p = random_predictions(5, num=40)
    drawn = np.random.default_rng(0).integers(40, size=(50, 40))
    resampled = [
        values(
            classification_metrics(
                [true[i] for i in items],
                [predicted[i] for i in items],
                [p[i] for i in items],
                num_resamples=1,
            )
        )
        for items in drawn
    ]
    found = metrics_to_dict(classification_metrics(true, predicted, p, num_resamples=50, seed=0))
    for name in resampled[0]:
        low, high = np.quantile([figures[name] for figures in resampled], [0.025, 0.975])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high)), name


def test_accuracy_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    num_trials, covered = 400, 0
    for _ in range(num_trials):
        correct = (rng.random(200) < 0.8).astype(int).tolist()
        interval = classification_metrics([1] * 200, correct, num_resamples=400).accuracy.interval
        covered += interval.low <= 0.8 <= interval.high
    # 95 % of 400 is 380 with a standard deviation of 4.4; the percentile interval is a little narrow.
    assert 365 <= covered <= 393


def test_interval_has_no_width_if_all_are_right():
    metrics = classification_metrics([1, 0], [1, 0])
    assert metrics.accuracy.interval == Interval(low=1.0, high=1.0)


def test_resamples_without_both_classes_are_left_out_of_auroc():
    metrics = classification_metrics([1, 0], [1, 0], [0.9, 0.1])
    assert metrics.auroc is not None
    assert metrics.auroc.interval == Interval(low=1.0, high=1.0)


def test_auroc_interval_is_vacuous_if_no_resample_defines_it():
    one_class = next(
        seed for seed in range(100) if len(set(np.random.default_rng(seed).integers(2, size=2))) == 1
    )
    metrics = classification_metrics([1, 0], [1, 0], [0.9, 0.1], num_resamples=1, seed=one_class)
    assert metrics.auroc is not None
    assert metrics.auroc.interval == Interval(low=0.0, high=1.0)


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (3, 10), (10, 10), (450, 1000)])
def test_wilson_interval_equals_scipy(successes: int, total: int):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(successes, total).proportion_ci(method="wilson")
    ours = wilson_interval(successes, total)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, total: int):
    with pytest.raises(ValueError, match=f"{successes} successes of {total}"):
        wilson_interval(successes, total)


# --- reversed labels --------------------------------------------------------------------------------


def answers_of(counts: tuple[tuple[int, int], tuple[int, int]]) -> list[tuple[int, int]]:
    """True labels with answers, from the numbers of right and of all ones of each label."""
    return [
        (label, label if number < num_right else 1 - label)
        for label, (num_right, num) in enumerate(counts)
        for number in range(num)
    ]


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ((3, 3), 1 / 64),
        ((3, 5), 0.0051),
        ((3, 97), 1e-5),
        ((9, 91), 1e-9),
        ((10, 10), 0.0002),
        ((10, 90), 0.0015),
        ((50, 50), 0.0011),
    ],
)
def test_guesses_of_any_bias_hardly_ever_look_reversed(sizes: tuple[int, int], most: float):
    """The exact probability, at worst over the proportion of guesses for label 1."""
    stats = pytest.importorskip("scipy.stats")
    zeros, ones = (np.arange(size + 1) for size in sizes)
    table = [
        [look_reversed(label_recalls(answers_of(((int(a), sizes[0]), (int(b), sizes[1]))))) for b in ones]
        for a in zeros
    ]
    bias = np.linspace(0, 1, 201)[:, None]
    chance = np.einsum(
        "qa,ab,qb->q",
        stats.binom.pmf(zeros, sizes[0], 1 - bias),
        np.array(table, dtype=float),
        stats.binom.pmf(ones, sizes[1], bias),
    )
    assert 0 < chance.max() <= most


def test_a_student_below_chance_is_warned_about_with_a_pair_of_each_label():
    answers = answers_of(((1, 20), (0, 20)))
    examples = [
        Example(id=f"p{number}", premise=f"P{number}", hypothesis="H", label=label)
        for number, (label, _) in enumerate(answers)
    ]
    said: list[int | None] = [answer for _, answer in answers]
    assert reversed_labels_warning(examples, said, None).splitlines() == [
        "labels look reversed: the model finds 0 % of label 1 and 5 % of label 0; with --label_map 0=1,1=0 "
        "it is right on 97.5 %",
        "    p1: 'P1' / 'H'",
        "      model: 1 (entailment), file: 0 (no entailment)",
        "    p20: 'P20' / 'H'",
        "      model: 0 (no entailment), file: 1 (entailment)",
    ]
    assert reversed_labels_warning(examples, [None] * 40, None) == ""  # no answer is not the other label
    assert reversed_labels_warning(examples, [0] * 40, None) == ""


# --- McNemar ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 21), (700, 800)])
def test_mcnemar_equals_the_exact_binomial_test(only_a: int, only_b: int):
    stats = pytest.importorskip("scipy.stats")
    num_discordant = only_a + only_b
    expected = stats.binomtest(only_a, num_discordant).pvalue if num_discordant else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(only_b, only_a) == mcnemar_exact(only_a, only_b)


def test_mcnemar_stays_exact_if_two_to_the_n_exceeds_a_float():
    assert mcnemar_exact(1040, 0) == math.ldexp(1.0, -1039)


def test_mcnemar_of_many_pairs_is_near_the_normal_approximation_and_quick() -> None:
    started = time.process_time()
    found = mcnemar_exact(20_000, 20_300)
    assert time.process_time() - started < 10  # 0.2 s; minutes if each coefficient is computed by itself
    with_continuity = math.erfc((300 - 1) / math.sqrt(40_300) / math.sqrt(2))
    assert found == pytest.approx(with_continuity, rel=1e-3)


# --- groups -----------------------------------------------------------------------------------------


def test_accuracy_by_phenomenon_counts_pairs_without_one_last():
    groups = ["negation", None, "factive", "negation", None]
    found = accuracy_by(groups, [True, False, True, False, False])
    assert [(g.name, g.num, g.accuracy) for g in found] == [
        ("factive", 1, 1.0),
        ("negation", 2, 0.5),
        ("(none)", 2, 0.0),
    ]
    assert [g.interval for g in found] == [
        wilson_interval(1, 1),
        wilson_interval(1, 2),
        wilson_interval(0, 2),
    ]


def test_accuracy_by_length_orders_bins_by_number():
    lengths = [5, 9, 10, 40, 41, 99, 100, 250]
    found = accuracy_by(length_bins(lengths), [True] * 8)
    assert [g.name for g in found] == ["5-9 words", "10-40 words", "41-99 words", "100-250 words"]
    assert [g.num for g in found] == [2, 2, 2, 2]


def test_accuracy_by_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="shorter"):
        accuracy_by(["a", "b"], [True])


def test_length_bins_are_quarters_of_the_pairs():
    rng = np.random.default_rng(0)
    lengths = rng.permutation(400).tolist()
    bins = length_bins(lengths)
    assert {name: bins.count(name) for name in bins} == {
        "0-99 words": 100,
        "100-199 words": 100,
        "200-299 words": 100,
        "300-399 words": 100,
    }
    for length, name in zip(lengths, bins, strict=True):
        low, high = name.removesuffix(" words").split("-")
        assert int(low) <= length <= int(high)


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([], []),
        ([1], ["1 word"]),
        ([0, 0], ["0 words", "0 words"]),
        ([7, 7, 7, 9], ["7 words", "7 words", "7 words", "8-9 words"]),
    ],
)
def test_length_bins_of_few_or_equal_lengths(lengths: list[int], bins: list[str]):
    assert length_bins(lengths) == bins


# --- refusals ---------------------------------------------------------------------------------------


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"sequences of \[0, 0\] items"):
        classification_metrics([], [])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match=r"sequences of \[2, 1\] items"):
        classification_metrics([1, 0], [1])
    with pytest.raises(ValueError, match=r"sequences of \[2, 2, 1\] items"):
        classification_metrics([1, 0], [1, 0], [0.5])


def test_values_out_of_range_are_refused_with_their_index():
    with pytest.raises(ValueError, match=r"true_labels\[1\] is 2, expected 0 or 1"):
        classification_metrics([1, 2], [1, 0])
    with pytest.raises(ValueError, match=r"predicted_labels\[0\] is -1, expected 0, 1 or None"):
        classification_metrics([1, 0], [-1, 0])
    with pytest.raises(ValueError, match=r"p_entailment\[1\] is nan, expected a probability"):
        classification_metrics([1, 0], [1, 0], [0.5, math.nan])
    with pytest.raises(ValueError, match="num_resamples is 0"):
        classification_metrics([1, 0], [1, 0], num_resamples=0)


def test_numpy_arrays_serve_as_sequences():
    assert classification_metrics(np.array(TRUE), np.array(PREDICTED)) == classification_metrics(  # type: ignore[arg-type]
        TRUE, PREDICTED
    )


# --- JSON and text ----------------------------------------------------------------------------------


def test_dict_is_json_with_none_left_out():
    metrics = classification_metrics(TRUE, PREDICTED)
    written = metrics_to_dict(metrics)
    assert json.loads(json.dumps(written)) == written
    assert list(written) == [
        "accuracy",
        "precision",
        "recall",
        "f1",
        "macro_f1",
        "confusion",
        "support",
        "num_positive",
        "num_unanswered",
        "predicted_positive_share",
    ]
    interval = metrics.accuracy.interval
    assert written["accuracy"] == {"value": 0.8, "low": interval.low, "high": interval.high}
    assert written["confusion"] == {"tp": 3, "fp": 1, "fn": 1, "tn": 5}


def test_dict_has_probability_metrics_if_they_are_known():
    written = metrics_to_dict(classification_metrics([1, 0], [1, 0], [1.0, 0.0]))
    assert written["auroc"]["value"] == 1.0
    assert written["expected_calibration_error"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert written["brier"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_table_reads_as_documented():
    metrics = classification_metrics([1, 1, 0], [1, 1, 0], [1.0, 1.0, 0.0])
    unsure = dataclasses.replace(metrics.accuracy, value=2 / 3, interval=Interval(low=0.05, high=1.0))
    assert format_table(dataclasses.replace(metrics, accuracy=unsure), "dev of run-1") == "\n".join(
        [
            "dev of run-1",
            "",
            "metric         value   95 % interval",
            "accuracy       66.7%     5.0% to 100.0%",
            *(f"{name:<12}  100.0%   {low} to 100.0%" for name, low in table_lows(metrics)),
            "AUROC          1.000    1.000 to  1.000",
            "ECE            0.000    0.000 to  0.000",
            "Brier          0.000    0.000 to  0.000",
            "",
            "3 pairs: 66.7% are entailment, 66.7% predicted so, 0 unanswered",
            "",
            "true/predicted      entailment  no entailment",
            "entailment                   2              0",
            "no entailment                0              1",
        ]
    )


def table_lows(metrics: ClassificationMetrics) -> list[tuple[str, str]]:
    # Of 3 pairs a resample may have no positive (1 in 27) or one class only, which lowers these.
    names = {"precision": "precision", "recall": "recall", "f1": "F1", "macro_f1": "macro F1"}
    return [
        (heading, f"{getattr(metrics, name).interval.low * 100:5.1f}%") for name, heading in names.items()
    ]


def test_table_shows_missing_answers_in_a_separate_column():
    table = format_table(classification_metrics([1, 1, 0, 0], [1, None, 0, None]), "t")
    assert table.splitlines()[-5:] == [
        "4 pairs: 50.0% are entailment, 25.0% predicted so, 2 unanswered",
        "",
        "true/predicted      entailment  no entailment      no answer",
        "entailment                   1              0              1",
        "no entailment                0              1              1",
    ]


@pytest.mark.parametrize(
    ("low", "verdict"),
    [(0.0, "below"), (0.1, "not distinguishable from"), (0.6, "not distinguishable from"), (0.61, "above")],
)
def test_words_compare_the_interval_with_always_predicting_the_majority_label(low: float, verdict: str):
    metrics = classification_metrics([1, 1, 1, 0, 0], [1, 1, 0, 0, 0])
    interval = Interval(low=low, high=low + 0.55)
    accuracy = dataclasses.replace(metrics.accuracy, interval=interval)
    assert in_words(dataclasses.replace(metrics, accuracy=accuracy)) == (
        f"accuracy 80.0% ({low:.1%} to {interval.high:.1%} with 95 % confidence): {verdict} chance; "
        "always predicting the majority label gets 60.0%"
    )


def test_table_stays_within_80_columns():
    true, predicted, p = random_predictions(0)
    metrics = classification_metrics(true, [None, *predicted[1:]], p)
    many = dataclasses.replace(metrics, support=10_000_000, num_positive=5_000_000, num_unanswered=1_000_000)
    table = format_table(many, "a title as long as a path can be " + "x" * 100)
    assert max(map(len, table.splitlines())) <= 80
    assert all(line == line.rstrip() for line in table.splitlines())
