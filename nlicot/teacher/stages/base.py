"""What the teacher's stages share: their settings, and the way from an input to a task and its outcome."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nlicot.records import Example, Provenance, Reflection, Thought, to_json_dict
from nlicot.teacher.answers.retry_until_valid import NoValidAnswer, ValidAnswer
from nlicot.teacher.answers.schema import SCHEMAS
from nlicot.teacher.backends.base import Endpoint, Message, Request
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

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return list(dict.fromkeys((self.model, *self.next_models)))

    def params(self, draw: int = 0) -> dict[str, Any]:
        """Return a request's parameters; another `draw` of the same question gets another seed."""
        seed = draw or None if self.seed is None else self.seed + draw
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "random_seed": seed,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[Item]):
    """A stage over its inputs; its questions and tasks are in the output's order.

    Args:
        endpoint: where the requests go.
        prompts: every prompt that the stage may use, by type.
    """

    name: ClassVar[str]
    """The command's name."""

    endpoint: Endpoint
    settings: StageSettings
    prompts: Mapping[PromptType, TeacherPrompt]

    @property
    @abstractmethod
    def first_prompt(self) -> TeacherPrompt:
        """The prompt of each item's first request."""

    @abstractmethod
    def questions(self) -> Iterator[tuple[Item, Request]]:
        """Yield each item with its first request; answers may lead to more."""

    @abstractmethod
    def key_suffix(self, item: Item, request: Request) -> str:
        """Return all that the item's outcome depends on, besides the first request."""

    @abstractmethod
    async def work(self, item: Item, request: Request, ask: Ask) -> Outcome:
        """Turn an item's answers into records.

        Raises:
            NoValidAnswer: no model gave one.
        """

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return self.settings.models

    def tasks(self) -> Iterator[Task]:
        """Yield one task per item."""
        for item, request in self.questions():
            yield Task(
                key=f"{request.key()}/{self.key_suffix(item, request)}",
                pair=item.id,
                sample=request.sample,
                run=functools.partial(self._outcome, item, request),
            )

    async def _outcome(self, item: Item, request: Request, ask: Ask) -> Outcome:
        try:
            return await self.work(item, request, ask)
        except NoValidAnswer as error:
            # Kept in the journal: the answers were paid for, and only `--retry_failures` asks again.
            failure = error.failure(pair=item.id, stage=self.name)
            return Outcome(ok=False, correct=None, rows=[to_json_dict(failure)])

    def request(
        self,
        prompt_type: PromptType,
        texts: Mapping[str, str],
        *,
        draw: int = 0,
        model: str | None = None,
        max_tokens: int | None = None,
    ) -> Request:
        """Build a request, by default to the stage's model.

        Args:
            texts: for the prompt's placeholders.
        """
        messages: tuple[Message, ...] = self.prompts[prompt_type].render(**texts)
        params = self.settings.params(draw)
        if max_tokens is not None:
            params["max_tokens"] = max_tokens
        return Request(
            stage=self.name,
            backend=self.endpoint.name,
            server=self.endpoint.server,
            model=model or self.settings.model,
            messages=messages,
            params=params,
            schema=SCHEMAS[prompt_type],
            sample=draw,
        )

    def provenance(self, valid: ValidAnswer, prompt_type: PromptType) -> Provenance:
        """Return where an answer comes from, for its record."""
        return valid.provenance(self.prompts[prompt_type].sha256)


def finished(records: Iterable[Any], *, correct: bool | None = None) -> Outcome:
    """Return the outcome of an item whose answers could be used."""
    return Outcome(ok=True, correct=correct, rows=[to_json_dict(record) for record in records])
