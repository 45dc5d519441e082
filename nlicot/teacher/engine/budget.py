"""A cap in dollars that cannot be passed: every request reserves the most that it could cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nlicot.errors import BudgetReached, ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import Request
from nlicot.teacher.engine.pricing import DEFAULT_MAX_TOKENS, Price

MARGIN_TOKENS = 64
"""For what a server adds around messages: control tokens, its own words about the schema."""


def most_prompt_tokens(request: Request) -> int:
    """An upper bound that needs no tokenizer: a token is at least one byte of text."""
    num_bytes = sum(len(message.content.encode()) for message in request.messages)
    return num_bytes + len(json.dumps(request.schema.schema)) + MARGIN_TOKENS


@dataclass(slots=True)
class Budget:
    """What was spent, what is reserved for requests in flight, and the cap.

    Args:
        prices: dollars a million tokens of each model; a model without one costs an unknown amount.
        cap_usd: None is no cap.
        spent_usd: what earlier starts of the same run have spent.

    Raises:
        ConfigError: there is a cap and a model's price is not known.
    """

    prices: Mapping[str, Price | None]
    cap_usd: float | None = None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0

    def __post_init__(self) -> None:
        unknown = [model for model, price in self.prices.items() if price is None]
        if self.cap_usd is not None and unknown:
            raise ConfigError(
                f"--budget {self.cap_usd}: found no price of {', '.join(unknown)}, expected one to count by "
                "(give it: --price INPUT,OUTPUT in dollars a million tokens)"
            )

    def reserve(self, request: Request) -> float:
        """Set aside the most that a request could cost, in dollars.

        Raises:
            BudgetReached: it could pass the cap.
        """
        price = self.prices.get(request.model)
        if price is None:
            return 0.0
        most_completion = int(request.params.get("max_tokens") or DEFAULT_MAX_TOKENS)
        most = price.cost_usd(
            Usage(prompt_tokens=most_prompt_tokens(request), completion_tokens=most_completion)
        )
        if self.cap_usd is not None and self.spent_usd + self.reserved_usd + most > self.cap_usd:
            raise BudgetReached(
                f"--budget {self.cap_usd}: {self.spent_usd:.4f} spent, {self.reserved_usd:.4f} reserved, "
                f"and the next request may cost {most:.4f}; what was answered is kept, "
                "start the same command with a larger --budget to go on"
            )
        self.reserved_usd += most
        return most

    def settle(self, request: Request, reserved: float, usage: Usage | None) -> float | None:
        """Replace a reservation by what the reply cost; None where that is not known.

        A reply without usage is counted at its reservation.
        """
        self.reserved_usd -= reserved
        price = self.prices.get(request.model)
        if price is None:
            return None
        cost = reserved if usage is None else price.cost_usd(usage)
        self.spent_usd += cost
        return cost

    def release(self, reserved: float, *, possibly_paid: bool) -> None:
        """Give a reservation back, or count it as spent where the server may have charged for it."""
        self.reserved_usd -= reserved
        if possibly_paid:
            self.spent_usd += reserved
