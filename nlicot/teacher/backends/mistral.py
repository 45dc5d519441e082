"""Mistral's API through the `mistralai` SDK: chat completions in OpenAI's form, files and batch jobs.

The SDK builds and sends requests. The HTTP response is read as that of any other server, because the SDK
turns a paid answer in a broken envelope into an exception.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Awaitable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx2
from mistralai.client import Mistral
from mistralai.client.errors import MistralError

from nlicot.teacher.backends.base import Connection, Reply, Request, Transient
from nlicot.teacher.backends.chat_completions import fault_of, reply_of, response_formats
from nlicot.teacher.backends.openai import CONNECT_TIMEOUT_S, OpenAIBackend, fault_in, text_of

JOBS_PER_PAGE = 100
OVER = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
TIMEOUT_HOURS = 24
"""The server gives up a job after this time."""
NO_STATUS = 422
"""For an error line without a status: most likely the server could not read that request."""
_KEY = re.compile(r'"custom_id"\s*:\s*"([0-9a-f]{64})"')

_received: ContextVar[httpx2.Response | None] = ContextVar("_received")
"""The response to the current task's request; each task has a context of its own."""


async def _keep(response: httpx2.Response) -> None:
    _received.set(response)


class MistralBackend(OpenAIBackend):
    """Sends requests to Mistral's API."""

    name = "mistral"
    parameter_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(connection.timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=self._pool,
            event_hooks={"response": [_keep]},
            trust_env=False,
        )
        # With a key, even an empty one, the SDK does not look for one in the environment.
        self._sdk = Mistral(api_key=connection.api_key, server_url=self.server, async_client=http)

    def _chat(self, body: dict[str, Any]) -> Awaitable[httpx2.Response]:
        return self._response_to(self._sdk.chat.complete_async(**body))

    def _list_models(self) -> Awaitable[httpx2.Response]:
        return self._response_to(self._sdk.models.list_async())

    async def _response_to(self, call: Awaitable[Any]) -> httpx2.Response:
        """Return the HTTP response to a call of the SDK, even if the SDK cannot parse it."""
        _received.set(None)
        try:
            await call
        except (MistralError, ValueError):
            if _received.get() is None:
                raise
        response = _received.get()
        assert response is not None
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the server reports it; `errors` are those of the whole job, in one line."""

    id: str
    status: str
    metadata: Mapping[str, Any]
    output_file: str | None
    error_file: str | None
    errors: str
    num_succeeded: int


class MistralJobs(MistralBackend):
    """Mistral's API with files and jobs; every method raises a `Fault` if the server does not answer it."""

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, and return its id."""
        call = self._sdk.files.upload_async(file={"file_name": name, "content": content}, purpose="batch")
        return str(_json(await self._call(call))["id"])

    async def create(self, file_id: str, model: str, metadata: dict[str, str]) -> Job:
        """Create a job over an uploaded file. After a `Transient` it may exist all the same."""
        call = self._sdk.batch.jobs.create_async(
            input_files=[file_id],
            model=model,
            endpoint="/v1/chat/completions",
            metadata=metadata,
            timeout_hours=TIMEOUT_HOURS,
        )
        return _job(_json(await self._call(call)))

    async def get(self, job_id: str) -> Job | None:
        """Return a job; None if the server does not know it."""
        response = await self._call(self._sdk.batch.jobs.get_async(job_id=job_id), or_missing=True)
        return None if response.status_code == 404 else _job(_json(response))

    async def find(self, metadata: Mapping[str, str]) -> Job | None:
        """Return the job with this metadata, if there is one.

        The whole list is read and compared here: a filter that the server interprets differently would hide a
        job, and its requests would be paid for twice.
        """
        seen: set[str] = set()
        for page in itertools.count():
            call = self._sdk.batch.jobs.list_async(page=page, page_size=JOBS_PER_PAGE)
            jobs = [_job(fields) for fields in _json(await self._call(call)).get("data") or ()]
            for job in jobs:
                if metadata.items() <= job.metadata.items():
                    return job
            if seen.issuperset(job.id for job in jobs):  # a server may choose its own page size
                break
            seen.update(job.id for job in jobs)
        return None

    async def download(self, file_id: str) -> str:
        """Return a file's text; "" if the server no longer has it."""
        response = await self._call(self._sdk.files.download_async(file_id=file_id), or_missing=True)
        return "" if response.status_code == 404 else text_of(response)

    async def _call(self, call: Awaitable[Any], *, or_missing: bool = False) -> httpx2.Response:
        response = await self._response(self._response_to(call))
        if response.is_success or (or_missing and response.status_code == 404):
            return response
        raise fault_in(response)


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Transient("broken_envelope", "found no JSON object about a batch", raw=text_of(response))
    return found


def _job(fields: Mapping[str, Any]) -> Job:
    try:
        return Job(
            id=str(fields["id"]),
            status=str(fields["status"]),
            metadata=fields.get("metadata") or {},
            output_file=fields.get("output_file"),
            error_file=fields.get("error_file"),
            errors="; ".join(str(error["message"]) for error in fields.get("errors") or ()),
            num_succeeded=int(fields.get("succeeded_requests") or 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Transient("broken_envelope", f"found no batch job ({error!r})", raw=str(fields)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """The answer to one request of a batch: the status and body that it would have got outside of one."""

    status: int
    body: str

    def reply(self, latency_s: float) -> Reply:
        """Return the reply; raises a `Fault` if it is an error or has no text."""
        if self.status != 200:
            raise fault_of(self.status, {}, self.body)
        return reply_of(self.body, {}, latency_s)


def request_line(key: str, request: Request) -> str:
    """Render a request as a line of a batch's file; the model is a property of the job."""
    body = {"messages": request.turns(), **request.params, **response_formats(request)[0]}
    return json.dumps({"custom_id": key, "body": body}) + "\n"


def answers_of(text: str) -> Iterator[tuple[str, BatchAnswer]]:
    """Iterate over the answers in a file of results or errors, each with its request's key.

    >>> line = '{"custom_id": "k", "response": {"status_code": 400, "body": {"message": "too long"}}}'
    >>> list(answers_of(line))
    [('k', BatchAnswer(status=400, body='{"message": "too long"}'))]
    """
    for line in text.split("\n"):  # not `splitlines`: an answer may contain U+2028
        try:
            found = json.loads(line)
        except ValueError:
            key = _KEY.search(line)
            if key is not None:  # paid for: its text is salvaged if possible
                yield key[1], BatchAnswer(status=200, body=line)
            continue
        if isinstance(found, dict) and isinstance(found.get("custom_id"), str):
            yield found["custom_id"], _answer(found)


def _answer(line: Mapping[str, Any]) -> BatchAnswer:
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        status = response.get("status_code", 200)
        body = response.get("body") if response.get("body") is not None else error
    else:
        fields, body = error if isinstance(error, dict) else {}, error
        codes = [str(fields.get(name)) for name in ("status_code", "code")]
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), NO_STATUS)
    return BatchAnswer(
        status=status if isinstance(status, int) else NO_STATUS,
        body=body if isinstance(body, str) else json.dumps(body),
    )
