"""The learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Callable


def warm_up_and_decay(num_steps: int, warmup_share: float) -> Callable[[int], float]:
    """Each step's share of the peak: a linear rise, then a linear fall to 0.

    >>> course = warm_up_and_decay(10, 0.3)
    >>> [round(course(step), 2) for step in (0, 2, 3, 9, 10)]
    [0.25, 0.75, 1.0, 0.14, 0.0]
    """
    num_warmup = math.ceil(warmup_share * num_steps)

    def share(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))

    return share
