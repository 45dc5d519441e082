"""A server with OpenAI's interface: its connections, its key, and faults as exceptions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterable, Awaitable, Mapping
from typing import Any

import httpcore2
import httpx2

from nlicot.servers.faults import BrokenEnvelope, Transient, fault_of, parsed, status_of_error, text_of

CONNECT_TIMEOUT_S = 10.0
MIN_KEY_LENGTH = 8
"""A shorter key, such as `none` for a local server, would be replaced in ordinary words."""
REDACTED = b"[key]"
KEEP_ALIVE_S = 5.0
"""How long an idle connection is kept, as by `httpx2`."""
ABOUT_THE_BODY = (b"content-encoding", b"content-length", b"transfer-encoding")


class OpenAIServer:
    """One server, by its address without `/v1`; all requests to it carry its key.

    Args:
        api_key: "" sends none.
        timeout_s: for a whole response, however slowly it arrives.
    """

    def __init__(self, address: str, *, api_key: str = "", timeout_s: float) -> None:
        self.address = address
        self.pool = ConnectionPool(address, api_key)
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    def url(self, path: str) -> httpx2.URL:
        """Return the address of an endpoint."""
        return httpx2.URL(f"{self.address}{path}")

    def post(self, url: httpx2.URL, body: Mapping[str, Any]) -> Awaitable[httpx2.Response]:
        """Send JSON."""
        headers = self._headers | {"content-type": "application/json"}
        return self._send(httpx2.Request("POST", url, headers=headers, content=json.dumps(body)))

    def get(self, url: httpx2.URL) -> Awaitable[httpx2.Response]:
        """Ask for a document."""
        return self._send(httpx2.Request("GET", url, headers=self._headers))

    def _send(self, request: httpx2.Request) -> Awaitable[httpx2.Response]:
        request.extensions["timeout"] = {"connect": CONNECT_TIMEOUT_S}  # the rest is bounded as a whole
        return self.pool.handle_async_request(request)

    async def response(self, exchange: Awaitable[httpx2.Response]) -> httpx2.Response:
        """Wait for a whole response; a fault is possibly paid, unless the server was never reached."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await exchange
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            message = f"no complete response within {self._timeout_s:g} s"
            raise Transient("timeout", message, possibly_paid=True) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise Transient("connection", f"{self.address} cannot be reached: {error}") from error
        except httpx2.TransportError as error:
            message = f"the connection broke off: {error}"
            raise Transient("connection", message, possibly_paid=True) from error
        except httpx2.DecodingError as error:
            message = f"the body cannot be decoded: {error}"
            raise BrokenEnvelope("encoding", message, possibly_paid=True) from error

    async def close(self) -> None:
        """Close the connections."""
        await self.pool.aclose()


def model_names(response: httpx2.Response) -> list[str] | None:
    """Return the names in a response to `/v1/models`, aliases included; None if the server has no list."""
    content, status = parsed(text_of(response)), response.status_code
    if status == 200:
        status = status_of_error(content, default=404) or 200
    if status in (404, 405, 501):
        return None
    if status != 200:
        raise fault_of(status, response.headers, text_of(response))
    try:
        return [
            str(name) for model in content["data"] for name in (model["id"], *(model.get("aliases") or ()))
        ]
    except (KeyError, TypeError):
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
