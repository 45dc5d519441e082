"""How fast requests go out: on a schedule, so many at once, and after a 429 later and fewer."""

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

    # What is 20 ms late may be made up for, and nothing else is due before.
    assert found == pytest.approx([99.98 + number * INTERVAL for number in range(4)])


def test_idle_time_is_not_saved_up_for_a_burst() -> None:
    pace = Pace(1000)
    pace.claim(1, now=100.0)

    assert pace.claim(1, now=200.0) == pytest.approx(199.98)
    assert pace.claim(1, now=200.0) == pytest.approx(199.98 + INTERVAL)


def test_a_request_takes_as_much_of_the_schedule_as_it_has_units() -> None:
    pace = Pace(1000)

    assert pace.claim(49, now=100.0) == pytest.approx(99.98)
    assert pace.claim(1, now=100.0) == pytest.approx(102.98)


def test_what_was_claimed_in_vain_is_given_back() -> None:
    pace = Pace(1000)
    pace.claim(98, now=100.0)

    pace.correct(-49)

    assert pace.claim(1, now=100.0) == pytest.approx(102.98)


def test_no_limit_is_no_schedule() -> None:
    pace = Pace(None)
    pace.correct(1000)

    assert [pace.claim(1000, now=100.0), pace.claim(1, now=100.0)] == [100.0, 100.0]


# ------------------------------------------------------------------ how many at once


class Crowd:
    """Requests through a limiter, with what they saw: when each was sent, and how many were in flight."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.sent: list[tuple[str, float]] = []
        self.num_in_flight = self.most_in_flight = 0

    async def ask(self, name: str, *, takes_s: float = 1.0, num_tokens: int = 0) -> None:
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

    async def ask_all(self, names: str, *, takes_s: float = 1.0, num_tokens: int = 0) -> None:
        await asyncio.gather(*(self.ask(name, takes_s=takes_s, num_tokens=num_tokens) for name in names))


def test_no_more_are_in_flight_than_allowed_and_they_go_in_order() -> None:
    crowd = Crowd(RateLimiter(2))

    run_virtually(crowd.ask_all("abcde"))

    assert crowd.sent == [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 2)]
    assert crowd.most_in_flight == 2


def test_requests_and_tokens_a_minute_both_hold() -> None:
    by_requests = Crowd(RateLimiter(8, requests_per_minute=60 / 0.98))
    by_tokens = Crowd(RateLimiter(8, requests_per_minute=60 / 0.98, tokens_per_minute=600 / 0.98))

    run_virtually(by_requests.ask_all("abc"))
    run_virtually(by_tokens.ask_all("abc", num_tokens=25))

    assert by_requests.sent == [("a", 0), ("b", 0.98), ("c", 1.98)]
    assert by_tokens.sent == [("a", 0), ("b", 2.48), ("c", 4.98)]


def test_tokens_that_a_reply_did_not_use_let_the_next_request_go_earlier() -> None:
    limiter = RateLimiter(1, tokens_per_minute=600 / 0.98)

    async def ask() -> float:
        await limiter.admit(100)
        limiter.release()
        limiter.succeeded({}, num_claimed=100, num_used=40)
        await limiter.admit(100)
        return elapsed_s()

    assert run_virtually(ask()) == pytest.approx(3.98)  # 40 tokens at 10 a second, less 20 ms


# ------------------------------------------------------------------ 429


def test_one_429_lets_all_wait_and_halves_how_many_go_at_once() -> None:
    limiter = RateLimiter(4)
    crowd = Crowd(limiter)

    async def ask() -> None:
        limiter.slow_down(30.0)
        await crowd.ask_all("abcd")

    run_virtually(ask())

    assert limiter.limit > 2
    # Two of four at first; their successes make room for a third.
    assert crowd.sent == [("a", 30), ("b", 30), ("c", 31), ("d", 31)]


def test_a_429_also_holds_back_those_that_wait_for_their_time() -> None:
    limiter = RateLimiter(4, requests_per_minute=60 / 0.98)
    crowd = Crowd(limiter)

    async def ask() -> None:
        asking = asyncio.create_task(crowd.ask_all("abc"))
        await asyncio.sleep(0.5)
        limiter.slow_down(10.0)
        await asking

    run_virtually(ask())

    assert crowd.sent == [("a", 0), ("b", 10.5), ("c", 10.5)]


def test_a_burst_of_429s_halves_once_and_a_later_one_again_but_never_below_one() -> None:
    limiter = RateLimiter(4)

    async def refuse() -> list[float]:
        limits = []
        for pause_s in (0.0, 0.5, 0.5, 1.0, 1.0):
            await asyncio.sleep(pause_s)
            limiter.slow_down(None)
            limits.append(limiter.limit)
        return limits

    assert run_virtually(refuse()) == [2, 2, 1, 1, 1]


def test_a_server_that_asks_for_a_day_is_waited_for_two_minutes() -> None:
    limiter = RateLimiter(1)
    crowd = Crowd(limiter)

    async def ask() -> None:
        limiter.slow_down(86_400.0)
        await crowd.ask_all("a")

    run_virtually(ask())

    assert crowd.sent == [("a", 120)]


def test_a_server_that_does_not_say_how_long_is_waited_for_twice_as_long_each_time() -> None:
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


def test_a_success_makes_the_next_pause_short_again() -> None:
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


def test_successes_let_as_many_go_again_one_more_for_each_window() -> None:
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


def test_what_has_grown_again_is_used() -> None:
    limiter = RateLimiter(8)
    crowd = Crowd(limiter)

    async def ask() -> None:
        limiter.slow_down(0.0)
        await crowd.ask_all("abcdefghijklmnopqrstuvwxyz" * 2)

    run_virtually(ask())

    assert crowd.most_in_flight == 8


# ------------------------------------------------------------------ what servers announce


@pytest.mark.parametrize("name", ["x-ratelimit-limit-req-minute", "x-ratelimit-limit-requests"])
def test_the_rate_that_a_server_announces_is_kept(name: str) -> None:
    limiter = RateLimiter(8)
    crowd = Crowd(limiter)
    limiter.succeeded({name: "60"}, 0, 0)

    run_virtually(crowd.ask_all("abc"))

    interval = 60 / (60 * 0.98)
    assert [at for _, at in crowd.sent] == pytest.approx([0, interval - 0.02, 2 * interval - 0.02], abs=1e-6)


def test_the_tokens_that_a_server_announces_are_kept() -> None:
    limiter = RateLimiter(8)
    crowd = Crowd(limiter)
    limiter.succeeded({"x-ratelimit-limit-tokens-minute": "6000"}, 0, 0)

    run_virtually(crowd.ask_all("ab", num_tokens=980))

    assert [at for _, at in crowd.sent] == pytest.approx([0, 9.98], abs=1e-6)


def test_a_rate_that_was_set_wins_over_the_servers() -> None:
    limiter = RateLimiter(8, requests_per_minute=60 / 0.98)
    crowd = Crowd(limiter)
    limiter.succeeded({"x-ratelimit-limit-req-minute": "6000000"}, 0, 0)

    run_virtually(crowd.ask_all("abc"))

    assert [at for _, at in crowd.sent] == [0, 0.98, 1.98]


@pytest.mark.parametrize("announced", ["0", "-5", "lots", "", "1e3", "²"])
def test_an_announced_rate_that_is_none_is_passed_over(announced: str) -> None:
    limiter = RateLimiter(8)
    crowd = Crowd(limiter)
    limiter.succeeded({"x-ratelimit-limit-requests": announced}, 0, 0)

    run_virtually(crowd.ask_all("abc"))

    assert [at for _, at in crowd.sent] == [0, 0, 0]


# ------------------------------------------------------------------ those that give up


def test_one_that_gives_up_as_it_is_woken_wakes_the_next_in_its_stead() -> None:
    limiter = RateLimiter(1)
    crowd = Crowd(limiter)

    async def ask() -> None:
        await limiter.admit(0)
        gives_up, waits = (asyncio.create_task(crowd.ask(name)) for name in "ab")
        await asyncio.sleep(1)
        limiter.release()
        gives_up.cancel()
        await asyncio.wait([gives_up])
        await waits

    run_virtually(ask())

    assert crowd.sent == [("b", 1)]
    assert limiter.in_flight == 0


def test_one_that_gives_up_while_it_waits_for_its_time_leaves_its_place() -> None:
    limiter = RateLimiter(1, requests_per_minute=1)
    crowd = Crowd(limiter)

    async def ask() -> None:
        await crowd.ask("a")
        gives_up = asyncio.create_task(crowd.ask("b"))
        await asyncio.sleep(1)
        assert limiter.in_flight == 1
        gives_up.cancel()
        await asyncio.wait([gives_up])
        assert limiter.in_flight == 0

    run_virtually(ask())


@pytest.mark.parametrize("seed", range(20))
def test_no_wake_up_is_lost_whoever_gives_up_and_whenever_it_is_slowed_down(seed: int) -> None:
    chance = random.Random(seed)
    limiter = RateLimiter(3)
    crowd = Crowd(limiter)

    async def ask() -> int:
        asking = []
        for number in range(200):
            asking.append(asyncio.create_task(crowd.ask(str(number), takes_s=chance.choice((0, 0.1, 0.5)))))
            await asyncio.sleep(chance.choice((0, 0, 0.1)))
            if chance.random() < 0.3:
                chance.choice(asking).cancel()
            if chance.random() < 0.05:
                limiter.slow_down(chance.choice((None, 0.0, 2.0)))
        done, _ = await asyncio.wait(asking)
        return sum(not task.cancelled() for task in done)

    num_finished = run_virtually(ask())

    assert num_finished > 100
    assert crowd.most_in_flight <= 3
    assert limiter.in_flight == 0
