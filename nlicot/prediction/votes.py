"""Combine several answers to one pair: votes of one model, or members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nlicot import completion
from nlicot.completion import Form
from nlicot.records import Prediction


class Vote(NamedTuple):
    """One answer: p(entailment), the thought, and how the thought ended."""

    p_entailment: float
    thought_process: str | None
    status: str

    @property
    def label(self) -> int:
        """The label of this answer by itself."""
        return int(self.p_entailment >= 0.5)


def combine(id_: str, votes: Sequence[Vote], form: Form) -> Prediction:
    """Average the votes; the thought is the first one with the same label."""
    mean = sum(vote.p_entailment for vote in votes) / len(votes)
    label = int(mean >= 0.5)
    chosen = next((vote for vote in votes if vote.label == label), votes[0])
    return Prediction(
        id=id_,
        predicted_label=label,
        p_entailment=mean,
        thought_process=chosen.thought_process,
        status=chosen.status,
        completion=completion.render(chosen.thought_process, label, form=form),
        agreement=_agreement(label, [vote.label for vote in votes]),
    )


def ensemble(members: Sequence[Sequence[Prediction]], weights: Sequence[float]) -> list[Prediction]:
    """Average each pair's probabilities over models, in the first model's order.

    The thought is that of the model with the largest weight among those that wrote a thought and gave the
    same label, else of the largest that wrote one.

    Args:
        members: each model's predictions of the same pairs.
        weights: one per model, none negative, not all 0.
    """
    by_id = [{prediction.id: prediction for prediction in member} for member in members]
    return [_average([member[first.id] for member in by_id], weights) for first in members[0]]


def _average(answers: Sequence[Prediction], weights: Sequence[float]) -> Prediction:
    probabilities = [float(answer.p_entailment or 0.0) for answer in answers]
    mean = sum(weight * p for weight, p in zip(weights, probabilities, strict=True)) / sum(weights)
    label = int(mean >= 0.5)
    by_weight = [answers[index] for index in sorted(range(len(answers)), key=lambda i: -weights[i])]
    thinking = [answer for answer in by_weight if answer.thought_process is not None]
    chosen = next((one for one in thinking if one.predicted_label == label), (thinking or by_weight)[0])
    return replace(
        chosen,
        predicted_label=label,
        p_entailment=mean,
        completion=completion.render(chosen.thought_process, label),
        agreement=_agreement(label, [answer.predicted_label for answer in answers]),
    )


def _agreement(label: int, labels: Sequence[int | None]) -> float | None:
    return sum(one == label for one in labels) / len(labels) if len(labels) > 1 else None
