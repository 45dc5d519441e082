"""An event loop whose clock jumps to the next timer: pauses of minutes take no time, and are exact.

If everything waits and no timer is left, a real loop would hang; this one fails.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

START_S = 1000.0
T = TypeVar("T")


class Clock:
    """Replaces `time.monotonic`."""

    def __init__(self) -> None:
        self.now = START_S

    def __call__(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and no timer is left"
            self._clock.now += max(0.0, timeout)
        return ready


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock that starts at `START_S`."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(_JumpingSelector(clock))
        ) as runner:
            return runner.run(coroutine)


def elapsed_s() -> float:
    """Seconds since `run_virtually` began."""
    return time.monotonic() - START_S
