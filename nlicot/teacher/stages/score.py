"""The stage `score`: a judge scores thoughts and reflections, and those that score low are rewritten.

Every round is kept: the score, and if it was too low, the regenerated text and its own score. Builders
choose among the rounds; nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from nlicot.records import Reflection, Score, Thought
from nlicot.teacher.answers.retry_until_valid import NoValidAnswer, ask_until_valid
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.base import Stage, finished
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt
from nlicot.teacher.stages.reflect import reflection_from, require_label

REGENERATION_TOKENS = 768
Text: TypeAlias = Thought | Reflection


@dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage[Text]):
    """`score` over thoughts and reflections.

    Args:
        texts: in the output's order.
        prompts: those of `prompt_types`.
        threshold: a text with a lower score is rewritten.
        num_rounds: maximum number of rewrites; 0 only scores.
        regenerate_with: the model of round 1, of round 2 ...; the last one serves all later rounds.
    """

    name = "score"
    texts: Sequence[Text]
    threshold: int = 4
    num_rounds: int = 3
    regenerate_with: tuple[str, ...] = ()
    prompt_types: ClassVar = (
        PromptType.SCORING,
        PromptType.REGENERATION,
        PromptType.REFLECTION_REGENERATION,
    )

    @property
    def first_prompt(self) -> TeacherPrompt:
        """The judge's prompt."""
        return self.prompts[PromptType.SCORING]

    @property
    def models(self) -> list[str]:
        """All models that may be asked, the judges first."""
        writers = self.regenerate_with if self.num_rounds else ()
        return list(dict.fromkeys((*self.settings.models, *writers)))

    def questions(self) -> Iterator[tuple[Text, Request]]:
        """Yield each text with the question for its score."""
        return ((text, self._judging(text)) for text in self.texts)

    def key_suffix(self, item: Text, request: Request) -> str:
        """Return the text, the limits of rewriting, its models and its prompts."""
        writers = ",".join(self.regenerate_with)
        prompts = ",".join(self.prompts[kind].sha256[:16] for kind in sorted(self.prompts))
        limits = f"{self.threshold}/{self.num_rounds}"
        return f"{_target(item)}/{item.id}/{item.sample}/{limits}/{writers}/{prompts}"

    async def work(self, item: Text, request: Request, ask: Ask) -> Outcome:
        """Ask for a score, then for new texts and their scores."""
        text, score = item, await self._score(item, request, 0, ask)
        records: list[Score | Text] = [score]
        try:
            for round_ in range(1, self.num_rounds + 1):
                if score.score >= self.threshold or not self.regenerate_with:
                    break
                text = await self._regenerate(text, score, round_, ask)
                records.append(text)
                score = await self._score(text, self._judging(text), round_, ask)
                records.append(score)
        except NoValidAnswer:
            pass  # the rounds so far are better than none
        return finished(records)

    def _judging(self, text: Text) -> Request:
        return self.request(PromptType.SCORING, _texts(text), draw=text.sample)

    async def _score(self, text: Text, request: Request, round_: int, ask: Ask) -> Score:
        valid = await ask_until_valid(ask, request, PromptType.SCORING, next_models=self.settings.next_models)
        return Score(
            id=text.id,
            sample=text.sample,
            target=_target(text),
            round=round_,
            score=int(valid.answer.fields["score"]),
            analysis=str(valid.answer.fields["analysis"]),
            provenance=self.provenance(valid, PromptType.SCORING),
        )

    async def _regenerate(self, text: Text, score: Score, round_: int, ask: Ask) -> Text:
        """Return the text of the next round, by that round's model."""
        is_thought = isinstance(text, Thought)
        kind = PromptType.REGENERATION if is_thought else PromptType.REFLECTION_REGENERATION
        request = self.request(
            kind,
            {**_texts(text), "score": str(score.score), "analysis": score.analysis},
            draw=text.sample + round_,
            model=self.regenerate_with[min(round_, len(self.regenerate_with)) - 1],
            max_tokens=REGENERATION_TOKENS,
        )
        check = None if is_thought else require_label(text.true_label)
        valid = await ask_until_valid(ask, request, kind, check=check)
        source, fields = self.provenance(valid, kind), valid.answer.fields
        if isinstance(text, Reflection):
            return reflection_from(text, valid.answer, source, round_=round_)
        return Thought(
            id=text.id,
            sample=text.sample,
            round=round_,
            premise=text.premise,
            hypothesis=text.hypothesis,
            thought_process=str(fields["thought_process"]),
            predicted_label=int(fields["predicted_label"]),
            true_label=text.true_label,
            provenance=source,
        )


def _target(text: Text) -> Literal["thought", "reflection"]:
    return "thought" if isinstance(text, Thought) else "reflection"


def _texts(text: Text) -> dict[str, str]:
    """Return the texts for a prompt's placeholders."""
    if isinstance(text, Thought):
        thought_process, label = text.thought_process, text.predicted_label
    else:
        thought_process, label = text.improved_thought_process, text.reflected_label
    return {
        "premise": text.premise,
        "hypothesis": text.hypothesis,
        "true_label": "unknown" if text.true_label is None else str(text.true_label),
        "thought_process": thought_process,
        "predicted_label": str(label),
    }
