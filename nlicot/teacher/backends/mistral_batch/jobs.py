"""Mistral's files and batch jobs through the `mistralai` SDK, one exchange to a method.

When to create a job, and when to ask for it again, is `mistral_batch`'s to decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from nlicot.teacher.backends.base import Transient
from nlicot.teacher.backends.http.envelope import fault_of
from nlicot.teacher.backends.mistral import MistralBackend

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
OVER = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
JOBS_A_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the server tells it. `errors` are those of the job as a whole, in one line."""

    id: str
    status: str
    metadata: Mapping[str, Any]
    output_file: str | None
    error_file: str | None
    errors: str
    num_succeeded: int

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.status in OVER


class MistralJobs(MistralBackend):
    """Mistral's API with what batches need of it.

    Args:
        timeout_s: for each exchange, a batch's whole file too.
    """

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests, and return its id.

        Raises:
            Fault: the server did not take it.
        """
        file: Any = {"file_name": name, "content": content}
        response = await self._exchange(self._client.files.upload_async(file=file, purpose="batch"))
        return str(_json(response)["id"])

    async def create(
        self, *, file_id: str, model: str, metadata: Mapping[str, str], timeout_hours: int
    ) -> Job:
        """Create a job over an uploaded file. After a `Transient` it may exist all the same.

        Raises:
            Fault: the server did not say that it exists.
        """
        response = await self._exchange(
            self._client.batch.jobs.create_async(
                input_files=[file_id],
                model=model,
                endpoint=ENDPOINT,
                metadata=metadata,
                timeout_hours=timeout_hours,
            )
        )
        return _job(_json(response))

    async def get(self, job_id: str) -> Job | None:
        """How a job stands; None where the server does not know it.

        Raises:
            Fault: the server did not say.
        """
        response = await self._exchange(self._client.batch.jobs.get_async(job_id=job_id))
        return None if response.status_code == 404 else _job(_json(response))

    async def find(self, metadata: Mapping[str, str]) -> Job | None:
        """The job that carries `metadata`, if there is one.

        The list is read whole and compared here: a filter that a server understands otherwise would hide a
        job, and it would be paid for twice.

        Raises:
            Fault: the server did not say.
        """
        seen: set[str] = set()
        for page in itertools.count():
            response = await self._exchange(
                self._client.batch.jobs.list_async(page=page, page_size=JOBS_A_PAGE)
            )
            jobs = [_job(fields) for fields in _json(response).get("data") or ()]
            for job in jobs:
                if metadata.items() <= job.metadata.items():
                    return job
            if seen.issuperset(job.id for job in jobs):  # whatever a server takes for a whole page
                break
            seen.update(job.id for job in jobs)
        return None

    async def download(self, file_id: str) -> str | None:
        """A file's text; None where the server does not have it any more.

        Raises:
            Fault: the server did not send it.
        """
        response = await self._exchange(self._client.files.download_async(file_id=file_id))
        if response.status_code == 404:
            return None
        if not response.is_success:
            raise fault_of(response.status_code, response.headers, response.text)
        return response.content.decode("utf-8", "replace")


def _json(response: httpx2.Response) -> dict[str, Any]:
    if not response.is_success:
        raise fault_of(response.status_code, response.headers, response.text)
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Transient("broken_envelope", "found no JSON object about a batch", raw=response.text)
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
