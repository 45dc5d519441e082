"""OpenAI's chat completions over HTTP, as Mistral, vLLM, llama.cpp, Ollama and others serve them."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar

import httpx2

from nlicot.servers.address import bare_address
from nlicot.servers.faults import (
    FIELDS,
    TOKEN_FIELDS,
    BrokenEnvelope,
    Rejected,
    fault_in,
    fault_of,
    named_field,
    one_line,
    parsed,
    status_of_error,
    text_of,
    usage_in,
)
from nlicot.servers.openai_server import OpenAIServer, model_names
from nlicot.teacher.backends.base import Connection, Reply, Request

_MESSAGE = re.compile(r'"message"\s*:\s*\{')
_MEMBER = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
_DECODER = json.JSONDecoder(strict=False)
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
        usage, created = usage_in(content.get("usage")), content.get("created")
    except (KeyError, IndexError, TypeError, AttributeError):
        text, salvaged = salvage(body), True
    if text is None:
        message = f"no answer in the body: {one_line(body)}"
        raise BrokenEnvelope("broken_envelope", message, possibly_paid=True, raw=body)
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
    """Join the text parts of a message, without its thinking; null gives an empty text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type", "text") == "text")


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


class OpenAIBackend:
    """Sends requests to one server."""

    name = "openai"
    parameter_names: ClassVar[Mapping[str, str]] = {"random_seed": "seed"}  # those that differ here
    other_token_field: ClassVar[str | None] = "max_completion_tokens"  # of servers that refuse max_tokens

    def __init__(self, connection: Connection) -> None:
        self.server = bare_address(connection.server)
        self._server = OpenAIServer(self.server, api_key=connection.api_key, timeout_s=connection.timeout_s)
        self._chat_url = self._server.url("/v1/chat/completions")
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
        response = await self._server.response(self._chat(body))
        try:
            if response.status_code != 200:
                raise fault_in(response)
            return reply_of(text_of(response), response.headers, time.monotonic() - started)
        except Rejected as fault:
            about = named_field(fault.raw, request.fields)
            if about in FIELDS and about in body and not _WRONG_VALUE.search(fault.message):
                fault.message += f" (--request_field {about}=null leaves it out)"
            raise

    def _body(self, request: Request, form: Mapping[str, Any]) -> dict[str, Any]:
        names = {"max_tokens": self._token_fields.get(request.model, "max_tokens"), **self.parameter_names}
        params = {names.get(name, name): value for name, value in request.params.items()}
        body = {"model": request.model, "messages": request.turns(), **params, **form, **request.fields}
        return {name: value for name, value in body.items() if value is not None}

    async def models(self) -> list[str] | None:
        """List the names under `/v1/models`, aliases included."""
        return model_names(await self._server.response(self._list_models()))

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    def _chat(self, body: dict[str, Any]) -> Awaitable[httpx2.Response]:
        return self._server.post(self._chat_url, body)

    def _list_models(self) -> Awaitable[httpx2.Response]:
        return self._server.get(self._server.url("/v1/models"))


def _refuses_name(fault: Rejected) -> bool:
    return named_field(fault.raw) in TOKEN_FIELDS and not _WRONG_VALUE.search(fault.message)
