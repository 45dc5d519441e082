"""Show encoded examples: their tokens as text, coloured by kind, and their lengths against the budget."""

from __future__ import annotations

import itertools
import os
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from nlicot.model.encoding import (
    UNSUPERVISED,
    EncodedExample,
    EncodingReport,
    OverBudget,
    TokenKind,
    encode_examples,
)
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

RESET, DIM = "\x1b[0m", "\x1b[2m"
# Two alternating shades for each kind make token boundaries visible.
KINDS = {
    "control": ("\x1b[33m", "\x1b[93m", "the model's own markers"),
    "prompt": ("\x1b[36m", "\x1b[96m", "the question"),
    "thought": ("\x1b[32m", "\x1b[92m", "the chain of thought"),
    "scaffold": ("\x1b[34m", "\x1b[94m", "the JSON around it"),
    "label": ("\x1b[1;31m", "\x1b[1;91m", "the answer"),
    "draft": ("\x1b[35m", "\x1b[95m", "a draft of the answer"),
}
"""Kinds of tokens with their colours and meanings; `control` includes BOS and EOS."""
MAX_TOKENS_PER_CHARACTER = 8
LINE_WIDTH, BAR_WIDTH = 88, 40
MOST_BARS, MOST_IDS = 14, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token, or the few that only together encode a character (an emoji, say), and if they are learnt."""

    ids: tuple[int, ...]
    text: str
    kind: str
    supervised: bool


def pieces_of(prompt_format: PromptFormat, encoded: EncodedExample) -> list[Piece]:
    """Return all tokens of an example in order, as pieces."""
    control = prompt_format.special_ids | {prompt_format.eos_id}
    tokens = zip(encoded.input_ids, map(TokenKind, encoded.kinds), strict=True)
    found = []
    for (kind, is_control), run in itertools.groupby(tokens, lambda token: (token[1], token[0] in control)):
        ids = tuple(token for token, _ in run)
        name = "control" if is_control else kind.name.removeprefix("MASKED_").lower()
        texts = (
            (((token,), prompt_format.control_text(token)) for token in ids)
            if is_control
            else _characters(prompt_format, ids)
        )
        supervised = kind not in UNSUPERVISED
        found += [Piece(ids=part, text=text, kind=name, supervised=supervised) for part, text in texts]
    return found


def _characters(prompt_format: PromptFormat, ids: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Split tokens into the fewest that decode to complete characters, or else single ones."""
    while ids:
        heads = [ids[:num] for num in range(1, MAX_TOKENS_PER_CHARACTER + 1) if num <= len(ids)]
        decoded = ((head, prompt_format.decode_inner(head)) for head in heads)
        complete = ((head, text) for head, text in decoded if "\ufffd" not in text)
        head, text = next(complete, None) or (ids[:1], prompt_format.decode_inner(ids[:1]))
        yield head, text
        ids = ids[len(head) :]


def wants_color(choice: str, stream: TextIO) -> bool:
    """Return whether to use colour; `auto`: on a terminal, unless NO_COLOR is set (no-color.org)."""
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always"


def legend() -> str:
    """Explain the colours in one line."""
    kinds = [f"{shade}{kind}{RESET} {meaning}" for kind, (shade, _, meaning) in KINDS.items()]
    return f"{', '.join(kinds)}; {DIM}dimmed{RESET}: not trained on; two shades: token boundaries"


def render(pieces: Sequence[Piece], *, color: bool) -> str:
    """Render an example's pieces for a terminal: coloured, or as labelled lines."""
    if not color:
        return _labelled(pieces)
    parts = []
    for number, piece in enumerate(pieces):
        style = KINDS[piece.kind][number % 2] + ("" if piece.supervised else DIM)
        # A style that spans a line break would colour the rest of the line in some pagers.
        lines = visible(piece.text).split("\n")
        parts.append("\n".join(f"{style}{line}{RESET}" if line else "" for line in lines))
    return "".join(parts)


def _labelled(pieces: Sequence[Piece]) -> str:
    lines = []
    # Keep the prompt's markers inside it, or a chat template would fall into a dozen fragments.
    in_prompt = ("prompt", "control")
    runs = itertools.groupby(
        pieces, key=lambda piece: "prompt" if piece.kind in in_prompt and not piece.supervised else piece.kind
    )
    for kind, run in runs:
        found = list(run)
        num = sum(len(piece.ids) for piece in found)
        heading = f"{kind}, {num} token{'s' if num > 1 else ''}"
        if kind == "prompt":
            heading += f", {sum(piece.kind == 'control' for piece in found)} of them control"
        if not found[0].supervised:
            heading += ", not trained on"
        lines.append(f"[{heading}]")
        for line in visible("".join(piece.text for piece in found)).split("\n"):
            parts = textwrap.wrap(line, LINE_WIDTH, break_on_hyphens=False, replace_whitespace=False)
            lines += [f"    {part}" for part in parts or [""]]
    return "\n".join(line.rstrip() for line in lines)


def visible(text: str) -> str:
    r"""Escape all but line breaks and printable characters: others could move the cursor or change a colour.

    >>> visible("red \x1b[31m, a tab\t and a \u2028")
    'red \\x1b[31m, a tab\\t and a \\u2028'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of each example before cutting, and what the budget leaves of them, as `fit` logs it."""

    lengths: list[int]
    max_length: int
    report: EncodingReport
    cut: list[str]
    dropped: list[str]

    def summary(self, heading: str) -> str:
        """Draw a histogram, with `!` instead of `#` above the budget, and name what is cut and left out."""
        found = bars(self.lengths, self.max_length)
        names = [f"{bar.low}-{bar.high}" if bar.low < bar.high else str(bar.low) for bar in found]
        width, most = max(map(len, names)), max(bar.num for bar in found)
        lines = [heading]
        for name, bar in zip(names, found, strict=True):
            drawn = ("!" if bar.over else "#") * max(bool(bar.num), round(BAR_WIDTH * bar.num / most))
            lines.append(f"  {name:>{width}}  {drawn:<{BAR_WIDTH}}  {bar.num:>6}")
        num_tokens = self.report.num_tokens
        percentage = 100 * self.report.num_supervised / max(1, num_tokens)
        lines.append(
            f"  median {statistics.median_low(self.lengths)}, longest {max(self.lengths)}; "
            f"{num_tokens} tokens in all, {percentage:.0f} % of them learnt"
        )
        if not self.cut and not self.dropped:
            lines.append(f"  all fit into --data.max_length {self.max_length}: 0 cut, 0 left out")
            return "\n".join(lines)
        for ids, what in ((self.cut, "cut at a sentence end"), (self.dropped, "left out")):
            shown = ", ".join(map(visible, ids[:MOST_IDS])) + (", ..." if len(ids) > MOST_IDS else "")
            lines.append(f"  {len(ids)} {what}" + (f": {shown}" if ids else ""))
        lines.append(f"  to keep them whole: --data.max_length above {self.max_length}")
        if not self.report.num_examples:
            lines.append("  no example is left, so fit would stop")
        return "\n".join(lines)


def measure(
    prompt_format: PromptFormat,
    examples: Sequence[TrainingExample],
    max_length: int,
    over_budget: OverBudget,
) -> Lengths:
    """Encode every example whole, and within the budget as `fit` does."""
    whole = encode_examples(prompt_format, examples, max_length=2**31, over_budget="drop")
    lengths = [len(each.input_ids) for each in whole if each is not None]
    fitted = list(encode_examples(prompt_format, examples, max_length=max_length, over_budget=over_budget))
    report = EncodingReport()
    for each in fitted:
        report.count(each)
    cut = [each.id for each in fitted if each is not None and each.was_cut]
    dropped = [example.id for example, each in zip(examples, fitted, strict=True) if each is None]
    return Lengths(lengths=lengths, max_length=max_length, report=report, cut=cut, dropped=dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The number of examples with `low` to `high` tokens; `over` if that is above the budget."""

    low: int
    high: int
    num: int
    over: bool


def bars(lengths: Sequence[int], max_length: int) -> list[Bar]:
    """Make a histogram of about `MOST_BARS` bars of equal width, except for a bar that the budget divides."""
    first, last, step = min(lengths), max(lengths), 1
    while (last - first) // step >= MOST_BARS:
        step *= 2
    start = first - first % step
    edges = set(range(start, last + step + 1, step))
    if start <= max_length < last:
        edges.add(max_length + 1)
    nums, lows = np.histogram(lengths, sorted(edges))
    return [
        Bar(low=low, high=end - 1, num=num, over=low > max_length)
        for (low, end), num in zip(itertools.pairwise(lows.tolist()), nums.tolist(), strict=True)
    ]
