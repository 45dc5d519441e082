"""The base of the teacher's stages: their settings, and the way from an input to a task and its outcome."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nlicot.records import Example, Reflection, Thought, to_json_dict
from nlicot.teacher.answers.parse import SCHEMAS, Answer
from nlicot.teacher.answers.retry_until_valid import NoValidAnswer, ask_until_valid
from nlicot.teacher.backends.base import Endpoint, Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Ask, Task
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt

Item = TypeVar("Item", bound=Example | Thought | Reflection)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """The models that a stage asks, and how.

    Args:
        next_models: asked in turn if the one before gave no valid answer.
        temperature, top_p: for sampling; None leaves them to the server.
        max_tokens: token budget of an answer.
        seed: seed of the requests, to which the sample's number is added; None sends none for sample 0.
    """

    model: str
    next_models: tuple[str, ...] = ()
    temperature: float | None = 0.3
    top_p: float | None = None
    max_tokens: int = 512
    seed: int | None = None

    def params(self, draw: int = 0) -> dict[str, Any]:
        """Return a request's parameters; another `draw` of the same question gets another seed."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "random_seed": draw or None if self.seed is None else self.seed + draw,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Item]):
    """A stage over its inputs; its questions and tasks are in the output's order.

    `prompts` are all that the stage may use; the first one asks each item's first question.
    """

    name: ClassVar[str]  # the command's
    endpoint: Endpoint
    settings: StageSettings
    prompts: Mapping[PromptType, TeacherPrompt]

    @property
    def first_prompt(self) -> TeacherPrompt:
        """The prompt of each item's first question."""
        return next(iter(self.prompts.values()))

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return list(dict.fromkeys((self.settings.model, *self.settings.next_models)))

    @abstractmethod
    def questions(self) -> Iterator[tuple[Item, Request]]:
        """Yield each item with its first request; answers may lead to more."""

    @abstractmethod
    def _key_suffix(self, item: Item) -> str:
        """Return all that the item's outcome depends on besides the first request."""

    @abstractmethod
    async def _work(self, item: Item, request: Request, ask: Ask) -> Outcome:
        """Turn an item's answers into records; may raise `NoValidAnswer`."""

    def tasks(self) -> Iterator[Task]:
        """Yield one task per question."""
        for item, request in self.questions():
            run = functools.partial(self._outcome, item, request)
            yield Task(key=f"{request.key()}/{self._key_suffix(item)}", pair=item.id, run=run)

    async def _outcome(self, item: Item, request: Request, ask: Ask) -> Outcome:
        try:
            return await self._work(item, request, ask)
        except NoValidAnswer as error:
            # Stored in the journal: the answers were paid for, and only `--retry_failures` asks again.
            failure = error.failure(pair=item.id, stage=self.name)
            return Outcome(ok=False, correct=None, rows=[to_json_dict(failure)])

    def _request(
        self, prompt_type: PromptType, item: Example | Thought | Reflection, *, draw: int, **texts: str
    ) -> Request:
        """Build a request about an item to the stage's model; `texts` fill more placeholders."""
        return Request(
            stage=self.name,
            backend=self.endpoint.name,
            server=self.endpoint.server,
            model=self.settings.model,
            messages=self.prompts[prompt_type].render(**_texts(item), **texts),
            params=self.settings.params(draw),
            schema=SCHEMAS[prompt_type],
            sample=draw,
        )

    async def _ask_until_valid(
        self,
        ask: Ask,
        request: Request,
        prompt_type: PromptType,
        *,
        next_models: Sequence[str] = (),
        check: Callable[[Answer], None] = lambda answer: None,
    ) -> dict[str, Any]:
        """Return the fields of a valid answer, with its `provenance`."""
        valid = await ask_until_valid(ask, request, prompt_type, next_models=next_models, check=check)
        return {**valid.answer.fields, "provenance": valid.provenance(self.prompts[prompt_type].sha256)}


def _texts(item: Example | Thought | Reflection) -> dict[str, str]:
    """Return the texts for a prompt's placeholders; a blind prompt gets no label from an `Example`."""
    texts = {"premise": item.premise, "hypothesis": item.hypothesis}
    if isinstance(item, Example):
        return texts
    if isinstance(item, Thought):
        thought_process, label = item.thought_process, item.predicted_label
    else:
        thought_process, label = item.improved_thought_process, item.reflected_label
    texts |= {"thought_process": thought_process, "predicted_label": str(label)}
    return texts | {"true_label": "unknown" if item.true_label is None else str(item.true_label)}


def finished(*records: Any, correct: bool | None = None) -> Outcome:
    """Return the outcome of an item whose answers could be used."""
    return Outcome(ok=True, correct=correct, rows=[to_json_dict(record) for record in records])
