"""Asks for JSON in the strongest form that a server supports: by schema, by JSON mode, or only by the prompt.

The first request that succeeds decides for its model. Until then requests go one by one, so that a server
that rejects a form is not asked a hundred times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nlicot.teacher.backends.base import Rejected, Reply, Request

Send = Callable[[dict[str, Any]], Awaitable[Reply]]


def response_formats(request: Request) -> list[dict[str, Any]]:
    """Return the fields that ask for JSON in a request's body, the strongest form first."""
    schema = {"name": request.schema.name, "schema": request.schema.schema, "strict": True}
    formats: list[dict[str, Any]] = [
        {"type": "json_schema", "json_schema": schema},
        {"type": "json_object", "schema": request.schema.schema},  # llama.cpp's Python server
        {"type": "json_object"},
    ]
    return [*({"response_format": form} for form in formats), {}]


class StructuredOutput:
    """Remembers the strongest form that the server accepts, for each model."""

    def __init__(self) -> None:
        self._accepted: dict[str, int] = {}
        self._probing = asyncio.Lock()

    async def ask(self, request: Request, send: Send) -> Reply:
        """Send the request in the strongest form that the server accepts.

        Raises:
            Rejected: the server rejected every form, so the form is not the cause.
        """
        if request.model not in self._accepted:
            async with self._probing:
                if request.model not in self._accepted:
                    return await self._probe(request, send)
        return await send(response_formats(request)[self._accepted[request.model]])

    async def _probe(self, request: Request, send: Send) -> Reply:
        first: Rejected | None = None
        for index, form in enumerate(response_formats(request)):
            try:
                reply = await send(form)
            except Rejected as fault:
                first = first or fault
            else:
                self._accepted[request.model] = index
                return reply
        assert first is not None
        raise first
