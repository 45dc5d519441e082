"""Compare runs on the same pairs: metrics, seeds of one recipe, McNemar's test, breakdowns, calibration."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nlicot.errors import ConfigError
from nlicot.evaluation.bootstrap import Interval, wilson_interval
from nlicot.evaluation.metrics import (
    ClassificationMetrics,
    GroupAccuracy,
    accuracy_by,
    classification_metrics,
    length_bins,
    mcnemar_exact,
    metrics_to_dict,
)
from nlicot.report.read_runs import Answer, Run

NUM_BINS = 10
Answers = Mapping[str, Sequence[Answer]]
"""Each run's answers, by its name, on the same pairs in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run's row."""

    name: str
    builder: str
    seed: int | None
    metrics: ClassificationMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over several seeds; `sd` is the sample's (n - 1), None for one run."""

    mean: float
    sd: float | None
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Runs that differ only in their seed."""

    names: list[str]
    builder: str
    accuracy: Spread
    macro_f1: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOfRuns:
    """The pairs that only one of two runs got right, and the probability of such a difference by chance.

    `p_holm` is corrected for the number of pairs of runs compared (Holm 1979).
    """

    first: str
    second: str
    only_first: list[str]
    only_second: list[str]
    p_value: float
    p_holm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All figures of some runs on one split."""

    split: str
    num_pairs: int
    runs: list[RunFigures]
    groups: list[SeedGroup]
    tests: list[PairOfRuns]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs of different names on the same pairs; one run has only figures.

    Raises:
        ConfigError: the runs have different pairs or labels.
    """
    answers = answers_in_order(runs)
    rows = [
        RunFigures(
            name=run.name,
            builder=run.builder,
            seed=run.seed,
            metrics=classification_metrics(
                [answer.true_label for answer in answers[run.name]],
                [answer.predicted_label for answer in answers[run.name]],
                [answer.p_entailment for answer in answers[run.name]],
            ),
        )
        for run in runs
    ]
    return Comparison(
        # A predictions file may be of another split than `--split`.
        split=", ".join(sorted({run.predictions_path.stem for run in runs})),
        num_pairs=len(runs[0].answers),
        runs=rows,
        groups=_groups(runs, rows),
        tests=_tests(answers),
    )


def answers_in_order(runs: Sequence[Run]) -> dict[str, list[Answer]]:
    """Return all answers in the first run's order: the bootstrap then draws the same pairs for every run.

    Raises:
        ConfigError: the runs have different pairs or labels.
    """
    expected = {answer.id: answer.true_label for answer in runs[0].answers}
    found = {}
    for run in runs:
        by_id = {answer.id: answer for answer in run.answers}
        labels = {id_: answer.true_label for id_, answer in by_id.items()}
        differing = [id_ for id_ in expected | labels if expected.get(id_) != labels.get(id_)]
        if differing:
            id_ = differing[0]
            first, second = (
                f"{'missing' if label is None else f'labelled {label}'} in {name}"
                for name, label in ((runs[0].name, expected.get(id_)), (run.name, labels.get(id_)))
            )
            more = f" and {len(differing) - 1} more pairs that differ" if len(differing) > 1 else ""
            raise ConfigError(
                f"--compare: found pair {id_!r} {first} and {second}{more}, "
                "expected predictions of the same pairs"
            )
        found[run.name] = [by_id[id_] for id_ in expected]
    return found


def _groups(runs: Sequence[Run], rows: Sequence[RunFigures]) -> list[SeedGroup]:
    by_recipe: dict[str, list[RunFigures]] = {}
    for run, row in zip(runs, rows, strict=True):
        # A run without a configuration is a group of its own.
        by_recipe.setdefault(run.recipe or f"only {run.name}", []).append(row)
    return [
        SeedGroup(
            names=[member.name for member in members],
            builder=members[0].builder,
            accuracy=_spread([member.metrics.accuracy.value for member in members]),
            macro_f1=_spread([member.metrics.macro_f1.value for member in members]),
        )
        for members in by_recipe.values()
    ]


def _spread(values: Sequence[float]) -> Spread:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), sd=sd, lowest=min(values), highest=max(values))


def _tests(answers: Answers) -> list[PairOfRuns]:
    correct = {name: [answer.correct for answer in found] for name, found in answers.items()}
    ids = [answer.id for answer in next(iter(answers.values()))]
    pairs = list(itertools.combinations(answers, 2))
    p_values = [mcnemar_exact(correct[first], correct[second]).p_value for first, second in pairs]
    return [
        PairOfRuns(
            first=first,
            second=second,
            only_first=[id_ for id_, a, b in zip(ids, correct[first], correct[second], strict=True) if a > b],
            only_second=[
                id_ for id_, a, b in zip(ids, correct[first], correct[second], strict=True) if b > a
            ],
            p_value=p_value,
            p_holm=p_holm,
        )
        for (first, second), p_value, p_holm in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, Scand. J. Stat. 6, 65-70).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        **asdict(comparison),
        "runs": [
            {"name": row.name, "builder": row.builder, "seed": row.seed, **metrics_to_dict(row.metrics)}
            for row in comparison.runs
        ],
    }


# ---------------------------------------------------------------- breakdowns and calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Accuracy by group, for each run that has such groups; all runs share the groups' names."""

    title: str
    note: str
    by_run: Mapping[str, Sequence[GroupAccuracy]]

    @property
    def names(self) -> list[str]:
        """All groups, in the order of the first run that has them."""
        return list(dict.fromkeys(group.name for groups in self.by_run.values() for group in groups))


def breakdowns(answers: Answers) -> list[Breakdown]:
    """Break accuracy down by phenomenon and by the lengths of thought and premise, if the pairs have them."""
    pairs = next(iter(answers.values()))
    right = {name: [answer.correct for answer in found] for name, found in answers.items()}
    found = []
    if any(pair.phenomenon for pair in pairs):
        phenomena = [pair.phenomenon for pair in pairs]
        found.append(
            Breakdown(
                title="By phenomenon",
                note="As labelled by the authors of the pairs.",
                by_run={name: accuracy_by(phenomena, correct) for name, correct in right.items()},
            )
        )
    num_words = {
        name: [_num_words(answer.thought_process) for answer in of_run]
        for name, of_run in answers.items()
        if any(answer.thought_process for answer in of_run)
    }
    if num_words:
        # The bins are cut for all runs together, so that they are the same in each.
        bins = iter(length_bins([num for of_run in num_words.values() for num in of_run]))
        found.append(
            Breakdown(
                title="By length of the thought",
                note="Cut at the quartiles of all runs' thoughts; runs without thoughts are left out.",
                by_run={
                    name: accuracy_by([next(bins) for _ in of_run], right[name])
                    for name, of_run in num_words.items()
                },
            )
        )
    if all(pair.premise for pair in pairs):
        premise_bins = length_bins([_num_words(pair.premise) for pair in pairs])
        found.append(
            Breakdown(
                title="By length of the premise",
                note="Cut at the quartiles.",
                by_run={name: accuracy_by(premise_bins, correct) for name, correct in right.items()},
            )
        )
    return found


def _num_words(text: str | None) -> int:
    return len((text or "").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Pairs with similar probabilities, and the proportion of entailments among them."""

    num: int
    mean_p: float
    proportion: float
    interval: Interval


def calibration(answers: Sequence[Answer]) -> list[CalibrationBin]:
    """Compute the proportion of entailments in ten equal ranges of `p_entailment`, leaving out empty ranges.

    The list is empty if any pair has no probability.
    """
    if any(answer.p_entailment is None for answer in answers):
        return []
    p = np.array([answer.p_entailment for answer in answers], dtype=np.float64)
    true = np.array([answer.true_label for answer in answers], dtype=np.int64)
    # Each bin includes its upper edge, as in the calibration error of `evaluation`.
    bins = np.searchsorted(np.arange(1, NUM_BINS) / NUM_BINS, p, side="left")
    return [
        CalibrationBin(
            num=int(inside.sum()),
            mean_p=float(p[inside].mean()),
            proportion=float(true[inside].mean()),
            interval=wilson_interval(int(true[inside].sum()), int(inside.sum())),
        )
        for inside in (bins == index for index in range(NUM_BINS))
        if inside.any()
    ]
