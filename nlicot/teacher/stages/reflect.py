"""The stage `reflect`: a stronger model reflects on the wrong thoughts.

It is given the true label. If it still answers the other one, the pair counts as a failure, and the first
thought stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nlicot.records import Reflection, Thought
from nlicot.teacher.answers.parse import Answer, Unparsable
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.base import Stage, finished
from nlicot.teacher.stages.prompts import PromptType


@dataclass(frozen=True, kw_only=True)
class ReflectStage(Stage[Thought]):
    """`reflect` over thoughts; skips correct ones, and those without a true label."""

    name = "reflect"
    thoughts: Sequence[Thought]

    def questions(self) -> Iterator[tuple[Thought, Request]]:
        """Yield each wrong thought with the question about it."""
        for thought in self.thoughts:
            if thought.true_label is not None and not thought.correct:
                yield thought, self._request(PromptType.REFLECTION, thought, draw=thought.sample)

    def _key_suffix(self, item: Thought) -> str:
        return f"{item.id}/{item.sample}"

    async def _work(self, item: Thought, request: Request, ask: Ask) -> Outcome:
        assert item.true_label is not None
        next_models, check = self.settings.next_models, require_label(item.true_label)
        fields = await self._ask_until_valid(
            ask, request, PromptType.REFLECTION, next_models=next_models, check=check
        )
        reflection = Reflection(
            id=item.id,
            sample=item.sample,
            premise=item.premise,
            hypothesis=item.hypothesis,
            true_label=item.true_label,
            thought_process=item.thought_process,
            **fields,
        )
        return finished(reflection)


def require_label(true_label: int) -> Callable[[Answer], None]:
    """Return a check that refuses a reflection with another label than the true one."""

    def check(answer: Answer) -> None:
        label = answer.fields["reflected_label"]
        if label != true_label:
            raise Unparsable("wrong_label", f"found reflected_label {label}, expected {true_label}")

    return check
