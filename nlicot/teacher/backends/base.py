"""A teacher's backend: its interface (requests in, replies or faults out), and the registry `BACKENDS`.

A backend sends each request once; `engine.scheduler` retries, as the class of the fault allows, and saves.
"""

import dataclasses
import hashlib
import ipaddress
import json
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

from nlicot.errors import ConfigError
from nlicot.records import Usage

_ADDRESS = re.compile(r"https?://[^\s/:]+\S*|https?://\[[^\s/]+\]\S*", re.I)


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
    """400, 413, 422, or content that a filter refuses: this request will never be accepted."""


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


def endpoint(backend: str, server_url: str | None) -> Endpoint:
    """Return the name and server that go into the key of every request."""
    default = BACKENDS[backend].default_server
    if default == "" and server_url:
        raise ConfigError(f"--server_url: found one, but --backend {backend} asks a model in this process")
    server = server_url or default
    if server is None:
        expected = "expected the server's address, for example http://localhost:8000"
        raise ConfigError(f"--backend {backend}: found no --server_url, {expected}")
    return Endpoint(name=backend, server=bare_address(_checked_address(server)))


def _checked_address(server: str) -> str:
    """Refuse what is not a server's address; what may be a password is not shown."""
    if "@" in server:
        found, remedy = "a user name or password", "a key is read from the environment or from .env"
        raise ConfigError(f"--server_url: found {found} in the address, expected none: {remedy}")
    if "?" in server or "#" in server:
        raise ConfigError("--server_url: found a query in the address, expected it to end before ? or #")
    problem = "" if not server or _ADDRESS.fullmatch(server) else "expected http:// or https:// and a host"
    try:
        _ = urlsplit(server).port
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ConfigError(f"--server_url: found {server!r}, {problem}, for example http://localhost:8000")
    return server


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
    api_key = _read_key(entry.key_variable) if entry.key_variable and send_key is not False else ""
    if api_key and not (api_key.isascii() and api_key.isprintable() and len(api_key.split()) == 1):
        raise ConfigError(f"{entry.key_variable}: found a blank or a character that a key cannot have")
    if api_key and send_key is None:
        _check_receiver(entry, server)
    if entry.key_page and not api_key and send_key is not False:
        raise ConfigError(
            f"--backend {backend}: found no {entry.key_variable} in the environment or in .env, expected the "
            f"key from {entry.key_page} (without one: --backend openai --server_url ..., or --backend local)"
        )
    return api_key


def _check_receiver(entry: BackendEntry, server: str) -> None:
    """Refuse to send a key to a server that it may not be meant for, or where others can read it."""
    host, own = urlsplit(server).hostname or "", urlsplit(entry.default_server or "").hostname
    problem = ""
    if own and host != own and not host.endswith(own[own.index(".") :]):
        problem = f"to a server other than {own}"
    elif urlsplit(server).scheme.casefold() != "https" and not _is_this_machine(host):
        problem = "unencrypted, so that others can read it"
    if problem:
        raise ConfigError(
            f"--server_url {server}: the key in {entry.key_variable} would be sent {problem}; "
            "to send it, add --send_key true; to send none, --send_key false"
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_fields(backend: str, fields: Mapping[str, Any]) -> None:
    """Refuse request fields that a backend cannot send; raises `ConfigError`."""
    check = getattr(pkgutil.resolve_name(BACKENDS[backend].class_path), "check_fields", None)
    if check is None:
        own = "its settings are --temperature, --top_p, --max_tokens and --seed"
        raise ConfigError(f"--request_field: --backend {backend} sends nothing to a server; {own}")
    check(fields)


def _read_key(variable: str) -> str:
    """Return a key from the environment, else from `.env` in the working folder, else ""."""
    key, path = os.environ.get(variable, "").strip(), Path(".env")
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if not key and path.is_file() else ()
    ):
        name, _, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == variable and value.strip():
            return value.strip().strip("\"'")
    return key
