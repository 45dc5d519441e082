"""Where runs are right: accuracy by phenomenon and by length, and how far probabilities can be trusted.

Takes the answers that `compare` has brought into one order; `plots` draws what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlicot.evaluation.metrics import GroupAccuracy, Interval, accuracy_by, length_bins, wilson_interval
from nlicot.report.read_runs import Answered

NUM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Accuracy group by group, for each run that has such groups; all runs share the groups' names."""

    title: str
    note: str
    by_run: Mapping[str, Sequence[GroupAccuracy]]

    @property
    def names(self) -> list[str]:
        """All groups, as the first run that has them orders them."""
        return list(dict.fromkeys(group.name for groups in self.by_run.values() for group in groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Pairs that were given about one probability, and how many of them are entailments."""

    num: int
    mean_p: float
    share: float
    interval: Interval


def breakdowns(answers: Mapping[str, Sequence[Answered]]) -> list[Breakdown]:
    """Those that the pairs allow: by phenomenon, by the thought's length, by the premise's length.

    Args:
        answers: each run's, on the same pairs in the same order.
    """
    pairs = next(iter(answers.values()))
    right = {name: [answer.correct for answer in found] for name, found in answers.items()}
    found = []
    if any(pair.phenomenon for pair in pairs):
        phenomena = [pair.phenomenon for pair in pairs]
        found.append(
            Breakdown(
                title="By phenomenon",
                note="What the pairs' authors say that each is about.",
                by_run={name: accuracy_by(phenomena, correct) for name, correct in right.items()},
            )
        )
    if by_thought := _by_thought_length(answers, right):
        found.append(
            Breakdown(
                title="By length of the thought",
                note="Cut at the quartiles of all runs' thoughts; runs that do not think are left out.",
                by_run=by_thought,
            )
        )
    if all(pair.premise for pair in pairs):
        bins = length_bins([_num_words(pair.premise) for pair in pairs])
        found.append(
            Breakdown(
                title="By length of the premise",
                note="Cut at the quartiles.",
                by_run={name: accuracy_by(bins, correct) for name, correct in right.items()},
            )
        )
    return found


def _by_thought_length(
    answers: Mapping[str, Sequence[Answered]], right: Mapping[str, Sequence[bool]]
) -> dict[str, list[GroupAccuracy]]:
    lengths = {
        name: [_num_words(answer.thought_process) for answer in found]
        for name, found in answers.items()
        if any(answer.thought_process for answer in found)
    }
    # In one go for all runs, so that a bin means the same in each.
    bins = iter(length_bins([length for of_run in lengths.values() for length in of_run]))
    return {name: accuracy_by([next(bins) for _ in of_run], right[name]) for name, of_run in lengths.items()}


def _num_words(text: str | None) -> int:
    return len((text or "").split())


def calibration(answers: Sequence[Answered]) -> list[CalibrationBin]:
    """How often pairs are entailments, by ten equal ranges of `p_entailment`; empty ranges are left out.

    Nothing where a pair has no probability.
    """
    if any(answer.p_entailment is None for answer in answers):
        return []
    p = np.array([answer.p_entailment for answer in answers], dtype=np.float64)
    true = np.array([answer.true_label for answer in answers], dtype=np.int64)
    # Closed above, but for the first; as those of the calibration error in `estimation`.
    places = np.searchsorted(np.arange(1, NUM_BINS) / NUM_BINS, p, side="left")
    return [
        CalibrationBin(
            num=int(inside.sum()),
            mean_p=float(p[inside].mean()),
            share=float(true[inside].mean()),
            interval=wilson_interval(int(true[inside].sum()), int(inside.sum())),
        )
        for inside in (places == place for place in range(NUM_BINS))
        if inside.any()
    ]
