"""The rule by itself: how many tasks may start, and the reason after each number of failures."""

from __future__ import annotations

import asyncio

import pytest

from nlicot.records import Failure
from nlicot.teacher.engine.rate_limiter import DEFAULT_POLICY
from nlicot.teacher.engine.stopping_rule import StoppingRule
from tests.teacher.engine.test_scheduler import Jobs, Scripted
from tests.teacher.virtual_time import run_virtually


def rule_for(backend: type[Scripted] = Scripted) -> StoppingRule:
    return StoppingRule(backend({}), DEFAULT_POLICY, concurrency=4)


def failure(number: int, kind: str = "no_json") -> Failure:
    return Failure(id=f"p{number}", stage="generate", kind=kind, message="no JSON", attempts=1, raw="prose")


@pytest.mark.parametrize(("backend", "num_let_in"), [(Scripted, 10), (Jobs, 100)])
def test_few_tasks_may_start_until_an_answer_could_be_read(backend: type[Scripted], num_let_in: int) -> None:
    rule, started = rule_for(backend), list[int]()

    async def work(number: int) -> None:
        async with rule.turn():
            started.append(number)

    async def go() -> None:
        tasks = [asyncio.create_task(work(number)) for number in range(120)]
        await asyncio.sleep(1)
        assert started == list(range(num_let_in))
        rule.note_read("", is_usable=False)
        await asyncio.gather(*tasks)

    run_virtually(go())
    assert started == list(range(120))


def test_the_tenth_failure_is_a_reason_and_the_fiftieth_once_an_answer_could_be_read() -> None:
    rule = rule_for()
    rule.note_answered()
    reasons = [rule.note_failure("", str(n), failure(n)) for n in range(10)]
    assert reasons[:9] == [None] * 9
    assert str(reasons[9]).startswith("memory: 0 of 10 answers could be read, most often no_json (10): ")

    rule.note_usable()
    reasons = [rule.note_failure("", str(n), failure(n)) for n in range(50)]
    assert reasons[:49] == [None] * 49
    assert str(reasons[49]).startswith("memory: 50 pairs in a row failed as no_json: no JSON; pair p0 got ")


def test_rewrites_are_counted_apart_from_the_answers_that_could_be_read() -> None:
    rule = rule_for()
    rule.note_answered()
    rule.note_usable()
    reasons = [rule.note_failure("thought", str(n), failure(n)) for n in range(10)]
    assert reasons[:9] == [None] * 9
    # The task of a rewrite that failed is usable, so `--retry_failures` does not ask it again.
    assert str(reasons[9]) == (
        "memory: 0 of 10 rewrites could be read, most often no_json (10): no JSON; pair p0 got 'prose'; "
        "name other models in --regenerate_with, or set --rounds 0"
    )


@pytest.mark.parametrize(("is_rejected", "num_reasons"), [(False, 1), (True, 0)])
def test_rejections_are_no_reason_when_a_run_continues(is_rejected: bool, num_reasons: int) -> None:
    rule = rule_for()
    rule.note_usable()
    reasons = [
        rule.note_unanswered(str(n), failure(n, "http_400"), is_rejected=is_rejected) for n in range(5)
    ]
    assert [str(reason) for reason in reasons if reason is not None] == [
        "memory: none of the first 5 requests was answered: no JSON; use another --model or --request_field"
    ][:num_reasons]


def test_a_run_has_a_result_only_if_all_of_its_tasks_failed() -> None:
    rule = rule_for()
    assert rule.result(is_dead=False) is None
    rule.note_unanswered("a", failure(0, "http_503"), is_rejected=False)
    assert str(rule.result(is_dead=False)) == (
        "memory: 0 of 1 answers could be read, most often http_503 (1): no JSON; pair p0 got 'prose'; "
        "check the server, and run the same command to continue"
    )
    rule.note_usable()
    assert rule.result(is_dead=False) is None


def test_one_unanswered_pair_at_the_end_counts_if_the_server_is_dead() -> None:
    rule = rule_for()
    rule.note_usable()
    rule.note_answered()
    assert not rule.ended_unanswered and rule.result(is_dead=True) is None
    rule.note_unanswered("a", failure(0, "http_503"), is_rejected=False)
    assert rule.ended_unanswered and rule.result(is_dead=False) is None
    assert str(rule.result(is_dead=True)) == (
        "memory: the last pair got no answer (http_503): no JSON; no output was written; "
        "check the server, and run the same command to continue"
    )
