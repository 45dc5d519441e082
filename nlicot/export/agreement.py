"""Compare what an exported model predicts, in the program that it is for, with what the run predicts.

Both read the label after the same text, which for a run that thinks has the run's own thought: two programs
that write thoughts diverge at the first near tie. The prompt's ids are the other program's own.

The measure for a difference is what rounding does: the run in its own number format against itself in
another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from nlicot.evaluation.metrics import entails
from nlicot.model.loaded_model import compute_dtype
from nlicot.prediction.predictor import Member, Predictor, load_predictor
from nlicot.records import Example
from nlicot.text_tables import Table, aligned

ALLOWED_RATIO = 2.0
"""Rounding explains a mean of up to this many times its own: other programs round in other places."""
NUM_ENOUGH = 50
"""With fewer pairs than these, means scatter, and rounding explains more: see `allowed_differences`."""
NUM_KEPT = 8
"""Questions that are stored with an export."""
LEAST_MEAN, LEAST_LARGEST = 0.002, 0.01
"""Differences of p(entailment) that are accepted even if the run's own are smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A pair's prompt, as text and as the run's ids, and the ids of the completion up to its label."""

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A program's own ids of a prompt, and its p(entailment)."""

    prompt_ids: list[int]
    p_entailment: float


class Consumer(Protocol):
    """A program that loaded an exported model."""

    name: str

    def read(self, questions: Sequence[Question], label_ids: Sequence[int]) -> list[Reading]:
        """Answer each question; `label_ids` are the ids of the labels 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two predictions of the same pairs: labels, differences of p(entailment), prompts with equal ids."""

    name: str
    num_pairs: int
    num_same_labels: int
    num_same_prompts: int
    mean_difference: float
    largest_difference: float

    def is_explained_by(self, rounding: Agreement) -> bool:
        """Return whether the differences are of the size of those that rounding makes."""
        mean, largest = allowed_differences(rounding)
        return self.mean_difference <= mean and self.largest_difference <= largest


def allowed_differences(rounding: Agreement) -> tuple[float, float]:
    """Return the mean and the largest difference that rounding explains.

    The ratio of two means scatters by a factor whose logarithm goes with the standard error, so the logarithm
    of the allowed ratio does too: 2 for 50 pairs and more, 4.1 for 12. The largest of differences with heavy
    tails scatters twice as far, with any number of pairs.
    """
    ratio = ALLOWED_RATIO ** max(1.0, math.sqrt(NUM_ENOUGH / rounding.num_pairs))
    return (
        max(LEAST_MEAN, ratio * rounding.mean_difference),
        max(LEAST_LARGEST, 2 * ratio * rounding.largest_difference),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPredictions:
    """The run's predictions of some dev pairs, and how much rounding changes them."""

    questions: list[Question]
    label_ids: tuple[int, int]
    probabilities: list[float]
    rounding: Agreement

    def some_questions(self) -> list[dict[str, Any]]:
        """Return some questions and answers, with which a server of the export is recognized."""
        asked = list(zip(self.questions, self.probabilities, strict=True))
        return [
            {
                "ids": " ".join(map(str, [*question.prompt_ids, *question.completion_ids])),
                "p_entailment": probability,
            }
            for question, probability in asked[:NUM_KEPT]
        ]

    def compare(self, consumer: Consumer) -> Agreement:
        """Ask the other program the same questions."""
        readings = consumer.read(self.questions, self.label_ids)
        return agreement(consumer.name, self.questions, self.probabilities, readings)


def agreement(
    name: str, questions: Sequence[Question], probabilities: Sequence[float], readings: Sequence[Reading]
) -> Agreement:
    """Compare probabilities with those of the readings."""
    pairs = [(p, reading.p_entailment) for p, reading in zip(probabilities, readings, strict=True)]
    differences = [abs(p - other) for p, other in pairs]
    return Agreement(
        name=name,
        num_pairs=len(pairs),
        num_same_labels=sum(entails(p) == entails(other) for p, other in pairs),
        num_same_prompts=sum(
            question.prompt_ids == reading.prompt_ids
            for question, reading in zip(questions, readings, strict=True)
        ),
        mean_difference=sum(differences) / len(differences),
        largest_difference=max(differences),
    )


def predict_own(member: Member, examples: Sequence[Example]) -> OwnPredictions:
    """Predict greedily with the run, as `predict` does, and again in another number format."""
    dtype = compute_dtype(member.settings.dtype)
    other: Literal["bfloat16", "float32"] = "float32" if dtype == "bfloat16" else "bfloat16"
    greedy = replace(member.settings.decoding, votes=1, temperature=0.0)
    member = replace(member, settings=replace(member.settings, decoding=greedy))
    predictor = load_predictor(member)
    questions = _questions(predictor, examples)
    probabilities, label_ids = _probabilities(predictor, questions), predictor.engine.scaffold.label_ids
    del predictor  # one model in memory at a time
    rounded = load_predictor(replace(member, settings=replace(member.settings, dtype=other)))
    readings = [
        Reading(prompt_ids=question.prompt_ids, p_entailment=p)
        for question, p in zip(questions, _probabilities(rounded, questions), strict=True)
    ]
    rounding = agreement(f"the run in {other} instead of {dtype}", questions, probabilities, readings)
    return OwnPredictions(
        questions=questions, label_ids=label_ids, probabilities=probabilities, rounding=rounding
    )


def _questions(predictor: Predictor, examples: Sequence[Example]) -> list[Question]:
    written: dict[str, tuple[str | None, int | None]] = {}
    if predictor.form.thinks_before_label:
        found = predictor.decode(predictor.batch(examples))
        written = {each.id: (each.thought_process, each.draft_label) for each in found}
    return [
        Question(
            prompt=predictor.render(example.premise, example.hypothesis),
            prompt_ids=predictor.encode(example.premise, example.hypothesis),
            completion_ids=predictor.engine.ids_before_label(*written.get(example.id, (None, None))),
        )
        for example in examples
    ]


def _probabilities(predictor: Predictor, questions: Sequence[Question]) -> list[float]:
    rows = [[*question.prompt_ids, *question.completion_ids] for question in questions]
    with predictor.autocast():
        found = dict(predictor.engine.label_probabilities(rows))
    return [found[index] for index in range(len(rows))]


def agreement_lines(own: OwnPredictions, found: Agreement) -> Iterator[str]:
    """Yield a table of an export's agreement with the run, next to that of the run with itself."""
    header = ("p(entailment) against the run's", "pairs", "same label", "same prompt ids", "mean", "largest")
    rows = [
        (
            each.name,
            str(each.num_pairs),
            str(each.num_same_labels),
            str(each.num_same_prompts),
            f"{each.mean_difference:.4f}",
            f"{each.largest_difference:.4f}",
        )
        for each in (found, own.rounding)
    ]
    yield from aligned(Table(header=header, rows=rows))
