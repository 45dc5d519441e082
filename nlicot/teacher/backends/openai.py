"""OpenAI's chat completions over HTTP, as Mistral, vLLM, llama.cpp, Ollama and others serve them."""

import asyncio
import contextlib
import datetime
import email.utils
import json
import re
import time
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar

import httpx2

from nlicot.records import Usage
from nlicot.teacher.backends import base
from nlicot.teacher.backends.base import Connection, Fault, Rejected, Reply, Request

CONNECT_TIMEOUT_S = 10.0
MAX_SHOWN = 200
_CONTENT = re.compile(r'"content"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found|is not)",
    re.I,
)


def response_formats(request: Request) -> list[dict[str, Any]]:
    """Return the fields that ask for JSON in a request's body, the strongest form first."""
    name, schema = request.schema.name, request.schema.schema
    strict = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    for_llama_cpp = {"type": "json_object", "schema": schema}
    return [*({"response_format": form} for form in (strict, for_llama_cpp, {"type": "json_object"})), {}]


def reply_of(body: str, headers: Mapping[str, str], latency_s: float) -> Reply:
    """Read the body of a 200; raises `BrokenEnvelope` if there is no text in it, not even a salvaged one."""
    usage, created, finish_reason, salvaged = None, None, "stop", False
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text: str | None = _text(choice["message"]["content"])
        finish_reason = str(choice.get("finish_reason") or "stop")
        usage, created = _usage(content.get("usage")), content.get("created")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        text, salvaged = salvage(body), True
    if text is None:
        message = f"no answer in the body: {_one_line(body)}"
        raise base.BrokenEnvelope("broken_envelope", message, possibly_paid=True, raw=body)
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
        return Usage(**{name: int(found[name]) for name in ("prompt_tokens", "completion_tokens")})
    except (TypeError, KeyError, ValueError):
        return None


def salvage(body: str) -> str | None:
    """Return the answer's text in a body that is not a valid envelope, if its content string is complete."""
    for found in _CONTENT.finditer(body):
        with contextlib.suppress(ValueError):
            if (text := str(json.loads(found[1], strict=False))).strip():
                return text
    return None


def fault_of(status: int, headers: Mapping[str, str], body: str) -> Fault:
    """Classify a response that is not a 200."""
    kind, message = f"http_{status}", message_of(body) or f"status {status}"
    if status == 429:
        return base.RateLimited(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status >= 500 and "response_format" in body:
        # llama.cpp's Python server reports an unsupported format like this; retrying does not help.
        return Rejected("response_format", message, raw=body)
    if status in (408, 409, 425) or status >= 500:
        return base.Transient(kind, message, retry_after_s=retry_after_s(headers), raw=body)
    if status in (400, 404, 422) and _UNKNOWN_MODEL.search(body):
        kind = "unknown_model"
    elif status in (400, 413, 422):
        return Rejected(kind, message, raw=body)
    return base.Refused(kind, message, raw=body)


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
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        at = email.utils.parsedate_to_datetime(value)
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp() - time.time())
    return None


class ConnectionPool(httpx2.AsyncBaseTransport):
    """One connection per request in flight, each kept open for the next request.

    `httpx2`'s own pool looks through all of its connections for every request (docs/decisions.md).
    """

    def __init__(self) -> None:
        self._idle: list[httpx2.AsyncHTTPTransport] = []
        self._ssl = httpx2.create_ssl_context(trust_env=False)  # created once: it takes 20 ms

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and read its whole response. Redirects are not followed: a key must not leak."""
        connection = self._idle.pop() if self._idle else self._open()
        try:
            response = await connection.handle_async_request(request)
            await response.aread()
        except BaseException:  # also cancelled: half a response may still arrive
            await connection.aclose()
            raise
        self._idle.append(connection)
        return response

    def _open(self) -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx2.AsyncHTTPTransport(verify=self._ssl, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        """Close the idle connections."""
        while self._idle:
            await self._idle.pop().aclose()


class OpenAIBackend:
    """Sends requests to one server."""

    name = "openai"
    parameter_names: ClassVar[Mapping[str, str]] = {"random_seed": "seed"}  # those that differ here

    def __init__(self, connection: Connection) -> None:
        self.server = base.bare_address(connection.server)
        self._timeout_s, key = connection.timeout_s, connection.api_key
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._chat_url = httpx2.URL(f"{self.server}/v1/chat/completions")
        self._pool = ConnectionPool()
        self._accepted: dict[str, int] = {}  # by model, the form of structured output
        self._probing = asyncio.Lock()

    async def complete(self, request: Request) -> Reply:
        """Send one request, in the strongest form of structured output that the server accepts.

        The first request that succeeds decides. Until then requests go one by one, so that a server that
        rejects a form is not asked a hundred times.
        """
        if request.model not in self._accepted:
            async with self._probing:
                if request.model not in self._accepted:
                    return await self._probe(request)
        return await self._answer(request, response_formats(request)[self._accepted[request.model]])

    async def _probe(self, request: Request) -> Reply:
        first: Rejected | None = None
        for index, form in enumerate(response_formats(request)):
            try:
                reply = await self._answer(request, form)
            except Rejected as fault:  # if the server rejects every form, that is not the cause
                first = first or fault
            else:
                self._accepted[request.model] = index
                return reply
        assert first is not None
        raise first

    async def _answer(self, request: Request, form: dict[str, Any]) -> Reply:
        params = {self.parameter_names.get(name, name): value for name, value in request.params.items()}
        body = {"model": request.model, "messages": request.turns(), **params, **form}
        started = time.monotonic()
        response = await self._response(self._chat(body))
        if response.status_code != 200:
            raise fault_in(response)
        return reply_of(text_of(response), response.headers, time.monotonic() - started)

    async def models(self) -> list[str] | None:
        """List the names under `/v1/models`, aliases included."""
        response = await self._response(self._list_models())
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code != 200:
            raise fault_in(response)
        try:
            found = json.loads(text_of(response))["data"]
            return [str(name) for model in found for name in (model["id"], *(model.get("aliases") or ()))]
        except (ValueError, KeyError, TypeError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def _chat(self, body: dict[str, Any]) -> Awaitable[httpx2.Response]:
        headers = self._headers | {"content-type": "application/json"}
        return self._send(httpx2.Request("POST", self._chat_url, headers=headers, content=json.dumps(body)))

    def _list_models(self) -> Awaitable[httpx2.Response]:
        return self._send(httpx2.Request("GET", f"{self.server}/v1/models", headers=self._headers))

    def _send(self, request: httpx2.Request) -> Awaitable[httpx2.Response]:
        request.extensions["timeout"] = {"connect": CONNECT_TIMEOUT_S}  # the rest is bounded as a whole
        return self._pool.handle_async_request(request)

    async def _response(self, exchange: Awaitable[httpx2.Response]) -> httpx2.Response:
        """Wait for a whole response; a fault is possibly paid, unless the server was never reached."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await exchange
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            message = f"no complete response within {self._timeout_s:g} s"
            raise base.Transient("timeout", message, possibly_paid=True) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise base.Transient("connection", f"{self.server} cannot be reached: {error}") from error
        except httpx2.TransportError as error:
            message = f"the connection broke off: {error}"
            raise base.Transient("connection", message, possibly_paid=True) from error
        except httpx2.DecodingError as error:
            message = f"the body cannot be decoded: {error}"
            raise base.BrokenEnvelope("encoding", message, possibly_paid=True) from error


def text_of(response: httpx2.Response) -> str:
    """Return the body as text; bytes that are not UTF-8 are replaced."""
    return response.content.decode("utf-8", "replace")


def fault_in(response: httpx2.Response) -> Fault:
    """Classify a response that is not a 200."""
    return fault_of(response.status_code, response.headers, text_of(response))
