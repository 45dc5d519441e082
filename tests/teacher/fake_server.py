"""A chat-completion server on loopback that fails on demand: HTTP, scripted answers, all requests counted.

In a test: `with FakeServer() as server: ...; server.script("plums", [status(503), OK])`; it runs in a thread.
For a benchmark: `python -m tests.teacher.fake_server --port 0 --delay 0.05`, which prints its port.
Answers depend only on the request, so that two runs can be compared byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from tests.teacher.fake_answers import (
    CREATED,
    OK,
    Behaviour,
    default_answer,
    envelope_of,
    request_key,
    status,
)

COMPLETIONS = "/v1/chat/completions"
NO_MORE_SCRIPT = 418
FORMATS = ("json_schema", "json_object", "text")
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


@dataclass(frozen=True)
class Seen:
    """A request as received; header names are in lower case, `body` is None for a GET."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any] | None


@dataclass
class _Script:
    matches: Callable[[Mapping[str, Any]], bool]
    behaviours: deque[Behaviour]


class FakeServer:
    """Serves `/v1/models`, `/v1/chat/completions` and `/statistics` on 127.0.0.1.

    Args:
        answer: computes the answer's text from a request's body.
        delay_s: pause before every completion.
        models: the served models, or None for a server without a list that accepts any name.
        key: the required `Authorization: Bearer` key; None accepts anything.
        formats: the accepted kinds of `response_format`; `text` means that there is none.
        refused: the fields of a request that get a 400 in OpenAI's words.
        requests_per_minute: more requests within `window_s` get a 429; headers announce the limit.
        strict: fail loudly if a script matches a request and has no behaviour left.
        unknown_model_status: 400 like Mistral, 404 like other servers.
        keep_seen: keep every request in `seen`.

    Attributes:
        counts: requested completions, by `request_key`.
        answered: completions answered in full with a 200.
        statuses: statuses of all completions.
        seen: the requests, in order.
        listing: the response to `/v1/models`; None lists `models`.
    """

    def __init__(
        self,
        *,
        answer: Callable[[Mapping[str, Any]], str] = default_answer,
        delay_s: float = 0.0,
        models: Sequence[str] | None = ("teacher", "stronger-teacher"),
        key: str | None = None,
        formats: Sequence[str] = FORMATS,
        refused: Sequence[str] = (),
        requests_per_minute: float | None = None,
        window_s: float = 60.0,
        strict: bool = False,
        unknown_model_status: int = 400,
        keep_seen: bool = True,
    ) -> None:
        self.answer, self.delay_s, self.models, self.key, self.formats = answer, delay_s, models, key, formats
        self.refused = refused
        self.requests_per_minute, self.window_s, self.strict = requests_per_minute, window_s, strict
        self.unknown_model_status, self.keep_seen = unknown_model_status, keep_seen
        self.counts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.seen: list[Seen] = []
        self.listing: Behaviour | None = None
        self.num_requests = self.num_connections = self.in_flight = self.max_in_flight = 0
        self._scripts: list[_Script] = []
        self._admitted: deque[float] = deque()
        self.port = 0

    # ------------------------------------------------------------- for tests

    @property
    def url(self) -> str:
        """Without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    def script(
        self, match: str | Callable[[Mapping[str, Any]], bool] | None, behaviours: Iterable[Behaviour]
    ) -> None:
        """Set the behaviours for requests with `match` in a user message, or for which it is true; None: all.

        The first matching script that has a behaviour left is used.
        """
        if match is None:
            matches: Callable[[Mapping[str, Any]], bool] = lambda body: True  # noqa: E731
        elif isinstance(match, str):
            matches = lambda body: match in _user_messages(body)  # noqa: E731
        else:
            matches = match
        self._scripts.append(_Script(matches, deque(behaviours)))

    def completions(self) -> list[Mapping[str, Any]]:
        """Return the bodies of all requested completions, in order."""
        return [seen.body for seen in self.seen if seen.body is not None]

    def statistics(self) -> dict[str, Any]:
        """Return all counts, in the form of `/statistics`."""
        return {
            "num_requests": self.num_requests,
            "num_429": self.statuses[429],
            "num_connections": self.num_connections,
            "max_in_flight": self.max_in_flight,
            "statuses": {str(code): num for code, num in self.statuses.items()},
            "counts": dict(self.counts),
            "answered": dict(self.answered),
        }

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()

        async def serve() -> None:
            try:
                server = await self.listen()
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(asyncio.get_running_loop())
            self._stopping = asyncio.Event()
            await self._stopping.wait()
            server.close()  # requests that hang are cancelled with the loop

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        self._loop = started.result(timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(lambda: self._stopping.set())
        self._thread.join(timeout=30)

    # ------------------------------------------------------------- HTTP

    async def listen(self, port: int = 0) -> asyncio.Server:
        """Listen on `port`, or on a free one."""
        server = await asyncio.start_server(self._serve_connection, "127.0.0.1", port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._serve_request(reader, writer):
                pass
        writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return False to close the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head[:-4].split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else None
        if self.keep_seen:
            self.seen.append(Seen(path, headers, body))
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            behaviour = status(401, body='{"detail":"Unauthorized"}')
        elif method == "POST" and path == COMPLETIONS:
            return await self._serve_completion(body, writer)
        elif method == "GET" and path == "/v1/models" and self.listing is not None:
            behaviour = self.listing
        elif method == "GET" and path == "/v1/models" and self.models is not None:
            served = [{"id": name, "object": "model", "created": CREATED} for name in self.models]
            behaviour = Behaviour(body=json.dumps({"object": "list", "data": served}))
        elif method == "GET" and path == "/statistics":
            behaviour = Behaviour(body=json.dumps(self.statistics()))
        else:
            behaviour = status(404, body='{"detail":"Not Found"}')
        return await _write(writer, behaviour, str(behaviour.body))

    async def _serve_completion(self, body: Mapping[str, Any], writer: asyncio.StreamWriter) -> bool:
        key = request_key(body)
        self.counts[key] += 1
        self.num_requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            behaviour = self._behaviour(body)
            if self.delay_s or behaviour.delay_s:
                await asyncio.sleep(self.delay_s + behaviour.delay_s)
            if behaviour.how == "hang":
                await asyncio.Event().wait()
            if behaviour.how == "drop":
                return False
            text = self._body(body, behaviour)
            self.statuses[behaviour.status] += 1
            keep_open = await _write(writer, behaviour, text)
            self.answered[key] += behaviour.status == 200 and behaviour.how == "answer"
            return keep_open
        finally:
            self.in_flight -= 1

    # ------------------------------------------------------------- answers

    def _behaviour(self, body: Mapping[str, Any]) -> Behaviour:
        limited = self._limited()
        if limited is not None and limited.status == 429:
            return limited
        matching = [script for script in self._scripts if script.matches(body)]
        for script in matching:
            if script.behaviours:
                return script.behaviours.popleft()
        if matching and self.strict:
            return status(NO_MORE_SCRIPT, body='{"message":"the script has run out"}')
        if self.models is not None and body.get("model") not in self.models:
            return self._unknown_model(str(body.get("model")))
        for name in self.refused:
            if name in body:
                return _unsupported(name)
        requested = (body.get("response_format") or {"type": "text"})["type"]
        if requested not in self.formats:
            return status(422, body=json.dumps({"detail": f"response_format {requested} is not supported"}))
        return limited or OK

    def _limited(self) -> Behaviour | None:
        """Return a 429, or an answer whose headers announce the limit; None without a limit."""
        if self.requests_per_minute is None:
            return None
        allowed, now = math.floor(self.requests_per_minute * self.window_s / 60), time.monotonic()
        while self._admitted and self._admitted[0] <= now - self.window_s:
            self._admitted.popleft()
        announced = {
            "x-ratelimit-limit-req-minute": f"{self.requests_per_minute:.0f}",
            "x-ratelimit-remaining-req-minute": str(max(0, allowed - len(self._admitted) - 1)),
        }
        if len(self._admitted) < allowed:
            self._admitted.append(now)
            return replace(OK, headers=announced)
        wait_s = math.ceil(self._admitted[0] + self.window_s - now) if self._admitted else 1
        shape = {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}
        return status(429, {"Retry-After": str(wait_s), **announced}, json.dumps(shape))

    def _unknown_model(self, model: str) -> Behaviour:
        if self.unknown_model_status == 400:
            shape = {
                "object": "error",
                "message": f"Invalid model: {model}",
                "type": "invalid_model",
                "code": "1500",
            }
            return status(400, body=json.dumps(shape))
        error = {"message": f"The model `{model}` does not exist.", "code": "model_not_found"}
        return status(self.unknown_model_status, body=json.dumps({"error": error}))

    def _body(self, body: Mapping[str, Any], behaviour: Behaviour) -> str:
        if isinstance(behaviour.body, str):
            return behaviour.body
        text = behaviour.content if isinstance(behaviour.content, str) else self.answer(body)
        if callable(behaviour.content):
            text = behaviour.content(text)
        envelope = envelope_of(body, text, behaviour.finish_reason)
        return envelope if behaviour.body is None else behaviour.body(envelope)


def _unsupported(name: str) -> Behaviour:
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": name,
        "code": "unsupported_parameter",
    }
    return status(400, body=json.dumps({"error": error}))


def _user_messages(body: Mapping[str, Any]) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"] if message["role"] == "user")


async def _write(writer: asyncio.StreamWriter, behaviour: Behaviour, text: str) -> bool:
    """Send an answer; return False if the connection must be closed."""
    sent = text.encode()
    headers = {"Content-Type": "application/json", **behaviour.headers, "Content-Length": str(len(sent))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {behaviour.status} {REASONS.get(behaviour.status, 'Scripted')}\r\n{lines}\r\n".encode()
    if behaviour.how == "trickle":
        writer.write(head.replace(str(len(sent)).encode(), b"1000000"))
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)
    if behaviour.how == "cut":
        writer.write(head + sent[: len(sent) // 2])
        await writer.drain()
        return False
    writer.write(head + sent)
    await writer.drain()
    return True


async def _serve_forever(server: FakeServer, port: int) -> None:
    listening = await server.listen(port)
    print(server.port, flush=True)
    async with listening:
        await listening.serve_forever()


def main() -> None:
    """Print the port, and serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each completion")
    parser.add_argument("--models", default="teacher,stronger-teacher", help="separated by commas")
    parser.add_argument("--key", help="refuse requests without this key")
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--window-s", type=float, default=60.0, help="window in which requests are counted")
    options = parser.parse_args()
    server = FakeServer(
        delay_s=options.delay,
        models=options.models.split(","),
        key=options.key,
        requests_per_minute=options.requests_per_minute,
        window_s=options.window_s,
        keep_seen=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(server, options.port))


if __name__ == "__main__":
    main()
