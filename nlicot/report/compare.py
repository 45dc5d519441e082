"""Compare runs on the same pairs: metrics, seeds of one recipe, McNemar's test, breakdowns, calibration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations, islice
from typing import Any

import numpy as np

from nlicot.evaluation.metrics import (
    NUM_CALIBRATION_BINS,
    GroupAccuracy,
    Interval,
    accuracy_by,
    length_bins,
    mcnemar_exact,
    metrics_to_dict,
    wilson_interval,
)
from nlicot.report.read_runs import Answer, Run

Answers = Mapping[str, Sequence[Answer]]
"""Each run's answers, by its name, on the same pairs in the same order."""


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
    """All figures of some runs on one split, or on several if predictions files were given."""

    split: str
    runs: Sequence[Run]
    groups: list[SeedGroup]
    tests: list[PairOfRuns]

    @property
    def num_pairs(self) -> int:
        """Number of pairs, the same for every run."""
        return len(self.runs[0].answers)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "split": self.split,
            "num_pairs": self.num_pairs,
            "runs": [run_to_dict(run) for run in self.runs],
            "groups": [asdict(group) for group in self.groups],
            "tests": [asdict(test) for test in self.tests],
        }


def run_to_dict(run: Run) -> dict[str, Any]:
    """Return a run's figures, and what they depend on, as JSON values."""
    return {
        "name": run.name,
        "builder": run.builder,
        "seed": run.seed,
        **({"started_from": asdict(run.origin)} if run.origin else {}),
        **({"soft_labels": asdict(run.soft_labels)} if run.soft_labels else {}),
        **({"drafts": asdict(run.drafts)} if run.drafts else {}),
        **({"members": [asdict(member) for member in run.members]} if run.members else {}),
        **metrics_to_dict(run.metrics),
    }


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs of different names on the same pairs in the same order; one run has only figures."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        # A run without a configuration is a group of its own.
        by_recipe.setdefault(run.recipe or f"only {run.name}", []).append(run)
    groups = [
        SeedGroup(
            names=[run.name for run in members],
            builder=members[0].builder,
            accuracy=spread([run.metrics.accuracy.value for run in members]),
            macro_f1=spread([run.metrics.macro_f1.value for run in members]),
        )
        for members in by_recipe.values()
    ]
    split = ", ".join(sorted({run.split for run in runs}))
    return Comparison(split=split, runs=runs, groups=groups, tests=_tests(runs))


def spread(values: Sequence[float]) -> Spread:
    """Summarise one figure of several seeds."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), sd=sd, lowest=min(values), highest=max(values))


def _tests(runs: Sequence[Run]) -> list[PairOfRuns]:
    right = {run.name: np.array([answer.correct for answer in run.answers]) for run in runs}
    ids = np.array([answer.id for answer in runs[0].answers], dtype=object)
    # Tests of two baselines would only raise the corrected p-values of the others.
    pairs = [(a.name, b.name) for a, b in combinations(runs, 2) if not (a.is_baseline and b.is_baseline)]
    only = [(ids[right[a] & ~right[b]].tolist(), ids[right[b] & ~right[a]].tolist()) for a, b in pairs]
    p_values = [mcnemar_exact(len(of_a), len(of_b)) for of_a, of_b in only]
    return [
        PairOfRuns(first=a, second=b, only_first=of_a, only_second=of_b, p_value=p_value, p_holm=p_holm)
        for (a, b), (of_a, of_b), p_value, p_holm in zip(pairs, only, p_values, holm(p_values), strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, Scand. J. Stat. 6, 65-70)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        corrected[index] = highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
    return corrected


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
    correct = {name: [answer.correct for answer in of_run] for name, of_run in answers.items()}
    found = []

    def add(title: str, note: str, groups: Mapping[str, Sequence[str | None]]) -> None:
        by_run = {name: accuracy_by(of_run, correct[name]) for name, of_run in groups.items()}
        found.append(Breakdown(title=title, note=note, by_run=by_run))

    phenomena = [pair.phenomenon for pair in pairs]
    if any(phenomena):
        add("By phenomenon", "As labelled by the authors of the pairs.", dict.fromkeys(answers, phenomena))
    num_words = {
        name: [len((answer.thought_process or "").split()) for answer in of_run]
        for name, of_run in answers.items()
        if any(answer.thought_process for answer in of_run)
    }
    if num_words:
        # The bins are cut for all runs together, so that they are the same in each.
        bins = iter(length_bins([*chain.from_iterable(num_words.values())]))
        note = "Cut at the quartiles of all runs' thoughts; runs without thoughts are left out."
        groups = {name: [*islice(bins, len(of_run))] for name, of_run in num_words.items()}
        add("By length of the thought", note, groups)
    if all(pair.premise for pair in pairs):
        premise_bins = length_bins([len((pair.premise or "").split()) for pair in pairs])
        add("By length of the premise", "Cut at the quartiles.", dict.fromkeys(answers, premise_bins))
    return found


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
    bins = np.searchsorted(np.arange(1, NUM_CALIBRATION_BINS) / NUM_CALIBRATION_BINS, p, side="left")
    return [
        CalibrationBin(
            num=int(inside.sum()),
            mean_p=float(p[inside].mean()),
            proportion=float(true[inside].mean()),
            interval=wilson_interval(int(true[inside].sum()), int(inside.sum())),
        )
        for inside in (bins == index for index in np.unique(bins))
    ]
