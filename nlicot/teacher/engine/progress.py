"""The line that a person watches while a teacher works: rate, accuracy, failures, tokens, cost, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from nlicot.teacher.engine.budget import Budget
from nlicot.teacher.engine.scheduler import Tally

REDRAWN_EVERY_S = 0.2


class ProgressBar:
    """A `tqdm` bar that follows a tally.

    Args:
        total: number of tasks.
        title: what is being done.
    """

    def __init__(self, total: int, title: str) -> None:
        self._total, self._title = total, title
        self._bar: Any = None
        self._drawn_at = 0.0
        self._last: tuple[Tally, Budget] | None = None

    def start(self) -> None:
        """Draw the empty bar."""
        self._bar = tqdm(
            total=self._total,
            desc=self._title,
            unit="pair",
            file=sys.stderr,
            mininterval=REDRAWN_EVERY_S,
        )

    def update(self, tally: Tally, budget: Budget) -> None:
        """Show where the tally stands, a few times a second."""
        now = time.monotonic()
        self._last = tally, budget
        self._bar.update(tally.num_finished - self._bar.n)
        if now - self._drawn_at >= REDRAWN_EVERY_S:
            self._drawn_at = now
            self._bar.set_postfix_str(describe(tally, budget), refresh=False)

    def close(self) -> None:
        """Show the last state, and leave it on the screen."""
        if self._last is not None:
            self._bar.set_postfix_str(describe(*self._last))
        if self._bar is not None:
            self._bar.close()


def describe(tally: Tally, budget: Budget) -> str:
    """The tally in a few words.

    >>> describe(Tally(num_judged=4, num_correct=3, prompt_tokens=1200), Budget(prices={}))
    'right 75 %, failed 0, tokens 1,200'
    """
    parts = []
    if tally.num_judged:
        parts.append(f"right {tally.num_correct / tally.num_judged:.0%}".replace("%", " %"))
    parts.append(f"failed {tally.num_failed}")
    parts.append(f"tokens {tally.prompt_tokens + tally.completion_tokens:,}")
    if budget.spent_usd:
        parts.append(f"cost ${budget.spent_usd:.4f}")
    return ", ".join(parts)
