"""The registry of backends: a class that implements `Backend` and takes a `Connection` is one entry."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nlicot.errors import ConfigError
from nlicot.teacher.backends.base import Backend, Connection, Endpoint, bare_address


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
    server = "" if default == "" else server_url or default
    if server is None:
        raise ConfigError(
            f"--backend {backend}: found no --server_url, expected the server's address, "
            "for example http://localhost:8000"
        )
    return Endpoint(name=backend, server=bare_address(server))


def connect(
    backend: str,
    server_url: str | None = None,
    *,
    timeout_s: float = 120.0,
    concurrency: int = 16,
    journal_folder: Path = Path(),
) -> Backend:
    """Return a backend that is ready for requests."""
    entry, server = BACKENDS[backend], endpoint(backend, server_url).server
    api_key = _find_key(entry.key_variable) if entry.key_variable else ""
    if entry.key_page and not api_key:
        raise ConfigError(
            f"--backend {backend}: found no {entry.key_variable} in the environment or in .env, expected the "
            f"key from {entry.key_page} (without one: --backend openai --server_url ..., or --backend local)"
        )
    backend_class: Callable[[Connection], Backend] = pkgutil.resolve_name(entry.class_path)
    connection = Connection(
        server=server,
        api_key=api_key,
        timeout_s=timeout_s,
        concurrency=entry.in_flight(concurrency),
        journal_folder=journal_folder,
    )
    return backend_class(connection)


def _find_key(variable: str) -> str:
    """Return a key from the environment, else from `.env` in the working folder, else ""."""
    key, path = os.environ.get(variable, "").strip(), Path(".env")
    lines = path.read_text(encoding="utf-8").splitlines() if not key and path.is_file() else []
    for line in lines:
        name, _, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == variable and value.strip():
            return value.strip().strip("\"'")
    return key
