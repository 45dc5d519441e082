"""What a run would cost: tokens counted with a real tokenizer, dollars from a dated table.

A price that is not known is said to be unknown, never taken for zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nlicot.data.rows import shown
from nlicot.errors import ConfigError
from nlicot.records import Usage
from nlicot.teacher.backends.base import Request
from nlicot.teacher.backends.registry import BACKENDS
from nlicot.yaml_files import hint, read_yaml

PRICES_PATH = Path(__file__).parents[1] / "prices.yaml"
TABLE_KEYS = ("as_of", "source", "batch_discount", "models", "aliases")
MILLION = 1_000_000
LEAST_TOKENS_A_TEXT = 60
"""A short text of an answer with its scaffold; the other end of the interval is the answer's whole budget."""
TOKENS_A_MESSAGE = 4
"""Control tokens around each message."""
DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars a million tokens."""

    input: float
    output: float

    def cost_usd(self, usage: Usage) -> float:
        """What these tokens cost.

        >>> Price(input=0.5, output=1.5).cost_usd(Usage(prompt_tokens=1_000_000, completion_tokens=2_000_000))
        3.5
        """
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices by model, as of a date.

    `batch_discount` is the share of a price that the batch API asks; `source` is the page to check.
    """

    as_of: str
    batch_discount: float
    source: str = ""
    models: Mapping[str, Price]
    aliases: Mapping[str, str]


def load_prices(path: Path | None = None) -> PriceTable:
    """The price table that ships, or a person's own.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or a price is no pair of numbers.
    """
    where = path or PRICES_PATH
    flag = f"--prices {where}"
    content = _read(where, flag)
    models = {str(name): _price(value, f"{flag}: {name}") for name, value in content["models"].items()}
    aliases = content.get("aliases") or {}
    if not isinstance(aliases, dict):
        raise ConfigError(f"{flag}: found aliases {shown(aliases)}, expected OTHER_NAME: MODEL under it")
    for name, model in aliases.items():
        if model not in models:
            raise ConfigError(f"{flag}: found the alias {name} of {shown(model)}, expected one of the models")
    discount = content.get("batch_discount", 1.0)
    if not _is_amount(discount) or discount > 1:
        raise ConfigError(f"{flag}: found batch_discount {shown(discount)}, expected a number from 0 to 1")
    return PriceTable(
        as_of=str(content.get("as_of", "an unknown date")),
        batch_discount=float(discount),
        source=str(content.get("source", "")),
        models=models,
        aliases={str(name): str(model) for name, model in aliases.items()},
    )


def _read(where: Path, flag: str) -> dict[str, Any]:
    content = read_yaml(where, label=flag)
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise ConfigError(f"{flag}: found no `models`, expected MODEL: [INPUT, OUTPUT] under it")
    for key in map(str, content):
        if key not in TABLE_KEYS:
            raise ConfigError(
                f"{flag}: found the key {key!r}, expected a known one ({hint(key, TABLE_KEYS)})"
            )
    return content


def parse_price(text: str) -> Price:
    """The price that `--price` gives.

    >>> parse_price("0.5,1.5")
    Price(input=0.5, output=1.5)

    Raises:
        ConfigError: the text is not two amounts.
    """
    try:
        return _price([float(part) for part in text.split(",")], "--price")
    except ValueError:
        raise ConfigError(f"--price: found {text!r}, expected INPUT,OUTPUT, for example 0.5,1.5") from None


def _price(value: Any, where: str) -> Price:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_amount, value)):
        raise ConfigError(f"{where}: found {shown(value)}, expected two amounts, dollars a million tokens")
    return Price(input=float(value[0]), output=float(value[1]))


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def price_of(model: str, table: PriceTable, override: Price | None, *, backend: str) -> Price | None:
    """A model's price on a backend; None where it is not known.

    A model in this process costs no money. The table is Mistral's own, so it says nothing of other servers.
    """
    if override is not None:
        return override
    kind = BACKENDS[backend].prices
    if kind == "free":
        return Price(input=0.0, output=0.0)
    if kind == "unknown":
        return None
    found = table.models.get(table.aliases.get(model, model))
    if found is None or kind == "list":
        return found
    return Price(input=found.input * table.batch_discount, output=found.output * table.batch_discount)


@cache
def _tokenizer() -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer


def count_tokens(text: str) -> int:
    """The text's tokens in Mistral's own vocabulary (tekken)."""
    return len(_tokenizer().encode(text, bos=False, eos=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take; dollars are None where a model's price is unknown.

    The low end takes short answers and no second asking; the high end whole budgets. Asking again after an
    unusable answer, and rounds of regeneration, come on top.
    """

    num_requests: int
    prompt_tokens: int
    completion_tokens: tuple[int, int]
    usd: tuple[float, float] | None


def estimate(requests: Iterable[Request], prices: Mapping[str, Price | None]) -> Estimate:
    """Count the requests of a run that has not begun, one by one."""
    num_requests = prompt_tokens = low = high = 0
    dollars: list[float] | None = [0.0, 0.0]
    lengths: dict[str, int] = {}
    for request in requests:
        num_requests += 1
        num_prompt = sum(
            _counted_once(message.role, message.content, lengths) for message in request.messages
        )
        prompt_tokens += num_prompt
        most = int(request.params.get("max_tokens") or DEFAULT_MAX_TOKENS)
        least = min(_least_tokens(request), most)
        low, high = low + least, high + most
        price = prices.get(request.model)
        if price is None:
            dollars = None
        elif dollars is not None:
            for place, num in enumerate((least, most)):
                dollars[place] += price.cost_usd(Usage(prompt_tokens=num_prompt, completion_tokens=num))
    return Estimate(
        num_requests=num_requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=(low, high),
        usd=None if dollars is None else (dollars[0], dollars[1]),
    )


def _least_tokens(request: Request) -> int:
    """A short answer: so much for each text that the schema asks for."""
    fields = request.schema.schema.get("properties", {}).values()
    num_texts = len([field for field in fields if field == {"type": "string"}])
    return LEAST_TOKENS_A_TEXT * max(1, num_texts)


def _counted_once(role: str, content: str, lengths: dict[str, int]) -> int:
    """A message's tokens; a system prompt, the same in every request, is counted once."""
    if role != "system":
        return count_tokens(content) + TOKENS_A_MESSAGE
    if content not in lengths:
        lengths[content] = count_tokens(content) + TOKENS_A_MESSAGE
    return lengths[content]


def format_estimate(found: Estimate, *, as_of: str) -> str:
    """The estimate in two lines."""
    low, high = found.completion_tokens
    if found.usd is None:
        dollars = "price unknown (--price INPUT,OUTPUT, dollars a million tokens)"
    else:
        dollars = f"${found.usd[0]:.2f} to ${found.usd[1]:.2f} (prices as of {as_of})"
    return (
        f"{found.num_requests:,} requests, {found.prompt_tokens:,} prompt tokens, "
        f"{low:,} to {high:,} completion tokens\n  {dollars}"
    )
