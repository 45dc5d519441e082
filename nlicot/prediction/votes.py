"""Several answers to one pair made one: the votes of one model, or those of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nlicot import completion
from nlicot.completion import Form
from nlicot.records import Prediction


class Vote(NamedTuple):
    """One answer: p(entailment), the thought and how it ended."""

    p_entailment: float
    thought_process: str | None
    status: str

    @property
    def label(self) -> int:
        """What this answer alone would say."""
        return int(self.p_entailment >= 0.5)


def combine(id_: str, votes: Sequence[Vote], form: Form) -> Prediction:
    """The mean of the votes; its thought is the first that came to the same label."""
    share = sum(vote.p_entailment for vote in votes) / len(votes)
    label = int(share >= 0.5)
    chosen = next((vote for vote in votes if vote.label == label), votes[0])
    return Prediction(
        id=id_,
        predicted_label=label,
        p_entailment=share,
        thought_process=chosen.thought_process,
        status=chosen.status,
        completion=completion.render(chosen.thought_process, label, form=form),
        agreement=_share_of(label, [vote.label for vote in votes]),
    )


def ensemble(members: Sequence[Sequence[Prediction]], weights: Sequence[float]) -> list[Prediction]:
    """Each pair's weighted mean over models, in the first model's order.

    The thought is that of the heaviest model that thought and came to the same label, else of the first
    that thought.

    Args:
        members: each model's predictions of the same pairs.
        weights: one for each model, none below 0 and not all 0.
    """
    by_id = [{prediction.id: prediction for prediction in member} for member in members]
    return [_one([member[first.id] for member in by_id], weights) for first in members[0]]


def _one(answers: Sequence[Prediction], weights: Sequence[float]) -> Prediction:
    shares = [float(answer.p_entailment or 0.0) for answer in answers]
    mean = sum(w * share for w, share in zip(weights, shares, strict=True)) / sum(weights)
    label = int(mean >= 0.5)
    heaviest = [answers[index] for index in sorted(range(len(answers)), key=lambda i: -weights[i])]
    thinking = [answer for answer in heaviest if answer.thought_process is not None]
    chosen = next((one for one in thinking if one.predicted_label == label), (thinking or heaviest)[0])
    return replace(
        chosen,
        predicted_label=label,
        p_entailment=mean,
        completion=completion.render(chosen.thought_process, label),
        agreement=_share_of(label, [answer.predicted_label for answer in answers]),
    )


def _share_of(label: int, labels: Sequence[int | None]) -> float | None:
    return sum(one == label for one in labels) / len(labels) if len(labels) > 1 else None
