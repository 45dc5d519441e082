"""Mistral's own API, through the `mistralai` SDK.

The SDK builds and sends the request; what came back is read from the HTTP response itself, as for every
other server, because the SDK turns a paid answer in a broken envelope into an exception.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Self

import httpx2
from mistralai.client import Mistral
from mistralai.client.errors import MistralError, NoResponseError

from nlicot.teacher.backends.base import Connection, Reply, Request, Transient, bare_address
from nlicot.teacher.backends.http.envelope import fault_of, rate_headers, reply_of
from nlicot.teacher.backends.http.pool import CONNECT_S, Connections, one_exchange
from nlicot.teacher.backends.http.structured_output import StructuredOutput

_responses: ContextVar[list[httpx2.Response]] = ContextVar("responses")


async def _keep(response: httpx2.Response) -> None:
    """Keep a response for the task that asked for it; each task has a context of its own."""
    kept = _responses.get(None)
    if kept is not None:
        await response.aread()
        kept.append(response)


class MistralBackend:
    """Sends requests through the SDK.

    Args:
        api_key: given to the SDK here, so that it never looks for one in the environment; shown nowhere.
        server_url: without `/v1`.
        timeout_s: for a whole answer.
    """

    name = "mistral"

    def __init__(
        self,
        api_key: str,
        server_url: str = "https://api.mistral.ai",
        *,
        timeout_s: float = 120.0,
    ) -> None:
        self.server = bare_address(server_url)
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
            transport=Connections(),
            event_hooks={"response": [_keep]},
            follow_redirects=False,  # the key must not travel on
            trust_env=False,
        )
        self._client = Mistral(api_key=api_key, server_url=self.server, async_client=self._http)
        self._structured = StructuredOutput()

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Build it for the registry."""
        return cls(connection.api_key, connection.server, timeout_s=connection.timeout_s)

    async def complete(self, request: Request) -> Reply:
        """Send one request, in the strongest form of structured output that the server takes.

        Raises:
            Fault: no usable reply came.
        """
        messages: Any = request.turns()

        async def send(response_format: Any) -> Reply:
            asked = {} if response_format is None else {"response_format": response_format}
            started = time.monotonic()
            response = await self._exchange(
                self._client.chat.complete_async(
                    model=request.model, messages=messages, **dict(request.params), **asked
                )
            )
            if response.status_code != 200:
                raise fault_of(response.status_code, response.headers, response.text)
            headers = rate_headers(response.headers.raw)
            return reply_of(response.text, headers, time.monotonic() - started)

        return await self._structured.ask(request, send)

    async def models(self) -> list[str] | None:
        """The names, aliases included, that the server lists; None where it has no list.

        Raises:
            Fault: it cannot be reached, or refuses.
        """
        response = await self._exchange(self._client.models.list_async())
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code != 200:
            raise fault_of(response.status_code, response.headers, response.text)
        try:
            found = response.json()["data"]
            return [name for model in found for name in (model["id"], *(model.get("aliases") or ()))]
        except (ValueError, KeyError, TypeError):
            return None

    async def _exchange(self, call: Any) -> httpx2.Response:
        """The HTTP response behind a call of the SDK, whatever the SDK made of it."""
        kept: list[httpx2.Response] = []
        token = _responses.set(kept)
        try:
            async with one_exchange(self.server, self._timeout_s):
                await call
        except NoResponseError as error:
            raise Transient("connection", f"the connection broke off: {error}", possibly_paid=True) from error
        except (MistralError, ValueError):
            if not kept:
                raise
        finally:
            _responses.reset(token)
        return kept[-1]

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()
