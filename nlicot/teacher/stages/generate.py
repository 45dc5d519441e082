"""The stage `generate`: a blind thought and a label for each pair.

The teacher never sees the true label, which is added to its answer afterwards. With the prompt `relation` it
names one of three relations, and a map gives the label of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nlicot.records import Example, Thought
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.base import Stage, finished
from nlicot.teacher.stages.prompts import PromptType

RELATION_MAP = {"entailment": 1, "neutral": 0, "contradiction": 0}


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage[Example]):
    """`generate` over pairs: `num_samples` thoughts for each.

    `relation_map` is the label of each relation, for the prompt `relation`.
    """

    name = "generate"
    examples: Sequence[Example]
    num_samples: int = 1
    relation_map: Mapping[str, int] | None = None

    @property
    def _label_of(self) -> Mapping[str, int]:
        is_used = self.first_prompt.type is PromptType.RELATION
        return (self.relation_map or RELATION_MAP) if is_used else {}

    def questions(self) -> Iterator[tuple[Example, Request]]:
        """Yield each pair, once per sample, with its question."""
        for example in self.examples:
            for sample in range(self.num_samples):
                yield example, self._request(self.first_prompt.type, example, draw=sample)

    def _key_suffix(self, item: Example) -> str:
        relations = json.dumps(self._label_of, sort_keys=True) if self._label_of else ""
        return f"{item.id}/{item.label}{relations}"

    async def _work(self, item: Example, request: Request, ask: Ask) -> Outcome:
        fields = await self._ask_until_valid(
            ask, request, self.first_prompt.type, next_models=self.settings.next_models
        )
        if self._label_of:
            fields["predicted_label"] = self._label_of[fields["relation"]]
        thought = Thought(
            id=item.id,
            sample=request.sample,
            premise=item.premise,
            hypothesis=item.hypothesis,
            true_label=item.label,
            **fields,
        )
        return finished(thought, correct=None if item.label is None else thought.correct)
