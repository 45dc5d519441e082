"""How fast to send: caps and pauses, requests in flight, requests and tokens per minute, shared pauses.

Pacing is by schedule (the generic cell rate algorithm, ITU-T I.371): each request gets the earliest time that
the rate allows. The number in flight adapts like TCP's window: halved by a 429, then increased by one for
each window of successes (Jacobson 1988).
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

# Mistral's names, then OpenAI's.
REQUESTS_HEADERS = ("x-ratelimit-limit-req-minute", "x-ratelimit-limit-requests")
TOKENS_HEADERS = ("x-ratelimit-limit-tokens-minute", "x-ratelimit-limit-tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Every cap and pause of a run: retries of one request, shared pauses after a 429, and batch jobs."""

    max_attempts: int = 6
    max_broken_replies: int = 3  # attempts of one request that are paid for and contain no answer
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0
    max_unanswered_at_start: int = 5  # the run ends if this many requests fail before one is answered
    # The run ends if none of the first pairs could be read: even a teacher that fails on half of all pairs
    # fails on ten in a row only once in a thousand runs. The first job of a batch is as large as the probe.
    max_unreadable_at_start: int = 10
    batch_max_unreadable_at_start: int = 100
    min_unanswered_at_end: int = 10  # then nothing is published; or as many as were in flight, if more
    max_failures_in_a_row: int = 50  # of one kind, later; 80 % failures get there once in 350,000 pairs
    first_shared_pause_s: float = 1.0
    max_shared_pause_s: float = 60.0  # a per-minute quota is full again by then
    max_retry_after_s: float = 120.0
    max_limited_s: float = 600.0  # the run ends after nothing but 429s for this long
    min_halving_interval_s: float = 1.0
    used_rate: float = 0.98  # of an allowed rate: the server's minute and ours start at different times
    max_catch_up_s: float = 0.02  # a request this late is on time, so that delays do not lower the rate
    batch_quiet_s: float = 2.0  # a batch job is created once no request has arrived for this long
    batch_poll_s: float = 5.0
    batch_max_poll_s: float = 60.0
    batch_poll_growth: float = 1.5
    batch_settle_s: float = 20.0  # how long a new job may be missing from the server's list
    batch_max_attempts: int = 10
    batch_min_timeout_s: float = 600.0  # for one exchange: uploading a full batch takes minutes

    def pause_s(self, attempt: int, retry_after_s: float | None, jitter: random.Random) -> float:
        """Return a random pause (full jitter: Brooker 2015, "Exponential backoff and jitter")."""
        pause = jitter.uniform(0, min(self.max_pause_s, self.first_pause_s * 2**attempt))
        return max(pause, min(retry_after_s or 0.0, self.max_pause_s))


DEFAULT_POLICY = RetryPolicy()


class Pace:
    """A schedule of `per_minute` units; None is unlimited, until one of `headers` announces a limit."""

    def __init__(
        self, per_minute: float | None, headers: tuple[str, ...] = (), policy: RetryPolicy = DEFAULT_POLICY
    ) -> None:
        self.per_minute, self._policy = per_minute, policy
        self._headers = headers if per_minute is None else ()
        self._next_at = 0.0

    def claim(self, units: float, now: float) -> float:
        """Reserve `units` on the schedule and return the time at which they may be sent."""
        if self.per_minute is None:
            return now
        start = self._next_at = max(self._next_at, now - self._policy.max_catch_up_s)
        self.correct(units)
        return start

    def correct(self, units: float) -> None:
        """Add `units` to what was claimed, or return them if negative."""
        if self.per_minute is not None:
            self._next_at += units * 60 / (self.per_minute * self._policy.used_rate)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the limit that the server announces, unless one was given."""
        for name in self._headers:
            text = headers.get(name, "")
            if text.isascii() and text.isdigit() and int(text) > 0:
                self.per_minute = float(text)
                return


class RateLimiter:
    """Admits requests, at most `concurrency` at a time; each one that was admitted must be released."""

    def __init__(
        self,
        concurrency: int,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        policy: RetryPolicy = DEFAULT_POLICY,
    ) -> None:
        self.concurrency, self.policy = concurrency, policy
        self.limit = float(concurrency)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._requests = Pace(requests_per_minute, REQUESTS_HEADERS, policy)
        self._tokens = Pace(tokens_per_minute, TOKENS_HEADERS, policy)
        self._paused_until = self._halved_at = self._pause_s = 0.0

    async def admit(self, num_tokens: int) -> None:
        """Wait until a request of about `num_tokens` may be sent."""
        while self.in_flight >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise
        self.in_flight += 1
        try:
            now = time.monotonic()
            at = max(self._requests.claim(1, now), self._tokens.claim(num_tokens, now))
            while (wait := max(at, self._paused_until) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            self.release()
            raise

    def release(self) -> None:
        """Count a request as over, however it ended."""
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        room = int(self.limit) - self.in_flight
        while room > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    def succeeded(self, headers: Mapping[str, str], num_claimed: int, num_used: int) -> None:
        """Learn from a reply: the tokens it used, the limits it announces, and that there is room."""
        self._tokens.correct(num_used - num_claimed)
        self._pause_s = 0.0
        if self.limit < self.concurrency:
            self.limit = min(self.concurrency, self.limit + 1 / self.limit)
        if headers:
            self._requests.learn(headers)
            self._tokens.learn(headers)

    async def pause_over(self) -> None:
        """Wait for the end of a shared pause."""
        while (wait := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def slow_down(self, retry_after_s: float | None) -> float:
        """Handle a 429: pause all requests for as long as the server asks, and allow fewer in flight.

        Returns the seconds until the pause is over.
        """
        # Without a Retry-After, each pause doubles until a per-minute quota is full again.
        policy, now = self.policy, time.monotonic()
        if now >= self._paused_until:  # otherwise this 429 belongs to the burst that caused the pause
            pause_s = max(policy.first_shared_pause_s, 2 * self._pause_s)
            self._pause_s = min(pause_s, policy.max_shared_pause_s)
        pause = max(self._pause_s, min(retry_after_s or 0.0, policy.max_retry_after_s))
        self._paused_until = max(self._paused_until, now + pause)
        if now - self._halved_at >= policy.min_halving_interval_s:
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = now
        return self._paused_until - now
