"""Any server with OpenAI's chat completions over HTTP: vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar

import httpx2

from nlicot.teacher.backends.base import BrokenEnvelope, Connection, Reply, Request, Transient, bare_address
from nlicot.teacher.backends.chat_completions import StructuredOutput, fault_of, reply_of
from nlicot.teacher.backends.pool import ConnectionPool

CONNECT_TIMEOUT_S = 10.0


class OpenAIBackend:
    """Sends requests to one server."""

    name = "openai"
    parameter_names: ClassVar[Mapping[str, str]] = {"random_seed": "seed"}
    """Parameters that this server calls differently."""

    def __init__(self, connection: Connection) -> None:
        self.server = bare_address(connection.server)
        self._timeout_s, key = connection.timeout_s, connection.api_key
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._chat_url = httpx2.URL(f"{self.server}/v1/chat/completions")
        self._pool = ConnectionPool()
        self._structured = StructuredOutput()

    async def complete(self, request: Request) -> Reply:
        """Send one request, in the strongest form of structured output that the server accepts."""
        params = {self.parameter_names.get(name, name): value for name, value in request.params.items()}
        body = {"model": request.model, "messages": request.turns(), **params}

        async def send(response_format: dict[str, Any]) -> Reply:
            started = time.monotonic()
            response = await self._response(self._chat(body | response_format))
            if response.status_code != 200:
                raise fault_of(response.status_code, response.headers, text_of(response))
            return reply_of(text_of(response), response.headers, time.monotonic() - started)

        return await self._structured.ask(request, send)

    async def models(self) -> list[str] | None:
        """List the names under `/v1/models`, aliases included."""
        response = await self._response(self._list_models())
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code != 200:
            raise fault_of(response.status_code, response.headers, text_of(response))
        try:
            found = json.loads(text_of(response))["data"]
            return [str(name) for model in found for name in (model["id"], *(model.get("aliases") or ()))]
        except (ValueError, KeyError, TypeError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def _chat(self, body: dict[str, Any]) -> Awaitable[httpx2.Response]:
        headers = self._headers | {"content-type": "application/json"}
        return self._send(httpx2.Request("POST", self._chat_url, headers=headers, content=json.dumps(body)))

    def _list_models(self) -> Awaitable[httpx2.Response]:
        return self._send(httpx2.Request("GET", f"{self.server}/v1/models", headers=self._headers))

    def _send(self, request: httpx2.Request) -> Awaitable[httpx2.Response]:
        request.extensions["timeout"] = {"connect": CONNECT_TIMEOUT_S}  # the rest is bounded as a whole
        return self._pool.handle_async_request(request)

    async def _response(self, exchange: Awaitable[httpx2.Response]) -> httpx2.Response:
        """Wait for a whole response.

        Raises:
            Transient: it did not arrive; possibly paid, unless the server was never reached.
            BrokenEnvelope: the body is not encoded as its headers say.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await exchange
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            message = f"no complete response within {self._timeout_s:g} s"
            raise Transient("timeout", message, possibly_paid=True) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise Transient("connection", f"{self.server} cannot be reached: {error}") from error
        except httpx2.TransportError as error:
            raise Transient("connection", f"the connection broke off: {error}", possibly_paid=True) from error
        except httpx2.DecodingError as error:
            message = f"the body cannot be decoded: {error}"
            raise BrokenEnvelope("encoding", message, possibly_paid=True) from error


def text_of(response: httpx2.Response) -> str:
    """Return the body as text; bytes that are not UTF-8 are replaced."""
    return response.content.decode("utf-8", "replace")
