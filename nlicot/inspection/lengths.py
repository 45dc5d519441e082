"""Measure the lengths of a split's examples against the token budget of `fit`.

Lengths are before cutting. `encode_example` itself decides whether an example fits, loses sentences or is
dropped, so the counts equal those that `fit` logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlicot.model.encoding import EncodedExample, OverBudget, TokenKind, encode_example
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

NO_BUDGET = 2**31
BAR_WIDTH = 40
MOST_BARS = 14
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of each example before cutting, and the ids that the budget cuts or drops."""

    lengths: tuple[int, ...]
    max_length: int
    cut: tuple[str, ...]
    dropped: tuple[str, ...]
    num_tokens: int
    num_supervised: int

    @property
    def num_kept(self) -> int:
        """Examples that `fit` trains on."""
        return len(self.lengths) - len(self.dropped)


def measure(
    prompt_format: PromptFormat,
    examples: Sequence[TrainingExample],
    *,
    max_length: int,
    over_budget: OverBudget,
) -> Lengths:
    """Encode every example as `fit` does, and count tokens."""
    lengths, cut, dropped = [], [], []
    num_tokens = num_supervised = 0
    for example in examples:
        whole = encode_example(prompt_format, example, max_length=NO_BUDGET, over_budget="drop")
        assert whole is not None
        lengths.append(len(whole.input_ids))
        encoded: EncodedExample | None = whole
        if len(whole.input_ids) > max_length:
            encoded = encode_example(prompt_format, example, max_length=max_length, over_budget=over_budget)
        if encoded is None:
            dropped.append(example.id)
            continue
        if encoded.was_cut:
            cut.append(example.id)
        num_tokens += len(encoded.input_ids)
        num_supervised += sum(kind != TokenKind.PROMPT for kind in encoded.kinds)
    return Lengths(
        lengths=tuple(lengths),
        max_length=max_length,
        cut=tuple(cut),
        dropped=tuple(dropped),
        num_tokens=num_tokens,
        num_supervised=num_supervised,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The number of examples with `low` to `high` tokens; `over` if that is above the budget."""

    low: int
    high: int
    num: int
    over: bool


def bars(lengths: Sequence[int], max_length: int) -> list[Bar]:
    """Make a histogram of about `MOST_BARS` bars of equal width, except for a bar that the budget divides.

    >>> [(bar.low, bar.high, bar.num, bar.over) for bar in bars([1, 2, 2, 3], 2)]
    [(1, 1, 1, False), (2, 2, 2, False), (3, 3, 1, True)]
    """
    if not lengths:
        return []
    first, last = min(lengths), max(lengths)
    step = next((step for step in _STEPS if (last - first) // step < MOST_BARS), _STEPS[-1])
    found = []
    for low in range(first - first % step, last + 1, step):
        parts = [(low, low + step - 1)]
        if low <= max_length < low + step - 1 and last > max_length:
            parts = [(low, max_length), (max_length + 1, low + step - 1)]
        for start, stop in parts:
            num = sum(start <= length <= stop for length in lengths)
            found.append(Bar(low=start, high=stop, num=num, over=start > max_length))
    return found


def histogram(lengths: Lengths) -> list[str]:
    """Draw the bars as lines of text, with `!` instead of `#` above the budget."""
    found = bars(lengths.lengths, lengths.max_length)
    most = max((bar.num for bar in found), default=0)
    names = [f"{bar.low}-{bar.high}" if bar.low < bar.high else str(bar.low) for bar in found]
    width = max(map(len, names), default=0)
    lines = []
    for name, bar in zip(names, found, strict=True):
        drawn = ("!" if bar.over else "#") * max(bool(bar.num), round(BAR_WIDTH * bar.num / most))
        lines.append(f"  {name:>{width}}  {drawn:<{BAR_WIDTH}}  {bar.num:>6}".rstrip())
    return lines
