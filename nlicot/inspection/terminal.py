"""Show an example on the terminal: tokens coloured by kind, or labelled lines without colour.

Text from data files reaches the terminal only as text: anything that could move the cursor or change a colour
is escaped.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from nlicot.inspection.token_view import KINDS, Piece

_RESET, _DIM = "\x1b[0m", "\x1b[2m"
# Two alternating shades for each kind make token boundaries visible.
_SHADES = {
    "control": ("\x1b[33m", "\x1b[93m"),
    "prompt": ("\x1b[36m", "\x1b[96m"),
    "thought": ("\x1b[32m", "\x1b[92m"),
    "scaffold": ("\x1b[34m", "\x1b[94m"),
    "label": ("\x1b[1;31m", "\x1b[1;91m"),
}
MEANINGS = {
    "control": "the model's own markers",
    "prompt": "the question",
    "thought": "the chain of thought",
    "scaffold": "the JSON around it",
    "label": "the answer",
}
LINE_WIDTH = 88


def wants_color(choice: str, stream: TextIO) -> bool:
    """Return whether to use colour; `auto`: on a terminal, unless NO_COLOR is set (no-color.org)."""
    if choice == "auto":
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always"


def legend(*, color: bool) -> str:
    """Explain the colours in one line; empty without colour."""
    if not color:
        return ""
    kinds = [f"{_SHADES[kind][0]}{kind}{_RESET} {MEANINGS[kind]}" for kind in KINDS]
    return f"{', '.join(kinds)}; {_DIM}dimmed{_RESET}: not trained on; two shades: token boundaries"


def render(pieces: Sequence[Piece], *, color: bool) -> str:
    """Render an example's pieces for a terminal."""
    return _coloured(pieces) if color else _labelled(pieces)


def _coloured(pieces: Sequence[Piece]) -> str:
    parts = []
    for number, piece in enumerate(pieces):
        style = _SHADES[piece.kind][number % 2] + ("" if piece.supervised else _DIM)
        # A style that spans a line break would colour the rest of the line in some pagers.
        lines = visible(piece.text).split("\n")
        parts.append("\n".join(f"{style}{line}{_RESET}" if line else "" for line in lines))
    return "".join(parts)


def _labelled(pieces: Sequence[Piece]) -> str:
    lines = []
    # Keep the prompt's markers inside it, or a chat template would fall into a dozen fragments.
    runs = itertools.groupby(
        pieces, key=lambda piece: (piece.kind if piece.supervised else "prompt", piece.supervised)
    )
    for (kind, supervised), run in runs:
        found = list(run)
        num = sum(len(piece.ids) for piece in found)
        heading = f"{kind}, {num} token{'s' if num > 1 else ''}"
        if not supervised:
            heading += f", {sum(piece.kind == 'control' for piece in found)} of them control, not trained on"
        lines.append(f"[{heading}]")
        for line in visible("".join(piece.text for piece in found)).split("\n"):
            parts = textwrap.wrap(line, LINE_WIDTH, break_on_hyphens=False, replace_whitespace=False)
            lines += [f"    {part}" for part in parts or [""]]
    return "\n".join(line.rstrip() for line in lines)


def visible(text: str) -> str:
    r"""Escape everything but line breaks and printable characters.

    >>> visible("red \x1b[31m, a tab\t and a \u2028")
    'red \\x1b[31m, a tab\\t and a \\u2028'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )
