"""Connections to one server, as many as requests in flight, and what it means when one of them fails.

Each is kept open for the next request. `httpx2`'s pool looks through all of its connections for every
request, which at 64 in flight takes as long as sending one. Here each connection is a pool of its own, and an
idle one is taken from a list.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx2

from nlicot.teacher.backends.base import BrokenEnvelope, Transient

CONNECT_S = 10.0


class Connections(httpx2.AsyncBaseTransport):
    """A transport that reads every answer whole before it hands it on; usable by a client, or by itself."""

    def __init__(self) -> None:
        self._idle: list[httpx2.AsyncHTTPTransport] = []
        self._ssl = httpx2.create_ssl_context(trust_env=False)  # made once: it takes 20 ms

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read its answer; the caller bounds how many do so at once."""
        connection = self._idle.pop() if self._idle else self._opened()
        try:
            response = await connection.handle_async_request(request)
            await response.aread()
        except BaseException:  # cancelled as well: half an answer may still be on its way
            await connection.aclose()
            raise
        self._idle.append(connection)
        return response

    def _opened(self) -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx2.AsyncHTTPTransport(verify=self._ssl, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().aclose()


@contextlib.asynccontextmanager
async def one_exchange(server: str, timeout_s: float) -> AsyncIterator[None]:
    """Bounds one exchange with a server as a whole, and tells what went wrong with it.

    Raises:
        Transient: no whole answer came; possibly paid, unless the server was never reached.
        BrokenEnvelope: the answer's body is encoded in a way that it does not say.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
        raise Transient("timeout", f"no whole answer within {timeout_s:g} s", possibly_paid=True) from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
        raise Transient("connection", f"{server} cannot be reached: {error}") from error
    except httpx2.TransportError as error:
        raise Transient("connection", f"the connection broke off: {error}", possibly_paid=True) from error
    except httpx2.DecodingError as error:
        raise BrokenEnvelope(
            "encoding", f"the body cannot be decoded: {error}", possibly_paid=True
        ) from error
