"""The cost of a run: a dated price table, an estimate before the run, and a spending cap during it.

A price that is not known is reported as unknown, never counted as zero.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from nlicot.config_files import hint, read_yaml
from nlicot.data.rows import shown
from nlicot.errors import BudgetReached, ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import BACKENDS, Request

PRICES_PATH = Path(__file__).parents[1] / "prices.yaml"
TABLE_KEYS = ("as_of", "source", "batch_discount", "models", "aliases")
DEFAULT_MAX_TOKENS = 4096
SHORT_TEXT_TOKENS = 60  # a short text in an answer, JSON included: the low end of the estimate
MESSAGE_TOKENS = 4  # control tokens around each message
MARGIN_TOKENS = 64  # for what a server adds: control tokens, and its own text about the schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float

    def cost_usd(self, num_prompt_tokens: int, num_completion_tokens: int) -> float:
        """Return the cost of these tokens."""
        return (num_prompt_tokens * self.input + num_completion_tokens * self.output) / 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices by model or alias on a date; the batch API charges `batch_discount` times the price."""

    as_of: str
    batch_discount: float
    models: Mapping[str, Price]


def load_prices(path: Path | None = None) -> PriceTable:
    """Read the price table that ships with the package, or the user's."""
    label = f"--prices {path or PRICES_PATH}"
    content = read_yaml(path or PRICES_PATH, label=label)
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise ConfigError(f"{label}: found no `models`, expected MODEL: [INPUT, OUTPUT] under it")
    for key in map(str, content):
        if key not in TABLE_KEYS:
            raise ConfigError(f"{label}: unknown key {key!r} ({hint(key, TABLE_KEYS)})")
    models = {str(name): _price(value, f"{label}: {name}") for name, value in content["models"].items()}
    aliases = content.get("aliases") or {}
    if not isinstance(aliases, dict):
        raise ConfigError(f"{label}: found aliases {shown(aliases)}, expected OTHER_NAME: MODEL under it")
    for name, model in aliases.items():
        if not isinstance(model, str) or model not in models:
            raise ConfigError(f"{label}: the alias {name} names {shown(model)}, which is not under `models`")
    discount = content.get("batch_discount", 1.0)
    if not _is_amount(discount) or discount > 1:
        raise ConfigError(f"{label}: found batch_discount {shown(discount)}, expected a number from 0 to 1")
    return PriceTable(
        as_of=str(content.get("as_of", "an unknown date")),
        batch_discount=float(discount),
        models=models | {str(name): models[model] for name, model in aliases.items()},
    )


def parse_price(text: str) -> Price:
    """Parse the value of `--price`."""
    try:
        return _price([float(part) for part in text.split(",")], "--price")
    except ValueError:
        raise ConfigError(f"--price: found {text!r}, expected INPUT,OUTPUT, for example 0.5,1.5") from None


def _price(value: Any, label: str) -> Price:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_amount, value)):
        raise ConfigError(f"{label}: found {shown(value)}, expected two amounts, dollars per million tokens")
    return Price(input=float(value[0]), output=float(value[1]))


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def price_of(model: str, table: PriceTable, override: Price | None, *, backend: str) -> Price | None:
    """Return a model's price on a backend; None if it is not known."""
    kind, listed = BACKENDS[backend].prices, table.models.get(model)
    if override is not None or kind == "unknown":
        return override
    if kind == "free":
        return Price(input=0.0, output=0.0)
    if listed is None or kind == "list":
        return listed
    return Price(input=listed.input * table.batch_discount, output=listed.output * table.batch_discount)


@cache
def _tokenizer() -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer


@lru_cache(maxsize=8)  # a system prompt is the same in every request
def count_tokens(text: str) -> int:
    """Count the text's tokens in Mistral's vocabulary (tekken)."""
    return len(_tokenizer().encode(text, bos=False, eos=False))


def _max_tokens(request: Request) -> int:
    return int(request.params.get("max_tokens") or DEFAULT_MAX_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The size of a run without retries, from short answers to answers of `max_tokens`."""

    num_requests: int
    prompt_tokens: int
    completion_tokens: tuple[int, int]
    usd: tuple[float, float] | None  # None if a price is unknown


def estimate(requests: Iterable[Request], prices: Mapping[str, Price | None]) -> Estimate:
    """Estimate the tokens and dollars of a run that has not started."""
    num_requests = prompt_tokens = low = high = 0
    low_usd, high_usd, is_known = 0.0, 0.0, True
    for request in requests:
        num_prompt = sum(count_tokens(message.content) + MESSAGE_TOKENS for message in request.messages)
        num_texts = list(request.schema.schema.get("properties", {}).values()).count({"type": "string"})
        longest = _max_tokens(request)
        shortest = min(SHORT_TEXT_TOKENS * max(1, num_texts), longest)
        num_requests, prompt_tokens = num_requests + 1, prompt_tokens + num_prompt
        low, high = low + shortest, high + longest
        if (price := prices.get(request.model)) is None:
            is_known = False
        else:
            low_usd += price.cost_usd(num_prompt, shortest)
            high_usd += price.cost_usd(num_prompt, longest)
    return Estimate(
        num_requests=num_requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=(low, high),
        usd=(low_usd, high_usd) if is_known else None,
    )


def format_estimate(found: Estimate, *, as_of: str | None) -> str:
    """Format the estimate as two lines; `as_of` is the date of a price table."""
    low, high = found.completion_tokens
    sizes = f"{found.num_requests:,} requests, {found.prompt_tokens:,} prompt tokens"
    dollars = "price unknown (--price INPUT,OUTPUT, dollars per million tokens)"
    if found.usd is not None:
        dollars = f"${found.usd[0]:.2f} to ${found.usd[1]:.2f}"
        dollars += f" (prices as of {as_of})" if as_of else ""
    return f"{sizes}, {low:,} to {high:,} completion tokens\n  {dollars}"


def max_prompt_tokens(request: Request) -> int:
    """Return an upper bound that needs no tokenizer: a token is at least one byte of text."""
    num_bytes = sum(len(message.content.encode()) for message in request.messages)
    return num_bytes + len(json.dumps(request.schema.schema)) + MARGIN_TOKENS


@dataclass(slots=True)
class Budget:
    """Dollars spent, by earlier starts too, and reserved for requests in flight; no cap is None."""

    prices: Mapping[str, Price | None]
    cap_usd: float | None = None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0

    def __post_init__(self) -> None:
        unknown = ", ".join(model for model, price in self.prices.items() if price is None)
        if self.cap_usd is not None and unknown:
            remedy = "give it with --price INPUT,OUTPUT (dollars per million tokens)"
            raise ConfigError(f"--budget {self.cap_usd}: the price of {unknown} is not known; {remedy}")

    def reserve(self, request: Request) -> float:
        """Set aside the maximum that a request could cost, and return it; raises `BudgetReached`."""
        if (price := self.prices.get(request.model)) is None:
            return 0.0
        cost = price.cost_usd(max_prompt_tokens(request), _max_tokens(request))
        if self.cap_usd is not None and self.spent_usd + self.reserved_usd + cost > self.cap_usd:
            used = f"{self.spent_usd:.4f} spent, {self.reserved_usd:.4f} reserved"
            remedy = "all answers so far are saved, run the same command with a larger --budget to continue"
            next_one = f"and the next request may cost {cost:.4f}"
            raise BudgetReached(f"--budget {self.cap_usd}: {used}, {next_one}; {remedy}")
        self.reserved_usd += cost
        return cost

    def settle(self, request: Request, reserved: float, usage: Usage | None) -> float | None:
        """Replace a reservation by the cost of the reply (the same if it has no usage), and return it."""
        self.reserved_usd -= reserved
        if (price := self.prices.get(request.model)) is None:
            return None
        cost = reserved if usage is None else price.cost_usd(usage.prompt_tokens, usage.completion_tokens)
        self.spent_usd += cost
        return cost

    def release(self, reserved: float, *, possibly_paid: bool) -> None:
        """Return a reservation, or count it as spent if the server may have charged for it."""
        self.reserved_usd -= reserved
        if possibly_paid:
            self.spent_usd += reserved
