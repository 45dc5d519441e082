"""Runs a stage's phases from the first request to the last: event loop, Ctrl-C, model check, log file."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlicot.data.rows import Row
from nlicot.errors import TeacherRefused
from nlicot.records import Failure, to_json_dict
from nlicot.teacher.backends.base import Backend, Fault
from nlicot.teacher.engine.budget import Budget
from nlicot.teacher.engine.journal import Journal, Outcome, in_chunks
from nlicot.teacher.engine.pricing import Price
from nlicot.teacher.engine.rate_limiter import RateLimiter
from nlicot.teacher.engine.retry_policy import DEFAULT_POLICY, RetryPolicy
from nlicot.teacher.engine.scheduler import TASKS_PER_LOOKUP, Interrupted, Scheduler, Tally, Task, run_log

MAX_MODELS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Limits of a run.

    Args:
        concurrency: maximum number of requests in flight; fewer after a 429.
        requests_per_minute, tokens_per_minute: None takes the limits in the server's headers.
        budget_usd: a cap that includes earlier starts of the same run.
        prices: price of each model; None if it is not known.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget_usd: float | None = None
    prices: Mapping[str, Price | None] = field(default_factory=dict)
    policy: RetryPolicy = DEFAULT_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Tasks to run; `after` is called once they are done, and may raise to end the run."""

    tasks: Callable[[], Iterable[Task]]
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The result of a run, for its summary."""

    tally: Tally
    spent_usd: float
    cost_known: bool
    duration_s: float


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

    Args:
        on_progress: called once the models are known to be served, then after each task.

    Raises:
        TeacherStopped: the run ended early; the journal holds every answer that arrived.
        ConfigError: there is a budget, and a price is missing.
    """
    budget = Budget(
        prices={model: settings.prices.get(model) for model in models},
        cap_usd=settings.budget_usd,
        spent_usd=journal.spent_usd(),
    )
    limiter = RateLimiter(
        settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        policy=settings.policy,
    )
    scheduler = Scheduler(backend, journal, limiter, budget, stage=stage, on_progress=on_progress)
    started = time.monotonic()

    async def run() -> None:
        try:
            await _check_models(backend, models)
            on_progress(scheduler.tally, budget)
            for phase in phases:
                with _ctrl_c_stops(scheduler):
                    await scheduler.run(phase.tasks())
                if phase.after is not None:
                    phase.after()
        finally:
            await backend.close()

    _run_in_new_loop(run())
    return RunReport(
        tally=scheduler.tally,
        spent_usd=budget.spent_usd,
        cost_known=all(price is not None for price in budget.prices.values()),
        duration_s=time.monotonic() - started,
    )


async def _check_models(backend: Backend, models: Sequence[str]) -> None:
    """Refuse models that the server does not serve, before anything is paid."""
    try:
        served = await backend.models()
    except Fault as fault:
        raise TeacherRefused(f"{backend.server}: cannot list the server's models: {fault}") from fault
    unknown = [model for model in models if served is not None and model not in served]
    if served is not None and unknown:
        listed = ", ".join(sorted(served)[:MAX_MODELS_SHOWN]) or "none"
        more = f" and {len(served) - MAX_MODELS_SHOWN} more" if len(served) > MAX_MODELS_SHOWN else ""
        raise TeacherRefused(
            f"--model: found {', '.join(unknown)}, expected one that {backend.server} serves: {listed}{more}"
        )


@contextlib.contextmanager
def _ctrl_c_stops(scheduler: Scheduler) -> Iterator[None]:
    """Make the first Ctrl-C wait for the requests in flight, and the second end the run at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    num_pressed = 0

    def on_ctrl_c() -> None:
        nonlocal num_pressed
        num_pressed += 1
        if num_pressed > 1:
            running.cancel()
        else:
            scheduler.stop(Interrupted("stopped; all answers are saved, run the same command to continue"))

    loop.add_signal_handler(signal.SIGINT, on_ctrl_c)
    try:
        yield
    except asyncio.CancelledError:
        if num_pressed < 2:
            raise
        running.uncancel()
        raise Interrupted(
            "stopped at once; requests in flight may have been billed and will be sent again"
        ) from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _run_in_new_loop(coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end, in another thread if a loop is running here (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, coroutine).result()


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
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    run_log.addHandler(handler)
    run_log.setLevel(logging.INFO)
    run_log.propagate = False
    try:
        yield
    finally:
        run_log.removeHandler(handler)
        handler.close()
