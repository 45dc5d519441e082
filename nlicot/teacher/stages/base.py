"""What the teacher's stages share: settings, building a request, and what a stage hands back."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nlicot.records import Failure, to_json_dict
from nlicot.teacher.answers.schema import SCHEMAS
from nlicot.teacher.backends.base import Endpoint, Message, Reply, Request
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.scheduler import Task
from nlicot.teacher.stages.prompts import PromptType

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """Which models a stage asks, and how.

    Args:
        model: the first one asked.
        next_models: asked in turn where the one before gave no usable answer.
        temperature, top_p: of sampling; None leaves it to the server.
        max_tokens: an answer's budget.
        seed: sent as the request's seed, the sample's number added; None sends none for the first sample.
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
        """A request's parameters; another `draw` of the same question gets another seed."""
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
    """A stage over its input, which can be walked again and again, in the output's order.

    Args:
        endpoint: where its requests go.
        settings: which models are asked, and how.
    """

    name: ClassVar[str]
    """The command's name."""

    endpoint: Endpoint
    settings: StageSettings

    @property
    @abstractmethod
    def prompt_sha256(self) -> str:
        """Tells the stage's wording from another's."""

    @abstractmethod
    def tasks(self) -> Iterator[Task]:
        """Every unit of work, in the output's order."""

    @abstractmethod
    def asked(self) -> Iterator[tuple[Item, Request]]:
        """Each unit's input and its first request."""

    @property
    def models(self) -> list[str]:
        """All models that may be asked, each once."""
        return self.settings.models

    def requests(self) -> Iterator[Request]:
        """The first request of each unit, for counting what a run would cost; more may follow."""
        return (request for _, request in self.asked())

    def request(
        self,
        answer_type: PromptType,
        messages: tuple[Message, ...],
        *,
        draw: int = 0,
        model: str | None = None,
        max_tokens: int | None = None,
    ) -> Request:
        """A request to the stage's model, or to `model`."""
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
            schema=SCHEMAS[answer_type],
            sample=draw,
        )


def finished(records: list[Any], *, correct: bool | None) -> Outcome:
    """A task's usable outcome."""
    return Outcome(ok=True, correct=correct, rows=[to_json_dict(record) for record in records])


def failed(failure: Failure) -> Outcome:
    """A task's failure after paid answers; it stays until `--retry-failures`."""
    return Outcome(ok=False, correct=None, rows=[to_json_dict(failure)])


def created_at(reply: Reply) -> str:
    """When the server says that it answered, as ISO 8601 in UTC; empty where it does not say.

    Our own clock is left out: a run that was killed and resumed writes the same file as one that was not.
    """
    if reply.created is None:
        return ""
    try:
        return datetime.datetime.fromtimestamp(reply.created, datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError):  # a number that is no time
        return ""
