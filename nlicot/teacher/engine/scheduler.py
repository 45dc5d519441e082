"""Runs a stage's tasks concurrently; each request is answered once, and its reply saved before it is parsed.

A task is a coroutine that sends requests through the `Ask` it is given. `Ask` looks into the journal first: a
task that runs again after a kill gets the same answers and only pays for new ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nlicot.errors import NoAnswers, TeacherRefused, TeacherStopped
from nlicot.records import Failure
from nlicot.teacher.backends.base import (
    Backend,
    BrokenEnvelope,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Reply,
    Request,
    Transient,
    writable,
)
from nlicot.teacher.engine.budget import Budget
from nlicot.teacher.engine.journal import Journal, Outcome, in_chunks
from nlicot.teacher.engine.rate_limiter import RateLimiter

TASKS_PER_LOOKUP = 512
TOKENS_PER_CHARACTER = 0.3
"""Estimate for pacing, until the reply gives the real number."""

Ask = Callable[[Request], Awaitable[Reply]]
run_log = logging.getLogger("nlicot.teacher.log")
"""Written to a run's log file only, since the terminal shows a progress bar."""


class Unanswered(Exception):
    """A request without a usable reply: its pair is listed as failed, and the next run tries again."""

    def __init__(self, fault: Fault, attempts: int) -> None:
        super().__init__(str(fault))
        self.fault, self.attempts = fault, attempts


class Interrupted(TeacherStopped):
    """Ctrl-C; answers to requests that were in flight are saved."""

    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A unit of a stage's work; `key` identifies its outcome in the journal."""

    key: str
    pair: str
    run: Callable[[Ask], Awaitable[Outcome]]


@dataclass(slots=True)
class Tally:
    """Counts of a run so far; `unanswered` holds the failure of each task whose request got no reply."""

    num_known: int = 0
    num_finished: int = 0
    num_correct: int = 0
    num_judged: int = 0
    num_failed: int = 0
    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, Failure] = field(default_factory=dict)

    def count(self, ok: bool, correct: bool | None) -> None:
        """Count a task's outcome."""
        self.num_finished += 1
        self.num_failed += not ok
        if correct is not None:
            self.num_judged += 1
            self.num_correct += correct


class Scheduler:
    """Runs tasks against one backend.

    Args:
        limiter: its concurrency and retry policy are used here as well.
        stage: recorded in failures.
        on_progress: called after each task.
        seed: seed of the jitter in pauses; answers do not depend on it.
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        limiter: RateLimiter,
        budget: Budget,
        *,
        stage: str,
        on_progress: Callable[[Tally, Budget], None] = lambda tally, budget: None,
        seed: int | None = None,
    ) -> None:
        self.tally = Tally()
        self._backend, self._journal, self._limiter, self._budget = backend, journal, limiter, budget
        self._stage, self._on_progress, self._random = stage, on_progress, random.Random(seed)
        self._policy = limiter.policy
        self._stop_reason: TeacherStopped | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[object] | None] = set()
        self._in_flight: dict[str, asyncio.Future[Reply]] = {}
        self._num_unanswered_at_start: int | None = 0  # None once a request was answered
        self._answered_earlier = False

    def stop(self, reason: TeacherStopped) -> None:
        """Send nothing more, and let requests in flight finish. The first reason counts."""
        self._stop_reason = self._stop_reason or reason
        for worker in self._workers:  # the others only wait for their turn or a pause
            if worker not in self._sending and worker is not asyncio.current_task():
                worker.cancel()

    async def run(self, tasks: Iterable[Task]) -> None:
        """Run those tasks that have no outcome yet; they are taken one by one, so memory stays constant.

        Raises:
            TeacherStopped: the run was stopped; the journal holds every answer that arrived.
        """
        self.tally = dataclasses.replace(
            self.tally, num_known=0, num_finished=0, num_correct=0, num_judged=0, num_failed=0
        )
        unfinished = self._unfinished(tasks)
        self._workers = [
            asyncio.create_task(self._work(unfinished)) for _ in range(self._limiter.concurrency)
        ]
        try:
            done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._journal.flush()
        for worker in done:
            if not worker.cancelled():
                worker.result()  # raises exceptions that are bugs
        if self._stop_reason is not None:
            raise self._stop_reason

    def _unfinished(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for chunk in in_chunks(tasks, TASKS_PER_LOOKUP):
            known = self._journal.statuses([task.key for task in chunk])
            self._answered_earlier = self._answered_earlier or any(ok for ok, _ in known.values())
            for task in chunk:
                if task.key in known:
                    self.tally.num_known += 1
                    self._count(*known[task.key])
                elif task.key in self.tally.unanswered:  # in an earlier phase; the next run tries again
                    self.tally.count(False, None)
                else:
                    yield task

    async def _work(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if self._stop_reason is not None:
                return
            await self._run_task(task)

    async def _run_task(self, task: Task) -> None:
        reply_keys: list[str] = []

        async def ask(request: Request) -> Reply:
            key = request.key()
            reply_keys.append(key)
            return await self._ask(request, key, task.pair)

        try:
            outcome = await task.run(ask)
            if not outcome.ok:
                outcome.rows[0]["reply_keys"] = reply_keys
                self.tally.faults[str(outcome.rows[0]["kind"])] += 1
                run_log.warning("%s: no usable answer: %s", task.pair, outcome.rows[0]["message"])
            self._journal.save_outcome(task.key, outcome)
        except TeacherStopped as reason:
            self.stop(reason)
        except Unanswered as unanswered:
            self._fail(task, unanswered)
        else:
            self._count(outcome.ok, outcome.correct)

    def _fail(self, task: Task, unanswered: Unanswered) -> None:
        fault, limit = unanswered.fault, self._policy.max_unanswered_at_start
        run_log.warning("%s: failed after %d attempts: %s", task.pair, unanswered.attempts, fault)
        self.tally.unanswered[task.key] = Failure(
            id=task.pair,
            stage=self._stage,
            kind=fault.kind,
            message=writable(fault.message),
            attempts=unanswered.attempts,
            raw=writable(fault.raw),
        )
        self._count(False, None)
        # When a run continues, the few requests that the server rejects come first: the rest may pass.
        known_to_be_rejected = self._answered_earlier and isinstance(fault, Rejected)
        if self._num_unanswered_at_start is not None and not known_to_be_rejected:
            self._num_unanswered_at_start += 1
            if self._num_unanswered_at_start == limit:
                self.stop(
                    NoAnswers(
                        f"{self._backend.server}: none of the first {limit} requests was answered: "
                        f"{fault.message}"
                    )
                )

    def _count(self, ok: bool, correct: bool | None) -> None:
        self.tally.count(ok, correct)
        self._on_progress(self.tally, self._budget)

    # ------------------------------------------------------------- one request

    async def _ask(self, request: Request, key: str, pair: str) -> Reply:
        """Return the reply: from the journal, after waiting for an equal request in flight, or by sending."""
        while (equal := self._in_flight.get(key)) is not None:
            await asyncio.wait([equal])
        reply = self._journal.reply(key)
        if reply is not None:
            return reply
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = answered
        try:
            return await self._send_until_answered(request, key, pair)
        finally:
            del self._in_flight[key]
            answered.cancel()

    async def _send_until_answered(self, request: Request, key: str, pair: str) -> Reply:
        policy, num_broken = self._policy, 0
        for attempt in range(1, policy.max_attempts + 1):
            pause_s = 0.0
            try:
                reply = await self._send(request, key, pair)
            except RateLimited as fault:
                self._limiter.slow_down(fault.retry_after_s)
                last: Fault = fault
            except Transient as fault:
                last, pause_s = fault, policy.pause_s(attempt, fault.retry_after_s, self._random)
            except BrokenEnvelope as fault:
                last, num_broken = fault, num_broken + 1
                if num_broken == policy.max_broken_replies:
                    raise Unanswered(fault, attempt) from fault
            except Rejected as fault:
                raise Unanswered(fault, attempt) from fault
            except Refused as fault:
                raise TeacherRefused(f"{self._backend.server}: {fault.message}") from fault
            else:
                self._num_unanswered_at_start = None
                return reply
            if self._stop_reason is not None:  # a stopped run does not wait for a pause
                raise self._stop_reason
            if attempt < policy.max_attempts:
                await asyncio.sleep(pause_s)
        raise Unanswered(last, policy.max_attempts) from last

    async def _send(self, request: Request, key: str, pair: str) -> Reply:
        """Make one attempt, recorded before and after.

        Raises:
            Fault: raised by the backend.
            TeacherStopped: the run is stopping; the request was not sent.
        """
        num_claimed = int(sum(len(message.content) for message in request.messages) * TOKENS_PER_CHARACTER)
        await self._limiter.admit(num_claimed)
        try:
            if self._stop_reason is not None:
                raise self._stop_reason
            reserved = self._budget.reserve(request)
            attempt = self._journal.start_attempt(key, request, pair, reserved)
            self._sending.add(asyncio.current_task())
            try:
                reply = await self._backend.complete(request)
            except Fault as fault:
                self._journal.save_fault(attempt, fault)
                self._budget.release(reserved, possibly_paid=fault.possibly_paid)
                self.tally.faults[fault.kind] += 1
                paid = ", possibly paid" if fault.possibly_paid else ""
                run_log.info("%s: %s%s (request %s)", pair, fault, paid, key[:12])
                raise
            except BaseException:  # cancelled: the reply is lost, and possibly paid
                self._budget.release(reserved, possibly_paid=True)
                raise
            finally:
                self._sending.discard(asyncio.current_task())
            self._journal.save_reply(key, reply, self._budget.settle(request, reserved, reply.usage))
        finally:
            self._limiter.release()
        self.tally.num_requests += 1
        num_used = num_claimed
        if reply.usage is not None:
            self.tally.prompt_tokens += reply.usage.prompt_tokens
            self.tally.completion_tokens += reply.usage.completion_tokens
            num_used = reply.usage.prompt_tokens + reply.usage.completion_tokens
        self._limiter.succeeded(reply.headers, num_claimed, num_used)
        return reply
