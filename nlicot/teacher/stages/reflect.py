"""The second stage: a stronger model reflects on the wrong thoughts (`reflect`).

It is told the true label. One that still answers another is a failure, never taken silently, and the first
thought stays what it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nlicot.records import Reflection, Thought
from nlicot.teacher.answers.retry_until_valid import Answered, Unusable, ask_until_usable, provenance
from nlicot.teacher.answers.schema import Answer, Unparsable
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.stages.base import Stage, created_at, failed, finished
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt


@dataclass(frozen=True, kw_only=True)
class Reflecting(Stage[Thought]):
    """`reflect` over thoughts; right ones, and those without a true label, are passed over.

    Args:
        thoughts: gives the thoughts anew each time it is called, in the output's order.
        prompt: of type `reflection`.
    """

    name = "reflect"
    thoughts: Callable[[], Iterable[Thought]]
    prompt: TeacherPrompt

    @property
    def prompt_sha256(self) -> str:
        """Tells the stage's wording from another's."""
        return self.prompt.sha256

    def tasks(self) -> Iterator[Task]:
        """One task for each wrong thought."""
        for thought, request in self.asked():
            yield Task(
                key=f"{request.key()}/{thought.id}/{thought.sample}",
                pair=thought.id,
                sample=thought.sample,
                run=functools.partial(self._reflect, thought, request),
            )

    def asked(self) -> Iterator[tuple[Thought, Request]]:
        """Each wrong thought with the question about it."""
        for thought in self.thoughts():
            if thought.true_label is None or thought.correct:
                continue
            messages = self.prompt.render(
                premise=thought.premise,
                hypothesis=thought.hypothesis,
                true_label=str(thought.true_label),
                predicted_label=str(thought.predicted_label),
                thought_process=thought.thought_process,
            )
            yield thought, self.request(PromptType.REFLECTION, messages, draw=thought.sample)

    async def _reflect(self, thought: Thought, request: Request, ask: Ask) -> Outcome:
        assert thought.true_label is not None
        try:
            answered = await ask_until_usable(
                ask,
                request,
                PromptType.REFLECTION,
                next_models=self.settings.next_models,
                check=label_check(thought.true_label),
            )
        except Unusable as unusable:
            return failed(unusable.failure(pair=thought.id, stage=self.name))
        reflection = reflection_of(thought, answered, self.prompt.sha256)
        return finished([reflection], correct=None)


def label_check(true_label: int) -> Callable[[Answer], None]:
    """Refuses a reflection that misses the true label it was told."""

    def check(answer: Answer) -> None:
        if answer.fields["reflected_label"] != true_label:
            raise Unparsable(
                "wrong_label",
                f"found reflected_label {answer.fields['reflected_label']}, expected {true_label}",
            )

    return check


def reflection_of(
    thought: Thought | Reflection, answered: Answered, prompt_sha256: str, *, round_: int = 0
) -> Reflection:
    """The record of a usable answer; of a later round where it replaces an earlier reflection."""
    assert thought.true_label is not None
    fields = answered.answer.fields
    return Reflection(
        id=thought.id,
        sample=thought.sample,
        round=round_,
        premise=thought.premise,
        hypothesis=thought.hypothesis,
        true_label=thought.true_label,
        thought_process=thought.thought_process,
        error_analysis=str(fields["error_analysis"]),
        improved_thought_process=str(fields["improved_thought_process"]),
        reflected_label=int(fields["reflected_label"]),
        provenance=provenance(answered, prompt_sha256, created_at(answered.reply)),
    )
