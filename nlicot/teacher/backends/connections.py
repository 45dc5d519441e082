"""Connections to one server, as many as requests in flight, each kept open for the next request.

`httpx2`'s pool looks through all of its connections for every request, which at 64 in flight takes as long
as sending one. Here each connection is a pool of its own, and an idle one is taken from a list.
"""

from __future__ import annotations

import httpx2


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
