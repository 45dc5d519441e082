"""A request without a usable reply: the kinds of faults, and how a response is classified."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from nlicot.records import Usage

MAX_SHOWN = 200
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
FIELDS = (*TOKEN_FIELDS, "temperature", "top_p", "random_seed", "seed")
_STATUS = re.compile(r"[45]\d\d")
# Words of an error in a 200 that has no status, and the status that they mean; any other error is a 500.
_STATUS_OF_WORDS = (
    (429, r"rate.?limit|too.many.requests|resource.?exhausted|throttl"),
    (402, r"insufficient.(?:quota|credit|balance|fund)|payment.required|billing"),
    (401, r"unauthori[sz]ed|unauthenticated|authentication|invalid.(?:api.)?key"),
    (403, r"permission|forbidden"),
    (400, r"content.?(?:filter|policy)|moderation|bad.?request|invalid.(?:request|argument|parameter)"),
)
# A 429 with these is lasting; others that speak of a quota or of billing (Gemini's) are rate limits.
_OUT_OF_CREDIT = re.compile(r"insufficient.(?:quota|credit|balance|fund)|exceeded_current_quota_error", re.I)
_TOO_LONG = re.compile(
    r"context.?(?:length|window|size)|prompt (?:is )?too long|too many (?:input )?tokens", re.I
)
_FILTERED = re.compile(
    r'"content_filter"|content (?:management|filter|moderation|policy)|requires moderation|input was flagged',
    re.I,
)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found)", re.I
)
_MODEL_IS_NOT = re.compile(r"model .{0,80}is not", re.I)
_FORMAT_WORDS = re.compile(r"response.?format|json.?(?:schema|object|mode)|structured|grammar|guided", re.I)


@dataclass(eq=False)
class Fault(Exception):
    """A request without a usable reply."""

    kind: str  # one word for counting, such as `timeout`, `http_503`, `connection`
    message: str
    retry_after_s: float | None = None  # the pause that the server asked for
    possibly_paid: bool = False  # the server may have charged for it
    raw: str = ""  # the body, if any

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Transient(Fault):
    """Sent again after growing pauses: timeouts, dropped connections, 408, 5xx."""


class RateLimited(Transient):
    """429: the same, and all requests wait."""


class BrokenEnvelope(Fault):
    """A paid 200 whose body contains no answer, not even one that can be salvaged; sent again twice."""


class Rejected(Fault):
    """400, 413, 422, or content that a filter refuses: this request will never be accepted."""


class Refused(Fault):
    """401, 402, 403, an unknown model: no request will be accepted."""


def parsed(body: str) -> Any:
    """Return the JSON in a body, None if it is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def usage_in(found: Any) -> Usage | None:
    """Return the numbers of tokens in a body's `usage`, None if they are not numbers."""
    try:
        counts = {name: int(found[name]) for name in ("prompt_tokens", "completion_tokens")}
    except (TypeError, KeyError, ValueError, OverflowError):  # the last for 1e400, which JSON allows
        return None
    return Usage(**counts) if min(counts.values()) >= 0 else None  # less would add to a budget


def _error_in(content: Any) -> Any:
    """Return the error in the body of a 200, as routers send it; None if there is none, or an answer."""
    content = content[0] if isinstance(content, list) and content else content  # Gemini sends a list
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    has_answer = bool(message.get("content")) if isinstance(message, dict) else False
    if choice.get("error") or (choice.get("finish_reason") == "error" and not has_answer):
        return choice.get("error") or content.get("error") or "the server broke off its answer"
    if content.get("error") and not has_answer:
        return content["error"] if isinstance(content["error"], dict | str) else content
    is_error = "error" in (content.get("object"), content.get("type")) or "detail" in content
    return content if not choices and (is_error or _status_in(content)) else None


def _status_in(error: Any) -> int | None:
    values = [str(error.get(name)) for name in ("code", "status", "status_code", "error")]
    return next((int(value) for value in values if _STATUS.fullmatch(value)), None)


def status_of_error(content: Any, default: int = 500) -> int | None:
    """Return the status that the error in a 200's body means; None if it holds none."""
    if (error := _error_in(content)) is None:
        return None
    sources = [source for source in (error, content) if isinstance(source, dict)]
    for source in sources:
        if (status := _status_in(source)) is not None:
            return status
    words = [source.get(name) for source in sources for name in ("code", "type", "status")]
    said = " ".join(map(str, [*words, _message_in(error)]))
    return next((status for status, known in _STATUS_OF_WORDS if re.search(known, said, re.I)), default)


def fault_of(status: int, headers: Mapping[str, str], body: str) -> Fault:
    """Classify a response that is not a 200, or a 200 that holds an error of this status."""
    kind, message = f"http_{status}", message_of(body) or f"status {status}"
    content = parsed(body)
    usage = usage_in(content.get("usage")) if isinstance(content, dict) else None
    is_paid = usage is not None and usage.prompt_tokens + usage.completion_tokens > 0
    details: dict[str, Any] = {"possibly_paid": is_paid, "raw": body}
    if status == 429 and _OUT_OF_CREDIT.search(body):
        return Refused("http_402", message, **details)
    if status == 429:
        return RateLimited(kind, message, retry_after_s=retry_after_s(headers), **details)
    if status >= 500 and "response_format" in body:
        # llama.cpp's Python server reports an unsupported format like this; retrying does not help.
        return Rejected("response_format", message, **details)
    if status in (408, 409, 425) or status >= 500:
        return Transient(kind, message, retry_after_s=retry_after_s(headers), **details)
    if status in (400, 403, 422) and _FILTERED.search(body):
        return Rejected("content_filter", message, **details)
    about_model = _UNKNOWN_MODEL.search(body) or (
        _MODEL_IS_NOT.search(body) and named_field(body) in (None, "model")
    )
    if status in (400, 404, 422) and about_model:
        kind = "unknown_model"
    elif status in (400, 413, 422):
        kind = "context_length" if _TOO_LONG.search(message) else kind
        return Rejected(kind, message, **details)
    return Refused(kind, message, **details)


def named_field(body: str, others: Iterable[str] = ()) -> str | None:
    """Return the field of the request that an error's body is about, None if it names none.

    >>> named_field('{"message": "Unsupported parameter: max_tokens"}')
    'max_tokens'
    """
    content = parsed(body)
    error = _error_in(content) or content
    param, said = None, _message_in(error)
    if isinstance(error, dict):
        param, detail = error.get("param"), error.get("detail")
        if isinstance(detail, list):  # FastAPI's: other members repeat the whole request
            said = " ".join(str(each.get("loc")) for each in detail if isinstance(each, dict))
    said = param if isinstance(param, str) and param else said
    if _FORMAT_WORDS.search(said):
        return "response_format"
    named = re.search(rf"\b({'|'.join(map(re.escape, (*FIELDS, *others)))})\b", said)
    return named[1] if named else param or None


def message_of(body: str) -> str:
    """Return the message of an error's body, in one short line."""
    content = parsed(body)
    if content is None:
        return one_line(re.sub(r"<[^>]*>", " ", body))
    return one_line(_message_in(_error_in(content) or content))


def _message_in(found: Any) -> str:
    while isinstance(found, dict):
        values = [found.get(name) for name in ("error", "message", "detail")]
        found = next(
            (value for value in values if value and isinstance(value, dict | list | str)), str(found)
        )
    return found if isinstance(found, str) else json.dumps(found)


def one_line(text: str) -> str:
    """Put a text into one line of at most `MAX_SHOWN` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}\u2026"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After, a number of seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        at = email.utils.parsedate_to_datetime(value)
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp() - time.time())
    return None


def text_of(response: httpx2.Response) -> str:
    """Return the body as text; bytes that are not UTF-8 are replaced."""
    return response.content.decode("utf-8", "replace")


def writable(text: str) -> str:
    """Replace halves of surrogate pairs: servers send them, and no file can hold them."""
    return text.encode("utf-8", "replace").decode()


def fault_in(response: httpx2.Response) -> Fault:
    """Classify a response that is not a 200."""
    return fault_of(response.status_code, response.headers, text_of(response))
