"""From a backend's name to a backend: which key goes to which server, and from where it is read."""

from __future__ import annotations

import os
from pathlib import Path

from nlicot.errors import ConfigError
from nlicot.teacher.backends.base import Backend, Endpoint, bare_address
from nlicot.teacher.backends.mistral_batch.ledger import MOST_REQUESTS

MISTRAL_URL = "https://api.mistral.ai"
KEY_OF = {"mistral": "MISTRAL_API_KEY", "mistral-batch": "MISTRAL_API_KEY", "openai": "OPENAI_API_KEY"}


def endpoint(backend: str, server_url: str | None) -> Endpoint:
    """What requests to this backend are keyed by.

    Raises:
        ConfigError: the backend needs a server's address and has none.
    """
    if backend == "local":
        return Endpoint(name=backend, server="")
    if backend == "openai":
        if not server_url:
            raise ConfigError(
                "--backend openai: found no --server-url, expected the server's address, "
                "for example http://localhost:8000"
            )
        return Endpoint(name=backend, server=bare_address(server_url))
    return Endpoint(name=backend, server=bare_address(server_url or MISTRAL_URL))


def connect(
    backend: str, server_url: str | None, *, timeout_s: float, concurrency: int, journal_folder: Path
) -> Backend:
    """A backend that is ready to be asked.

    Raises:
        ConfigError: a key or an address is missing.
    """
    where = endpoint(backend, server_url)
    if backend == "local":
        from nlicot.teacher.backends.local import LocalBackend

        return LocalBackend(batch_size=concurrency)
    key = _key(KEY_OF[backend])
    if backend == "openai":
        from nlicot.teacher.backends.openai import OpenAIBackend

        return OpenAIBackend(where.server, api_key=key, timeout_s=timeout_s)
    if key is None:
        raise ConfigError(
            f"--backend {backend}: found no MISTRAL_API_KEY in the environment or in .env, expected the key "
            "from console.mistral.ai (without one: --backend openai --server-url ..., or --backend local)"
        )
    if backend == "mistral-batch":
        from nlicot.teacher.backends.mistral_batch.backend import MistralBatchBackend

        return MistralBatchBackend(key, server_url=where.server, folder=journal_folder, timeout_s=timeout_s)
    from nlicot.teacher.backends.mistral import MistralBackend

    return MistralBackend(key, server_url=where.server, timeout_s=timeout_s)


def runs_jobs(backend: str) -> bool:
    """Whether a backend's requests go on when this process ends, and are found again."""
    return backend == "mistral-batch"


def in_flight(backend: str, concurrency: int) -> int:
    """Most requests in flight: as many as fill a batch, where batches are made of those that wait together.

    >>> in_flight("mistral", 16), in_flight("mistral-batch", 16)
    (16, 10000)
    """
    return MOST_REQUESTS if runs_jobs(backend) else concurrency


def _key(name: str) -> str | None:
    """A key from the environment, else from `.env` in the working folder; kept nowhere."""
    found = os.environ.get(name)
    if found and found.strip():
        return found.strip()
    path = Path(".env")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        assigned, _, value = line.strip().removeprefix("export ").partition("=")
        if assigned.strip() == name and value.strip():
            return value.strip().strip("\"'")
    return None
