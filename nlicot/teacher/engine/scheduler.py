"""Runs a stage's phases from the first request to the last, with its tasks side by side.

A task is a coroutine that sends requests through the `Ask` it is given. `Ask` looks into the journal first: a
task that runs again after a kill gets the same answers and only pays for new ones.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlicot import signals
from nlicot.data.rows import Row
from nlicot.errors import BudgetReached, Interrupted, NoAnswers, ServerRefused, StoppedEarly
from nlicot.records import Failure, to_json_dict
from nlicot.servers.faults import BrokenEnvelope, Fault, RateLimited, Refused, Rejected, Transient, writable
from nlicot.teacher.backends.base import BACKENDS, Backend, Reply, Request
from nlicot.teacher.engine.journal import Journal, Outcome, in_chunks
from nlicot.teacher.engine.pricing import Budget, Price
from nlicot.teacher.engine.rate_limiter import DEFAULT_POLICY, RateLimiter, RetryPolicy
from nlicot.teacher.engine.stopping_rule import StoppingRule
from nlicot.text_tables import printable

MAX_MODELS_SHOWN = 20
MODEL_FLAGS = "--model, --next_models or --regenerate_with"
TASKS_PER_LOOKUP = 512
TOKENS_PER_CHARACTER = 0.3  # an estimate for pacing, until the reply gives the real number

logger = logging.getLogger(__name__)
run_log = logging.getLogger("nlicot.teacher.log")  # a run's log file only: the terminal shows a progress bar


@dataclass(eq=False)
class Unanswered(Exception):
    """A request without a usable reply: its pair is listed as failed, and the next run tries again."""

    fault: Fault
    attempts: int


class NotAgain(Exception):
    """No answer of this round could be read, so nothing is asked again: a round of jobs takes hours."""


class Ask:
    """Sends the requests of one task, and notes which of its answers could be read."""

    def __init__(self, scheduler: "Scheduler", rule: StoppingRule, pair: str) -> None:
        self.pair, self.reply_keys = pair, list[str]()
        self._scheduler, self._rule = scheduler, rule
        self._first_schema, self._is_again = "", False

    async def __call__(self, request: Request) -> Reply:
        """Return the reply; raises `NotAgain` if the question should be given up, or `Unanswered`."""
        self._first_schema = self._first_schema or request.schema.name
        if self._is_again and not await self._rule.may_ask_again(self._topic(request)):
            raise NotAgain
        self._is_again = True
        self.reply_keys.append(request.key())
        return await self._scheduler.reply_to(request, self.pair)

    def note_read(self, request: Request, is_usable: bool) -> None:
        """Note that the last answer could be read, and whether its question is settled."""
        self._is_again = not is_usable
        self._rule.note_read(self._topic(request), is_usable)

    def note_set_aside(self, request: Request, failure: Failure) -> None:
        """Note a question without a valid answer in a task that does not fail for it."""
        self._is_again = False
        self._scheduler.stop(self._rule.note_failure(self._topic(request), request.key(), failure))

    def _topic(self, request: Request) -> str:
        """Distinguish rewrites ("thought") from the questions that tasks begin with ("")."""
        return "" if request.schema.name == self._first_schema else request.schema.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A unit of a stage's work; `key` identifies its outcome in the journal."""

    key: str
    pair: str
    run: Callable[[Ask], Awaitable[Outcome]]


@dataclass(slots=True)
class Tally:
    """Counts of a run so far."""

    num_known: int = 0
    num_finished: int = 0
    num_correct: int = 0
    num_judged: int = 0
    num_failed: int = 0
    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waiting_s: float = 0.0  # the pause that a 429 caused, until the next answer
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, Failure] = field(default_factory=dict)  # by task, if its request got no reply

    def count(self, ok: bool, correct: bool | None) -> None:
        """Count a task's outcome."""
        self.num_finished += 1
        self.num_failed += not ok
        self.num_judged += correct is not None
        self.num_correct += correct is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """The requests of a start of a run, or of one of its phases, and their cost if all prices are known."""

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    duration_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Consumption") -> "Consumption":
        fields = [each.name for each in dataclasses.fields(self)]
        return Consumption(**{name: getattr(self, name) + getattr(other, name) for name in fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Limits of a run; None for a rate takes the limit in the server's headers, if any."""

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget_usd: float | None = None  # includes earlier starts of the same run
    prices: Mapping[str, Price | None] = field(default_factory=dict)  # None if unknown
    policy: RetryPolicy = DEFAULT_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Tasks to run; `after` is called once they are done, and may raise to end the run.

    The tasks of a phase with an `after` come again in the next one, and are counted only there.
    """

    tasks: Callable[[], Iterable[Task]]
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The result of a run, for its summary; `spent_usd` includes earlier starts."""

    tally: Tally
    phases: Sequence[Consumption]  # what each phase used
    spent_usd: float
    cost_known: bool


class Scheduler:
    """Runs tasks against one backend, within the concurrency and the retry policy of `limiter`."""

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
        self._policy, self._stage, self._on_progress = limiter.policy, stage, on_progress
        self._jitter = random.Random(seed)  # of pauses; answers do not depend on it
        self._stop_reason: StoppedEarly | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[object] | None] = set()
        self._in_flight: dict[str, asyncio.Event] = {}
        self._reserving = asyncio.Lock()
        self._settled = asyncio.Event()  # replaced each time a request in flight has ended
        self._limited_since: float | None = None  # the first 429 since the last answer
        self._has_said_waiting = False
        self._rule = StoppingRule(backend, self._policy, concurrency=limiter.concurrency)

    def stop(self, reason: StoppedEarly | None) -> None:
        """Given a reason, send nothing more, and let requests in flight finish. The first one counts."""
        if reason is None:
            return
        self._stop_reason = self._stop_reason or reason
        for worker in self._workers:  # the others only wait for their turn or a pause
            if worker not in self._sending and worker is not asyncio.current_task():
                worker.cancel()

    async def run(self, tasks: Iterable[Task]) -> None:
        """Run those tasks that have no outcome yet; they are taken one by one, so memory stays constant.

        Raises `StoppedEarly` if the run was stopped; the journal holds every answer that arrived.
        """
        unfinished, num_workers = self._unfinished(tasks), self._limiter.concurrency
        self._workers = [asyncio.create_task(self._work(unfinished)) for _ in range(num_workers)]
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

    def reset_counts(self) -> None:
        """Forget how many tasks have finished, and how; what the requests used stays."""
        self.tally = dataclasses.replace(
            self.tally, num_known=0, num_finished=0, num_correct=0, num_judged=0, num_failed=0
        )

    def _unfinished(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for chunk in in_chunks(tasks, TASKS_PER_LOOKUP):
            keys = [task.key for task in chunk]
            known = self._journal.statuses(keys)
            if any(ok for ok, _ in known.values()):
                self._rule.note_usable(is_known=True)
            elif known:
                failed = self._journal.outcomes(keys)
                failures = {key: failure_of(failed[key]) for key in keys if key in failed}
                self.stop(self._rule.note_failed_earlier(failures))
                if self._stop_reason is not None:
                    return
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
            async with self._rule.turn():
                try:
                    outcome = await self._outcome_of(task)
                except StoppedEarly as reason:
                    self.stop(reason)
                except Unanswered as unanswered:
                    self._fail(task, unanswered.fault, unanswered.attempts)
                else:
                    self._count(outcome.ok, outcome.correct)
                    if outcome.ok:
                        self._rule.note_usable()
                    else:
                        self.stop(self._rule.note_failure("", task.key, failure_of(outcome)))

    async def _outcome_of(self, task: Task) -> Outcome:
        ask = Ask(self, self._rule, task.pair)
        outcome = await task.run(ask)
        if not outcome.ok:
            outcome.rows[0]["reply_keys"] = ask.reply_keys
            self.tally.faults[str(outcome.rows[0]["kind"])] += 1
            run_log.warning("%s: no usable answer: %s", task.pair, outcome.rows[0]["message"])
        self._journal.save_outcome(task.key, outcome)
        return outcome

    async def check_result(self) -> None:
        """Raise `NoAnswers` if all tasks so far failed, or if the last ones did since the server died."""
        is_dead = False
        if self._rule.ended_unanswered:
            try:
                await self._backend.models()
            except Fault:
                is_dead = True
        if (reason := self._rule.result(is_dead=is_dead)) is not None:
            raise reason

    @contextlib.contextmanager
    def measuring(self, used: list[Consumption]) -> Iterator[None]:
        """Append what is used inside."""
        before, started = self._used(), time.monotonic()
        yield
        after = self._used()
        used.append(
            Consumption(
                num_requests=after.num_requests - before.num_requests,
                prompt_tokens=after.prompt_tokens - before.prompt_tokens,
                completion_tokens=after.completion_tokens - before.completion_tokens,
                cost_usd=after.cost_usd - before.cost_usd,
                duration_s=time.monotonic() - started,
                faults=after.faults - before.faults,
            )
        )

    def _used(self) -> Consumption:
        names = ("num_requests", "prompt_tokens", "completion_tokens")
        counts = {name: getattr(self.tally, name) for name in names}
        return Consumption(cost_usd=self._budget.spent_usd, faults=self.tally.faults.copy(), **counts)

    def _fail(self, task: Task, fault: Fault, attempts: int) -> None:
        run_log.warning("%s: failed after %d attempts: %s", task.pair, attempts, fault)
        text, raw = writable(fault.message), writable(fault.raw)
        failure = self.tally.unanswered[task.key] = Failure(
            id=task.pair, stage=self._stage, kind=fault.kind, message=text, attempts=attempts, raw=raw
        )
        self._count(False, None)
        self.stop(self._rule.note_unanswered(task.key, failure, is_rejected=isinstance(fault, Rejected)))

    def _count(self, ok: bool, correct: bool | None) -> None:
        self.tally.count(ok, correct)
        self._on_progress(self.tally, self._budget)

    async def reply_to(self, request: Request, pair: str) -> Reply:
        """Return the reply: from the journal, after waiting for an equal request in flight, or by sending."""
        key = request.key()
        while (equal := self._in_flight.get(key)) is not None:
            await equal.wait()
        if (reply := self._journal.reply(key)) is not None:
            return reply
        answered = self._in_flight[key] = asyncio.Event()
        try:
            return await self._send_until_answered(request, pair)
        finally:
            del self._in_flight[key]
            answered.set()

    async def _send_until_answered(self, request: Request, pair: str) -> Reply:
        policy, num_broken = self._policy, 0
        attempt = 0
        limited_since: float | None = None
        while attempt < policy.max_attempts:
            attempt, pause_s = attempt + 1, 0.0
            try:
                reply = await self._send(request, pair)
            except RateLimited as fault:
                self._slow_down(fault)
                last: Fault = fault
                now = time.monotonic()
                limited_since = now if limited_since is None else limited_since
                if now - limited_since < policy.max_limited_s:
                    attempt -= 1  # a quota says nothing about the request, which waits with all the others
            except Transient as fault:
                last, pause_s = fault, policy.pause_s(attempt, fault.retry_after_s, self._jitter)
            except BrokenEnvelope as fault:
                last, num_broken = fault, num_broken + 1
                if num_broken == policy.max_broken_replies:
                    raise Unanswered(fault, attempt) from fault
            except Rejected as fault:
                raise Unanswered(fault, attempt) from fault
            except Refused as fault:
                remedy = _remedy(fault, self._backend)
                server = f"{self._backend.server}: " if self._backend.server else ""  # none in this process
                raise ServerRefused(f"{server}{fault.message}{remedy}") from fault
            else:
                return reply
            if self._stop_reason is not None:  # it does not wait for a pause
                raise self._stop_reason
            if attempt < policy.max_attempts:
                await asyncio.sleep(pause_s)
        raise Unanswered(last, attempt) from last

    def _slow_down(self, fault: RateLimited) -> None:
        """Pause all requests, and say so once; stop if there was no answer for too long."""
        self.tally.waiting_s = self._limiter.slow_down(fault.retry_after_s)
        server, now = self._backend.server, time.monotonic()
        if self._limited_since is None:
            self._limited_since = now
        if not self._has_said_waiting:
            self._has_said_waiting = True
            logger.warning("%s: 429, waiting %.0f s: %s", server, self.tally.waiting_s, fault.message)
        self._on_progress(self.tally, self._budget)
        if (limited_s := now - self._limited_since) >= self._policy.max_limited_s:
            found = f"{server}: nothing but 429 for {limited_s / 60:.0f} minutes: {fault.message}"
            self.stop(NoAnswers(f"{found}; all answers so far are saved, run the same command later"))

    async def _reserve(self, request: Request) -> float:
        """Reserve the request's maximum cost; wait for requests in flight if it does not fit yet."""
        async with self._reserving:  # in turn: otherwise the first to wait would be the last
            while True:
                try:
                    return self._budget.reserve(request)
                except BudgetReached:
                    if not self._sending:
                        raise
                await self._settled.wait()
                await self._limiter.pause_over()

    async def _send(self, request: Request, pair: str) -> Reply:
        """Make one attempt, recorded before and after; raises as the backend, or if the run is stopping."""
        key = request.key()
        num_claimed = int(sum(len(message.content) for message in request.messages) * TOKENS_PER_CHARACTER)
        await self._limiter.admit(num_claimed)
        try:
            if self._stop_reason is not None:
                raise self._stop_reason
            reserved = await self._reserve(request)
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
            self._settled.set()
            self._settled = asyncio.Event()
        self._rule.note_answered()
        self._limited_since, self.tally.waiting_s = None, 0.0
        self.tally.num_requests += 1
        num_used = num_claimed
        if (usage := reply.usage) is not None:
            self.tally.prompt_tokens += usage.prompt_tokens
            self.tally.completion_tokens += usage.completion_tokens
            num_used = usage.prompt_tokens + usage.completion_tokens
        self._limiter.succeeded(reply.headers, num_claimed, num_used)
        return reply


def run_phases(
    phases: Sequence[Phase],
    *,
    stage: str,
    backend: Backend,
    models: Sequence[str],
    journal: Journal,
    settings: RunSettings,
    on_progress: Callable[[Tally, Budget], None] = lambda tally, budget: None,
) -> RunReport:
    """Run the phases in turn until every task has succeeded or failed. Also works inside a notebook.

    `on_progress` is called once the models are known to be served, then after each task. Raises
    `StoppedEarly` if the run ended early or every task failed; the journal holds every answer that arrived.
    """
    prices = {model: settings.prices.get(model) for model in models}
    budget = Budget(prices=prices, cap_usd=settings.budget_usd, spent_usd=journal.spent_usd())
    limiter = RateLimiter(
        settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        policy=settings.policy,
    )
    scheduler = Scheduler(backend, journal, limiter, budget, stage=stage, on_progress=on_progress)
    used = list[Consumption]()

    async def run() -> None:
        try:
            await _check_models(backend, models)
            on_progress(scheduler.tally, budget)
            for phase in phases:
                with scheduler.measuring(used), _signals_stop(scheduler):
                    await scheduler.run(phase.tasks())
                is_last = phase is phases[-1]
                if is_last:
                    await scheduler.check_result()
                if phase.after is not None:
                    phase.after()
                    if not is_last:
                        scheduler.reset_counts()
        finally:
            await backend.close()

    _run_in_new_loop(run())
    return RunReport(
        tally=scheduler.tally,
        phases=used,
        spent_usd=budget.spent_usd,
        cost_known=None not in budget.prices.values(),
    )


def _remedy(fault: Fault, backend: Backend) -> str:
    """Return what to do about a refusal of all requests, after a semicolon."""
    entry = BACKENDS.get(backend.name)
    if fault.kind in ("http_401", "http_403") and entry and entry.key_variable:
        return f"; check the key in {entry.key_variable} (the environment, or .env)"
    remedies = {
        "http_402": "add credit at the provider, then run the same command to continue",
        "http_404": "check --server_url",
        "unknown_model": f"check {MODEL_FLAGS}",
    }
    return f"; {remedies[fault.kind]}" if fault.kind in remedies else ""


async def _check_models(backend: Backend, models: Sequence[str]) -> None:
    """Refuse models that the server does not serve, before anything is paid."""
    try:
        served = await backend.models()
    except Fault as fault:
        failed = f"{fault}{_remedy(fault, backend)}"
        raise ServerRefused(f"{backend.server}: cannot list the server's models: {failed}") from fault
    unknown = ", ".join(model for model in models if served is not None and model not in served)
    if served is not None and unknown:
        listed = ", ".join(sorted(served)[:MAX_MODELS_SHOWN]) or "none"
        more = f" and {len(served) - MAX_MODELS_SHOWN} more" if len(served) > MAX_MODELS_SHOWN else ""
        message = f"{MODEL_FLAGS}: found {unknown}, expected one that {backend.server} serves: {listed}{more}"
        raise ServerRefused(message)


@contextlib.contextmanager
def _signals_stop(scheduler: Scheduler) -> Iterator[None]:
    """Make the first signal, such as Ctrl-C, wait for requests in flight, and the second stop at once."""
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    received: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        received.append(signum)
        if len(received) > 1:
            running.cancel()
            return
        logger.warning("stopping after the requests in flight; a second signal stops at once")
        message = "all answers are saved, run the same command to continue"
        scheduler.stop(Interrupted(message, signum))

    try:
        # Not by `loop.add_signal_handler`, which leaves the system's default where there was another handler.
        with signals.handling(lambda signum: loop.call_soon_threadsafe(stop, signum)):
            yield
    except asyncio.CancelledError:
        if len(received) < 2:
            raise
        running.uncancel()
        message = "at once: requests in flight may have been billed and will be sent again"
        raise Interrupted(message, received[-1]) from None


def _run_in_new_loop(coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end, in another thread if a loop is running here (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def outcomes(journal: Journal, tasks: Iterable[Task], tally: Tally) -> Iterator[Outcome]:
    """Iterate over the outcomes of the tasks, in order, without tasks that were never reached."""
    for chunk in in_chunks(tasks, TASKS_PER_LOOKUP):
        found = journal.outcomes([task.key for task in chunk])
        for task in chunk:
            if task.key in found:
                yield found[task.key]
            elif task.key in tally.unanswered:
                yield Outcome(ok=False, correct=None, rows=[to_json_dict(tally.unanswered[task.key])])


def rows_of(outcome: Outcome) -> list[Row]:
    """Return the records of a usable outcome in the form that `nlicot.data` reads."""
    return [Row(path=Path(), line=0, header_line=0, fields=fields) for fields in outcome.rows]


def failure_of(outcome: Outcome) -> Failure:
    """Return the failure in an outcome that is not usable."""
    return Failure(**{name: value for name, value in outcome.rows[0].items() if name != "reply_keys"})


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write the events of a run to its own log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_log.setLevel(logging.INFO)
    run_log.propagate = False
    with contextlib.closing(_RunLog(path, encoding="utf-8", delay=True)) as handler:
        handler.setFormatter(_OneLine("%(asctime)s %(message)s"))
        run_log.addHandler(handler)
        try:
            yield
        finally:
            run_log.removeHandler(handler)


class _OneLine(logging.Formatter):
    """Formats an event as one line: ids and answers may contain sequences that control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _RunLog(logging.FileHandler):
    """Leaves out lines that a full disk has no room for; the journal reports the disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (a name of `logging`)
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
