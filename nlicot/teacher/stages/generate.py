"""The first stage: each pair to a blind thought and a label (`generate`).

The teacher never sees the true label; it is put beside its answer afterwards. With the prompt `relation`
it names one of three relations, and a map says which label each means.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nlicot.records import Example, Thought
from nlicot.teacher.answers.retry_until_valid import Unusable, ask_until_usable, provenance
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.stages.base import Stage, created_at, failed, finished
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt

RELATION_MAP = {"entailment": 1, "neutral": 0, "contradiction": 0}


@dataclass(frozen=True, kw_only=True)
class Generation(Stage[tuple[Example, int]]):
    """`generate` over pairs.

    Args:
        examples: gives the pairs anew each time it is called, in the output's order.
        prompt: of type `initial_generation` or `relation`.
        num_samples: thoughts for each pair.
        relation_map: the label that each relation means, for the prompt `relation`.
    """

    name = "generate"
    examples: Callable[[], Iterable[Example]]
    prompt: TeacherPrompt
    num_samples: int = 1
    relation_map: Mapping[str, int] | None = None

    @property
    def prompt_sha256(self) -> str:
        """Tells the stage's wording from another's."""
        return self.prompt.sha256

    def tasks(self) -> Iterator[Task]:
        """One task for each pair and sample."""
        relations = self._relations
        suffix = json.dumps(relations, sort_keys=True) if relations else ""
        for (example, sample), request in self.asked():
            yield Task(
                key=f"{request.key()}/{example.id}/{example.label}{suffix}",
                pair=example.id,
                sample=sample,
                run=functools.partial(self._generate, example, sample, request),
            )

    @property
    def _relations(self) -> Mapping[str, int] | None:
        if self.prompt.type is not PromptType.RELATION:
            return None
        return RELATION_MAP if self.relation_map is None else self.relation_map

    def asked(self) -> Iterator[tuple[tuple[Example, int], Request]]:
        """Each pair and sample with its question."""
        for example in self.examples():
            messages = self.prompt.render(premise=example.premise, hypothesis=example.hypothesis)
            for sample in range(self.num_samples):
                yield (example, sample), self.request(self.prompt.type, messages, draw=sample)

    async def _generate(self, example: Example, sample: int, request: Request, ask: Ask) -> Outcome:
        try:
            answered = await ask_until_usable(
                ask, request, self.prompt.type, next_models=self.settings.next_models
            )
        except Unusable as unusable:
            return failed(unusable.failure(pair=example.id, stage=self.name))
        relations, fields = self._relations, answered.answer.fields
        relation = None if relations is None else str(fields["relation"])
        thought = Thought(
            id=example.id,
            sample=sample,
            premise=example.premise,
            hypothesis=example.hypothesis,
            thought_process=str(fields["thought_process"]),
            predicted_label=int(fields["predicted_label"])
            if relations is None or relation is None
            else relations[relation],
            relation=relation,
            true_label=example.label,
            provenance=provenance(answered, self.prompt.sha256, created_at(answered.reply)),
        )
        return finished([thought], correct=None if example.label is None else thought.correct)
