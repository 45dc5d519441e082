"""Mistral's files and batch jobs through its SDK: one exchange per method, and the lines of their files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from nlicot.teacher.backends.base import Reply, Request, Transient
from nlicot.teacher.backends.chat_completions import fault_of, reply_of, response_formats
from nlicot.teacher.backends.mistral import MistralBackend
from nlicot.teacher.backends.openai import text_of

JOBS_PER_PAGE = 100
NO_STATUS = 422
"""For an error line without a status: most likely the server could not read that request."""
_KEY = re.compile(r'"custom_id"\s*:\s*"([0-9a-f]{64})"')


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

    @property
    def is_over(self) -> bool:
        """True if the job will not change again."""
        return self.status in ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")


class BatchApi(MistralBackend):
    """Mistral's API with files and jobs. Every method raises a `Fault` if the server does not answer it."""

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, and return its id."""
        call = self._sdk.files.upload_async(file={"file_name": name, "content": content}, purpose="batch")
        return str(_json(await self._call(call))["id"])

    async def create(self, file_id: str, model: str, metadata: dict[str, str], *, timeout_hours: int) -> Job:
        """Create a job over an uploaded file. After a `Transient` it may exist all the same."""
        call = self._sdk.batch.jobs.create_async(
            input_files=[file_id],
            model=model,
            endpoint="/v1/chat/completions",
            metadata=metadata,
            timeout_hours=timeout_hours,
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
        raise fault_of(response.status_code, response.headers, text_of(response))


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
        """Return the reply.

        Raises:
            Fault: it is an error, or has no text.
        """
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
