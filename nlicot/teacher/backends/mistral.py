"""Mistral's API through the `mistralai` SDK: chat completions, and batches at half the price within hours.

The SDK builds and sends requests. The HTTP response is read as that of any other server, because the SDK
turns a paid answer in a broken envelope into an exception.

Requests that arrive together become one batch job, and each waits for its line in the job's results. No
request is in two jobs at once, whatever kills the program: a file per batch is written before its job is
created, and again once the job's id is known. A job whose id was not saved is found by its metadata.
"""

import asyncio
import dataclasses
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import httpx2
from mistralai.client import Mistral
from mistralai.client.errors import MistralError
from mistralai.client.models import ChatCompletionRequest
from pydantic import ValidationError

from nlicot.data.atomic_write import write_json
from nlicot.data.rows import shown
from nlicot.errors import ConfigError, DataError
from nlicot.servers.faults import (
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    fault_in,
    fault_of,
    parsed,
    status_of_error,
    text_of,
)
from nlicot.servers.openai_server import CONNECT_TIMEOUT_S
from nlicot.teacher.backends import openai
from nlicot.teacher.backends.base import Connection, Reply, Request
from nlicot.teacher.engine.rate_limiter import DEFAULT_POLICY, RetryPolicy

T = TypeVar("T")
logger = logging.getLogger(__name__)
JOBS_PER_PAGE = 100
OVER = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
NO_STATUS = 422  # for an error line without a status: most likely the server could not read that request
WRITE_CLOSED_AFTER_S = 1.0
_KEY = re.compile(r'"custom_id"\s*:\s*"([0-9a-f]{64})"')

# The response to the current task's request; each task has a context of its own.
_received: ContextVar[httpx2.Response | None] = ContextVar("_received")


async def _keep(response: httpx2.Response) -> None:
    _received.set(response)


class MistralBackend(openai.OpenAIBackend):
    """Sends requests to Mistral's API."""

    name = "mistral"
    parameter_names: ClassVar[Mapping[str, str]] = {}
    other_token_field = None  # the SDK has none

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(connection.timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=self._server.pool,
            event_hooks={"response": [_keep]},
            trust_env=False,
        )
        # With a key, even an empty one, the SDK does not look for one in the environment.
        self._sdk = Mistral(api_key=connection.api_key, server_url=self.server, async_client=http)

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> None:
        """Refuse fields that the SDK cannot send; raises `ConfigError`."""
        known = ChatCompletionRequest.model_fields
        if unknown := ", ".join(name for name in fields if name not in known):
            others = "or --backend openai --server_url https://api.mistral.ai, which sends any field"
            expected = f"expected one that the mistralai SDK sends: {', '.join(known)}"
            raise ConfigError(f"--request_field: found {unknown}, {expected} ({others})")
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            ChatCompletionRequest(model="", messages=[], **given)
        except ValidationError as error:
            first = error.errors()[0]
            found = f"found {shown(first['input'])}, the mistralai SDK says: {first['msg']}"
            raise ConfigError(f"--request_field {first['loc'][0]}: {found}") from None

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
    """A job as the server reports it."""

    id: str
    status: str
    metadata: Mapping[str, Any]
    output_file: str | None
    error_file: str | None
    errors: str  # those of the whole job, in one line
    num_succeeded: int


def _json(response: httpx2.Response) -> dict[str, Any]:
    text = text_of(response)
    found = parsed(text)
    if (status := status_of_error(found)) is not None:
        raise fault_of(status, response.headers, text)
    if not isinstance(found, dict):
        raise Transient("broken_envelope", "found no JSON object about a batch", raw=text)
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


class BatchAnswer(NamedTuple):
    """The answer to one request of a batch: the status and body that it would have got outside of one."""

    status: int
    body: str

    @property
    def is_fault(self) -> bool:
        """Return whether it is an error, in a 200 or not."""
        return self.status != 200 or status_of_error(parsed(self.body)) is not None

    def reply(self, latency_s: float) -> Reply:
        """Return the reply; raises a `Fault` if it is an error or has no text."""
        if self.status != 200:
            raise fault_of(self.status, {}, self.body)
        return openai.reply_of(self.body, {}, latency_s)


def answers_of(text: str) -> Iterator[tuple[str, BatchAnswer]]:
    """Iterate over the answers in a file of results or errors, each with its request's key."""
    for line in text.split("\n"):  # not `splitlines`: an answer may contain U+2028
        try:
            found = json.loads(line)
        except ValueError:
            if key := _KEY.search(line):  # paid for: its text is salvaged if possible
                yield key[1], BatchAnswer(status=200, body=line)
            continue
        if isinstance(found, dict) and isinstance(found.get("custom_id"), str):
            yield found["custom_id"], _answer(found)


def _answer(line: Mapping[str, Any]) -> BatchAnswer:
    response, body = line.get("response"), None
    status: Any = NO_STATUS
    if isinstance(response, dict):
        status, body = response.get("status_code", 200), response.get("body")
    if body is None:
        body = {"error": line.get("error")}
        if status in (200, NO_STATUS):
            status = status_of_error(body, status) or status
    return BatchAnswer(
        status=status if isinstance(status, int) else NO_STATUS,
        body=body if isinstance(body, str) else json.dumps(body),
    )


AnswerOrFault = BatchAnswer | Fault


@dataclass(slots=True, kw_only=True)
class _Batch:
    """The requests of one job."""

    fingerprint: str
    attempt: int  # counts earlier batches of exactly these requests, such as one that expired
    num_requests: int
    open_keys: set[str]  # those whose answers were not delivered yet
    intended_at: float = 0.0  # from when the job may exist
    job_id: str | None = None

    @property
    def name(self) -> str:
        return f"{self.fingerprint[:32]}-{self.attempt}"

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata by which its job is found."""
        return {"nlicot_fingerprint": self.fingerprint, "nlicot_attempt": str(self.attempt)}


class _Ledger:
    """The batches of one folder; `holding` maps each open request to its batch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.holding: dict[str, _Batch] = {}
        self._unwritten: dict[str, _Batch] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                batch = _Batch(**(fields | {"open_keys": set(fields["open_keys"])}))
            except (OSError, ValueError, TypeError, KeyError) as error:
                message = f"not a record of a batch ({error}); move it away to send its requests again"
                raise DataError(message, path=path) from None
            self.holding.update(dict.fromkeys(batch.open_keys, batch))

    def path(self, batch: _Batch) -> Path:
        return self._folder / f"{batch.name}.json"

    def draft(self, keys: Iterable[str]) -> _Batch:
        """Make a batch of these requests; it is recorded only once it is saved."""
        keys = sorted(keys)
        fingerprint = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        batch = _Batch(fingerprint=fingerprint, attempt=0, num_requests=len(keys), open_keys=set(keys))
        while self.path(batch).exists():
            batch.attempt += 1
        return batch

    def save(self, batch: _Batch) -> None:
        self.holding.update(dict.fromkeys(batch.open_keys, batch))
        fields = {name: getattr(batch, name) for name in _Batch.__slots__}
        write_json(self.path(batch), fields | {"open_keys": sorted(batch.open_keys)})

    def forget(self, batch: _Batch) -> None:
        """Delete a batch whose job was never created."""
        for key in batch.open_keys:
            self.holding.pop(key, None)
        self._unwritten.pop(batch.name, None)
        self.path(batch).unlink(missing_ok=True)

    def close_key(self, key: str) -> None:
        """Note that a request's answer was delivered; `write_closed` saves it."""
        if (batch := self.holding.pop(key, None)) is not None:
            batch.open_keys.discard(key)
            self._unwritten[batch.name] = batch

    def write_closed(self) -> None:
        while self._unwritten:
            self.save(self._unwritten.popitem()[1])


class MistralBatchBackend(MistralBackend):
    """Answers requests through batch jobs of up to `connection.concurrency` requests that wait together."""

    name = "mistral-batch"
    check_fields = staticmethod(openai.OpenAIBackend.check_fields)  # a batch file may hold any field

    def __init__(self, connection: Connection, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        timeout_s = max(connection.timeout_s, policy.batch_min_timeout_s)
        super().__init__(dataclasses.replace(connection, timeout_s=timeout_s))
        self._ledger = _Ledger(connection.journal_folder / "batches")
        self._max_requests, self._policy = connection.concurrency, policy
        self._waiting: dict[str, tuple[Request, asyncio.Future[AnswerOrFault]]] = {}
        self._gathered: list[str] = []
        self._came_early: dict[str, AnswerOrFault] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gathering: asyncio.TimerHandle | None = None
        self._closing_keys: asyncio.TimerHandle | None = None

    async def complete(self, request: Request) -> Reply:
        """Wait for the request's line in a batch: one that already holds it, or a new one."""
        key, started = request.key(), time.monotonic()
        outcome = self._came_early.pop(key, None) or await self._outcome_of(key, request)
        # Recorded later, in another turn of the event loop: first the caller must save the answer.
        self._ledger.close_key(key)
        if self._closing_keys is None:
            loop = asyncio.get_running_loop()
            self._closing_keys = loop.call_later(WRITE_CLOSED_AFTER_S, self._write_closed_keys)
        if isinstance(outcome, Fault):
            raise outcome
        return outcome.reply(time.monotonic() - started)

    def _write_closed_keys(self) -> None:
        self._closing_keys = None
        self._ledger.write_closed()

    async def close(self) -> None:
        """Stop waiting. Jobs continue on the server, and the next start finds them."""
        tasks = list(self._tasks.values())
        for pending in (self._gathering, self._closing_keys, *tasks):
            if pending is not None:
                pending.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()
        self._ledger.write_closed()

    async def _outcome_of(self, key: str, request: Request) -> AnswerOrFault:
        assert key not in self._waiting, "the same request twice at once"
        outcome: asyncio.Future[AnswerOrFault] = asyncio.get_running_loop().create_future()
        self._waiting[key] = request, outcome
        try:
            if (batch := self._ledger.holding.get(key)) is None:
                self._gather(key)
            elif batch.name not in self._tasks:
                self._start(batch, self._resume(batch))
            return await outcome
        finally:
            del self._waiting[key]

    def _gather(self, key: str) -> None:
        self._gathered.append(key)
        if self._gathering is not None:
            self._gathering.cancel()
        if len(self._gathered) >= self._max_requests:
            self._submit()
        else:
            self._gathering = asyncio.get_running_loop().call_later(self._policy.batch_quiet_s, self._submit)

    def _submit(self) -> None:
        """Make batches of the gathered requests: one per model, since a job has only one."""
        self._gathering = None
        gathered, self._gathered = self._gathered, []
        by_model: dict[str, dict[str, Request]] = {}
        for key in filter(self._waiting.__contains__, gathered):  # else the caller was cancelled
            request = self._waiting[key][0]
            by_model.setdefault(request.model, {})[key] = request
        for model, requests in by_model.items():
            batch = self._ledger.draft(requests)
            self._start(batch, self._create(batch, model, requests))

    def _start(self, batch: _Batch, work: Coroutine[Any, Any, None]) -> None:
        """Work on a batch; an exception is passed on to every request that waits for it."""
        task = self._tasks[batch.name] = asyncio.create_task(work)

        def on_end(task: asyncio.Task[None]) -> None:
            del self._tasks[batch.name]
            if not task.cancelled() and (error := task.exception()) is not None:
                for key in batch.open_keys & self._waiting.keys():
                    if not self._waiting[key][1].done():
                        self._waiting[key][1].set_exception(error)

        task.add_done_callback(on_end)

    async def _create(self, batch: _Batch, model: str, requests: dict[str, Request]) -> None:
        """Create a batch's job, unless the server has it: the record on this side may have been lost."""
        if (job := await self._retry(self._find_job, batch.metadata)) is None:
            content = ""
            for key, request in requests.items():
                body = self._body(request, openai.response_formats(request)[0])
                del body["model"]  # the job has it
                content += json.dumps({"custom_id": key, "body": body}) + "\n"
            file_id = await self._retry(self._upload, f"{batch.name}.jsonl", content.encode())
            batch.intended_at = time.time()
            self._ledger.save(batch)
            try:
                job = await self._retry(self._create_job, file_id, model, batch.metadata, on=RateLimited)
            except Fault as fault:
                if isinstance(fault, Transient) and not isinstance(fault, RateLimited):
                    # It may exist. It is looked up when its requests are sent again, so nothing is lost.
                    raise Transient(fault.kind, fault.message, raw=fault.raw) from fault
                self._ledger.forget(batch)
                raise
            logger.info("batch job %s: %d requests to %s", job.id, batch.num_requests, model)
        await self._deliver(batch, job.id)

    async def _resume(self, batch: _Batch) -> None:
        """Continue with a batch of an earlier start, or one whose creation was cut off."""
        job_id, settle_s = batch.job_id, self._policy.batch_settle_s
        if job_id is None:
            job = await self._retry(self._find_job, batch.metadata)
            wait_s = min(batch.intended_at + settle_s - time.time(), settle_s)
            if job is None and wait_s > 0:
                await asyncio.sleep(wait_s)
                job = await self._retry(self._find_job, batch.metadata)
            if job is None:  # it was never created: its requests go into a new batch
                waiting = [key for key in batch.open_keys if key in self._waiting]
                self._ledger.forget(batch)
                for key in waiting:
                    self._gather(key)
                return
            job_id = job.id
        logger.info("batch job %s: found again, %d requests are open", job_id, len(batch.open_keys))
        await self._deliver(batch, job_id)

    async def _deliver(self, batch: _Batch, job_id: str) -> None:
        """Wait until the job is over, and give every request of the batch its outcome."""
        if batch.job_id is None:
            batch.job_id = job_id
            self._ledger.save(batch)
        job = await self._wait_until_over(batch, job_id)
        answers: dict[str, BatchAnswer] = {}
        for file_id in (job.error_file, job.output_file):
            if file_id is not None:
                answers.update(answers_of(await self._retry(self._download, file_id)))
        num_good = sum(answer.status == 200 for answer in answers.values())
        # Answers first: five failures before any answer would end the run.
        for key in sorted(batch.open_keys, key=lambda key: key not in answers or answers[key].is_fault):
            outcome = answers.get(key) or _unanswered(job, num_good < job.num_succeeded)
            if key in self._waiting and not self._waiting[key][1].done():
                self._waiting[key][1].set_result(outcome)
            else:
                self._came_early[key] = outcome

    async def _wait_until_over(self, batch: _Batch, job_id: str) -> Job:
        last_status, pauses = "", self._pauses()
        while True:
            if (job := await self._retry(self._get_job, job_id)) is None:
                message = (
                    f"the server does not know batch job {job_id}; if another workspace created it, use that "
                    f"workspace's key (or move {self._ledger.path(batch)} away to send its "
                    f"{len(batch.open_keys)} open requests again, and pay for them again)"
                )
                raise Refused("unknown_batch_job", message)
            if job.status in OVER:
                logger.info("batch job %s: %s, %d answers", job_id, job.status, job.num_succeeded)
                return job
            if job.status != last_status:
                logger.info("batch job %s: %s", job_id, job.status)
            last_status = job.status
            await asyncio.sleep(next(pauses))

    async def _retry(
        self, exchange: Callable[..., Awaitable[T]], *args: Any, on: type[Transient] = Transient
    ) -> T:
        """Repeat an exchange while the server or the connection has problems: a batch takes hours anyway."""
        for attempt, pause_s in enumerate(self._pauses(), 1):
            try:
                return await exchange(*args)
            except on as fault:
                if attempt == self._policy.batch_max_attempts:
                    fault.possibly_paid = False  # the job's answers will be found again
                    raise
                wait_s = max(pause_s, min(fault.retry_after_s or 0.0, self._policy.batch_max_poll_s))
                logger.info("%s: %s; again in %.0f s", self.server, fault, wait_s)
            await asyncio.sleep(wait_s)
        raise AssertionError("pauses never end")

    def _pauses(self) -> Iterator[float]:
        pause_s = self._policy.batch_poll_s
        while True:
            yield pause_s
            pause_s = min(self._policy.batch_poll_growth * pause_s, self._policy.batch_max_poll_s)

    async def _upload(self, name: str, content: bytes) -> str:
        call = self._sdk.files.upload_async(file={"file_name": name, "content": content}, purpose="batch")
        fields = _json(await self._call(call))
        if (file_id := fields.get("id")) is None:
            raise Transient("broken_envelope", "found no id of the uploaded file", raw=str(fields))
        return str(file_id)

    async def _create_job(self, file_id: str, model: str, metadata: dict[str, str]) -> Job:
        """Create a job over an uploaded file. After a `Transient` it may exist all the same."""
        call = self._sdk.batch.jobs.create_async(
            input_files=[file_id],
            model=model,
            endpoint="/v1/chat/completions",
            metadata=metadata,
            timeout_hours=24,  # the server gives up a job after this time
        )
        return _job(_json(await self._call(call)))

    async def _get_job(self, job_id: str) -> Job | None:
        response = await self._call(self._sdk.batch.jobs.get_async(job_id=job_id), or_missing=True)
        return None if response.status_code == 404 else _job(_json(response))

    async def _find_job(self, metadata: Mapping[str, str]) -> Job | None:
        # The whole list is read and compared here: a filter that the server interprets differently would hide
        # a job, and its requests would be paid for twice.
        seen: set[str] = set()
        for page in itertools.count():
            call = self._sdk.batch.jobs.list_async(page=page, page_size=JOBS_PER_PAGE)
            jobs = [_job(fields) for fields in _json(await self._call(call)).get("data") or ()]
            for job in jobs:
                if metadata.items() <= job.metadata.items():
                    return job
            if seen.issuperset(job.id for job in jobs):  # a server may choose its own page size
                return None
            seen.update(job.id for job in jobs)
        raise AssertionError("pages never end")

    async def _download(self, file_id: str) -> str:
        """Return a file's text; "" if the server does not have it any more."""
        response = await self._call(self._sdk.files.download_async(file_id=file_id), or_missing=True)
        return "" if response.status_code == 404 else text_of(response)

    async def _call(self, call: Awaitable[Any], *, or_missing: bool = False) -> httpx2.Response:
        response = await self._server.response(self._response_to(call))
        if response.is_success or (or_missing and response.status_code == 404):
            return response
        raise fault_in(response)


def _unanswered(job: Job, some_are_lost: bool) -> Fault:
    """Explain why a job has no line for a request; `some_are_lost`: the server counts more paid answers."""
    message = f"batch job {job.id} ended as {job.status} without an answer"
    message += f": {job.errors}" if job.errors else ""
    # By its content, or by the user: a new job does not help.
    fault = Rejected if job.status in ("FAILED", "CANCELLED") else Transient
    return fault(f"batch_{job.status.lower()}", message, possibly_paid=some_are_lost)
