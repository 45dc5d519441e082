"""Reads the responses of a chat-completion server, in the form that Mistral and OpenAI share."""

from __future__ import annotations

import datetime
import email.utils
import json
import re
from collections.abc import Mapping
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

MAX_SHOWN = 200
_CONTENT = re.compile(r'"content"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found|is not)",
    re.I,
)


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
