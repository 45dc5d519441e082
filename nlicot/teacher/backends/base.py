"""A teacher's backend: its interface (requests in, replies or faults out), and the registry `BACKENDS`.

A backend sends each request once; `engine.scheduler` retries, as the class of the fault allows, and saves.
"""

import dataclasses
import hashlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from nlicot.errors import ConfigError
from nlicot.records import Usage
from nlicot.servers.address import bare_address, checked_address, key_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A backend's name and server, part of every request's key; enough for a dry run."""

    name: str
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The constructor argument of every backend."""

    server: str = ""
    api_key: str = ""  # sent to `server` only, and neither logged nor saved, nor its echo; "" sends none
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
    """One question to a model. `params` may hold temperature, top_p, max_tokens and random_seed.

    `fields` are laid over the body that is sent; None removes one.
    """

    stage: str
    backend: str
    server: str
    model: str
    messages: tuple[Message, ...]
    params: Mapping[str, Any]
    schema: AnswerSchema
    sample: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
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
            if self.fields:  # else the keys of earlier journals would change
                content["fields"] = dict(self.fields)
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
        # Not by dataclasses.asdict, which copies deeply: 9 us, not 16.
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields | {"usage": self.usage and dataclasses.asdict(self.usage)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Invert `to_json`."""
        fields = json.loads(text)
        if not (isinstance(fields["text"], str) and isinstance(fields["raw"], str)):
            raise TypeError("text and raw are strings")
        return cls(**fields | {"usage": fields["usage"] and Usage(**fields["usage"])})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """One backend."""

    class_path: str  # imported only when it is used
    key_variable: str | None = None  # the environment variable, or line in `.env`, that holds the API key
    key_page: str | None = None  # where keys are issued; a backend that names a page requires a key
    default_server: str | None = None  # None requires --server_url; "" means that there is no server
    prices: Literal["list", "batch", "free", "unknown"] = "unknown"  # `batch`: listed, with its discount
    max_batch: int | None = None  # requests per batch job; None sends requests one by one

    @property
    def runs_jobs(self) -> bool:
        """True if requests survive this process in jobs that the next start finds again."""
        return self.max_batch is not None

    def in_flight(self, concurrency: int) -> int:
        """Return the maximum number of requests in flight: enough to fill a batch if there are batches."""
        return self.max_batch or concurrency


_MISTRAL = BackendEntry(
    class_path="nlicot.teacher.backends.mistral.MistralBackend",
    key_variable="MISTRAL_API_KEY",
    key_page="console.mistral.ai",
    default_server="https://api.mistral.ai",
    prices="list",
)
BACKENDS: dict[str, BackendEntry] = {
    "mistral": _MISTRAL,
    "openai": BackendEntry(
        class_path="nlicot.teacher.backends.openai.OpenAIBackend", key_variable="OPENAI_API_KEY"
    ),
    "local": BackendEntry(
        class_path="nlicot.teacher.backends.local.LocalBackend", default_server="", prices="free"
    ),
    "mistral-batch": replace(
        _MISTRAL,
        class_path="nlicot.teacher.backends.mistral.MistralBatchBackend",
        prices="batch",
        max_batch=10_000,
    ),
}


def runs_jobs(backend: Backend) -> bool:
    """Return True if a backend's requests wait in jobs, False also for one that is not in the registry."""
    return backend.name in BACKENDS and BACKENDS[backend.name].runs_jobs


def endpoint(backend: str, server_url: str | None) -> Endpoint:
    """Return the name and server that go into the key of every request."""
    default = BACKENDS[backend].default_server
    if default == "" and server_url:
        raise ConfigError(f"--server_url: found one, but --backend {backend} asks a model in this process")
    server = server_url or default
    if server is None:
        expected = "expected the server's address, for example http://localhost:8000"
        raise ConfigError(f"--backend {backend}: found no --server_url, {expected}")
    return Endpoint(name=backend, server=bare_address(checked_address(server)))


def connect(
    backend: str, server_url: str | None = None, *, send_key: bool | None = None, **options: Any
) -> Backend:
    """Return a backend that is ready for requests; `options` are the other fields of `Connection`."""
    entry, server = BACKENDS[backend], endpoint(backend, server_url).server
    api_key = find_key(backend, server_url, send_key)
    backend_class: Callable[[Connection], Backend] = pkgutil.resolve_name(entry.class_path)
    connection = Connection(server=server, api_key=api_key, **options)
    return backend_class(replace(connection, concurrency=entry.in_flight(connection.concurrency)))


def find_key(backend: str, server_url: str | None = None, send_key: bool | None = None) -> str:
    """Return the key for a server, "" for none; raises `ConfigError` if it is missing or should not be sent.

    With `send_key` None, Mistral's key goes only to Mistral, others only over an encrypted connection or to
    this machine; True sends a key anywhere, False nowhere.
    """
    entry, server = BACKENDS[backend], endpoint(backend, server_url).server
    api_key = ""
    if entry.key_variable:
        own_server = entry.default_server or ""
        api_key = key_for(server, entry.key_variable, send_key=send_key, own_server=own_server)
    if entry.key_page and not api_key and send_key is not False:
        raise ConfigError(
            f"--backend {backend}: found no {entry.key_variable} in the environment or in .env, expected the "
            f"key from {entry.key_page} (without one: --backend openai --server_url ..., or --backend local)"
        )
    return api_key


def check_fields(backend: str, fields: Mapping[str, Any]) -> None:
    """Refuse request fields that a backend cannot send; raises `ConfigError`."""
    check = getattr(pkgutil.resolve_name(BACKENDS[backend].class_path), "check_fields", None)
    if check is None:
        own = "its settings are --temperature, --top_p, --max_tokens and --seed"
        raise ConfigError(f"--request_field: --backend {backend} sends nothing to a server; {own}")
    check(fields)
