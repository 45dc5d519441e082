"""How an answer's form is asked for: by schema, by JSON mode, or by the prompt alone, as a server can.

The strongest form is tried first, and the first request that passes settles it for a model. Until then
requests go one by one, so that a server which refuses a form is not asked a hundred times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any

from nlicot.teacher.backends.base import Rejected, Reply, Request


class Strength(IntEnum):
    """The ways to ask for a form, the strongest first."""

    SCHEMA = 0
    JSON_WITH_SCHEMA = 1
    JSON = 2
    PROMPT = 3


def response_format(request: Request, strength: Strength) -> dict[str, Any] | None:
    """What to send as `response_format`."""
    if strength is Strength.SCHEMA:
        schema = {"name": request.schema.name, "schema": request.schema.schema, "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    if strength is Strength.JSON_WITH_SCHEMA:  # the form of llama.cpp's Python server
        return {"type": "json_object", "schema": request.schema.schema}
    return {"type": "json_object"} if strength is Strength.JSON else None


class StructuredOutput:
    """Remembers, for each model, the strongest form that its server took."""

    def __init__(self) -> None:
        self._settled: dict[str, Strength] = {}
        self._probing = asyncio.Lock()

    async def ask(self, request: Request, send: Callable[[dict[str, Any] | None], Awaitable[Reply]]) -> Reply:
        """Send the request in the strongest form that the server takes.

        Raises:
            Rejected: every form was rejected, so that the form is not what is wrong.
        """
        if request.model not in self._settled:
            async with self._probing:
                if request.model not in self._settled:
                    return await self._probe(request, send)
        return await send(response_format(request, self._settled[request.model]))

    async def _probe(
        self, request: Request, send: Callable[[dict[str, Any] | None], Awaitable[Reply]]
    ) -> Reply:
        first: Rejected | None = None
        for strength in Strength:
            try:
                reply = await send(response_format(request, strength))
            except Rejected as fault:
                first = first or fault
                continue
            self._settled[request.model] = strength
            return reply
        assert first is not None
        raise first
