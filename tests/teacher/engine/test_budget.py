"""The spending cap: a request that could exceed it is not sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nlicot.errors import BudgetReached, ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import AnswerSchema, Message, Request
from nlicot.teacher.engine.pricing import Budget, Price, count_tokens, max_prompt_tokens

# A request below reserves 100 prompt tokens (34 bytes, a schema of 2, a margin of 64) and its max_tokens.
TEXT = "x" * 34
PRICE = Price(input=10_000, output=10_000)
"""A cent a token, so that the figures below are cents."""


def request(
    text: str = TEXT, *, params: Mapping[str, Any] | None = None, model: str = "teacher", schema: Any = None
) -> Request:
    return Request(
        stage="generate",
        backend="openai",
        server="http://localhost:8000",
        model=model,
        messages=(Message(role="user", content=text),),
        params={"max_tokens": 100} if params is None else params,
        schema=AnswerSchema(name="thought", schema=schema or {}),
    )


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def test_a_request_reserves_its_maximum_cost() -> None:
    budget = Budget(prices={"teacher": PRICE})

    assert budget.reserve(request()) == 2.00
    assert budget.reserve(request(params={"max_tokens": 200})) == 3.00
    assert budget.reserve(request(params={})) == pytest.approx(41.96)  # 100 and 4096 tokens
    assert budget.reserved_usd == pytest.approx(46.96)
    assert budget.spent_usd == 0.0


def test_prompt_and_completion_have_their_own_prices() -> None:
    budget = Budget(prices={"teacher": Price(input=10_000, output=30_000)})

    reserved = budget.reserve(request())

    assert reserved == 4.00
    assert budget.settle(request(), reserved, usage(50, 10)) == pytest.approx(0.80)


@pytest.mark.parametrize(
    "text", ["Zwölf Boxkämpfer jagen Viktor.", "日本語の文です。", "🙂🙃", "a b\n\tc", ""]
)
def test_the_reserved_tokens_bound_the_tokens_of_any_prompt(text: str) -> None:
    schema = {"type": "object", "properties": {"thought_process": {"type": "string"}}}

    assert max_prompt_tokens(request(text, schema=schema)) >= count_tokens(text) + count_tokens(
        json.dumps(schema)
    )


def test_a_cap_can_be_reached_but_not_exceeded() -> None:
    budget = Budget(prices={"teacher": PRICE}, cap_usd=4.00)

    budget.reserve(request())
    budget.reserve(request())

    with pytest.raises(BudgetReached) as reached:
        budget.reserve(request(params={"max_tokens": 1}))
    assert str(reached.value) == (
        "--budget 4.0: 0.0000 spent, 4.0000 reserved, and the next request may cost 1.0100; "
        "all answers so far are saved, run the same command with a larger --budget to continue"
    )
    assert reached.value.exit_code == 4
    assert budget.reserved_usd == 4.00, "a refused request reserves nothing"


def test_a_reply_replaces_its_reservation_by_its_price() -> None:
    budget = Budget(prices={"teacher": PRICE}, cap_usd=4.00)
    reserved = budget.reserve(request())

    assert budget.settle(request(), reserved, usage(20, 5)) == 0.25

    assert (budget.spent_usd, budget.reserved_usd) == (0.25, 0.0)
    budget.reserve(request())
    with pytest.raises(BudgetReached):
        budget.reserve(request())


def test_a_reply_without_usage_costs_its_reservation() -> None:
    budget = Budget(prices={"teacher": PRICE})
    reserved = budget.reserve(request())

    assert budget.settle(request(), reserved, None) == 2.00

    assert (budget.spent_usd, budget.reserved_usd) == (2.00, 0.0)


def test_a_failed_request_releases_its_reservation_unless_possibly_paid() -> None:
    budget = Budget(prices={"teacher": PRICE})
    refused, timed_out = budget.reserve(request()), budget.reserve(request(params={"max_tokens": 200}))

    budget.release(refused, possibly_paid=False)
    assert (budget.spent_usd, budget.reserved_usd) == (0.0, 3.00)

    budget.release(timed_out, possibly_paid=True)
    assert (budget.spent_usd, budget.reserved_usd) == (3.00, 0.0)


def test_spending_of_earlier_starts_counts_against_the_cap() -> None:
    budget = Budget(prices={"teacher": PRICE}, cap_usd=4.00, spent_usd=2.50)

    with pytest.raises(BudgetReached, match=r"^--budget 4\.0: 2\.5000 spent, 0\.0000 reserved"):
        budget.reserve(request())


def test_a_cap_is_refused_if_a_price_is_unknown() -> None:
    prices = {"teacher": PRICE, "of its own": None, "another": None}

    with pytest.raises(ConfigError) as refused:
        Budget(prices=prices, cap_usd=5.0)

    assert str(refused.value) == (
        "--budget 5.0: the price of of its own, another is not known; "
        "give it with --price INPUT,OUTPUT (dollars per million tokens)"
    )


def test_without_a_cap_the_cost_at_an_unknown_price_is_none() -> None:
    budget = Budget(prices={"teacher": None})

    reserved = budget.reserve(request())

    assert reserved == 0.0
    assert budget.settle(request(), reserved, usage(20, 5)) is None


def test_a_free_model_fits_any_cap() -> None:
    budget = Budget(prices={"teacher": Price(input=0, output=0)}, cap_usd=0.0)

    assert budget.settle(request(), budget.reserve(request()), usage(20, 5)) == 0.0


def test_nothing_stays_reserved_after_many_requests() -> None:
    budget = Budget(prices={"teacher": Price(input=0.1, output=0.3)}, cap_usd=1000.0)

    for number in range(10_000):
        reserved = budget.reserve(request(params={"max_tokens": 1 + number % 7}))
        budget.settle(request(), reserved, usage(100, 1 + number % 7))

    assert budget.reserved_usd == pytest.approx(0.0, abs=1e-9)
    expected = sum(100 * 0.1 + (1 + number % 7) * 0.3 for number in range(10_000)) / 1_000_000
    assert budget.spent_usd == pytest.approx(expected)
