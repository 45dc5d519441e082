"""Concurrent requests: retries, what stops a run, and that nothing is sent or paid twice."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nlicot.errors import BudgetReached, DiskFull, Interrupted, NoAnswers, ServerRefused, StoppedEarly
from nlicot.records import Failure, Usage, to_json_dict
from nlicot.servers.faults import BrokenEnvelope, Fault, RateLimited, Refused, Rejected, Transient
from nlicot.teacher.backends.base import AnswerSchema, Message, Reply, Request
from nlicot.teacher.engine.journal import Journal, Outcome
from nlicot.teacher.engine.pricing import Budget, Price
from nlicot.teacher.engine.rate_limiter import DEFAULT_POLICY, RateLimiter, RetryPolicy
from nlicot.teacher.engine.scheduler import (
    Ask,
    NotAgain,
    Phase,
    RunSettings,
    Scheduler,
    Tally,
    Task,
    log_to,
    run_log,
    run_phases,
)
from tests.teacher.engine.test_journal import no_file_grows_beyond
from tests.teacher.virtual_time import elapsed_s, run_virtually

PRICE = Price(input=10_000, output=10_000)
"""A cent per token: a question reserves 68 cents (1 byte, a schema of 2, a margin of 64, 1 answer token)."""


def yes(text: str = "yes") -> Reply:
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    return Reply(text=text, finish_reason="stop", usage=usage, raw="")


def busy(retry_after_s: float | None = None) -> Transient:
    return Transient("http_503", "busy", retry_after_s=retry_after_s)


def rejected() -> Rejected:
    return Rejected("http_400", "too long")


@dataclass(frozen=True)
class After:
    """The outcome after some seconds in flight."""

    seconds: float
    outcome: Reply | Exception


Step: TypeAlias = Reply | Exception | After


class Scripted:
    """A backend in memory that follows a script for each question, and fails when the script runs out."""

    name, server = "scripted", "memory"

    def __init__(self, script: Mapping[str, Sequence[Step]]) -> None:
        self.script = {text: list(steps) for text, steps in script.items()}
        self.sent: list[tuple[str, float]] = []
        self.num_in_flight = self.most_in_flight = 0
        self.closed = False

    async def complete(self, request: Request) -> Reply:
        text = request.messages[0].content
        self.sent.append((text, round(elapsed_s(), 6)))
        steps = self.script.get(text)
        assert steps, f"the script has run out for {text!r}"
        step = steps.pop(0)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            if isinstance(step, After):
                await asyncio.sleep(step.seconds)
                step = step.outcome
            if isinstance(step, Exception):
                raise step
            return step
        finally:
            self.num_in_flight -= 1

    async def models(self) -> list[str] | None:
        return None

    async def close(self) -> None:
        self.closed = True

    @property
    def asked(self) -> list[str]:
        return [text for text, _ in self.sent]

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.sent]


def question(text: str) -> Request:
    return Request(
        stage="generate",
        backend="scripted",
        server="memory",
        model="teacher",
        messages=(Message(role="user", content=text),),
        params={"max_tokens": 1},
        schema=AnswerSchema(name="thought", schema={}),
    )


async def _take(request: Request, ask: Ask) -> Outcome:
    reply = await ask(request)
    if reply.text.startswith("unusable"):
        return unusable(request.messages[0].content, raw=reply.text)
    return Outcome(ok=True, correct=reply.text == "yes", rows=[{"text": reply.text}])


def unusable(text: str, kind: str = "no_json", raw: str = "unusable") -> Outcome:
    failure = Failure(id=text, stage="generate", kind=kind, message="no JSON", attempts=1, raw=raw)
    return Outcome(ok=False, correct=None, rows=[to_json_dict(failure)])


def task(text: str, key: str = "") -> Task:
    """A task with one question, whose answer is its outcome."""
    return Task(key=key or text, pair=f"pair {text}", run=functools.partial(_take, question(text)))


def tasks(texts: Iterable[str]) -> list[Task]:
    return [task(text) for text in texts]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "generate.sqlite") as opened:
        yield opened


def scheduler_for(
    backend: Scripted,
    journal: Journal,
    *,
    concurrency: int = 1,
    budget: Budget | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
    on_progress: Callable[[Tally, Budget], None] = lambda tally, budget: None,
) -> Scheduler:
    budget, limiter = budget or Budget(prices={"teacher": None}), RateLimiter(concurrency, policy=policy)
    return Scheduler(backend, journal, limiter, budget, stage="generate", on_progress=on_progress, seed=0)


def run(scheduler: Scheduler, texts: Iterable[str]) -> Tally:
    run_virtually(scheduler.run(tasks(texts)))
    return scheduler.tally


def texts_of(journal: Journal, keys: Iterable[str]) -> dict[str, str]:
    return {key: outcome.rows[0]["text"] for key, outcome in journal.outcomes(list(keys)).items()}


def attempts(journal: Journal) -> list[tuple[str, str | None]]:
    """The pair and fault of each recorded attempt; None is a reply, or no reply yet."""
    return [(row["pair"], row["fault"]) for row in journal.export() if row["table"] == "attempts"]


# ------------------------------------------------------------------ answers


def test_every_task_runs_and_its_outcome_is_saved(journal: Journal) -> None:
    backend = Scripted({"a": [yes()], "b": [yes("no")], "c": [yes()]})

    tally = run(scheduler_for(backend, journal, concurrency=2), "abc")

    assert texts_of(journal, "abc") == {"a": "yes", "b": "no", "c": "yes"}
    assert (tally.num_finished, tally.num_judged, tally.num_correct, tally.num_failed) == (3, 3, 2, 0)
    assert (tally.num_requests, tally.prompt_tokens, tally.completion_tokens) == (3, 30, 15)


def test_requests_in_flight_equal_the_concurrency(journal: Journal) -> None:
    backend = Scripted({text: [After(1, yes())] for text in "abcdefg"})

    run(scheduler_for(backend, journal, concurrency=3), "abcdefg")

    assert backend.times == [0, 0, 0, 1, 1, 1, 2]
    assert backend.most_in_flight == 3


def test_tasks_are_consumed_lazily(journal: Journal) -> None:
    names = [str(number) for number in range(2000)]
    backend = Scripted({name: [yes()] for name in names})
    scheduler = scheduler_for(backend, journal, concurrency=4)
    most_ahead = 0

    def watched() -> Iterator[Task]:
        nonlocal most_ahead
        for number, name in enumerate(names):
            most_ahead = max(most_ahead, number + 1 - scheduler.tally.num_finished)
            yield task(name)

    run_virtually(scheduler.run(watched()))

    assert scheduler.tally.num_finished == 2000
    assert most_ahead <= 512 + 4


def test_equal_requests_are_sent_once(journal: Journal) -> None:
    backend = Scripted({"a": [After(5, yes())]})
    scheduler = scheduler_for(backend, journal, concurrency=3)

    run_virtually(scheduler.run([task("a", key) for key in ("first", "second", "third", "fourth")]))

    assert backend.asked == ["a"]
    assert sorted(texts_of(journal, ["first", "second", "third", "fourth"])) == [
        "first",
        "fourth",
        "second",
        "third",
    ]


def test_after_an_equal_request_fails_the_waiting_one_is_sent(journal: Journal) -> None:
    backend = Scripted({"a": [After(5, rejected()), yes()]})
    scheduler = scheduler_for(backend, journal, concurrency=2)

    run_virtually(scheduler.run([task("a", "first"), task("a", "second")]))

    assert texts_of(journal, ["first", "second"]) == {"second": "yes"}
    assert list(scheduler.tally.unanswered) == ["first"]


# ------------------------------------------------------------------ retries


def test_a_transient_fault_is_retried_and_every_attempt_recorded(journal: Journal) -> None:
    backend = Scripted({"a": [busy(), Transient("timeout", "120 s", possibly_paid=True), yes()]})

    tally = run(scheduler_for(backend, journal), "a")

    assert attempts(journal) == [("pair a", "http_503"), ("pair a", "timeout"), ("pair a", None)]
    assert dict(tally.faults) == {"http_503": 1, "timeout": 1}
    assert (tally.num_failed, tally.num_requests) == (0, 1)


def test_six_attempts_are_made_without_a_pause_after_the_last(journal: Journal) -> None:
    backend = Scripted({"a": [busy(20.0)] * 6})
    scheduler = scheduler_for(backend, journal)

    async def asked() -> float:
        await scheduler.run(tasks("a"))
        return elapsed_s()

    assert run_virtually(asked()) == 100
    assert backend.times == [0, 20, 40, 60, 80, 100]
    assert scheduler.tally.unanswered["a"] == Failure(
        id="pair a", stage="generate", kind="http_503", message="busy", attempts=6
    )


def test_pauses_are_drawn_from_intervals_that_double_up_to_a_cap(journal: Journal) -> None:
    texts = [str(number) for number in range(200)]
    pauses: list[list[float]] = [[], [], [], [], []]
    backend = Scripted({text: [busy()] * 5 + [yes()] for text in texts})
    run(scheduler_for(backend, journal, concurrency=200, policy=RetryPolicy(max_pause_s=5.0)), texts)
    for text in texts:
        at = [when for asked, when in backend.sent if asked == text]
        for number in range(5):
            pauses[number].append(at[number + 1] - at[number])

    for found, longest in zip(pauses, [1.0, 2.0, 4.0, 5.0, 5.0], strict=True):
        assert 0 <= min(found) < 0.1 * longest
        assert 0.9 * longest < max(found) <= longest


def test_a_retry_after_is_respected_up_to_a_cap(journal: Journal) -> None:
    backend = Scripted({"a": [busy(7.0), busy(3600.0), yes()]})

    run(scheduler_for(backend, journal), "a")

    assert backend.times == [0, 7, 37]


def test_one_429_pauses_every_request(journal: Journal) -> None:
    backend = Scripted({"a": [RateLimited("http_429", "slow down", retry_after_s=10), yes()], "b": [yes()]})

    tally = run(scheduler_for(backend, journal), "ab")

    assert backend.sent == [("a", 0), ("a", 10), ("b", 10)]
    assert dict(tally.faults) == {"http_429": 1}


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_per_minute_quota_without_retry_after_is_waited_out(concurrency: int, journal: Journal) -> None:
    texts = [str(number) for number in range(8)]
    # Refused for the first minute, without a Retry-After.
    runs_out = {text: [RateLimited("http_429", "slow down")] * 9 for text in texts}

    class Quota(Scripted):
        async def complete(self, request: Request) -> Reply:
            if elapsed_s() >= 60:
                return yes()
            return await super().complete(request)

    tally = run(scheduler_for(Quota(runs_out), journal, concurrency=concurrency), texts)

    assert (tally.num_finished, tally.num_failed) == (8, 0)


def test_a_broken_envelope_is_retried_twice(journal: Journal) -> None:
    broken = BrokenEnvelope("broken_envelope", "HTML", possibly_paid=True, raw="<html>")
    backend = Scripted({"a": [broken, broken, yes()], "b": [broken] * 3})

    tally = run(scheduler_for(backend, journal), "ab")

    assert texts_of(journal, "ab") == {"a": "yes"}
    assert tally.unanswered["b"] == Failure(
        id="pair b", stage="generate", kind="broken_envelope", message="HTML", attempts=3, raw="<html>"
    )


def test_a_rejected_request_is_not_retried_and_the_others_continue(journal: Journal) -> None:
    backend = Scripted({"a": [yes()], "b": [rejected()], "c": [yes()]})

    tally = run(scheduler_for(backend, journal), "abc")

    assert backend.asked == ["a", "b", "c"]
    assert texts_of(journal, "abc") == {"a": "yes", "c": "yes"}
    assert (tally.num_finished, tally.num_failed) == (3, 1)
    assert tally.unanswered["b"].attempts == 1


# ------------------------------------------------------------------ the next run


def test_the_next_run_sends_nothing_twice(journal: Journal) -> None:
    run(scheduler_for(Scripted({text: [yes()] for text in "abc"}), journal), "abc")
    backend = Scripted({"d": [yes()]})

    tally = run(scheduler_for(backend, journal), "abcd")

    assert backend.asked == ["d"]
    assert (tally.num_known, tally.num_finished, tally.num_correct, tally.num_requests) == (3, 4, 4, 1)


def test_a_saved_reply_without_an_outcome_is_not_requested_again(journal: Journal) -> None:
    run(scheduler_for(Scripted({"a": [yes()]}), journal), "a")
    journal.discard_outcomes(failed_only=False)

    tally = run(scheduler_for(Scripted({}), journal), "a")

    assert texts_of(journal, "a") == {"a": "yes"}
    assert (tally.num_known, tally.num_requests) == (0, 0)


def test_an_unanswered_request_is_retried_only_by_the_next_run(journal: Journal) -> None:
    first = scheduler_for(Scripted({"a": [rejected()], "b": [yes()]}), journal)
    run(first, "ab")
    run(first, "ab")  # another phase of the same run
    assert (first.tally.num_known, first.tally.unanswered["a"].kind) == (1, "http_400")

    run(scheduler_for(Scripted({"a": [yes()]}), journal), "ab")

    assert texts_of(journal, "ab") == {"a": "yes", "b": "yes"}


def test_an_unusable_answer_stays_a_failure_until_failures_are_retried(journal: Journal) -> None:
    tally = run(scheduler_for(Scripted({"a": [yes("unusable")]}), journal), "a")
    assert (tally.num_failed, dict(tally.faults)) == (1, {"no_json": 1})
    again = run(scheduler_for(Scripted({}), journal), "a")
    assert (again.num_known, again.num_failed) == (1, 1)

    journal.discard_outcomes(failed_only=True)
    run(scheduler_for(Scripted({"a": [yes()]}), journal), "a")

    assert texts_of(journal, "a") == {"a": "yes"}


# ------------------------------------------------------------------ stopping


def stopped_after(scheduler: Scheduler, seconds: float, texts: str) -> tuple[StoppedEarly, float]:
    """Stop a run after some seconds; returns the reason and the time of its end."""

    async def go() -> tuple[StoppedEarly, float]:
        asyncio.get_running_loop().call_later(seconds, scheduler.stop, Interrupted("stopped", signal.SIGINT))
        with pytest.raises(StoppedEarly) as stopped:
            await scheduler.run(tasks(texts))
        return stopped.value, elapsed_s()

    return run_virtually(go())


def test_stopping_awaits_requests_in_flight_and_sends_no_more(journal: Journal) -> None:
    backend = Scripted({"a": [After(5, yes())], "b": [After(3, yes())]})

    reason, ended_at = stopped_after(scheduler_for(backend, journal, concurrency=2), 1, "abcd")

    assert isinstance(reason, Interrupted)
    assert reason.exit_code == 130
    assert ended_at == 5
    assert backend.asked == ["a", "b"]
    assert texts_of(journal, "abcd") == {"a": "yes", "b": "yes"}


def test_stopping_does_not_wait_for_pauses_or_turns(journal: Journal) -> None:
    backend = Scripted({"a": [busy(20.0)], "b": [After(2, yes())]})
    scheduler = scheduler_for(backend, journal, concurrency=2)

    _, ended_at = stopped_after(scheduler, 1, "abcd")

    assert ended_at == 2
    assert texts_of(journal, "abcd") == {"b": "yes"}


@pytest.mark.parametrize("fault", [busy(20.0), RateLimited("http_429", "slow down", retry_after_s=60)])
def test_a_fault_after_the_stop_is_not_retried(journal: Journal, fault: Fault) -> None:
    backend = Scripted({"a": [After(2, fault)]})

    _, ended_at = stopped_after(scheduler_for(backend, journal), 1, "ab")

    assert ended_at == 2
    assert attempts(journal) == [("pair a", fault.kind)]


def test_a_refusal_stops_the_run_and_saves_replies_in_flight(journal: Journal) -> None:
    refused = Refused("http_401", "no such key")
    backend = Scripted({"a": [After(5, yes())], "b": [After(1, refused)]})

    with pytest.raises(ServerRefused, match=r"^memory: no such key$"):
        run(scheduler_for(backend, journal, concurrency=2), "abcd")

    assert backend.asked == ["a", "b"]
    assert texts_of(journal, "abcd") == {"a": "yes"}


def test_the_budget_stops_the_run_and_saves_replies_in_flight(journal: Journal) -> None:
    backend = Scripted({text: [After(1, yes())] for text in "abcdef"})
    budget = Budget(prices={"teacher": PRICE}, cap_usd=1.55)

    with pytest.raises(BudgetReached) as reached:
        run(scheduler_for(backend, journal, concurrency=2, budget=budget), "abcdefgh")

    # Each reserves 68 cents and costs 15: a fourth waits until the third is answered, a seventh does not fit.
    assert str(reached.value).startswith("--budget 1.55: 0.9000 spent, 0.0000 reserved, and the next")
    assert backend.sent == [("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 3), ("f", 4)]
    assert texts_of(journal, "abcdefgh") == dict.fromkeys("abcdef", "yes")
    assert budget.spent_usd == pytest.approx(0.90)
    assert journal.spent_usd() == pytest.approx(0.90)


def test_a_budget_of_twice_the_real_cost_pays_for_all_at_concurrency_16(journal: Journal) -> None:
    names = [f"{number:02}" for number in range(60)]
    backend = Scripted({name: [After(1, yes())] for name in names})
    budget, most_used = Budget(prices={"teacher": PRICE}, cap_usd=2 * 60 * 0.15), 0.0

    def on_progress(tally: Tally, budget: Budget) -> None:
        nonlocal most_used
        most_used = max(most_used, budget.spent_usd + budget.reserved_usd)

    tally = run(
        scheduler_for(backend, journal, concurrency=16, budget=budget, on_progress=on_progress), names
    )

    assert (tally.num_finished, tally.num_failed, tally.num_requests) == (60, 0, 60)
    assert (budget.spent_usd, budget.reserved_usd) == (pytest.approx(9.0), pytest.approx(0.0))
    assert most_used <= 18.0


@pytest.mark.parametrize("how", ["stopped", "a fault", "a 429"])
def test_a_request_that_waits_for_the_budget_goes_on_once_nothing_is_in_flight(
    journal: Journal, how: str
) -> None:
    fault = busy(20.0) if how == "a fault" else RateLimited("http_429", "slow", retry_after_s=20)
    script: dict[str, list[Step]] = {"a": [After(5, yes() if how == "stopped" else fault), yes()]}
    backend = Scripted(script | {"b": [yes()]})
    budget = Budget(prices={"teacher": PRICE}, cap_usd=1.00)
    scheduler = scheduler_for(backend, journal, concurrency=2, budget=budget)

    if how == "stopped":
        assert stopped_after(scheduler, 1, "ab")[1] == 5
        assert backend.asked == ["a"]
    else:
        assert run(scheduler, "ab").num_failed == 0
        assert sorted(backend.asked) == ["a", "a", "b"]
        assert backend.times == ([0, 5, 25] if how == "a fault" else [0, 25, 25])


def test_ten_minutes_of_429_end_the_run_and_the_terminal_has_one_line(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    limited = [RateLimited("http_429", "slow down")] * 100
    script: dict[str, list[Step]] = {name: list(limited) for name in NAMES} | {NAMES[0]: [yes()]}
    backend, waits = Scripted(script), list[float]()

    def on_progress(tally: Tally, budget: Budget) -> None:
        waits.append(tally.waiting_s)

    scheduler = scheduler_for(backend, journal, concurrency=16, on_progress=on_progress)

    reason = reason_of(scheduler, NAMES)

    assert reason == (
        "memory: nothing but 429 for 10 minutes: slow down; "
        "all answers so far are saved, run the same command later"
    )
    assert 600 <= backend.times[-1] <= 660
    assert waits[:2] == [0.0, 1.0]
    assert max(waits) == 60.0
    lines = [each.getMessage() for each in caplog.records if each.name != "nlicot.teacher.log"]
    assert lines == ["memory: 429, waiting 1 s: slow down"]
    assert run(scheduler_for(teacher(bad=[]), journal), NAMES).num_finished == 300


def test_an_answer_ends_the_wait_and_starts_the_ten_minutes_again(journal: Journal) -> None:
    slow = RateLimited("http_429", "slow down", retry_after_s=120)
    backend = Scripted({name: [slow] * 4 + [yes()] for name in "abc"})
    scheduler = scheduler_for(backend, journal)

    tally = run(scheduler, "abc")

    assert (tally.num_finished, tally.num_failed, tally.waiting_s) == (3, 0, 0.0)
    assert backend.times[-1] == 12 * 120


def test_a_full_disk_stops_the_run(journal: Journal) -> None:
    backend = Scripted({"a": [yes()], "b": [yes("long " * 200_000)]})

    with no_file_grows_beyond(600_000), pytest.raises(DiskFull) as stopped:
        run(scheduler_for(backend, journal), "abc")

    assert stopped.value.exit_code == 5
    assert backend.asked == ["a", "b"]
    assert texts_of(journal, "abc") == {"a": "yes"}


REMEDIES = {
    "http_400": "use another --model or --request_field",
    "http_503": "check the server, and run the same command to continue",
    "broken_envelope": "check --server_url: this is not a chat completion",
    "context_length": "shorten the texts, or use another --model",
    "content_filter": "name another model in --next_models, or use another --model",
}


@pytest.mark.parametrize(
    "fault",
    [
        rejected(),
        busy(),
        BrokenEnvelope("broken_envelope", "HTML"),
        Rejected("context_length", "at most 4096"),
        Rejected("content_filter", "filtered"),
    ],
)
def test_a_run_ends_if_the_first_five_requests_are_unanswered(journal: Journal, fault: Fault) -> None:
    backend = Scripted({text: [fault] * 6 for text in "abcdefgh"})

    with pytest.raises(NoAnswers) as stopped:
        run(scheduler_for(backend, journal), "abcdefgh")

    assert sorted(set(backend.asked)) == list("abcde")
    assert str(stopped.value) == (
        f"memory: none of the first 5 requests was answered: {fault.message}; {REMEDIES[fault.kind]}"
    )
    assert stopped.value.exit_code == 7


def test_after_one_answer_failures_only_affect_their_pairs(journal: Journal) -> None:
    backend = Scripted({text: [rejected()] for text in "bcdefgh"} | {"a": [yes()]})

    tally = run(scheduler_for(backend, journal), "abcdefgh")

    assert (tally.num_finished, tally.num_failed) == (8, 7)


def test_a_run_continues_after_an_earlier_one_with_many_rejections(journal: Journal) -> None:
    script = {text: [rejected()] for text in "bcdefg"}
    run(scheduler_for(Scripted(script | {"a": [yes()]}), journal), "abcdefg")

    tally = run(scheduler_for(Scripted(script | {"h": [yes()]}), journal), "abcdefgh")

    assert (tally.num_known, tally.num_failed) == (1, 6)
    assert texts_of(journal, "abcdefgh") == {"a": "yes", "h": "yes"}


def test_a_server_that_is_down_also_ends_a_later_run(journal: Journal) -> None:
    run(scheduler_for(Scripted({"a": [yes()]}), journal), "a")

    with pytest.raises(NoAnswers):
        run(scheduler_for(Scripted({text: [busy()] * 6 for text in "bcdefgh"}), journal), "abcdefgh")


# ------------------------------------------------------------------ answers that cannot be used

NAMES = [f"t{number:03}" for number in range(300)]


def teacher(*, bad: Iterable[str], delay_s: float = 0.0) -> Scripted:
    """Answers each question once: unusably those in `bad`, with yes all others."""
    answers = dict.fromkeys(NAMES, yes()) | dict.fromkeys(bad, yes("unusable"))
    return Scripted({name: [After(delay_s, answer)] for name, answer in answers.items()})


def reason_of(scheduler: Scheduler, texts: Iterable[str]) -> str:
    """Return the message of a run that stops because nothing can be used."""
    with pytest.raises(NoAnswers) as stopped:
        run(scheduler, texts)
    assert stopped.value.exit_code == 7
    return str(stopped.value)


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_a_run_stops_if_none_of_the_first_ten_can_be_read(journal: Journal, concurrency: int) -> None:
    backend = teacher(bad=NAMES, delay_s=1)

    reason = reason_of(scheduler_for(backend, journal, concurrency=concurrency), NAMES)

    assert backend.asked == NAMES[:10]
    assert reason == (
        "memory: 0 of 10 answers could be read, most often no_json (10): no JSON; pair t000 got 'unusable'; "
        "use another --model or --prompt, or a server that enforces JSON (response_format); "
        "--retry_failures asks again"
    )


def test_the_same_run_again_sends_nothing_until_failures_are_retried(journal: Journal) -> None:
    reason_of(scheduler_for(teacher(bad=NAMES), journal, concurrency=64), NAMES)

    reason = reason_of(scheduler_for(Scripted({}), journal, concurrency=64), NAMES)
    assert "most often no_json (10), in an earlier run; nothing was sent now: no JSON; pair t000" in reason

    journal.discard_outcomes(failed_only=True)
    tally = run(scheduler_for(teacher(bad=[]), journal, concurrency=64), NAMES)
    assert (tally.num_finished, tally.num_failed, tally.num_requests) == (300, 0, 300)


def test_the_reason_shows_the_first_pair_of_an_earlier_run_whatever_its_key(journal: Journal) -> None:
    given = [task(name, key=f"key {99 - number}") for number, name in enumerate(NAMES[:10])]
    with pytest.raises(NoAnswers, match="; pair t000 got 'unusable'"):
        run_virtually(scheduler_for(teacher(bad=NAMES), journal).run(given))

    with pytest.raises(NoAnswers, match="; pair t000 got 'unusable'"):
        run_virtually(scheduler_for(Scripted({}), journal).run(given))


def test_failures_of_earlier_runs_count_among_the_first_ten(journal: Journal) -> None:
    run(scheduler_for(teacher(bad=NAMES), journal, concurrency=64), NAMES[:7])
    backend = teacher(bad=NAMES)

    assert "0 of 10 answers could be read" in reason_of(scheduler_for(backend, journal), NAMES)

    assert backend.asked == NAMES[7:10]


def test_one_answer_that_can_be_read_lets_all_tasks_in(journal: Journal) -> None:
    backend = teacher(bad=[*NAMES[:9], *NAMES[10::3]], delay_s=1)

    tally = run(scheduler_for(backend, journal, concurrency=64), NAMES)

    assert (tally.num_finished, tally.num_failed) == (300, 9 + 97)
    assert backend.times.count(0) == 10
    assert backend.times.count(1) == backend.most_in_flight == 64


def test_answers_that_could_be_read_earlier_let_all_tasks_in_at_once(journal: Journal) -> None:
    run(scheduler_for(teacher(bad=NAMES[:20]), journal, concurrency=64), [NAMES[50], *NAMES[:20]])
    backend = teacher(bad=NAMES[20:60:2], delay_s=1)

    tally = run(scheduler_for(backend, journal, concurrency=64), NAMES)

    assert (tally.num_finished, tally.num_failed) == (300, 20 + 19)
    assert backend.times.count(0) == 64


@pytest.mark.parametrize("num", [49, 50])
def test_a_run_stops_after_fifty_failures_of_one_kind_in_a_row(journal: Journal, num: int) -> None:
    backend = teacher(bad=NAMES[100 : 100 + num])
    scheduler = scheduler_for(backend, journal)

    if num == 49:
        assert run(scheduler, NAMES).num_failed == 49
    else:
        reason = reason_of(scheduler, NAMES)
        assert reason.startswith("memory: 50 pairs in a row failed as no_json: no JSON; pair t100 got")
        assert backend.asked == NAMES[:150]

        # The next start continues after them: they may have been the only ones.
        assert run(scheduler_for(teacher(bad=[]), journal), NAMES).num_failed == 50


def test_failures_of_several_kinds_in_a_row_are_counted_apart(journal: Journal) -> None:
    async def fail(name: str, kind: str, ask: Ask) -> Outcome:
        await ask(question(name))
        return unusable(name, kind)

    kinds = {name: ("no_json", "truncated")[number % 2] for number, name in enumerate(NAMES[1:99])}
    given = [task(NAMES[0])]
    for name, kind in kinds.items():
        given.append(Task(key=name, pair=name, run=functools.partial(fail, name, kind)))
    scheduler = scheduler_for(teacher(bad=[]), journal)

    run_virtually(scheduler.run(given))

    assert scheduler.tally.num_failed == 98


def test_a_server_that_dies_ends_the_run_after_fifty_unanswered_tasks(journal: Journal) -> None:
    gone = Transient("connection", "cannot be reached")
    backend = Scripted({NAMES[0]: [yes()]} | {name: [gone] * 6 for name in NAMES[1:]})

    reason = reason_of(scheduler_for(backend, journal, concurrency=16), NAMES)

    start, _, remedy = reason.partition(", as for pair pair t")
    assert start == "memory: 50 pairs in a row failed as connection: cannot be reached"
    assert remedy.endswith("; check the server, and run the same command to continue")
    assert len(set(backend.asked)) <= 1 + 50 + 16
    assert run(scheduler_for(teacher(bad=[]), journal), NAMES).num_failed == 0


class Dying(Scripted):
    """Lists its models once."""

    has_listed = False

    async def models(self) -> list[str] | None:
        if self.has_listed:
            raise Transient("connection", "cannot be reached")
        self.has_listed = True
        return None


@pytest.mark.parametrize(
    ("num_failed", "concurrency", "kind", "ends"),
    [
        *((9, 1, Scripted, False), (10, 1, Scripted, True), (15, 16, Scripted, False)),
        *((16, 16, Scripted, True), (2, 16, Dying, True)),
    ],
)
def test_a_server_that_dies_before_the_end_gives_no_output(
    journal: Journal, num_failed: int, concurrency: int, kind: type[Scripted], ends: bool
) -> None:
    gone = Transient("connection", "cannot be reached")
    names = NAMES[:80]
    script: dict[str, list[Step]] = {name: [yes()] for name in names} | {
        name: [gone] * 6 for name in names[80 - num_failed :]
    }

    def go(backend: Scripted) -> None:
        phases = [Phase(tasks=lambda: tasks(names[:60])), Phase(tasks=lambda: tasks(names))]
        settings = RunSettings(concurrency=concurrency, policy=RetryPolicy(first_pause_s=0.0))
        stage: dict[str, Any] = {"stage": "generate", "models": ["teacher"], "journal": journal}
        run_phases(phases, backend=backend, settings=settings, **stage)

    if not ends:
        go(kind(script))
        return
    with pytest.raises(NoAnswers) as stopped:
        go(kind(script))
    assert str(stopped.value) == (
        f"memory: the last {num_failed} pairs got no answer (connection): cannot be reached; "
        "no output was written; check the server, and run the same command to continue"
    )
    go(Scripted({name: [yes()] for name in names[80 - num_failed :]}))


def test_known_answers_of_an_earlier_phase_do_not_end_a_row_of_failures(journal: Journal) -> None:
    gone = Transient("connection", "cannot be reached")
    script: dict[str, list[Step]] = {name: [yes()] for name in NAMES[:20]} | {
        name: [gone] * 6 for name in NAMES[20:]
    }
    scheduler = scheduler_for(Scripted(script), journal, concurrency=16)
    run(scheduler, NAMES[:60])

    assert reason_of(scheduler, NAMES[:80]).startswith("memory: 50 pairs in a row failed as connection")


@pytest.mark.parametrize("num_failed", [127, 128])
def test_an_outage_ends_a_run_only_after_two_rounds_of_all_in_flight(
    journal: Journal, num_failed: int
) -> None:
    gone = Transient("connection", "cannot be reached")
    script: dict[str, list[Step]] = {name: [yes()] for name in NAMES}
    script |= {name: [gone] * 6 for name in NAMES[-num_failed:]}
    scheduler = scheduler_for(Scripted(script), journal, concurrency=64)

    if num_failed == 127:
        assert run(scheduler, NAMES).num_failed == 127
    else:
        assert "128 pairs in a row failed as connection" in reason_of(scheduler, NAMES)


def test_an_unreadable_answer_during_an_outage_does_not_end_the_run(journal: Journal) -> None:
    gone = Transient("connection", "cannot be reached")
    script: dict[str, list[Step]] = {name: [yes()] for name in NAMES[:100]}
    script |= {name: [gone] * 6 for name in NAMES[100:160]} | {NAMES[160]: [After(200, yes("unusable"))]}
    script |= {name: [After(400, yes())] for name in NAMES[161:]}

    assert run(scheduler_for(Scripted(script), journal, concurrency=64), NAMES).num_failed == 61


def test_rejections_do_not_end_a_run_that_was_killed_before_its_outcomes_were_written(
    journal: Journal,
) -> None:
    script: dict[str, list[Step]] = {text: [rejected()] for text in "bcdefg"}
    run(scheduler_for(Scripted({"a": [yes()]} | script), journal), "abcdefg")
    journal.discard_outcomes(failed_only=False)

    assert run(scheduler_for(Scripted(script | {"h": [yes()]}), journal), "abcdefgh").num_failed == 6


def test_rejected_texts_never_end_a_run_that_got_answers(journal: Journal) -> None:
    backend = Scripted({NAMES[0]: [yes()]} | {name: [rejected()] for name in NAMES[1:]})

    assert run(scheduler_for(backend, journal), NAMES).num_failed == 299


def test_a_run_in_which_every_task_failed_raises(journal: Journal) -> None:
    def go(texts: Sequence[str], backend: Scripted) -> None:
        run_phases(
            [Phase(tasks=lambda: tasks(texts)), Phase(tasks=lambda: tasks(()))],
            stage="generate",
            backend=backend,
            models=["teacher"],
            journal=journal,
            settings=RunSettings(),
        )

    for backend in (teacher(bad=NAMES), Scripted({})):
        with pytest.raises(NoAnswers, match=r"^memory: 0 of 3 answers could be read, most often no_json"):
            go(NAMES[:3], backend)
    go(NAMES[:4], teacher(bad=[]))
    go((), teacher(bad=[]))


class Jobs(Scripted):
    """A backend whose requests wait in jobs."""

    name = "mistral-batch"


async def _until_valid(request: Request, ask: Ask) -> Outcome:
    """Ask up to three times, each time with one more exclamation mark."""
    text, reply = request.messages[0].content, None
    for number in range(3):
        again = replace(request, messages=(Message(role="user", content=text + "!" * number),))
        try:
            reply = await ask(again)
        except NotAgain:
            break
        if reply.text == "yes":
            ask.note_read(again, is_usable=True)
            return Outcome(ok=True, correct=True, rows=[{"text": reply.text}])
    assert reply is not None
    return unusable(text, raw=reply.text)


def persistent(names: Sequence[str]) -> list[Task]:
    return [Task(key=name, pair=name, run=functools.partial(_until_valid, question(name))) for name in names]


@pytest.mark.parametrize(("num_tasks", "num_asked"), [(300, 100), (60, 60), (10, 10)])
def test_a_useless_first_round_of_a_job_is_not_followed_by_another(
    journal: Journal, num_tasks: int, num_asked: int
) -> None:
    backend = Jobs({name: [After(3600, yes("unusable"))] for name in NAMES})
    scheduler = scheduler_for(backend, journal, concurrency=10_000)

    async def go() -> None:
        await scheduler.run(persistent(NAMES[:num_tasks]))
        await scheduler.check_result()

    with pytest.raises(NoAnswers, match=f"0 of {num_asked} answers could be read"):
        run_virtually(go())
    assert backend.asked == NAMES[:num_asked]

    with pytest.raises(NoAnswers, match="in an earlier run; nothing was sent now"):
        run_virtually(scheduler_for(Jobs({}), journal, concurrency=10_000).run(persistent(NAMES)))


def test_a_round_that_was_killed_before_its_outcomes_were_saved_is_not_sent_again(journal: Journal) -> None:
    backend = Jobs({name: [After(3600, yes("unusable"))] for name in NAMES})
    with pytest.raises(NoAnswers):
        run_virtually(scheduler_for(backend, journal, concurrency=10_000).run(persistent(NAMES)))
    journal.discard_outcomes(failed_only=False)

    with pytest.raises(NoAnswers, match="0 of 100 answers could be read"):
        run_virtually(scheduler_for(Jobs({}), journal, concurrency=10_000).run(persistent(NAMES)))


@pytest.mark.parametrize("num_good", [1, 50])
def test_one_answer_of_a_job_that_can_be_read_lets_the_others_be_asked_again(
    journal: Journal, num_good: int
) -> None:
    script: dict[str, list[Step]] = {}
    for number, name in enumerate(NAMES):
        first = "yes" if number < num_good else "unusable"
        script |= {name: [After(3600, yes(first))], f"{name}!": [After(3600, yes())]}
    backend = Jobs(script)

    scheduler = scheduler_for(backend, journal, concurrency=10_000)
    run_virtually(scheduler.run(persistent(NAMES)))

    assert (scheduler.tally.num_finished, scheduler.tally.num_failed) == (300, 0)
    assert backend.times.count(0) == 100
    assert sorted(backend.asked[100:]) == sorted([*NAMES[100:], *(f"{name}!" for name in NAMES[num_good:])])


def test_a_few_tasks_in_a_job_are_asked_again_in_any_case(journal: Journal) -> None:
    script = {f"{name}{marks}": [After(3600, yes("unusable"))] for name in NAMES[:9] for marks in ("", "!")}
    backend = Jobs(script | {f"{name}!!": [After(3600, yes())] for name in NAMES[:9]})

    scheduler = scheduler_for(backend, journal, concurrency=10_000)
    run_virtually(scheduler.run(persistent(NAMES[:9])))

    assert (scheduler.tally.num_finished, scheduler.tally.num_failed) == (9, 0)


# ------------------------------------------------------------------ exceptions and cancellation


def test_a_bug_in_a_task_is_raised(journal: Journal) -> None:
    async def broken(ask: Ask) -> Outcome:
        await ask(question("b"))
        raise ZeroDivisionError("a bug")

    backend = Scripted({"a": [yes()], "b": [yes()]})
    given = [task("a"), Task(key="b", pair="pair b", run=broken), task("c")]

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_virtually(scheduler_for(backend, journal).run(given))

    assert texts_of(journal, "abc") == {"a": "yes"}
    assert journal.reply(question("b").key()) == yes(), "a paid reply is saved"


def test_an_exception_while_making_tasks_ends_the_run(journal: Journal) -> None:
    def given() -> Iterator[Task]:
        yield from tasks(str(number) for number in range(512))
        raise ZeroDivisionError("a bug")

    backend = Scripted({str(number): [yes()] for number in range(512)})

    with pytest.raises(ZeroDivisionError):
        run_virtually(scheduler_for(backend, journal, concurrency=3).run(given()))


def test_requests_in_flight_when_a_run_is_cancelled_count_as_paid(tmp_path: Path) -> None:
    budget = Budget(prices={"teacher": PRICE})
    path = tmp_path / "generate.sqlite"

    async def cancelled(scheduler: Scheduler) -> float:
        running = asyncio.create_task(scheduler.run(tasks("ab")))
        await asyncio.sleep(1)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return elapsed_s()

    with Journal(path) as journal:
        backend = Scripted({"a": [After(60, yes())]})
        assert run_virtually(cancelled(scheduler_for(backend, journal, budget=budget))) == 1
    assert (budget.spent_usd, budget.reserved_usd) == (pytest.approx(0.68), 0.0)
    with Journal(path) as journal:
        assert [pair for _, pair in journal.interrupted] == ["pair a"]
        assert journal.spent_usd() == pytest.approx(0.68)


def test_progress_is_reported_after_each_task(journal: Journal) -> None:
    seen: list[tuple[int, int]] = []

    def on_progress(tally: Tally, budget: Budget) -> None:
        seen.append((tally.num_finished, tally.num_failed))

    run(scheduler_for(Scripted({"a": [yes()]}), journal), "a")
    backend = Scripted({"b": [rejected()], "c": [yes()]})
    scheduler = scheduler_for(backend, journal, on_progress=on_progress)
    run(scheduler, "abc")

    assert seen == [(1, 0), (2, 1), (3, 1)]


# ------------------------------------------------------------------ a whole run


def test_phases_run_in_turn_inside_a_running_event_loop(journal: Journal) -> None:
    backend = Scripted({text: [yes()] for text in "abc"})
    seen: list[str] = []

    async def in_event_loop() -> Tally:
        phases = [
            Phase(tasks=lambda: tasks("a"), after=lambda: seen.extend(backend.asked)),
            Phase(tasks=lambda: tasks("abc")),
        ]
        report = run_phases(
            phases,
            stage="generate",
            backend=backend,
            models=["teacher"],
            journal=journal,
            settings=RunSettings(concurrency=2, prices={"teacher": PRICE}),
        )
        assert (report.spent_usd, report.cost_known) == (pytest.approx(0.45), True)
        return report.tally

    tally = asyncio.run(in_event_loop())

    assert seen == ["a"]
    assert sorted(backend.asked) == ["a", "b", "c"]
    assert (tally.num_known, tally.num_finished, tally.num_requests) == (1, 3, 3)
    assert backend.closed


def test_progress_counts_all_splits_together_and_tasks_of_the_probe_once(journal: Journal) -> None:
    seen: list[int] = []
    report = run_phases(
        [
            Phase(tasks=lambda: tasks("a"), after=lambda: seen.append(-1)),
            Phase(tasks=lambda: tasks("abc")),
            Phase(tasks=lambda: tasks("de")),
        ],
        stage="generate",
        backend=Scripted({text: [yes()] for text in "abcde"}),
        models=["teacher"],
        journal=journal,
        settings=RunSettings(concurrency=1),
        on_progress=lambda tally, budget: seen.append(tally.num_finished),
    )
    assert seen == [0, 1, -1, 1, 2, 3, 4, 5]
    assert (report.tally.num_known, report.tally.num_finished, report.tally.num_correct) == (1, 5, 5)


def test_the_counts_of_a_probe_without_other_phases_stay(journal: Journal) -> None:
    report = run_phases(
        [Phase(tasks=lambda: tasks("ab"), after=lambda: None)],
        stage="generate",
        backend=Scripted({text: [yes()] for text in "ab"}),
        models=["teacher"],
        journal=journal,
        settings=RunSettings(),
    )
    assert report.tally.num_finished == 2


class Catalogue(Scripted):
    """A backend that lists its models."""

    async def models(self) -> list[str] | None:
        return ["teacher"]


def test_a_model_that_is_not_served_may_come_from_any_flag_that_names_models(journal: Journal) -> None:
    with pytest.raises(ServerRefused) as refused:
        run_phases(
            [Phase(tasks=lambda: tasks("a"))],
            stage="generate",
            backend=Catalogue({}),
            models=["teacher", "stronger-teacher"],
            journal=journal,
            settings=RunSettings(),
        )
    assert str(refused.value) == (
        "--model, --next_models or --regenerate_with: found stronger-teacher, "
        "expected one that memory serves: teacher"
    )


def test_a_phase_can_end_the_run(journal: Journal) -> None:
    backend = Scripted({"a": [yes()]})

    def lopsided() -> None:
        raise StoppedEarly("lopsided")

    with pytest.raises(StoppedEarly, match="lopsided"):
        run_phases(
            [Phase(tasks=lambda: tasks("a"), after=lopsided), Phase(tasks=lambda: tasks("abc"))],
            stage="generate",
            backend=backend,
            models=["teacher"],
            journal=journal,
            settings=RunSettings(),
        )

    assert backend.asked == ["a"]
    assert backend.closed


def test_an_event_is_one_line_of_the_log_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with log_to(path):
        run_log.warning("%s: failed", "p1\x1b[2J\nsecond line")
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert line.endswith(" p1?[2J second line: failed")


def test_a_full_disk_costs_lines_of_the_log_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.log"
    with no_file_grows_beyond(0), log_to(path):
        run_log.warning("no room for this")
    assert path.read_bytes() == b""
    assert capsys.readouterr().err == ""
