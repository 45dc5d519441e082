"""Every cap and pause of a teacher run: retries of one request, pauses shared after a 429, and batch jobs."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try again, how long to wait, and when to give up. Fields that end in `_s` are seconds."""

    max_attempts: int = 6
    max_broken_replies: int = 3
    """Maximum attempts of one request that are paid for and contain no answer."""
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0
    max_unanswered_at_start: int = 5
    """The run ends if this many requests fail before one is answered."""

    first_shared_pause_s: float = 1.0
    max_shared_pause_s: float = 60.0
    """A per-minute quota is full again by then."""
    max_retry_after_s: float = 120.0
    min_halving_interval_s: float = 1.0

    used_rate: float = 0.98
    """Proportion of an allowed rate that is used: the server's minute and ours start at different times."""
    max_catch_up_s: float = 0.02
    """How late a request may be and still be on time, so that event loop delays do not lower the rate."""

    batch_quiet_s: float = 2.0
    """A batch job is created once no request has arrived for this long."""
    batch_poll_s: float = 5.0
    batch_max_poll_s: float = 60.0
    batch_poll_growth: float = 1.5
    batch_settle_s: float = 20.0
    """How long a new job may be missing from the server's list."""
    batch_max_attempts: int = 10
    batch_min_timeout_s: float = 600.0
    """For one exchange: uploading a full batch takes minutes on a slow line."""

    def pause_s(self, attempt: int, retry_after_s: float | None, jitter: random.Random) -> float:
        """Return a random pause (full jitter: Brooker 2015, "Exponential backoff and jitter").

        It is at least what the server asked for, up to `max_pause_s`.
        """
        pause = jitter.uniform(0, min(self.max_pause_s, self.first_pause_s * 2**attempt))
        return max(pause, min(retry_after_s or 0.0, self.max_pause_s))


DEFAULT_POLICY = RetryPolicy()
