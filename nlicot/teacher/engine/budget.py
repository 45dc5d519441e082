"""A spending cap in dollars: each request first reserves the maximum that it could cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nlicot.errors import BudgetReached, ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.pricing import DEFAULT_MAX_TOKENS, Price

MARGIN_TOKENS = 64
"""For what a server adds: control tokens, and its own text about the schema."""


def max_prompt_tokens(request: Request) -> int:
    """Return an upper bound that needs no tokenizer: a token is at least one byte of text."""
    num_bytes = sum(len(message.content.encode()) for message in request.messages)
    return num_bytes + len(json.dumps(request.schema.schema)) + MARGIN_TOKENS


@dataclass(slots=True)
class Budget:
    """Dollars spent, and reserved for requests in flight; `cap_usd` None is unlimited.

    Args:
        prices: price of each model; None if it is not known.
        spent_usd: spent by earlier starts of the same run.

    Raises:
        ConfigError: there is a cap, and the price of a model is not known.
    """

    prices: Mapping[str, Price | None]
    cap_usd: float | None = None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0

    def __post_init__(self) -> None:
        unknown = [model for model, price in self.prices.items() if price is None]
        if self.cap_usd is not None and unknown:
            raise ConfigError(
                f"--budget {self.cap_usd}: the price of {', '.join(unknown)} is not known; "
                "give it with --price INPUT,OUTPUT (dollars per million tokens)"
            )

    def reserve(self, request: Request) -> float:
        """Set aside the maximum that a request could cost, and return it.

        Raises:
            BudgetReached: it could exceed the cap.
        """
        price = self.prices.get(request.model)
        if price is None:
            return 0.0
        max_completion = int(request.params.get("max_tokens") or DEFAULT_MAX_TOKENS)
        cost = price.cost_usd(
            Usage(prompt_tokens=max_prompt_tokens(request), completion_tokens=max_completion)
        )
        if self.cap_usd is not None and self.spent_usd + self.reserved_usd + cost > self.cap_usd:
            raise BudgetReached(
                f"--budget {self.cap_usd}: {self.spent_usd:.4f} spent, {self.reserved_usd:.4f} reserved, and "
                f"the next request may cost {cost:.4f}; all answers so far are saved, "
                "run the same command with a larger --budget to continue"
            )
        self.reserved_usd += cost
        return cost

    def settle(self, request: Request, reserved: float, usage: Usage | None) -> float | None:
        """Replace a reservation by the cost of the reply, and return it; None if the price is not known.

        A reply without usage costs its reservation.
        """
        self.reserved_usd -= reserved
        price = self.prices.get(request.model)
        if price is None:
            return None
        cost = reserved if usage is None else price.cost_usd(usage)
        self.spent_usd += cost
        return cost

    def release(self, reserved: float, *, possibly_paid: bool) -> None:
        """Return a reservation, or count it as spent if the server may have charged for it."""
        self.reserved_usd -= reserved
        if possibly_paid:
            self.spent_usd += reserved
