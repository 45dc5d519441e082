"""Mistral's batch API: half the price, and answers within hours.

Requests that arrive together become one job, and each waits for its line in the job's results. No request is
in two jobs at once, whatever kills the program: `ledger` records its batch first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from nlicot.teacher.backends.base import (
    Connection,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Reply,
    Request,
    Transient,
)
from nlicot.teacher.backends.mistral_batch.api import BatchAnswer, BatchApi, Job, answers_of, request_line
from nlicot.teacher.backends.mistral_batch.ledger import Batch, Ledger
from nlicot.teacher.engine.retry_policy import DEFAULT_POLICY, RetryPolicy

WRITE_CLOSED_AFTER_S = 1.0
TIMEOUT_HOURS = 24
"""The server gives up a job after this time."""
logger = logging.getLogger(__name__)
T = TypeVar("T")
Outcome = BatchAnswer | Fault


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    outcome: asyncio.Future[Outcome]


class MistralBatchBackend:
    """Answers requests through batch jobs of up to `connection.concurrency` requests that wait together.

    Batches are recorded in `batches/` under the journal's folder.

    Raises:
        DataError: the record of an earlier batch cannot be read.
    """

    name = "mistral-batch"

    def __init__(self, connection: Connection, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        timeout_s = max(connection.timeout_s, policy.batch_min_timeout_s)
        self._api = BatchApi(dataclasses.replace(connection, timeout_s=timeout_s))
        self.server = self._api.server
        self._ledger = Ledger(connection.journal_folder / "batches")
        self._max_requests, self._policy = connection.concurrency, policy
        self._waiting: dict[str, _Waiting] = {}
        self._gathered: list[str] = []
        self._came_early: dict[str, Outcome] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gathering: asyncio.TimerHandle | None = None
        self._closing_keys: asyncio.TimerHandle | None = None

    async def models(self) -> list[str] | None:
        """List the models that the server serves."""
        return await self._api.models()

    async def complete(self, request: Request) -> Reply:
        """Wait for the request's line in a batch: one that already holds it, or a new one."""
        key, started = request.key(), time.monotonic()
        outcome = self._came_early.pop(key, None)
        if outcome is None:
            outcome = await self._outcome_of(key, request)
        # Recorded later, in another turn of the event loop: first the caller must save the answer.
        self._ledger.close_key(key)
        if self._closing_keys is None:
            self._closing_keys = asyncio.get_running_loop().call_later(
                WRITE_CLOSED_AFTER_S, self._write_closed_keys
            )
        if isinstance(outcome, Fault):
            raise outcome
        return outcome.reply(time.monotonic() - started)

    def _write_closed_keys(self) -> None:
        self._closing_keys = None
        self._ledger.write_closed()

    async def close(self) -> None:
        """Stop waiting. Jobs continue on the server, and the next start finds them."""
        for timer in (self._gathering, self._closing_keys):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._api.close()
        self._ledger.write_closed()

    # ------------------------------------------------------------- gathering

    async def _outcome_of(self, key: str, request: Request) -> Outcome:
        assert key not in self._waiting, "the same request twice at once"
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting[key] = waiting
        try:
            batch = self._ledger.holding(key)
            if batch is None:
                self._gather(key)
            elif batch.name not in self._tasks:
                self._start(batch, self._resume(batch))
            return await waiting.outcome
        finally:
            del self._waiting[key]

    def _gather(self, key: str) -> None:
        self._gathered.append(key)
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if len(self._gathered) >= self._max_requests:
            self._submit()
        else:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(self._policy.batch_quiet_s, self._submit)

    def _submit(self) -> None:
        """Make batches of the gathered requests: one per model, since a job has only one."""
        self._gathering = None
        gathered, self._gathered = self._gathered, []
        by_model: dict[str, dict[str, Request]] = {}
        for key in gathered:
            if key in self._waiting:  # else the caller was cancelled
                request = self._waiting[key].request
                by_model.setdefault(request.model, {})[key] = request
        for model, requests in by_model.items():
            batch = self._ledger.draft(requests)
            self._start(batch, self._create(batch, model, requests))

    def _start(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
        """Work on a batch; an exception is passed on to every request that waits for it."""
        task = asyncio.create_task(work)
        self._tasks[batch.name] = task

        def on_end(task: asyncio.Task[None]) -> None:
            del self._tasks[batch.name]
            error = None if task.cancelled() else task.exception()
            if error is not None:
                for waiting in self._waiting_for(batch.open_keys):
                    waiting.outcome.set_exception(error)

        task.add_done_callback(on_end)

    def _waiting_for(self, keys: Iterable[str]) -> list[_Waiting]:
        found = [self._waiting[key] for key in keys if key in self._waiting]
        return [waiting for waiting in found if not waiting.outcome.done()]

    # ------------------------------------------------------------- one batch

    async def _create(self, batch: Batch, model: str, requests: dict[str, Request]) -> None:
        """Create a batch's job, unless the server has it: the record on this side may have been lost."""
        job = await self._retry(self._api.find, batch.metadata)
        if job is None:
            content = "".join(request_line(key, request) for key, request in requests.items()).encode()
            file_id = await self._retry(self._api.upload, f"{batch.name}.jsonl", content)
            batch.intended_at = time.time()
            self._ledger.save(batch)
            try:
                create = functools.partial(self._api.create, timeout_hours=TIMEOUT_HOURS)
                job = await self._retry(create, file_id, model, batch.metadata, on=RateLimited)
            except Fault as fault:
                if isinstance(fault, Transient) and not isinstance(fault, RateLimited):
                    # It may exist. It is looked up when its requests are sent again, so nothing is lost.
                    raise Transient(fault.kind, fault.message, raw=fault.raw) from fault
                self._ledger.forget(batch)
                raise
            logger.info("batch job %s: %d requests to %s", job.id, batch.num_requests, model)
        await self._deliver(batch, job.id)

    async def _resume(self, batch: Batch) -> None:
        """Continue with a batch of an earlier start, or one whose creation was cut off."""
        job_id, settle_s = batch.job_id, self._policy.batch_settle_s
        if job_id is None:
            job = await self._retry(self._api.find, batch.metadata)
            wait_s = min(batch.intended_at + settle_s - time.time(), settle_s)
            if job is None and wait_s > 0:
                await asyncio.sleep(wait_s)
                job = await self._retry(self._api.find, batch.metadata)
            if job is None:  # it was never created: its requests go into a new batch
                waiting = [key for key in batch.open_keys if key in self._waiting]
                self._ledger.forget(batch)
                for key in waiting:
                    self._gather(key)
                return
            job_id = job.id
        logger.info("batch job %s: found again, %d requests are open", job_id, len(batch.open_keys))
        await self._deliver(batch, job_id)

    async def _deliver(self, batch: Batch, job_id: str) -> None:
        """Wait until the job is over, and give every request of the batch its outcome."""
        if batch.job_id is None:
            batch.job_id = job_id
            self._ledger.save(batch)
        job = await self._wait_until_over(batch, job_id)
        answers: dict[str, BatchAnswer] = {}
        for file_id in (job.error_file, job.output_file):
            if file_id is not None:
                answers.update(answers_of(await self._retry(self._api.download, file_id)))
        num_good = sum(answer.status == 200 for answer in answers.values())
        # Answers first: five failures before any answer would end the run.
        for key in sorted(batch.open_keys, key=lambda key: key not in answers or answers[key].status != 200):
            outcome = answers.get(key) or _unanswered(job, num_good < job.num_succeeded)
            waiting = self._waiting_for([key])
            if waiting:
                waiting[0].outcome.set_result(outcome)
            else:
                self._came_early[key] = outcome

    async def _wait_until_over(self, batch: Batch, job_id: str) -> Job:
        pause_s, last_status = self._policy.batch_poll_s, ""
        while True:
            job = await self._retry(self._api.get, job_id)
            if job is None:
                raise Refused(
                    "unknown_batch_job",
                    f"the server does not know batch job {job_id}; if another workspace created it, use that "
                    f"workspace's key (or move {self._ledger.path(batch)} away to send its "
                    f"{len(batch.open_keys)} open requests again, and pay for them again)",
                )
            if job.is_over:
                logger.info("batch job %s: %s, %d answers", job_id, job.status, job.num_succeeded)
                return job
            if job.status != last_status:
                logger.info("batch job %s: %s", job_id, job.status)
                last_status = job.status
            await asyncio.sleep(pause_s)
            pause_s = self._longer(pause_s)

    async def _retry(
        self, exchange: Callable[..., Awaitable[T]], *args: Any, on: type[Transient] = Transient
    ) -> T:
        """Repeat an exchange while the server or the connection has problems: a batch takes hours anyway."""
        pause_s, num_attempts = self._policy.batch_poll_s, 0
        while True:
            try:
                return await exchange(*args)
            except on as fault:
                num_attempts += 1
                if num_attempts == self._policy.batch_max_attempts:
                    fault.possibly_paid = False  # the job's answers will be found again
                    raise
                wait_s = max(pause_s, min(fault.retry_after_s or 0.0, self._policy.batch_max_poll_s))
                logger.info("%s: %s; again in %.0f s", self.server, fault, wait_s)
            await asyncio.sleep(wait_s)
            pause_s = self._longer(pause_s)

    def _longer(self, pause_s: float) -> float:
        return min(self._policy.batch_poll_growth * pause_s, self._policy.batch_max_poll_s)


def _unanswered(job: Job, some_are_lost: bool) -> Fault:
    """Explain why a job that is over has no line for a request.

    Args:
        some_are_lost: the server counts more answers, all paid, than it returned.
    """
    kind = f"batch_{job.status.lower()}"
    message = f"batch job {job.id} ended as {job.status} without an answer"
    message += f": {job.errors}" if job.errors else ""
    if job.status in ("FAILED", "CANCELLED"):  # by its content, or by the user: a new job does not help
        return Rejected(kind, message, possibly_paid=some_are_lost)
    return Transient(kind, message, possibly_paid=some_are_lost)
