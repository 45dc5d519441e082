"""How fast to ask: requests in flight, requests and tokens a minute, and pauses that all share.

Pacing is by schedule (the generic cell rate algorithm, ITU-T I.371): each request gets the earliest time at
which the rate allows it. The number in flight adapts as TCP's window does: halved by a 429, and grown again
by one for each window of successes (Jacobson 1988).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping

SAFETY = 0.98
"""Share of an allowed rate that is used: a server's minute does not begin when ours does."""
CATCHING_UP_S = 0.02
"""How much a late request may be made up for, so that the loop's own delays do not lower the rate."""
HALVED_AT_MOST_EVERY_S = 1.0
RETRY_AFTER_CAP_S = 120.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""By then a minute's quota is whole again."""

# What servers call the limits that they announce: Mistral's names, then OpenAI's.
REQUESTS_HEADERS = ("x-ratelimit-limit-req-minute", "x-ratelimit-limit-requests")
TOKENS_HEADERS = ("x-ratelimit-limit-tokens-minute", "x-ratelimit-limit-tokens")


class Pace:
    """A schedule that keeps to `per_minute` units.

    Args:
        per_minute: None is no limit, until one of `headers` announces it.
    """

    def __init__(self, per_minute: float | None, headers: tuple[str, ...] = ()) -> None:
        self.per_minute = per_minute
        self._headers = headers if per_minute is None else ()
        self._next_at = 0.0

    def claim(self, units: float, now: float) -> float:
        """The time at which `units` may go, which is taken from then on."""
        if self.per_minute is None:
            return now
        start = max(self._next_at, now - CATCHING_UP_S)
        self._next_at = start + units * 60 / (self.per_minute * SAFETY)
        return start

    def correct(self, units: float) -> None:
        """Add to what was claimed, or give back where `units` is negative."""
        if self.per_minute is not None:
            self._next_at += units * 60 / (self.per_minute * SAFETY)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Keep to what the server announces, unless a limit was given."""
        for name in self._headers:
            text = headers.get(name, "")
            if text.isascii() and text.isdigit() and int(text) > 0:
                self.per_minute = float(text)
                return


class RateLimiter:
    """Admits requests; every one that was admitted must be released.

    Args:
        concurrency: most requests in flight.
        requests_per_minute: None takes what the server's headers announce, if they do.
        tokens_per_minute: prompt and completion together; likewise.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._most = concurrency
        self.limit = float(concurrency)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._requests = Pace(requests_per_minute, REQUESTS_HEADERS)
        self._tokens = Pace(tokens_per_minute, TOKENS_HEADERS)
        self._paused_until = 0.0
        self._halved_at = 0.0
        self._growing_s = 0.0

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
        """A request is over, however it ended."""
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
        """Learn from a reply: what it really used, what the server announces, and that there is room."""
        self._tokens.correct(num_used - num_claimed)
        self._growing_s = 0.0
        if self.limit < self._most:
            self.limit = min(self._most, self.limit + 1 / self.limit)
        if headers:
            self._requests.learn(headers)
            self._tokens.learn(headers)

    def slow_down(self, retry_after_s: float | None) -> None:
        """The server said that it is too much: all wait as long as it asks, and fewer go at once.

        Where it asks for nothing and goes on refusing, each pause is twice the one before: six attempts a
        second apart would be used up long before a minute's quota is whole again.
        """
        now = time.monotonic()
        if now >= self._paused_until:  # else it belongs to the burst that the pause is for
            self._growing_s = min(max(FIRST_PAUSE_S, 2 * self._growing_s), LONGEST_PAUSE_S)
        pause = max(self._growing_s, min(retry_after_s or 0.0, RETRY_AFTER_CAP_S))
        self._paused_until = max(self._paused_until, now + pause)
        if now - self._halved_at >= HALVED_AT_MOST_EVERY_S:
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = now
