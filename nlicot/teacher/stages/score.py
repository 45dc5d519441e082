"""The third stage: a judge scores thoughts and reflections, and low ones are written anew (`score`).

Every round is kept: the score, and where it was too low, the regenerated text and its own score. Builders
choose among the rounds; nothing is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nlicot.records import Reflection, Score, Thought
from nlicot.teacher.answers.retry_until_valid import Unusable, ask_until_usable, provenance
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.stages.base import Stage, created_at, failed, finished
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt
from nlicot.teacher.stages.reflect import label_check, reflection_of

REGENERATION_TOKENS = 768


@dataclass(frozen=True, kw_only=True)
class Scoring(Stage[Thought | Reflection]):
    """`score` over thoughts and reflections.

    Args:
        texts: gives the texts anew each time it is called, in the output's order.
        prompts: those of the types `scoring`, `regeneration` and `reflection_regeneration`.
        threshold: a text with a lower score is written anew.
        num_rounds: at most so many times; 0 only scores.
        regenerate_with: the model of the first round, of the second ...; the last one serves all later ones.
    """

    name = "score"
    texts: Callable[[], Iterable[Thought | Reflection]]
    prompts: dict[PromptType, TeacherPrompt]
    threshold: int = 4
    num_rounds: int = 3
    regenerate_with: tuple[str, ...] = field(default=())
    prompt_types: ClassVar = (
        PromptType.SCORING,
        PromptType.REGENERATION,
        PromptType.REFLECTION_REGENERATION,
    )

    @property
    def models(self) -> list[str]:
        """All models that may be asked, the judges first."""
        writers = self.regenerate_with if self.num_rounds else ()
        return list(dict.fromkeys((*self.settings.models, *writers)))

    @property
    def prompt_sha256(self) -> str:
        """Tells the stage's wording from another's."""
        return self.prompts[PromptType.SCORING].sha256

    def tasks(self) -> Iterator[Task]:
        """One task for each text, all of its rounds in it."""
        writers = ",".join(self.regenerate_with)
        prompts = ",".join(self.prompts[kind].sha256[:16] for kind in sorted(self.prompts))
        for text, request in self.asked():
            kind = _target(text)
            settings = f"{self.threshold}/{self.num_rounds}/{writers}/{prompts}"
            yield Task(
                key=f"{request.key()}/{kind}/{text.id}/{text.sample}/{settings}",
                pair=text.id,
                sample=text.sample,
                run=functools.partial(self._score, text, request),
            )

    def asked(self) -> Iterator[tuple[Thought | Reflection, Request]]:
        """Each text with the question for its score."""
        return ((text, self._judging(text)) for text in self.texts())

    def _judging(self, text: Thought | Reflection) -> Request:
        prompt = self.prompts[PromptType.SCORING]
        messages = prompt.render(
            premise=text.premise,
            hypothesis=text.hypothesis,
            true_label=_told(text.true_label),
            thought_process=_wording(text),
            predicted_label=str(_label(text)),
        )
        return self.request(PromptType.SCORING, messages, draw=text.sample)

    async def _score(self, text: Thought | Reflection, request: Request, ask: Ask) -> Outcome:
        records: list[Any] = []
        current = text
        try:
            for round_ in range(self.num_rounds + 1):
                score = await self._judge(
                    current, request if round_ == 0 else self._judging(current), round_, ask
                )
                records.append(score)
                if score.score >= self.threshold or round_ == self.num_rounds or not self.regenerate_with:
                    break
                current = await self._regenerate(current, score, round_ + 1, ask)
                records.append(current)
        except Unusable as unusable:
            if not records:
                return failed(unusable.failure(pair=text.id, stage=self.name))
            # What came before stands: an earlier round is better than none.
        return finished(records, correct=None)

    async def _judge(self, text: Thought | Reflection, request: Request, round_: int, ask: Ask) -> Score:
        answered = await ask_until_usable(
            ask, request, PromptType.SCORING, next_models=self.settings.next_models
        )
        fields = answered.answer.fields
        return Score(
            id=text.id,
            sample=text.sample,
            target=_target(text),
            round=round_,
            score=int(fields["score"]),
            analysis=str(fields["analysis"]),
            provenance=provenance(
                answered, self.prompts[PromptType.SCORING].sha256, created_at(answered.reply)
            ),
        )

    async def _regenerate(
        self, text: Thought | Reflection, score: Score, round_: int, ask: Ask
    ) -> Thought | Reflection:
        """The text of the next round, by that round's model."""
        is_thought = isinstance(text, Thought)
        kind = PromptType.REGENERATION if is_thought else PromptType.REFLECTION_REGENERATION
        prompt = self.prompts[kind]
        messages = prompt.render(
            premise=text.premise,
            hypothesis=text.hypothesis,
            true_label=_told(text.true_label),
            thought_process=_wording(text),
            predicted_label=str(_label(text)),
            score=str(score.score),
            analysis=score.analysis,
        )
        model = self.regenerate_with[min(round_, len(self.regenerate_with)) - 1]
        request = self.request(
            kind, messages, draw=text.sample + round_, model=model, max_tokens=REGENERATION_TOKENS
        )
        if isinstance(text, Reflection):
            check = label_check(text.true_label)
            answered = await ask_until_usable(ask, request, kind, check=check)
            return reflection_of(text, answered, prompt.sha256, round_=round_)
        answered = await ask_until_usable(ask, request, kind)
        fields = answered.answer.fields
        return Thought(
            id=text.id,
            sample=text.sample,
            round=round_,
            premise=text.premise,
            hypothesis=text.hypothesis,
            thought_process=str(fields["thought_process"]),
            predicted_label=int(fields["predicted_label"]),
            true_label=text.true_label,
            provenance=provenance(answered, prompt.sha256, created_at(answered.reply)),
        )


def _target(text: Thought | Reflection) -> Any:
    return "thought" if isinstance(text, Thought) else "reflection"


def _wording(text: Thought | Reflection) -> str:
    return text.thought_process if isinstance(text, Thought) else text.improved_thought_process


def _label(text: Thought | Reflection) -> int:
    return text.predicted_label if isinstance(text, Thought) else text.reflected_label


def _told(true_label: int | None) -> str:
    return "unknown" if true_label is None else str(true_label)
