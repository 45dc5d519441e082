"""Mistral's API through the `mistralai` SDK; its chat completions have OpenAI's form.

The SDK builds and sends requests. The HTTP response is read as that of any other server, because the SDK
turns a paid answer in a broken envelope into an exception.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

import httpx2
from mistralai.client import Mistral
from mistralai.client.errors import MistralError

from nlicot.teacher.backends.base import Connection
from nlicot.teacher.backends.openai import CONNECT_TIMEOUT_S, OpenAIBackend

_received: ContextVar[httpx2.Response | None] = ContextVar("_received")
"""The response to the current task's request; each task has a context of its own."""


async def _keep(response: httpx2.Response) -> None:
    _received.set(response)


class MistralBackend(OpenAIBackend):
    """Sends requests to Mistral's API."""

    name = "mistral"
    parameter_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(connection.timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=self._pool,
            event_hooks={"response": [_keep]},
            trust_env=False,
        )
        # With a key, even an empty one, the SDK does not look for one in the environment.
        self._sdk = Mistral(api_key=connection.api_key, server_url=self.server, async_client=http)

    def _chat(self, body: dict[str, Any]) -> Awaitable[httpx2.Response]:
        return self._response_to(self._sdk.chat.complete_async(**body))

    def _list_models(self) -> Awaitable[httpx2.Response]:
        return self._response_to(self._sdk.models.list_async())

    async def _response_to(self, call: Awaitable[Any]) -> httpx2.Response:
        """Return the HTTP response to a call of the SDK, even if the SDK cannot parse it."""
        _received.set(None)
        try:
            await call
        except (MistralError, ValueError):
            if _received.get() is None:
                raise
        response = _received.get()
        assert response is not None
        return response
