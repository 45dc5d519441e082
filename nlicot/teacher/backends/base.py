"""What a teacher's backend is: messages in, text out; and the ways in which it can fail.

A backend sends one request and says what came of it. It neither retries nor parses nor keeps anything:
that is `scheduler`'s, `answers`' and `journal`'s work. Its faults say what may be done about them:

    Fault
    +-- Transient           asked again, with growing pauses: timeouts, dropped connections, 408, 5xx
    |   +-- RateLimited     the same, and everybody waits: 429
    +-- BrokenEnvelope      a paid 200 whose body is no answer: asked again twice
    +-- Rejected            400, 413, 422: this request will never pass
    +-- Refused             401, 402, 403, an unknown model: no request will pass
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from nlicot.records import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A backend's name and server, as they stand in every request's key; enough for a dry run."""

    name: str
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a backend is built from; `api_key` is "" if there is none."""

    server: str
    api_key: str
    timeout_s: float
    concurrency: int
    journal_folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSchema:
    """A JSON schema that an answer must fit, and the name that servers ask for."""

    name: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to a model. `params` are temperature, top_p, max_tokens and random_seed, as far as set."""

    stage: str
    backend: str
    server: str
    model: str
    messages: tuple[Message, ...]
    params: Mapping[str, Any]
    schema: AnswerSchema
    sample: int = 0
    _key: str = field(default="", init=False, compare=False, repr=False)

    def key(self) -> str:
        """SHA-256 of all that decides the answer, as canonical JSON: equal requests are asked once."""
        if not self._key:  # worked out once: a task is named by it, and then asks by it
            object.__setattr__(self, "_key", self._worked_out_key())
        return self._key

    def turns(self) -> list[dict[str, str]]:
        """The messages as servers take them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def _worked_out_key(self) -> str:
        content = {
            "stage": self.stage,
            "backend": self.backend,
            "server": self.server,
            "model": self.model,
            "messages": [[message.role, message.content] for message in self.messages],
            "params": dict(self.params),
            "schema": [self.schema.name, self.schema.schema],
            "sample": self.sample,
        }
        # In ASCII, so that half a surrogate pair in a text has a place in it too.
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server answered.

    `finish_reason` is `stop`, `length` or the server's own word. `usage` is None where the server did not
    say. `raw` is the body as it came, `created` the server's own time of it in seconds since 1970.
    `salvaged`: the text was taken from a body that is no valid envelope.
    """

    text: str
    finish_reason: str
    usage: Usage | None
    raw: str
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    created: float | None = None
    salvaged: bool = False

    def to_json(self) -> str:
        """As the journal keeps it."""
        usage = self.usage
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["headers"] = dict(self.headers)
        if usage is not None:
            fields["usage"] = {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
            }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Reply:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        usage = fields.pop("usage")
        return cls(usage=None if usage is None else Usage(**usage), **fields)


class Fault(Exception):
    """A request that brought no usable reply.

    Args:
        kind: one word for counting, such as `timeout`, `http_503`, `connection`.
        message: what the server or the connection said.
        possibly_paid: the server may have answered, and charged, all the same.
        raw: the body, where there is one.
    """

    def __init__(self, kind: str, message: str, *, possibly_paid: bool = False, raw: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.possibly_paid, self.raw = kind, message, possibly_paid, raw


class Transient(Fault):
    """Worth asking again after a pause; `retry_after_s` is the server's wish, if it said one."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        possibly_paid: bool = False,
        raw: str = "",
    ) -> None:
        super().__init__(kind, message, possibly_paid=possibly_paid, raw=raw)
        self.retry_after_s = retry_after_s


class RateLimited(Transient):
    """Too many requests: all wait, not this one alone."""


class BrokenEnvelope(Fault):
    """A 200 whose body holds no answer that could be salvaged."""


class Rejected(Fault):
    """The server will not take this request, however often it is sent."""


class Refused(Fault):
    """The server will take no request: key, payment, permission or model."""


class Backend(Protocol):
    """A way to reach models. `name` and `server` are part of every request's key."""

    name: str
    server: str

    async def complete(self, request: Request) -> Reply:
        """Send one request, once.

        Raises:
            Fault: one of the kinds above.
        """
        ...

    async def models(self) -> list[str] | None:
        """The models that the server serves; None where it does not say.

        Raises:
            Fault: the server cannot be reached or refuses.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


def bare_address(server_url: str) -> str:
    """A server's address without `/v1`, which is added where it belongs.

    >>> bare_address("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    return server_url.rstrip("/").removesuffix("/v1").rstrip("/")


def writable(text: str) -> str:
    r"""The text with halves of surrogate pairs replaced: servers send them, and no file can hold them.

    >>> writable("a\ud800b")
    'a?b'
    """
    return text.encode("utf-8", "replace").decode()
