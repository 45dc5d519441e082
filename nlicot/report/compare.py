"""Runs on the same pairs against each other: figures, seeds grouped, and McNemar's exact test.

Takes what `runs` read and gives a record that `tables` renders and JSON keeps.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import (
    ClassificationMetrics,
    classification_metrics,
    mcnemar_exact,
    metrics_to_dict,
)
from nlicot.report.read_runs import Answered, ComparedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run's row."""

    name: str
    builder: str
    seed: int | None
    metrics: ClassificationMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over several seeds; `sd` is the sample's (n - 1), None of one run."""

    mean: float
    sd: float | None
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Runs that differ in nothing but their seed."""

    names: list[str]
    builder: str
    accuracy: Spread
    macro_f1: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOfRuns:
    """Two runs on the same pairs: which only one got right, and whether that may be chance.

    `p_holm` is corrected for all pairs of runs that are compared (Holm 1979); of two runs it is `p_value`.
    """

    first: str
    second: str
    only_first: list[str]
    only_second: list[str]
    p_value: float
    p_holm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that is said of some runs on one split."""

    split: str
    num_pairs: int
    runs: list[RunFigures]
    groups: list[SeedGroup]
    tests: list[PairOfRuns]


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare runs, each of another name, that answered the same pairs; of one there are figures alone.

    Raises:
        ConfigError: runs on other pairs or labels.
    """
    for run in runs[1:]:
        _check_same_pairs(runs[0], run)
    ids = [answer.id for answer in runs[0].answers]
    # In one order for all, so that the bootstrap redraws the same pairs for every run.
    answers = {run.name: in_order(run, ids) for run in runs}
    rows = [_figures(run, answers[run.name]) for run in runs]
    return Comparison(
        # A predictions file may be given that is of another split than the folders' `--split`.
        split=", ".join(sorted({run.predictions_path.stem for run in runs})),
        num_pairs=len(ids),
        runs=rows,
        groups=_groups(runs, rows),
        tests=_tests(answers),
    )


def _check_same_pairs(first: ComparedRun, run: ComparedRun) -> None:
    expected = {answer.id: answer.true_label for answer in first.answers}
    found = {answer.id: answer.true_label for answer in run.answers}
    differing = [id_ for id_ in expected | found if expected.get(id_) != found.get(id_)]
    if differing:
        id_ = differing[0]
        more = f" and {len(differing) - 1} more pairs that differ" if len(differing) > 1 else ""
        raise ConfigError(
            f"--compare: found pair {id_!r} {_told(expected.get(id_))} in {first.name} and "
            f"{_told(found.get(id_))} in {run.name}{more}, expected predictions of the same pairs"
        )


def _told(label: int | None) -> str:
    return "missing" if label is None else f"labelled {label}"


def in_order(run: ComparedRun, ids: Sequence[str]) -> list[Answered]:
    """A run's answers in the order of `ids`."""
    by_id = {answer.id: answer for answer in run.answers}
    return [by_id[id_] for id_ in ids]


def _figures(run: ComparedRun, answers: Sequence[Answered]) -> RunFigures:
    metrics = classification_metrics(
        [answer.true_label for answer in answers],
        [answer.predicted_label for answer in answers],
        [answer.p_entailment for answer in answers],
    )
    return RunFigures(name=run.name, builder=run.builder, seed=run.seed, metrics=metrics)


def _groups(runs: Sequence[ComparedRun], rows: Sequence[RunFigures]) -> list[SeedGroup]:
    by_recipe: dict[str, list[RunFigures]] = {}
    for run, row in zip(runs, rows, strict=True):
        # Of a run without a configuration nothing says that another is its recipe's.
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
    return Spread(
        mean=statistics.mean(values),
        sd=statistics.stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
    )


def _tests(answers: dict[str, list[Answered]]) -> list[PairOfRuns]:
    pairs = list(itertools.combinations(answers, 2))
    p_values = [
        mcnemar_exact([a.correct for a in answers[first]], [b.correct for b in answers[second]]).p_value
        for first, second in pairs
    ]
    return [
        PairOfRuns(
            first=first,
            second=second,
            only_first=_right_in_first_alone(answers[first], answers[second]),
            only_second=_right_in_first_alone(answers[second], answers[first]),
            p_value=p_value,
            p_holm=p_holm,
        )
        for (first, second), p_value, p_holm in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def _right_in_first_alone(first: Sequence[Answered], second: Sequence[Answered]) -> list[str]:
    return [a.id for a, b in zip(first, second, strict=True) if a.correct and not b.correct]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for how many they are (Holm 1979, Scand. J. Stat. 6, 65-70).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON writes it."""
    return {
        **asdict(comparison),
        "runs": [
            {"name": row.name, "builder": row.builder, "seed": row.seed, **metrics_to_dict(row.metrics)}
            for row in comparison.runs
        ],
    }
