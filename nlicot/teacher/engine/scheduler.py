"""Runs a stage's tasks: many at once, politely, each answer asked for once and kept before it is read.

A task is a coroutine that asks, reads the answer and asks again, through `Scheduler.ask`. Asking looks into
the journal first, so a task that is run again after a kill walks the same way over the same answers and
only pays for what is new.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from nlicot.data.streaming import in_chunks
from nlicot.errors import NoAnswers, TeacherRefused, TeacherStopped
from nlicot.records import Failure, Usage
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
from nlicot.teacher.engine.journal import Journal, Outcome
from nlicot.teacher.engine.rate_limiter import RateLimiter

MOST_ATTEMPTS = 6
MOST_BROKEN = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
UNANSWERED_AT_START = 5
LOOKED_UP_AT_ONCE = 512
TOKENS_A_BYTE = 0.3
"""For pacing only, until the reply says how many there were."""

Ask = Callable[[Request], Awaitable[Reply]]
run_log = logging.getLogger("nlicot.teacher.log")
"""What goes into a run's log file, and not on the terminal, where a progress bar stands."""


class Unanswered(Exception):
    """A request that found no usable reply; its pair is written down as failed, and asked anew next time."""

    def __init__(self, fault: Fault, attempts: int) -> None:
        super().__init__(str(fault))
        self.fault, self.attempts = fault, attempts


class Interrupted(TeacherStopped):
    """Ctrl-C: what was in flight has come in, and is kept."""

    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One unit of a stage's work.

    `key` names its outcome in the journal; `run` does it, asking through what it is given.
    """

    key: str
    pair: str
    sample: int
    run: Callable[[Ask], Awaitable[Outcome]]


@dataclass(slots=True)
class Tally:
    """What a run has done so far; `failures` holds the last words of those that found no reply."""

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


class ProgressListener(Protocol):
    """Something that is told whenever the tally has moved; the progress bar."""

    def start(self) -> None:
        """Called once, before the first request."""
        ...

    def update(self, tally: Tally, budget: Budget) -> None:
        """Called after each task."""
        ...


class Scheduler:
    """Runs tasks against one backend.

    Args:
        stage: its name, for failures.
        seed: of the pauses' jitter alone; answers do not depend on it.
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        limiter: RateLimiter,
        budget: Budget,
        *,
        stage: str,
        concurrency: int,
        listener: ProgressListener | None = None,
        seed: int | None = None,
    ) -> None:
        self.backend, self.journal, self.limiter, self.budget = backend, journal, limiter, budget
        self.stage, self.concurrency, self.listener = stage, concurrency, listener
        self.tally = Tally()
        self._random = random.Random(seed)
        self._stopped_by: TeacherStopped | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[object]] = set()
        self._asking: dict[str, asyncio.Future[Reply]] = {}
        self._num_unanswered_at_start: int | None = 0
        self._answered_before = False

    def stop(self, reason: TeacherStopped) -> None:
        """Send nothing more; what is in flight still comes in. The first reason counts."""
        self._stopped_by = self._stopped_by or reason
        for worker in self._workers:  # those that only wait for their turn need not wait any longer
            if worker not in self._sending and worker is not asyncio.current_task():
                worker.cancel()

    async def run(self, tasks: Iterable[Task]) -> None:
        """Run those tasks that have no outcome yet, at most `concurrency` at once.

        Memory does not grow with their number: they are taken one by one.

        Raises:
            TeacherStopped: the run was stopped; the journal holds all that came in.
        """
        self.tally = dataclasses.replace(
            self.tally, num_known=0, num_finished=0, num_correct=0, num_judged=0, num_failed=0
        )
        unfinished = self._unfinished(tasks)
        self._workers = [asyncio.create_task(self._work(unfinished)) for _ in range(self.concurrency)]
        try:
            done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self.journal.flush()
        for worker in done:
            if not worker.cancelled():
                worker.result()  # raises what is a bug of ours
        if self._stopped_by is not None:
            raise self._stopped_by

    def _unfinished(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for chunk in in_chunks(tasks, LOOKED_UP_AT_ONCE):
            known = self.journal.statuses([task.key for task in chunk])
            self._answered_before = self._answered_before or any(ok for ok, _ in known.values())
            for task in chunk:
                if task.key in known:
                    self.tally.num_known += 1
                    self.tally.count(*known[task.key])
                    self._tell()
                elif task.key in self.tally.unanswered:  # in an earlier phase; the next run asks again
                    self.tally.count(False, None)
                else:
                    yield task

    async def _work(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if self._stopped_by is not None:
                return
            await self._finish(task)

    async def _finish(self, task: Task) -> None:
        reply_keys: list[str] = []

        async def ask(request: Request) -> Reply:
            key = request.key()
            reply_keys.append(key)
            return await self._ask(request, key, task.pair)

        try:
            final = await task.run(ask)
            if not final.ok:
                final.rows[0]["reply_keys"] = reply_keys
                self.tally.faults[str(final.rows[0]["kind"])] += 1
                run_log.warning("%s: no usable answer: %s", task.pair, final.rows[0]["message"])
            self.journal.save_outcome(task.key, final)
        except TeacherStopped as reason:
            self.stop(reason)
            return
        except Unanswered as unanswered:
            self._fail(task, unanswered)
            return
        self.tally.count(final.ok, final.correct)
        self._tell()

    def _fail(self, task: Task, unanswered: Unanswered) -> None:
        fault = unanswered.fault
        run_log.warning("%s: given up after %d attempts: %s", task.pair, unanswered.attempts, fault)
        self.tally.unanswered[task.key] = Failure(
            id=task.pair,
            stage=self.stage,
            kind=fault.kind,
            message=writable(fault.message),
            attempts=unanswered.attempts,
            raw=writable(fault.raw),
        )
        self.tally.count(False, None)
        self._tell()
        # The few that a server rejects come first when a run goes on, and say nothing of the others.
        if self._num_unanswered_at_start is not None and not (
            self._answered_before and isinstance(fault, Rejected)
        ):
            self._num_unanswered_at_start += 1
            if self._num_unanswered_at_start == UNANSWERED_AT_START:
                self.stop(
                    NoAnswers(
                        f"{self.backend.server}: the first {UNANSWERED_AT_START} requests stayed without an "
                        f"answer: {fault.message}"
                    )
                )

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener.update(self.tally, self.budget)

    # ------------------------------------------------------------- one request

    async def _ask(self, request: Request, key: str, pair: str) -> Reply:
        """The reply to a request: from the journal, from an equal one in flight, or from the server."""
        while (twin := self._asking.get(key)) is not None:
            await asyncio.wait([twin])
        reply = self.journal.reply(key)
        if reply is not None:
            return reply
        asked: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asking[key] = asked
        try:
            return await self._send_until_answered(request, key, pair)
        finally:
            del self._asking[key]
            asked.cancel()

    async def _send_until_answered(self, request: Request, key: str, pair: str) -> Reply:
        num_broken = 0
        for attempt in range(1, MOST_ATTEMPTS + 1):
            pause_s = 0.0
            try:
                reply = await self._send(request, key, pair)
            except RateLimited as fault:
                self.limiter.slow_down(fault.retry_after_s)
                last: Fault = fault
            except Transient as fault:
                last, pause_s = fault, self._pause_s(attempt, fault)
            except BrokenEnvelope as fault:
                last, num_broken = fault, num_broken + 1
                if num_broken == MOST_BROKEN:
                    raise Unanswered(fault, attempt) from fault
            except Rejected as fault:
                raise Unanswered(fault, attempt) from fault
            except Refused as fault:
                raise TeacherRefused(f"{self.backend.server}: {fault.message}") from fault
            else:
                self._num_unanswered_at_start = None
                return reply
            if self._stopped_by is not None:  # who stops a run does not wait for a pause
                raise self._stopped_by
            if attempt < MOST_ATTEMPTS:
                await asyncio.sleep(pause_s)
        raise Unanswered(last, MOST_ATTEMPTS) from last

    async def _send(self, request: Request, key: str, pair: str) -> Reply:
        """One attempt, on record before and after.

        Raises:
            Fault: what the backend raised.
            TeacherStopped: the run ends; the request was not sent.
        """
        num_claimed = int(sum(len(message.content) for message in request.messages) * TOKENS_A_BYTE)
        await self.limiter.admit(num_claimed)
        try:
            if self._stopped_by is not None:
                raise self._stopped_by
            reserved = self.budget.reserve(request)
            attempt = self.journal.start_attempt(key, request, pair, reserved)
            self._sending.add(_this_task())
            try:
                reply = await self.backend.complete(request)
            except Fault as fault:
                self.journal.save_fault(attempt, fault)
                self.budget.release(reserved, possibly_paid=fault.possibly_paid)
                self.tally.faults[fault.kind] += 1
                paid = ", possibly paid" if fault.possibly_paid else ""
                run_log.info("%s: %s%s (request %s)", pair, fault, paid, key[:12])
                raise
            except BaseException:  # cancelled: the reply, and its price, are lost on the way
                self.budget.release(reserved, possibly_paid=True)
                raise
            finally:
                self._sending.discard(_this_task())
            cost = self.budget.settle(request, reserved, reply.usage)
            self.journal.save_reply(key, reply, cost)
        finally:
            self.limiter.release()
        self._count(reply)
        usage = reply.usage or Usage(prompt_tokens=num_claimed, completion_tokens=0)
        self.limiter.succeeded(reply.headers, num_claimed, usage.prompt_tokens + usage.completion_tokens)
        return reply

    def _count(self, reply: Reply) -> None:
        self.tally.num_requests += 1
        if reply.usage is not None:
            self.tally.prompt_tokens += reply.usage.prompt_tokens
            self.tally.completion_tokens += reply.usage.completion_tokens

    def _pause_s(self, attempt: int, fault: Transient) -> float:
        """Full jitter (Brooker 2015, "Exponential backoff and jitter"), not before the server's own wish."""
        pause = self._random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
        return max(pause, min(fault.retry_after_s or 0.0, LONGEST_PAUSE_S))


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "outside of an event loop"
    return task
