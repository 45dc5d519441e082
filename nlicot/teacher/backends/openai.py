"""OpenAI's chat completions over HTTP, as Mistral, vLLM, llama.cpp, Ollama and others serve them."""

import asyncio
import contextlib
import datetime
import email.utils
import json
import re
import time
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from typing import Any, ClassVar

import httpcore2
import httpx2

from nlicot.records import Usage
from nlicot.teacher.backends import base
from nlicot.teacher.backends.base import Connection, Fault, Rejected, Reply, Request

CONNECT_TIMEOUT_S = 10.0
MAX_SHOWN = 200
MIN_KEY_LENGTH = 8
"""A shorter key, such as `none` for a local server, would be replaced in ordinary words."""
REDACTED = b"[key]"
KEEP_ALIVE_S = 5.0
"""How long an idle connection is kept, as by `httpx2`."""
ABOUT_THE_BODY = (b"content-encoding", b"content-length", b"transfer-encoding")
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
_MESSAGE = re.compile(r'"message"\s*:\s*\{')
_MEMBER = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
_DECODER = json.JSONDecoder(strict=False)
_UNKNOWN_MODEL = re.compile(
    r"invalid[ _]model|model[ _]not[ _]found|unknown model|model .{0,80}(does not exist|not found)", re.I
)
_MODEL_IS_NOT = re.compile(r"model .{0,80}is not", re.I)
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_FORMAT_WORDS = re.compile(r"response.?format|json.?(?:schema|object|mode)|structured|grammar|guided", re.I)
_FIELDS = (*TOKEN_FIELDS, "temperature", "top_p", "random_seed", "seed")
# A limit that is too large for a model or its context has the right name.
_WRONG_VALUE = re.compile(
    r"too (?:large|long|many|high|big)|at most|at least|context|exceed|than|must be", re.I
)


def response_formats(request: Request) -> list[dict[str, Any]]:
    """Return the fields that ask for JSON in a request's body, the strongest form first."""
    if "response_format" in request.fields:
        return [{}]
    name, schema = request.schema.name, request.schema.schema
    strict = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    for_llama_cpp = {"type": "json_object", "schema": schema}
    return [*({"response_format": form} for form in (strict, for_llama_cpp, {"type": "json_object"})), {}]


def reply_of(body: str, headers: Mapping[str, str], latency_s: float) -> Reply:
    """Read the body of a 200; raises a `Fault` if it holds an error or no text, not even a salvaged one."""
    content = parsed(body)
    if (status := status_of_error(content)) is not None:
        raise fault_of(status, headers, body)
    usage, created, finish_reason, salvaged = None, None, "stop", False
    try:
        choice = content["choices"][0]
        message = choice["message"]
        text: str | None = _text(message.get("content"))
        finish_reason = str(choice.get("finish_reason") or "stop")
        if message.get("refusal") and not (text or "").strip():
            text, finish_reason = str(message["refusal"]), "refusal"
        usage, created = _usage(content.get("usage")), content.get("created")
    except (KeyError, IndexError, TypeError, AttributeError):
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


def parsed(body: str) -> Any:
    """Return the JSON in a body, None if it is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def _text(content: Any) -> str:
    """Join the text parts of a message, without its thinking; null gives an empty text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type", "text") == "text")


def _usage(found: Any) -> Usage | None:
    try:
        counts = {name: int(found[name]) for name in ("prompt_tokens", "completion_tokens")}
    except (TypeError, KeyError, ValueError, OverflowError):  # the last for 1e400, which JSON allows
        return None
    return Usage(**counts) if min(counts.values()) >= 0 else None  # less would add to a budget


def salvage(body: str) -> str | None:
    """Return the answer in a body that is not a valid envelope, if its message's content is complete.

    Only a member of the message itself counts: reasoning has a `content` on some servers, too.
    """
    for message in _MESSAGE.finditer(body):
        position = message.end()
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            while member := _MEMBER.match(body, position):
                value, position = _DECODER.raw_decode(body, member.end())
                if member[1] == "content" and (text := _text(value)).strip():
                    return text
    return None


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
    usage = _usage(content.get("usage")) if isinstance(content, dict) else None
    is_paid = usage is not None and usage.prompt_tokens + usage.completion_tokens > 0
    details: dict[str, Any] = {"possibly_paid": is_paid, "raw": body}
    if status == 429 and _OUT_OF_CREDIT.search(body):
        return base.Refused("http_402", message, **details)
    if status == 429:
        return base.RateLimited(kind, message, retry_after_s=retry_after_s(headers), **details)
    if status >= 500 and "response_format" in body:
        # llama.cpp's Python server reports an unsupported format like this; retrying does not help.
        return Rejected("response_format", message, **details)
    if status in (408, 409, 425) or status >= 500:
        return base.Transient(kind, message, retry_after_s=retry_after_s(headers), **details)
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
    return base.Refused(kind, message, **details)


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
    named = re.search(rf"\b({'|'.join(map(re.escape, (*_FIELDS, *others)))})\b", said)
    return named[1] if named else param or None


def message_of(body: str) -> str:
    """Return the message of an error's body, in one short line."""
    content = parsed(body)
    if content is None:
        return _one_line(re.sub(r"<[^>]*>", " ", body))
    return _one_line(_message_in(_error_in(content) or content))


def _message_in(found: Any) -> str:
    while isinstance(found, dict):
        values = [found.get(name) for name in ("error", "message", "detail")]
        found = next(
            (value for value in values if value and isinstance(value, dict | list | str)), str(found)
        )
    return found if isinstance(found, str) else json.dumps(found)


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
    """One connection per request in flight, each kept open for the next request; all go to one server.

    Made of `httpcore2`'s connections: its pool looks through all of them for every request, and `httpx2`'s
    transport puts a pool around each (docs/decisions.md). A key that a server repeats is replaced before
    anything else sees the response.
    """

    def __init__(self, server: str, api_key: str) -> None:
        url = httpx2.URL(server)
        port = url.port or (443 if url.scheme == "https" else 80)
        self._origin = httpcore2.Origin(url.raw_scheme, url.raw_host, port)
        self._secret = Secret(api_key) if len(api_key) >= MIN_KEY_LENGTH else None
        self._idle: list[httpcore2.AsyncHTTPConnection] = []
        self._ssl = httpx2.create_ssl_context(trust_env=False)  # created once: it takes 20 ms
        self._network = _GatheringNetwork()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and read its whole response. Redirects are not followed: a key must not leak."""
        assert isinstance(request.stream, AsyncIterable)
        origin, connection = self._origin, await self._connection()
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=origin.scheme, host=origin.host, port=origin.port, target=request.url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            received = await connection.handle_async_request(sent)
            content = await received.aread()
            await received.aclose()
        except BaseException as error:  # also cancelled: half a response may still arrive
            await connection.aclose()
            # `httpx2` has the same exceptions under the same names.
            if isinstance(error, Exception) and (known := getattr(httpx2, type(error).__name__, None)):
                raise known(str(error)) from error
            raise
        self._idle.append(connection)
        response = httpx2.Response(received.status, headers=received.headers, content=content)
        return _without(self._secret, response) if self._secret else response

    async def _connection(self) -> httpcore2.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore2.AsyncHTTPConnection(
            self._origin,
            ssl_context=self._ssl,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=self._network,
        )

    async def aclose(self) -> None:
        """Close the idle connections."""
        while self._idle:
            await self._idle.pop().aclose()


class Secret:
    r"""A key that a server may repeat: as it is, or with characters escaped as in JSON or in a URL.

    >>> Secret("so/secret").removed(rb'{"sent": "so\/secret", "in": "?so%2Fsecret&\u0073o/secret"}')
    b'{"sent": "[key]", "in": "?[key]&[key]"}'
    """

    def __init__(self, key: str) -> None:
        self._plain = key.encode()
        escaped = [each for each in '"\\/' if each in key]
        self._signs = [b"%", b"\\u00", *(f"\\{each}".encode() for each in escaped)]
        characters = []
        for each in key:
            # JSON in a string of JSON has more than one backslash.
            plain = (r"\\*" if each in escaped else "") + re.escape(each)
            characters.append(rf"(?:{plain}|\\+u00(?i:{ord(each):02x})|%(?i:{ord(each):02x}))")
        self._spellings = re.compile("".join(characters).encode())

    def is_in(self, text: bytes) -> bool:
        """Return whether a text contains the key in any spelling."""
        if self._plain in text:
            return True
        # The pattern takes 30 us for an answer, the signs take 1 us.
        return any(sign in text for sign in self._signs) and self._spellings.search(text) is not None

    def removed(self, text: bytes) -> bytes:
        """Replace the key in a text."""
        return self._spellings.sub(REDACTED, text)


def _without(secret: Secret, response: httpx2.Response) -> httpx2.Response:
    headers = response.headers.raw
    if not any(map(secret.is_in, (response.content, *(value for _, value in headers)))):
        return response
    return httpx2.Response(
        response.status_code,
        headers=[
            (name, secret.removed(value)) for name, value in headers if name.lower() not in ABOUT_THE_BODY
        ],
        content=secret.removed(response.content),
    )


class _GatheringNetwork(httpcore2.AnyIOBackend):
    """Opens connections that send a request's head and body together: one call of the system, not two."""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _GatheringStream(await super().connect_tcp(*args, **options))


class _GatheringStream(httpcore2.AsyncNetworkStream):
    """Keeps what is written until something is read."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream, self._unsent = stream, b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._stream.write(unsent, timeout)
        return await self._stream.read(max_bytes, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _GatheringStream(await self._stream.start_tls(*args, **options))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class OpenAIBackend:
    """Sends requests to one server."""

    name = "openai"
    parameter_names: ClassVar[Mapping[str, str]] = {"random_seed": "seed"}  # those that differ here
    other_token_field: ClassVar[str | None] = "max_completion_tokens"  # of servers that refuse max_tokens

    def __init__(self, connection: Connection) -> None:
        self.server = base.bare_address(connection.server)
        self._timeout_s, key = connection.timeout_s, connection.api_key
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._chat_url = httpx2.URL(f"{self.server}/v1/chat/completions")
        self._pool = ConnectionPool(self.server, key)
        self._accepted: dict[str, int] = {}  # by model, the form of structured output
        self._token_fields: dict[str, str] = {}  # by model, the name of max_tokens, once another was tried
        self._probing = asyncio.Lock()

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> None:
        """Accept every field: the server decides."""

    async def complete(self, request: Request) -> Reply:
        """Send one request, in the strongest form of structured output that the server accepts.

        The first request that succeeds decides. Until then requests go one by one, so that a server that
        rejects a form is not asked a hundred times.
        """
        if request.model not in self._accepted:
            async with self._probing:
                if request.model not in self._accepted:
                    return await self._probe(request)
        forms = response_formats(request)
        return await self._answer(request, forms[min(self._accepted[request.model], len(forms) - 1)])

    async def _probe(self, request: Request) -> Reply:
        first: Rejected | None = None
        for index, form in enumerate(response_formats(request)):
            try:
                reply = await self._answer_with_either_name(request, form)
            except Rejected as fault:  # if the server rejects every form, that is not the cause
                about = named_field(fault.raw, request.fields)
                if fault.kind in ("content_filter", "context_length", "http_413") or about not in (
                    None,
                    "response_format",
                ):
                    raise
                first = first or fault
            else:
                self._accepted[request.model] = index
                return reply
        assert first is not None
        raise first

    async def _answer_with_either_name(self, request: Request, form: dict[str, Any]) -> Reply:
        """Send a request; if the server refuses the name `max_tokens`, try the other, once per model."""
        model, other = request.model, self.other_token_field
        try:
            return await self._answer(request, form)
        except Rejected as fault:
            can_be_renamed = other and "max_tokens" in request.params and model not in self._token_fields
            if not (can_be_renamed and _refuses_name(fault)):
                raise
            first = fault
        self._token_fields[model] = str(other)
        try:
            return await self._answer(request, form)
        except Rejected as fault:
            if not _refuses_name(fault):
                raise
            self._token_fields[model] = "max_tokens"
            raise first from None

    async def _answer(self, request: Request, form: dict[str, Any]) -> Reply:
        body = self._body(request, form)
        started = time.monotonic()
        response = await self._response(self._chat(body))
        try:
            if response.status_code != 200:
                raise fault_in(response)
            return reply_of(text_of(response), response.headers, time.monotonic() - started)
        except Rejected as fault:
            about = named_field(fault.raw, request.fields)
            if about in _FIELDS and about in body and not _WRONG_VALUE.search(fault.message):
                fault.message += f" (--request_field {about}=null leaves it out)"
            raise

    def _body(self, request: Request, form: Mapping[str, Any]) -> dict[str, Any]:
        names = {"max_tokens": self._token_fields.get(request.model, "max_tokens"), **self.parameter_names}
        params = {names.get(name, name): value for name, value in request.params.items()}
        body = {"model": request.model, "messages": request.turns(), **params, **form, **request.fields}
        return {name: value for name, value in body.items() if value is not None}

    async def models(self) -> list[str] | None:
        """List the names under `/v1/models`, aliases included."""
        response = await self._response(self._list_models())
        content, status = parsed(text_of(response)), response.status_code
        if status == 200:
            status = status_of_error(content, default=404) or 200
        if status in (404, 405, 501):
            return None
        if status != 200:
            raise fault_of(status, response.headers, text_of(response))
        try:
            return [
                str(name)
                for model in content["data"]
                for name in (model["id"], *(model.get("aliases") or ()))
            ]
        except (KeyError, TypeError):
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


def _refuses_name(fault: Rejected) -> bool:
    return named_field(fault.raw) in TOKEN_FIELDS and not _WRONG_VALUE.search(fault.message)
