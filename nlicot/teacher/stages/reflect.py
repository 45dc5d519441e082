"""The stage `reflect`: a stronger model reflects on the wrong thoughts.

It is given the true label. If it still answers the other one, the pair counts as a failure, and the first
thought stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nlicot.records import Provenance, Reflection, Thought
from nlicot.teacher.answers.json_repair import Unparsable
from nlicot.teacher.answers.retry_until_valid import ask_until_valid
from nlicot.teacher.answers.schema import Answer
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.base import Stage, finished
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt


@dataclass(frozen=True, kw_only=True)
class ReflectStage(Stage[Thought]):
    """`reflect` over thoughts; skips correct ones, and those without a true label.

    Args:
        thoughts: in the output's order.
        prompts: one, of type `reflection`.
    """

    name = "reflect"
    thoughts: Sequence[Thought]

    @property
    def first_prompt(self) -> TeacherPrompt:
        """The one prompt."""
        return self.prompts[PromptType.REFLECTION]

    def questions(self) -> Iterator[tuple[Thought, Request]]:
        """Yield each wrong thought with the question about it."""
        for thought in self.thoughts:
            if thought.true_label is None or thought.correct:
                continue
            texts = {
                "premise": thought.premise,
                "hypothesis": thought.hypothesis,
                "true_label": str(thought.true_label),
                "predicted_label": str(thought.predicted_label),
                "thought_process": thought.thought_process,
            }
            yield thought, self.request(PromptType.REFLECTION, texts, draw=thought.sample)

    def key_suffix(self, item: Thought, request: Request) -> str:
        """Return the pair and the thought's number."""
        return f"{item.id}/{item.sample}"

    async def work(self, item: Thought, request: Request, ask: Ask) -> Outcome:
        """Ask for a reflection."""
        valid = await ask_until_valid(
            ask,
            request,
            PromptType.REFLECTION,
            next_models=self.settings.next_models,
            check=require_label(item.true_label),
        )
        source = self.provenance(valid, PromptType.REFLECTION)
        return finished([reflection_from(item, valid.answer, source)])


def require_label(true_label: int | None) -> Callable[[Answer], None]:
    """Return a check that refuses a reflection with another label than the true one."""

    def check(answer: Answer) -> None:
        label = answer.fields["reflected_label"]
        if label != true_label:
            raise Unparsable("wrong_label", f"found reflected_label {label}, expected {true_label}")

    return check


def reflection_from(
    text: Thought | Reflection, answer: Answer, source: Provenance, *, round_: int = 0
) -> Reflection:
    """Return the record of an answer; of a later round if it replaces an earlier reflection."""
    assert text.true_label is not None
    return Reflection(
        id=text.id,
        sample=text.sample,
        round=round_,
        premise=text.premise,
        hypothesis=text.hypothesis,
        true_label=text.true_label,
        thought_process=text.thought_process,
        error_analysis=str(answer.fields["error_analysis"]),
        improved_thought_process=str(answer.fields["improved_thought_process"]),
        reflected_label=int(answer.fields["reflected_label"]),
        provenance=source,
    )
