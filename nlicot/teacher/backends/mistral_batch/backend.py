"""Mistral's batch API: half the price, and answers within hours.

Requests that arrive together become one job, and each waits for its line in the job's results. No request is
in two jobs at once, whatever kills the program: `batch_ledger` says where it is, and says so first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

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
from nlicot.teacher.backends.mistral_batch.jobs import Job, MistralJobs
from nlicot.teacher.backends.mistral_batch.ledger import MOST_REQUESTS, Batch, Ledger
from nlicot.teacher.backends.mistral_batch.lines import BatchAnswer, answers_of, request_line

TRANSFER_S = 600.0
"""For one exchange: a file of a full batch takes minutes on a slow line."""
MOST_TRIES = 10
GROWTH = 1.5
CLOSED_AFTER_S = 1.0
logger = logging.getLogger(__name__)
T = TypeVar("T")
Outcome = BatchAnswer | Fault


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    outcome: asyncio.Future[Outcome]


class MistralBatchBackend:
    """Answers requests through batch jobs, as many requests to a job as wait at the same time.

    Args:
        api_key: sent to this server alone, and kept nowhere.
        server_url: without `/v1`.
        folder: where the record of batches is kept, in `batches/`; that of the journal.
        timeout_s: for one exchange with the server; files get at least ten minutes.
        max_batch: most requests in a job.
        quiet_s: a job is created when no request has come for so long.
        poll_s, longest_poll_s: between two looks at a job, growing from the one to the other.
        settle_s: how long a job may take to show up in the server's list.
        timeout_hours: after which the server gives a job up.

    Raises:
        DataError: the record of an earlier batch cannot be read.
    """

    name = "mistral-batch"

    def __init__(
        self,
        api_key: str,
        server_url: str = "https://api.mistral.ai",
        *,
        folder: Path,
        timeout_s: float = 120.0,
        max_batch: int = MOST_REQUESTS,
        quiet_s: float = 2.0,
        poll_s: float = 5.0,
        longest_poll_s: float = 60.0,
        settle_s: float = 20.0,
        timeout_hours: int = 24,
    ) -> None:
        self._jobs = MistralJobs(api_key, server_url, timeout_s=max(timeout_s, TRANSFER_S))
        self.server = self._jobs.server
        self._ledger = Ledger(folder / "batches")
        self._max_batch, self._quiet_s, self._timeout_hours = max_batch, quiet_s, timeout_hours
        self._poll_s, self._longest_poll_s, self._settle_s = poll_s, longest_poll_s, settle_s
        self._waiting: dict[str, _Waiting] = {}
        self._gathered: list[str] = []
        self._came_early: dict[str, Outcome] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gathering: asyncio.TimerHandle | None = None
        self._closing_keys: asyncio.TimerHandle | None = None

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Build it for the registry."""
        return cls(
            connection.api_key,
            connection.server,
            folder=connection.journal_folder,
            timeout_s=connection.timeout_s,
            max_batch=connection.concurrency,
        )

    async def models(self) -> list[str] | None:
        """The names that the server lists; None where it has no list.

        Raises:
            Fault: it cannot be reached, or refuses.
        """
        return await self._jobs.models()

    async def complete(self, request: Request) -> Reply:
        """Wait for the request's line in a batch: one that holds it already, or a new one.

        Raises:
            Fault: no usable reply came.
        """
        key, started = request.key(), time.monotonic()
        outcome = self._came_early.pop(key, None)
        if outcome is None:
            outcome = await self._outcome_of(key, request)
        self._close_key(key)
        if isinstance(outcome, Fault):
            raise outcome
        return outcome.reply(time.monotonic() - started)

    async def close(self) -> None:
        """Stop waiting. Jobs go on at the server, and the next start finds them."""
        for timer in (self._gathering, self._closing_keys):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._jobs.close()
        self._ledger.write_closed()

    # ------------------------------------------------------------- one request

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

    def _close_key(self, key: str) -> None:
        """Note that a request is answered, but not before who asked has kept its answer.

        Who asked goes on in this turn of the event loop, and the note is written in a later one.
        """
        self._ledger.close_key(key)
        if self._closing_keys is None:
            self._closing_keys = asyncio.get_running_loop().call_later(
                CLOSED_AFTER_S, self._write_closed_keys
            )

    def _write_closed_keys(self) -> None:
        self._closing_keys = None
        self._ledger.write_closed()

    # ------------------------------------------------------------- gathering

    def _gather(self, key: str) -> None:
        self._gathered.append(key)
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if len(self._gathered) >= self._max_batch:
            self._send_off()
        else:
            self._gathering = asyncio.get_running_loop().call_later(self._quiet_s, self._send_off)

    def _send_off(self) -> None:
        """Make batches of what was gathered: one for each model, since a job has but one."""
        self._gathering = None
        gathered, self._gathered = self._gathered, []
        of_model: dict[str, dict[str, Request]] = {}
        for key in gathered:
            if key in self._waiting:  # who asked may have been cancelled
                request = self._waiting[key].request
                of_model.setdefault(request.model, {})[key] = request
        for model, requests in of_model.items():
            batch = self._ledger.draft(requests)
            self._start(batch, self._create(batch, model, requests))

    def _start(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
        """Work on a batch; whatever ends the work early is told to all who wait for it."""
        task = asyncio.create_task(work)
        self._tasks[batch.name] = task

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[batch.name]
            error = None if task.cancelled() else task.exception()
            for waiting in self._waiting_for(batch.open_keys) if error is not None else ():
                waiting.outcome.set_exception(error)  # type: ignore[arg-type]

        task.add_done_callback(ended)

    def _waiting_for(self, keys: Iterable[str]) -> list[_Waiting]:
        found = [self._waiting[key] for key in keys if key in self._waiting]
        return [waiting for waiting in found if not waiting.outcome.done()]

    # ------------------------------------------------------------- one batch

    async def _create(self, batch: Batch, model: str, requests: dict[str, Request]) -> None:
        """Create a batch's job, unless the server has it: this side's record may have been lost."""
        job = await self._patiently(lambda: self._jobs.find(batch.metadata))
        if job is None:
            content = "".join(request_line(key, request) for key, request in requests.items()).encode()
            file_id = await self._patiently(lambda: self._jobs.upload(f"{batch.name}.jsonl", content))
            batch.intended_at = time.time()
            self._ledger.keep(batch)
            try:
                job = await self._patiently(
                    lambda: self._jobs.create(
                        file_id=file_id,
                        model=model,
                        metadata=batch.metadata,
                        timeout_hours=self._timeout_hours,
                    ),
                    on=RateLimited,
                )
            except Fault as fault:
                if isinstance(fault, Transient) and not isinstance(fault, RateLimited):
                    # It may exist, and is looked for when its requests are asked again: nothing is lost.
                    raise Transient(fault.kind, fault.message, raw=fault.raw) from fault
                self._ledger.forget(batch)
                raise
            logger.info("batch job %s: %d requests to %s", job.id, batch.num_requests, model)
        await self._see_through(batch, job.id)

    async def _resume(self, batch: Batch) -> None:
        """Go on with a batch of an earlier start, or one whose creation was cut off."""
        job_id = batch.job_id
        if job_id is None:
            job = await self._found_again(batch)
            if job is None:
                waiting = [key for key in batch.open_keys if key in self._waiting]
                self._ledger.forget(batch)
                for key in waiting:
                    self._gather(key)
                return
            job_id = job.id
        logger.info("batch job %s: found again, %d requests are open", job_id, len(batch.open_keys))
        await self._see_through(batch, job_id)

    async def _found_again(self, batch: Batch) -> Job | None:
        """The job of a batch whose id was never noted; None once it is sure that there is none."""
        job = await self._patiently(lambda: self._jobs.find(batch.metadata))
        wait_s = min(batch.intended_at + self._settle_s - time.time(), self._settle_s)
        if job is None and wait_s > 0:
            await asyncio.sleep(wait_s)
            job = await self._patiently(lambda: self._jobs.find(batch.metadata))
        return job

    async def _see_through(self, batch: Batch, job_id: str) -> None:
        if batch.job_id is None:
            batch.job_id = job_id
            self._ledger.keep(batch)
        job = await self._over(batch, job_id)
        outcomes = await self._outcomes(batch, job)
        # Answers first: five failures before any answer would end the run.
        for key in sorted(outcomes, key=lambda key: not _is_answer(outcomes[key])):
            waiting = self._waiting_for([key])
            if waiting:
                waiting[0].outcome.set_result(outcomes[key])
            else:
                self._came_early[key] = outcomes[key]

    async def _over(self, batch: Batch, job_id: str) -> Job:
        pause_s, shown = self._poll_s, ""
        while True:
            job = await self._patiently(lambda: self._jobs.get(job_id))
            if job is None:
                raise Refused(
                    "unknown_batch_job",
                    f"batch job {job_id} is not known to the server; with the key of the workspace that "
                    f"created it, it goes on (move {self._ledger.path(batch)} away to pay for its "
                    f"{len(batch.open_keys)} open requests anew)",
                )
            if job.is_over:
                logger.info("batch job %s: %s, %d answers", job_id, job.status, job.num_succeeded)
                return job
            if job.status != shown:
                logger.info("batch job %s: %s", job_id, job.status)
                shown = job.status
            await asyncio.sleep(pause_s)
            pause_s = min(GROWTH * pause_s, self._longest_poll_s)

    async def _outcomes(self, batch: Batch, job: Job) -> dict[str, Outcome]:
        """What became of each open request of a job that is over."""
        answers: dict[str, BatchAnswer] = {}
        for file_id in (job.error_file, job.output_file):
            if file_id is not None:
                answers.update(answers_of(await self._file(file_id) or ""))
        num_good = sum(answer.status == 200 for answer in answers.values())
        return {
            key: answers[key] if key in answers else _unanswered(job, num_good < job.num_succeeded)
            for key in batch.open_keys
        }

    async def _file(self, file_id: str) -> str | None:
        return await self._patiently(lambda: self._jobs.download(file_id))

    async def _patiently(self, exchange: Callable[[], Awaitable[T]], *, on: type[Transient] = Transient) -> T:
        """Repeat an exchange while the server or the connection is in trouble: a batch takes hours anyway."""
        pause_s, num_tries = self._poll_s, 0
        while True:
            try:
                return await exchange()
            except on as fault:
                num_tries += 1
                if num_tries == MOST_TRIES:
                    fault.possibly_paid = False  # what the job answers is found again
                    raise
                wait_s = max(pause_s, min(fault.retry_after_s or 0.0, self._longest_poll_s))
                logger.info("%s: %s; again in %.0f s", self.server, fault, wait_s)
            await asyncio.sleep(wait_s)
            pause_s = min(GROWTH * pause_s, self._longest_poll_s)


def _is_answer(outcome: Outcome) -> bool:
    return isinstance(outcome, BatchAnswer) and outcome.status == 200


def _unanswered(job: Job, some_are_lost: bool) -> Fault:
    """Why a job that is over has no line for a request.

    Args:
        some_are_lost: the server counts more answers, all paid, than it gave.
    """
    told = f"batch job {job.id} ended as {job.status} without an answer"
    told += f": {job.errors}" if job.errors else ""
    if job.status in ("FAILED", "CANCELLED"):  # by its content, or by a person: no new job mends that
        return Rejected(f"batch_{job.status.lower()}", told, possibly_paid=some_are_lost)
    return Transient(f"batch_{job.status.lower()}", told, possibly_paid=some_are_lost)
