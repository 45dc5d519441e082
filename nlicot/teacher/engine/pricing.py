"""The cost of a run: tokens counted with a real tokenizer, dollars from a dated price table.

A price that is not known is reported as unknown, never counted as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nlicot.config_files import hint, read_yaml
from nlicot.data.rows import shown
from nlicot.errors import ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import Request
from nlicot.teacher.backends.registry import BACKENDS

PRICES_PATH = Path(__file__).parents[1] / "prices.yaml"
TABLE_KEYS = ("as_of", "source", "batch_discount", "models", "aliases")
MILLION = 1_000_000
SHORT_TEXT_TOKENS = 60
"""A short text in an answer, JSON included: the low end of the estimate. The high end is `max_tokens`."""
MESSAGE_TOKENS = 4
"""Control tokens around each message."""
DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float

    def cost_usd(self, usage: Usage) -> float:
        """Return the cost of these tokens.

        >>> Price(input=0.5, output=1.5).cost_usd(Usage(prompt_tokens=1_000_000, completion_tokens=2_000_000))
        3.5
        """
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices by model on a date; the batch API charges `batch_discount` times the price."""

    as_of: str
    batch_discount: float
    source: str = ""
    models: Mapping[str, Price]
    aliases: Mapping[str, str]


def load_prices(path: Path | None = None) -> PriceTable:
    """Read the price table that ships with the package, or the user's.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or a price is not two amounts.
    """
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
        if model not in models:
            raise ConfigError(f"{label}: the alias {name} names {shown(model)}, which is not under `models`")
    discount = content.get("batch_discount", 1.0)
    if not _is_amount(discount) or discount > 1:
        raise ConfigError(f"{label}: found batch_discount {shown(discount)}, expected a number from 0 to 1")
    return PriceTable(
        as_of=str(content.get("as_of", "an unknown date")),
        batch_discount=float(discount),
        source=str(content.get("source", "")),
        models=models,
        aliases={str(name): str(model) for name, model in aliases.items()},
    )


def parse_price(text: str) -> Price:
    """Parse the value of `--price`.

    >>> parse_price("0.5,1.5")
    Price(input=0.5, output=1.5)

    Raises:
        ConfigError: the text is not two amounts.
    """
    try:
        return _price([float(part) for part in text.split(",")], "--price")
    except ValueError:
        raise ConfigError(f"--price: found {text!r}, expected INPUT,OUTPUT, for example 0.5,1.5") from None


def _price(value: Any, label: str) -> Price:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_amount, value)):
        raise ConfigError(f"{label}: found {shown(value)}, expected two amounts, dollars per million tokens")
    return Price(input=float(value[0]), output=float(value[1]))


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def price_of(model: str, table: PriceTable, override: Price | None, *, backend: str) -> Price | None:
    """Return a model's price on a backend; None if it is not known."""
    if override is not None:
        return override
    kind = BACKENDS[backend].prices
    if kind == "free":
        return Price(input=0.0, output=0.0)
    found = None if kind == "unknown" else table.models.get(table.aliases.get(model, model))
    if found is None or kind == "list":
        return found
    return Price(input=found.input * table.batch_discount, output=found.output * table.batch_discount)


@cache
def _tokenizer() -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer


def count_tokens(text: str) -> int:
    """Count the text's tokens in Mistral's vocabulary (tekken)."""
    return len(_tokenizer().encode(text, bos=False, eos=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The size of a run; `usd` is None if the price of a model is not known.

    Intervals go from short answers to answers of `max_tokens`. Further requests after an unusable answer, and
    those of regeneration, are not included.
    """

    num_requests: int
    prompt_tokens: int
    completion_tokens: tuple[int, int]
    usd: tuple[float, float] | None


def estimate(requests: Iterable[Request], prices: Mapping[str, Price | None]) -> Estimate:
    """Estimate the tokens and dollars of a run that has not started."""
    num_requests = prompt_tokens = low = high = 0
    usd: list[float] | None = [0.0, 0.0]
    system_lengths: dict[str, int] = {}  # a system prompt is the same in every request
    for request in requests:
        num_requests += 1
        num_prompt = 0
        for message in request.messages:
            num_tokens = system_lengths.get(message.content) if message.role == "system" else None
            if num_tokens is None:
                num_tokens = count_tokens(message.content) + MESSAGE_TOKENS
            if message.role == "system":
                system_lengths[message.content] = num_tokens
            num_prompt += num_tokens
        prompt_tokens += num_prompt
        longest = int(request.params.get("max_tokens") or DEFAULT_MAX_TOKENS)
        shortest = min(_short_answer_tokens(request), longest)
        low, high = low + shortest, high + longest
        price = prices.get(request.model)
        if price is None:
            usd = None
        elif usd is not None:
            for end, num in enumerate((shortest, longest)):
                usd[end] += price.cost_usd(Usage(prompt_tokens=num_prompt, completion_tokens=num))
    return Estimate(
        num_requests=num_requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=(low, high),
        usd=None if usd is None else (usd[0], usd[1]),
    )


def _short_answer_tokens(request: Request) -> int:
    fields = request.schema.schema.get("properties", {}).values()
    num_texts = len([field for field in fields if field == {"type": "string"}])
    return SHORT_TEXT_TOKENS * max(1, num_texts)


def format_estimate(found: Estimate, *, as_of: str) -> str:
    """Format the estimate as two lines."""
    low, high = found.completion_tokens
    if found.usd is None:
        dollars = "price unknown (--price INPUT,OUTPUT, dollars per million tokens)"
    else:
        dollars = f"${found.usd[0]:.2f} to ${found.usd[1]:.2f} (prices as of {as_of})"
    return (
        f"{found.num_requests:,} requests, {found.prompt_tokens:,} prompt tokens, "
        f"{low:,} to {high:,} completion tokens\n  {dollars}"
    )
