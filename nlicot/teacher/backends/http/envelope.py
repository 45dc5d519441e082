"""Reading what a chat-completion server sends: its envelope, its faults, its wish to wait.

Shared by all backends that speak Mistral's and OpenAI's form.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nlicot.records import Usage
from nlicot.teacher.backends.base import (
    BrokenEnvelope,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Reply,
    Transient,
)

MOST_SHOWN = 200
KEPT_HEADERS = b"x-ratelimit"
_CONTENT = re.compile(r'"content"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found|is not)",
    re.I,
)


def reply_of(body: str, headers: Mapping[str, str], latency_s: float) -> Reply:
    """The reply in the body of a 200.

    Raises:
        BrokenEnvelope: there is no text in it, not even one that could be salvaged.
    """
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = _text(choice["message"]["content"])
        finish_reason = str(choice.get("finish_reason") or "stop")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        salvaged = salvage(body)
        if salvaged is None:
            raise BrokenEnvelope(
                "broken_envelope",
                f"found no answer in the body: {_one_line(body)}",
                possibly_paid=True,
                raw=body,
            ) from None
        return Reply(
            text=salvaged,
            finish_reason="stop",
            usage=None,
            raw=body,
            headers=headers,
            latency_s=latency_s,
            salvaged=True,
        )
    return Reply(
        text=text,
        finish_reason=finish_reason,
        usage=_usage(content.get("usage")),
        created=_seconds(content.get("created")),
        raw=body,
        headers=headers,
        latency_s=latency_s,
    )


def rate_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """What a server's headers, as they came, say of its limits."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in raw
        if name.lower().startswith(KEPT_HEADERS)
    }


def _text(content: Any) -> str:
    """A message's text; some servers send it in parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") == "text")


def _seconds(found: Any) -> float | None:
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _usage(found: Any) -> Usage | None:
    try:
        return Usage(
            prompt_tokens=int(found["prompt_tokens"]), completion_tokens=int(found["completion_tokens"])
        )
    except (TypeError, KeyError, ValueError):
        return None


def salvage(body: str) -> str | None:
    """The text of an answer inside a body that is no envelope: its content string, if that is whole."""
    for found in _CONTENT.finditer(body):
        try:
            text = json.loads(found[1], strict=False)
        except ValueError:
            continue
        if text.strip():
            return str(text)
    return None


def fault_of(status: int, headers: Mapping[str, str], body: str) -> Fault:
    """What an answer that is no 200 means, and what may be done about it."""
    kind, message = f"http_{status}", message_of(body) or f"status {status}"
    if status == 429:
        return RateLimited(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status >= 500 and "response_format" in body:
        # llama.cpp's Python server answers so to a form that it does not know; no pause mends that.
        return Rejected("response_format", message, raw=body)
    if status in (408, 409, 425) or status >= 500:
        return Transient(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status in (400, 404, 422) and _UNKNOWN_MODEL.search(body):
        return Refused("unknown_model", message, raw=body)
    if status in (400, 413, 422):
        return Rejected(kind, message, raw=body)
    return Refused(kind, message, raw=body)


def message_of(body: str) -> str:
    """What an error's body says, in one short line."""
    try:
        found = json.loads(body)
    except ValueError:
        return _one_line(re.sub(r"<[^>]*>", " ", body))
    while isinstance(found, dict):
        found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), str(found))
    return _one_line(found if isinstance(found, str) else json.dumps(found))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 1]}\u2026"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, from a number or an HTTP date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
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
