"""Any server that speaks OpenAI's chat completions over HTTP: vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

import json
import time
from typing import Any, Self

import httpx2

from nlicot.teacher.backends.base import Connection, Reply, Request, bare_address
from nlicot.teacher.backends.http.envelope import fault_of, rate_headers, reply_of
from nlicot.teacher.backends.http.pool import CONNECT_S, Connections, one_exchange
from nlicot.teacher.backends.http.structured_output import StructuredOutput

PARAMETER_NAMES = {"random_seed": "seed"}
"""What OpenAI's form calls our parameters, where it has another name."""


class OpenAIBackend:
    """Sends requests to one server.

    Args:
        server_url: its address, with or without `/v1`.
        api_key: sent to this server alone, and shown nowhere.
        timeout_s: for a whole answer, so that one that trickles in for ever ends too.
    """

    name = "openai"

    def __init__(
        self,
        server_url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 120.0,
    ) -> None:
        self.server = bare_address(server_url)
        self._timeout_s = timeout_s
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._headers = httpx2.Headers(headers)
        self._completions, self._models = (
            httpx2.URL(f"{self.server}/v1/{path}") for path in ("chat/completions", "models")
        )
        self._connections = Connections()  # and no client around it: the key must follow no redirect
        self._timeout = {"timeout": {"connect": CONNECT_S}}  # the rest of the time is bounded as a whole
        self._structured = StructuredOutput()

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Build it for the registry."""
        return cls(connection.server, connection.api_key, timeout_s=connection.timeout_s)

    async def complete(self, request: Request) -> Reply:
        """Send one request, in the strongest form of structured output that the server takes.

        Raises:
            Fault: no usable reply came.
        """
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.turns(),
            **{PARAMETER_NAMES.get(name, name): value for name, value in request.params.items()},
        }

        async def send(response_format: dict[str, Any] | None) -> Reply:
            return await self._send(
                body if response_format is None else body | {"response_format": response_format}
            )

        return await self._structured.ask(request, send)

    async def _send(self, body: dict[str, Any]) -> Reply:
        started = time.monotonic()
        status, headers, text = await self._exchange("POST", self._completions, json.dumps(body))
        if status != 200:
            raise fault_of(status, headers, text)
        return reply_of(text, rate_headers(headers.raw), time.monotonic() - started)

    async def models(self) -> list[str] | None:
        """The names under `/v1/models`; None where the server has no such list.

        Raises:
            Fault: it cannot be reached, or refuses.
        """
        status, headers, text = await self._exchange("GET", self._models, None)
        if status in (404, 405, 501):
            return None
        if status != 200:
            raise fault_of(status, headers, text)
        try:
            return [str(model["id"]) for model in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    async def _exchange(self, method: str, url: httpx2.URL, body: str | None) -> tuple[int, Any, str]:
        async with one_exchange(self.server, self._timeout_s):
            request = httpx2.Request(
                method, url, headers=self._headers, content=body, extensions=self._timeout
            )
            response = await self._connections.handle_async_request(request)
        return response.status_code, response.headers, response.content.decode("utf-8", "replace")

    async def close(self) -> None:
        """Give the connections back."""
        await self._connections.aclose()
