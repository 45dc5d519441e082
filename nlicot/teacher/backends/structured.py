"""How an answer's form is asked for: by schema, by JSON mode, or by the prompt alone, as a server can.

The strongest form is tried first, and the first request that passes settles it for a model. Until then
requests go one by one, so that a server which refuses a form is not asked a hundred times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nlicot.teacher.backends.base import Rejected, Reply, Request


def response_formats(request: Request) -> tuple[dict[str, Any] | None, ...]:
    """What to send as `response_format`, the strongest form first."""
    schema = {"name": request.schema.name, "schema": request.schema.schema, "strict": True}
    return (
        {"type": "json_schema", "json_schema": schema},
        {"type": "json_object", "schema": request.schema.schema},  # the form of llama.cpp's Python server
        {"type": "json_object"},
        None,
    )


class StructuredOutput:
    """Remembers, for each model, the strongest form that its server took."""

    def __init__(self) -> None:
        self._settled: dict[str, int] = {}
        self._probing = asyncio.Lock()

    async def ask(self, request: Request, send: Callable[[dict[str, Any] | None], Awaitable[Reply]]) -> Reply:
        """Send the request in the strongest form that the server takes.

        Raises:
            Rejected: every form was rejected, so that the form is not what is wrong.
        """
        formats = response_formats(request)
        settled = self._settled.get(request.model)
        if settled is not None:
            return await send(formats[settled])
        async with self._probing:
            settled = self._settled.get(request.model)
            if settled is None:
                return await self._probe(request.model, formats, send)
        return await send(formats[settled])

    async def _probe(
        self,
        model: str,
        formats: tuple[dict[str, Any] | None, ...],
        send: Callable[[dict[str, Any] | None], Awaitable[Reply]],
    ) -> Reply:
        first: Rejected | None = None
        for number, response_format in enumerate(formats):
            try:
                reply = await send(response_format)
            except Rejected as fault:
                first = first or fault
                continue
            self._settled[model] = number
            return reply
        assert first is not None
        raise first
