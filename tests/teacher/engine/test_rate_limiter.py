"""Pacing and concurrency of requests, before and after a 429."""

from __future__ import annotations

import asyncio
import random

import pytest

from nlicot.teacher.engine.rate_limiter import Pace, RateLimiter
from tests.teacher.virtual_time import elapsed_s, run_virtually

INTERVAL = 3 / 49
"""Seconds between requests at 1000 a minute, of which 98 % are used: 60 / 980."""


# ------------------------------------------------------------------ pace


def test_requests_are_spaced_by_the_rate() -> None:
    pace = Pace(1000)

    found = [pace.claim(1, now=100.0) for _ in range(4)]

    # A request may be up to 20 ms late and still count as on time.
    assert found == pytest.approx([99.98 + number * INTERVAL for number in range(4)])


def test_idle_time_does_not_accumulate_for_a_burst() -> None:
    pace = Pace(1000)
    pace.claim(1, now=100.0)

    assert pace.claim(1, now=200.0) == pytest.approx(199.98)
    assert pace.claim(1, now=200.0) == pytest.approx(199.98 + INTERVAL)


def test_a_request_takes_schedule_time_for_each_of_its_units() -> None:
    pace = Pace(1000)

    assert pace.claim(49, now=100.0) == pytest.approx(99.98)
    assert pace.claim(1, now=100.0) == pytest.approx(102.98)


def test_unused_units_are_returned() -> None:
    pace = Pace(1000)
    pace.claim(98, now=100.0)

    pace.correct(-49)

    assert pace.claim(1, now=100.0) == pytest.approx(102.98)


def test_without_a_limit_nothing_is_scheduled() -> None:
    pace = Pace(None)
    pace.correct(1000)

    assert [pace.claim(1000, now=100.0), pace.claim(1, now=100.0)] == [100.0, 100.0]


# ------------------------------------------------------------------ concurrency


class Requests:
    """Sends requests through a limiter, and records when each was sent and how many were in flight."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.sent: list[tuple[str, float]] = []
        self.num_in_flight = self.most_in_flight = 0

    async def send(self, name: str, *, takes_s: float = 1.0, num_tokens: int = 0) -> None:
        await self.limiter.admit(num_tokens)
        self.sent.append((name, round(elapsed_s(), 6)))
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            await asyncio.sleep(takes_s)
        finally:
            self.num_in_flight -= 1
            self.limiter.release()
        self.limiter.succeeded({}, num_tokens, num_tokens)

    async def send_all(self, names: str, *, takes_s: float = 1.0, num_tokens: int = 0) -> None:
        await asyncio.gather(*(self.send(name, takes_s=takes_s, num_tokens=num_tokens) for name in names))


def test_requests_go_in_order_within_the_concurrency() -> None:
    requests = Requests(RateLimiter(2))

    run_virtually(requests.send_all("abcde"))

    assert requests.sent == [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 2)]
    assert requests.most_in_flight == 2


def test_both_requests_and_tokens_per_minute_are_respected() -> None:
    by_requests = Requests(RateLimiter(8, requests_per_minute=60 / 0.98))
    by_tokens = Requests(RateLimiter(8, requests_per_minute=60 / 0.98, tokens_per_minute=600 / 0.98))

    run_virtually(by_requests.send_all("abc"))
    run_virtually(by_tokens.send_all("abc", num_tokens=25))

    assert by_requests.sent == [("a", 0), ("b", 0.98), ("c", 1.98)]
    assert by_tokens.sent == [("a", 0), ("b", 2.48), ("c", 4.98)]


def test_unused_tokens_let_the_next_request_go_earlier() -> None:
    limiter = RateLimiter(1, tokens_per_minute=600 / 0.98)

    async def ask() -> float:
        await limiter.admit(100)
        limiter.release()
        limiter.succeeded({}, num_claimed=100, num_used=40)
        await limiter.admit(100)
        return elapsed_s()

    assert run_virtually(ask()) == pytest.approx(3.98)  # 40 tokens at 10 a second, less 20 ms


# ------------------------------------------------------------------ 429


def test_one_429_pauses_all_requests_and_halves_the_concurrency() -> None:
    limiter = RateLimiter(4)
    requests = Requests(limiter)

    async def ask() -> None:
        limiter.slow_down(30.0)
        await requests.send_all("abcd")

    run_virtually(ask())

    assert limiter.limit > 2
    # Two of four at first; their successes make room for a third.
    assert requests.sent == [("a", 30), ("b", 30), ("c", 31), ("d", 31)]


def test_a_429_also_pauses_requests_that_wait_for_their_slot() -> None:
    limiter = RateLimiter(4, requests_per_minute=60 / 0.98)
    requests = Requests(limiter)

    async def ask() -> None:
        asking = asyncio.create_task(requests.send_all("abc"))
        await asyncio.sleep(0.5)
        limiter.slow_down(10.0)
        await asking

    run_virtually(ask())

    assert requests.sent == [("a", 0), ("b", 10.5), ("c", 10.5)]


def test_a_burst_of_429s_halves_once_and_never_below_one() -> None:
    limiter = RateLimiter(4)

    async def refuse() -> list[float]:
        limits = []
        for pause_s in (0.0, 0.5, 0.5, 1.0, 1.0):
            await asyncio.sleep(pause_s)
            limiter.slow_down(None)
            limits.append(limiter.limit)
        return limits

    assert run_virtually(refuse()) == [2, 2, 1, 1, 1]


def test_a_retry_after_of_a_day_is_capped_at_two_minutes() -> None:
    limiter = RateLimiter(1)
    requests = Requests(limiter)

    async def ask() -> None:
        limiter.slow_down(86_400.0)
        await requests.send_all("a")

    run_virtually(ask())

    assert requests.sent == [("a", 120)]


def test_pauses_double_without_a_retry_after() -> None:
    limiter = RateLimiter(2)

    async def refuse_for_ever() -> list[float]:
        sent = []
        for _ in range(8):
            await limiter.admit(0)
            sent.append(round(elapsed_s(), 6))
            limiter.release()
            limiter.slow_down(None)
            limiter.slow_down(None)  # the other one of a burst
        return sent

    assert run_virtually(refuse_for_ever()) == [0, 1, 3, 7, 15, 31, 63, 123]


def test_a_success_resets_the_pause() -> None:
    limiter = RateLimiter(2)

    async def ask() -> list[float]:
        sent = []
        for refused in (True, True, False, True, True):
            await limiter.admit(0)
            sent.append(round(elapsed_s(), 6))
            limiter.release()
            if refused:
                limiter.slow_down(None)
            else:
                limiter.succeeded({}, 0, 0)
        return sent

    assert run_virtually(ask()) == [0, 1, 3, 3, 4]


def test_the_limit_grows_by_one_per_window_of_successes() -> None:
    limiter = RateLimiter(8)

    async def refuse() -> None:
        limiter.slow_down(0.0)

    run_virtually(refuse())
    limits = [limiter.limit]
    for _ in range(40):
        limiter.succeeded({}, 0, 0)
        limits.append(limiter.limit)

    # From 4: 4.25, 4.485, 4.708, 4.921, 5.124, so five successes make it five.
    assert [int(limit) for limit in limits[:6]] == [4, 4, 4, 4, 4, 5]
    assert limits[1] == 4.25
    assert limits[-1] == 8


def test_the_regrown_limit_is_used() -> None:
    limiter = RateLimiter(8)
    requests = Requests(limiter)

    async def ask() -> None:
        limiter.slow_down(0.0)
        await requests.send_all("abcdefghijklmnopqrstuvwxyz" * 2)

    run_virtually(ask())

    assert requests.most_in_flight == 8


# ------------------------------------------------------------------ announced limits


@pytest.mark.parametrize("name", ["x-ratelimit-limit-req-minute", "x-ratelimit-limit-requests"])
def test_the_announced_request_rate_is_respected(name: str) -> None:
    limiter = RateLimiter(8)
    requests = Requests(limiter)
    limiter.succeeded({name: "60"}, 0, 0)

    run_virtually(requests.send_all("abc"))

    interval = 60 / (60 * 0.98)
    assert [at for _, at in requests.sent] == pytest.approx(
        [0, interval - 0.02, 2 * interval - 0.02], abs=1e-6
    )


def test_the_announced_token_rate_is_respected() -> None:
    limiter = RateLimiter(8)
    requests = Requests(limiter)
    limiter.succeeded({"x-ratelimit-limit-tokens-minute": "6000"}, 0, 0)

    run_virtually(requests.send_all("ab", num_tokens=980))

    assert [at for _, at in requests.sent] == pytest.approx([0, 9.98], abs=1e-6)


def test_a_given_rate_overrides_the_announced_one() -> None:
    limiter = RateLimiter(8, requests_per_minute=60 / 0.98)
    requests = Requests(limiter)
    limiter.succeeded({"x-ratelimit-limit-req-minute": "6000000"}, 0, 0)

    run_virtually(requests.send_all("abc"))

    assert [at for _, at in requests.sent] == [0, 0.98, 1.98]


@pytest.mark.parametrize("announced", ["0", "-5", "lots", "", "1e3", "²"])
def test_an_invalid_announced_rate_is_ignored(announced: str) -> None:
    limiter = RateLimiter(8)
    requests = Requests(limiter)
    limiter.succeeded({"x-ratelimit-limit-requests": announced}, 0, 0)

    run_virtually(requests.send_all("abc"))

    assert [at for _, at in requests.sent] == [0, 0, 0]


# ------------------------------------------------------------------ cancelled requests


def test_a_request_cancelled_as_it_wakes_passes_its_turn_on() -> None:
    limiter = RateLimiter(1)
    requests = Requests(limiter)

    async def ask() -> None:
        await limiter.admit(0)
        cancelled, waits = (asyncio.create_task(requests.send(name)) for name in "ab")
        await asyncio.sleep(1)
        limiter.release()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await waits

    run_virtually(ask())

    assert requests.sent == [("b", 1)]
    assert limiter.in_flight == 0


def test_a_request_cancelled_while_it_waits_for_its_slot_is_released() -> None:
    limiter = RateLimiter(1, requests_per_minute=1)
    requests = Requests(limiter)

    async def ask() -> None:
        await requests.send("a")
        cancelled = asyncio.create_task(requests.send("b"))
        await asyncio.sleep(1)
        assert limiter.in_flight == 1
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert limiter.in_flight == 0

    run_virtually(ask())


@pytest.mark.parametrize("seed", range(20))
def test_no_wake_up_is_lost_under_random_cancellations_and_pauses(seed: int) -> None:
    chance = random.Random(seed)
    limiter = RateLimiter(3)
    requests = Requests(limiter)

    async def ask() -> int:
        asking = []
        for number in range(200):
            asking.append(
                asyncio.create_task(requests.send(str(number), takes_s=chance.choice((0, 0.1, 0.5))))
            )
            await asyncio.sleep(chance.choice((0, 0, 0.1)))
            if chance.random() < 0.3:
                chance.choice(asking).cancel()
            if chance.random() < 0.05:
                limiter.slow_down(chance.choice((None, 0.0, 2.0)))
        done, _ = await asyncio.wait(asking)
        return sum(not task.cancelled() for task in done)

    num_finished = run_virtually(ask())

    assert num_finished > 100
    assert requests.most_in_flight <= 3
    assert limiter.in_flight == 0
