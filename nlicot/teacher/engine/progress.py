"""The progress bar of a teacher run: rate, accuracy, failures, tokens, cost, time left."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

from tqdm import tqdm

from nlicot.teacher.engine.budget import Budget
from nlicot.teacher.engine.scheduler import Tally

REDRAW_INTERVAL_S = 0.2


class ProgressBar:
    """A `tqdm` bar that follows a tally; it appears with the first `update`."""

    def __init__(self, total: int, title: str) -> None:
        self._draw = partial(tqdm, total=total, desc=title, unit="pair", mininterval=REDRAW_INTERVAL_S)
        self._bar: Any = None
        self._last: tuple[Tally, Budget] | None = None
        self._drawn_at = 0.0

    def update(self, tally: Tally, budget: Budget) -> None:
        """Show the tally, a few times per second."""
        if self._bar is None:
            self._bar = self._draw(file=sys.stderr)
            return
        self._bar.update(tally.num_finished - self._bar.n)
        self._last, now = (tally, budget), time.monotonic()
        if now - self._drawn_at >= REDRAW_INTERVAL_S:
            self._drawn_at = now
            self._bar.set_postfix_str(describe(tally, budget), refresh=False)

    def close(self) -> None:
        """Show the last tally, and leave it on the screen."""
        if self._last is not None:
            self._bar.set_postfix_str(describe(*self._last))
        if self._bar is not None:
            self._bar.close()


def describe(tally: Tally, budget: Budget) -> str:
    """Summarise a tally in a few words.

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
