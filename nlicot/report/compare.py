"""Runs on the same pairs against each other: figures, seeds grouped, and McNemar's exact test."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nlicot.errors import ConfigError
from nlicot.metrics import (
    ClassificationMetrics,
    classification_metrics,
    mcnemar_exact,
    metrics_to_dict,
)
from nlicot.report.runs import ComparedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run's row."""

    name: str
    builder: str
    seed: int | None
    metrics: ClassificationMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Runs that differ in nothing but their seed; `sd` is the sample's, None of one run."""

    names: list[str]
    builder: str
    mean_accuracy: float
    sd_accuracy: float | None
    lowest_accuracy: float
    highest_accuracy: float
    mean_macro_f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOfRuns:
    """Two runs on the same pairs: which only one got right, and whether that may be chance.

    `p_holm` is corrected for all pairs of runs that are compared (Holm 1979).
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


def compare(runs: Sequence[ComparedRun], split: str) -> Comparison:
    """Compare runs that answered the same pairs.

    Raises:
        ConfigError: fewer than two, one twice, or runs on other pairs or labels.
    """
    if len(runs) < 2:
        raise ConfigError(f"--compare: found {len(runs)} run, expected two or more")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"--compare: found a name twice in {', '.join(names)}, expected different runs")
    _check_same_pairs(runs)
    rows = [_figures(run) for run in runs]
    return Comparison(
        split=split,
        num_pairs=len(runs[0].answers),
        runs=rows,
        groups=_groups(runs, rows),
        tests=_tests(runs),
    )


def _check_same_pairs(runs: Sequence[ComparedRun]) -> None:
    first = runs[0]
    expected = {answer.id: answer.true_label for answer in first.answers}
    for run in runs[1:]:
        found = {answer.id: answer.true_label for answer in run.answers}
        for id_ in sorted(expected.keys() | found.keys()):
            if expected.get(id_) != found.get(id_):
                raise ConfigError(
                    f"--compare: found pair {id_!r} with label {_told(found, id_)} in {run.name} and "
                    f"{_told(expected, id_)} in {first.name}, expected predictions of the same pairs"
                )


def _told(labels: dict[str, int], id_: str) -> str:
    return str(labels[id_]) if id_ in labels else "(not there)"


def _figures(run: ComparedRun) -> RunFigures:
    metrics = classification_metrics(
        [answer.true_label for answer in run.answers],
        [answer.predicted_label for answer in run.answers],
        [answer.p_entailment for answer in run.answers],
    )
    return RunFigures(name=run.name, builder=run.builder, seed=run.seed, metrics=metrics)


def _groups(runs: Sequence[ComparedRun], rows: Sequence[RunFigures]) -> list[SeedGroup]:
    by_recipe: dict[str, list[RunFigures]] = {}
    for run, row in zip(runs, rows, strict=True):
        by_recipe.setdefault(run.recipe or f"only {run.name}", []).append(row)
    groups = []
    for members in by_recipe.values():
        accuracies = [member.metrics.accuracy.value for member in members]
        groups.append(
            SeedGroup(
                names=[member.name for member in members],
                builder=members[0].builder,
                mean_accuracy=statistics.mean(accuracies),
                sd_accuracy=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                lowest_accuracy=min(accuracies),
                highest_accuracy=max(accuracies),
                mean_macro_f1=statistics.mean(member.metrics.macro_f1.value for member in members),
            )
        )
    return groups


def _tests(runs: Sequence[ComparedRun]) -> list[PairOfRuns]:
    ids = [answer.id for answer in runs[0].answers]
    right = {
        run.name: {answer.id: answer.predicted_label == answer.true_label for answer in run.answers}
        for run in runs
    }
    pairs = list(itertools.combinations([run.name for run in runs], 2))
    p_values = [
        mcnemar_exact([right[a][id_] for id_ in ids], [right[b][id_] for id_ in ids]).p_value
        for a, b in pairs
    ]
    return [
        PairOfRuns(
            first=a,
            second=b,
            only_first=[id_ for id_ in ids if right[a][id_] and not right[b][id_]],
            only_second=[id_ for id_ in ids if right[b][id_] and not right[a][id_]],
            p_value=p_value,
            p_holm=p_holm,
        )
        for (a, b), p_value, p_holm in zip(pairs, p_values, holm(p_values), strict=True)
    ]


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
