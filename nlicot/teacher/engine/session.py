"""A stage from its first request to its finished file: for the commands, and for a notebook.

Stands between a stage's tasks and `scheduler`: it makes the event loop, listens for Ctrl-C, checks that the
server knows the models, and walks the outcomes in the input's order.
"""

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
from typing import Any, TypeVar

from nlicot.data.rows import Row
from nlicot.data.streaming import in_chunks
from nlicot.errors import TeacherRefused
from nlicot.records import Failure, to_json_dict
from nlicot.teacher.backends.base import Backend, Fault
from nlicot.teacher.engine.budget import Budget
from nlicot.teacher.engine.journal import Journal, Outcome
from nlicot.teacher.engine.pricing import Price
from nlicot.teacher.engine.rate_limiter import RateLimiter
from nlicot.teacher.engine.scheduler import Interrupted, ProgressListener, Scheduler, Tally, Task, run_log

READ_AT_ONCE = 512
MODELS_SHOWN = 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run treats the server and the purse.

    Args:
        concurrency: most requests in flight; fewer after a 429.
        requests_per_minute, tokens_per_minute: None takes what the server's headers announce.
        budget_usd: a cap that counts earlier starts of the same run too.
        prices: of the models asked; None where not known.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget_usd: float | None = None
    prices: Mapping[str, Price | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Tasks to run, and what to do once they are through (it may raise to end the run)."""

    tasks: Callable[[], Iterable[Task]]
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run did, for its summary."""

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
    listener: ProgressListener | None = None,
) -> RunReport:
    """Run the phases in turn; returns when all is answered or failed. Works inside a notebook too.

    Args:
        listener: started once the models are known to be served.

    Raises:
        TeacherStopped: the run ended early; the journal holds all that came in.
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
    )
    scheduler = Scheduler(
        backend, journal, limiter, budget, stage=stage, concurrency=settings.concurrency, listener=listener
    )
    started = time.monotonic()

    async def run() -> None:
        try:
            await _check_models(backend, models)
            if listener is not None:
                listener.start()
            for phase in phases:
                with _drained_by_ctrl_c(scheduler):
                    await scheduler.run(phase.tasks())
                if phase.after is not None:
                    phase.after()
        finally:
            await backend.close()

    run_anywhere(run())
    return RunReport(
        tally=scheduler.tally,
        spent_usd=budget.spent_usd,
        cost_known=all(price is not None for price in budget.prices.values()),
        duration_s=time.monotonic() - started,
    )


async def _check_models(backend: Backend, models: Sequence[str]) -> None:
    """Refuse models that the server does not know, before anything is paid."""
    try:
        served = await backend.models()
    except Fault as fault:
        raise TeacherRefused(
            f"{backend.server}: found no usable answer to its list of models: {fault}"
        ) from fault
    unknown = [model for model in models if served is not None and model not in served]
    if served is not None and unknown:
        listed = ", ".join(sorted(served)[:MODELS_SHOWN]) or "none"
        more = f" and {len(served) - MODELS_SHOWN} more" if len(served) > MODELS_SHOWN else ""
        raise TeacherRefused(
            f"--model: found {', '.join(unknown)}, expected one that {backend.server} serves: {listed}{more}"
        )


@contextlib.contextmanager
def _drained_by_ctrl_c(scheduler: Scheduler) -> Iterator[None]:
    """The first Ctrl-C lets what is in flight come in, the second ends the run at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    num_pressed = 0

    def pressed() -> None:
        nonlocal num_pressed
        num_pressed += 1
        if num_pressed > 1:
            running.cancel()
            return
        scheduler.stop(Interrupted("stopped; all answers are kept, the same command goes on from here"))

    loop.add_signal_handler(signal.SIGINT, pressed)
    try:
        yield
    except asyncio.CancelledError:
        if num_pressed < 2:
            raise
        running.uncancel()
        raise Interrupted(
            "stopped at once; what was in flight may have been paid for, and is asked again"
        ) from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def run_anywhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own where a loop runs already (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def outcomes(journal: Journal, tasks: Iterable[Task], tally: Tally) -> Iterator[Outcome]:
    """What became of each task, in order; those that were never reached are left out."""
    for chunk in in_chunks(tasks, READ_AT_ONCE):
        finals = journal.outcomes([task.key for task in chunk])
        for task in chunk:
            final = finals.get(task.key)
            if final is None and task.key in tally.unanswered:
                final = Outcome(ok=False, correct=None, rows=[to_json_dict(tally.unanswered[task.key])])
            if final is not None:
                yield final


def rows_of(final: Outcome) -> list[Row]:
    """The records in a usable outcome, as `storage` reads them."""
    return [Row(path=Path(), line=0, header_line=0, fields=fields) for fields in final.rows]


def failure_of(final: Outcome) -> Failure:
    """The failure in an outcome that is not usable."""
    fields = {name: value for name, value in final.rows[0].items() if name != "reply_keys"}
    return Failure(**fields)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write what happens in a run into a log file of its own."""
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
