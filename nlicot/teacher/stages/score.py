"""The stage `score`: a judge scores thoughts and reflections, and those that score low are rewritten.

Every round is kept: the score, and if it was too low, the regenerated text and its own score. Builders
choose among the rounds; nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from nlicot.records import Reflection, Score, Thought
from nlicot.teacher.answers.retry_until_valid import NoValidAnswer
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.base import Stage, finished
from nlicot.teacher.stages.prompts import PromptType
from nlicot.teacher.stages.reflect import require_label

REGENERATION_TOKENS = 768
Text: TypeAlias = Thought | Reflection


@dataclass(frozen=True, kw_only=True)
class ScoreStage(Stage[Text]):
    """`score` over thoughts and reflections.

    Args:
        threshold: a text with a lower score is rewritten.
        num_rounds: maximum number of rewrites; 0 only scores.
        regenerate_with: the model of round 1, of round 2 ...; the last one serves all later rounds.
    """

    name = "score"
    texts: Sequence[Text]
    threshold: int = 4
    num_rounds: int = 3
    regenerate_with: Sequence[str] = ()

    @property
    def models(self) -> list[str]:
        """All models that may be asked, the judges first."""
        writers = self.regenerate_with if self.num_rounds else ()
        return list(dict.fromkeys((*super().models, *writers)))

    def questions(self) -> Iterator[tuple[Text, Request]]:
        """Yield each text with the question for its score."""
        for text in self.texts:
            yield text, self._request(PromptType.SCORING, text, draw=text.sample)

    def _key_suffix(self, item: Text) -> str:
        writers = ",".join(self.regenerate_with)
        prompts = ",".join(self.prompts[kind].sha256[:16] for kind in sorted(self.prompts))
        limits = f"{self.threshold}/{self.num_rounds}"
        return f"{_target(item)}/{item.id}/{item.sample}/{limits}/{writers}/{prompts}"

    async def _work(self, item: Text, request: Request, ask: Ask) -> Outcome:
        text, score = item, await self._score(item, request, 0, ask)
        records: list[Score | Text] = [score]
        try:
            for round_ in range(1, self.num_rounds + 1):
                if score.score >= self.threshold or not self.regenerate_with:
                    break
                text = await self._regenerate(text, score, round_, ask)
                records.append(text)
                request = self._request(PromptType.SCORING, text, draw=text.sample)
                score = await self._score(text, request, round_, ask)
                records.append(score)
        except NoValidAnswer:
            pass  # the rounds so far are better than none
        return finished(*records)

    async def _score(self, text: Text, request: Request, round_: int, ask: Ask) -> Score:
        fields = await self._ask_until_valid(
            ask, request, PromptType.SCORING, next_models=self.settings.next_models
        )
        return Score(id=text.id, sample=text.sample, target=_target(text), round=round_, **fields)

    async def _regenerate(self, text: Text, score: Score, round_: int, ask: Ask) -> Text:
        """Return the text of the next round, by that round's model."""
        is_thought = isinstance(text, Thought)
        kind = PromptType.REGENERATION if is_thought else PromptType.REFLECTION_REGENERATION
        request = self._request(
            kind, text, draw=text.sample + round_, score=str(score.score), analysis=score.analysis
        )
        request = replace(
            request,
            model=self.regenerate_with[min(round_, len(self.regenerate_with)) - 1],
            params={**request.params, "max_tokens": REGENERATION_TOKENS},
        )
        if isinstance(text, Thought):
            fields = await self._ask_until_valid(ask, request, kind)
            # A relation would be that of the first thought.
            return replace(text, round=round_, relation=None, **fields)
        check = require_label(text.true_label)
        return replace(text, round=round_, **await self._ask_until_valid(ask, request, kind, check=check))


def _target(text: Text) -> Any:
    return "thought" if isinstance(text, Thought) else "reflection"
