"""The interface of a teacher's backend: requests in, replies or faults out.

A backend sends each request once; `engine.scheduler` retries, as the class of the fault allows, and saves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from nlicot.records import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A backend's name and server, part of every request's key; enough for a dry run."""

    name: str
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The constructor argument of every backend."""

    server: str = ""
    api_key: str = ""  # sent to `server` only, and neither logged nor saved; "" sends none
    timeout_s: float = 120.0  # for a whole reply, however slowly it arrives
    concurrency: int = 16
    journal_folder: Path = Path()  # for state that must survive this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSchema:
    """A JSON schema for an answer, and its name, which servers require."""

    name: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to a model. `params` may hold temperature, top_p, max_tokens and random_seed."""

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
        """Return the SHA-256 of everything that determines the answer: equal requests are sent once."""
        if not self._key:  # cached: it identifies the task, then the request
            names = ("stage", "backend", "server", "model", "sample")
            content = {name: getattr(self, name) for name in names} | {
                "messages": [[message.role, message.content] for message in self.messages],
                "params": dict(self.params),
                "schema": [self.schema.name, self.schema.schema],
            }
            # ASCII, so that a text with half a surrogate pair can be encoded too.
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
            object.__setattr__(self, "_key", hashlib.sha256(canonical.encode()).hexdigest())
        return self._key

    def turns(self) -> list[dict[str, str]]:
        """Return the messages in the servers' form."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A server's reply."""

    text: str
    finish_reason: str
    usage: Usage | None
    raw: str  # the unchanged body
    headers: dict[str, str] = field(default_factory=dict)  # those about rate limits
    latency_s: float = 0.0
    created: float | None = None  # the server's time in seconds since 1970
    salvaged: bool = False  # the text comes from a body that is not a valid envelope

    def to_json(self) -> str:
        """Serialise for the journal."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Reply:
        """Invert `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"usage": fields["usage"] and Usage(**fields["usage"])})


@dataclass(eq=False)
class Fault(Exception):
    """A request without a usable reply."""

    kind: str  # one word for counting, such as `timeout`, `http_503`, `connection`
    message: str
    retry_after_s: float | None = None  # the pause that the server asked for
    possibly_paid: bool = False  # the server may have charged for it
    raw: str = ""  # the body, if any

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Transient(Fault):
    """Sent again after growing pauses: timeouts, dropped connections, 408, 5xx."""


class RateLimited(Transient):
    """429: the same, and all requests wait."""


class BrokenEnvelope(Fault):
    """A paid 200 whose body contains no answer, not even one that can be salvaged; sent again twice."""


class Rejected(Fault):
    """400, 413, 422: this request will never be accepted."""


class Refused(Fault):
    """401, 402, 403, an unknown model: no request will be accepted."""


class Backend(Protocol):
    """A way to reach models. `name` and `server` are part of every request's key."""

    name: str
    server: str

    async def complete(self, request: Request) -> Reply:
        """Send one request, once; raises a `Fault` if no usable reply arrives."""

    async def models(self) -> list[str] | None:
        """List the models that the server serves, None if it has no list; raises a `Fault` as well."""

    async def close(self) -> None:
        """Close connections."""


def bare_address(server_url: str) -> str:
    """Strip `/v1` from a server's address."""
    return server_url.rstrip("/").removesuffix("/v1").rstrip("/")


def writable(text: str) -> str:
    """Replace halves of surrogate pairs: servers send them, and no file can hold them."""
    return text.encode("utf-8", "replace").decode()
