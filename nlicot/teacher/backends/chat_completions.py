"""The chat-completion protocol that Mistral and OpenAI share: forms of structured output, replies, faults."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nlicot.records import Usage
from nlicot.teacher.backends.base import (
    BrokenEnvelope,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Reply,
    Request,
    Transient,
)

Send = Callable[[dict[str, Any]], Awaitable[Reply]]
MAX_SHOWN = 200
_CONTENT = re.compile(r'"content"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found|is not)",
    re.I,
)


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
    """Asks for JSON in the strongest form that the server accepts, which is remembered for each model.

    The first request that succeeds decides. Until then requests go one by one, so that a server that rejects
    a form is not asked a hundred times.
    """

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


def reply_of(body: str, headers: Mapping[str, str], latency_s: float) -> Reply:
    """Read the body of a 200; of the headers, those about rate limits are kept.

    Raises:
        BrokenEnvelope: there is no text in it, not even one that can be salvaged.
    """
    usage, created = None, None
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text: str | None = _text(choice["message"]["content"])
        finish_reason = str(choice.get("finish_reason") or "stop")
        usage, created = _usage(content.get("usage")), content.get("created")
        salvaged = False
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        text, finish_reason, salvaged = salvage(body), "stop", True
    if text is None:
        raise BrokenEnvelope(
            "broken_envelope", f"no answer in the body: {_one_line(body)}", possibly_paid=True, raw=body
        )
    return Reply(
        text=text,
        finish_reason=finish_reason,
        usage=usage,
        created=created if type(created) in (int, float) else None,
        raw=body,
        headers={name: value for name, value in headers.items() if name.startswith("x-ratelimit")},
        latency_s=latency_s,
        salvaged=salvaged,
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") == "text")


def _usage(found: Any) -> Usage | None:
    try:
        return Usage(
            prompt_tokens=int(found["prompt_tokens"]), completion_tokens=int(found["completion_tokens"])
        )
    except (TypeError, KeyError, ValueError):
        return None


def salvage(body: str) -> str | None:
    """Return the answer's text in a body that is not a valid envelope, if its content string is complete."""
    for found in _CONTENT.finditer(body):
        try:
            text = json.loads(found[1], strict=False)
        except ValueError:
            continue
        if text.strip():
            return str(text)
    return None


def fault_of(status: int, headers: Mapping[str, str], body: str) -> Fault:
    """Classify a response that is not a 200."""
    kind, message = f"http_{status}", message_of(body) or f"status {status}"
    if status == 429:
        return RateLimited(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status >= 500 and "response_format" in body:
        # llama.cpp's Python server reports an unsupported format like this; retrying does not help.
        return Rejected("response_format", message, raw=body)
    if status in (408, 409, 425) or status >= 500:
        return Transient(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status in (400, 404, 422) and _UNKNOWN_MODEL.search(body):
        return Refused("unknown_model", message, raw=body)
    if status in (400, 413, 422):
        return Rejected(kind, message, raw=body)
    return Refused(kind, message, raw=body)


def message_of(body: str) -> str:
    """Return the message of an error's body, in one short line."""
    try:
        found = json.loads(body)
    except ValueError:
        return _one_line(re.sub(r"<[^>]*>", " ", body))
    while isinstance(found, dict):
        found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), str(found))
    return _one_line(found if isinstance(found, str) else json.dumps(found))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}\u2026"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After, a number of seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())
