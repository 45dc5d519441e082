"""Format tables for a terminal and for Markdown; text from data files is escaped in both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"-|-?[\d.,]+( %)?( to [\d.]+ %)?")
# Characters that Markdown or embedded HTML would interpret.
_MARKUP = re.compile(r"[\\`*_\[\]<>|&~]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, a header and rows of unescaped cells."""

    title: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def columns(self, *names: str) -> Table:
        """Select columns by name."""
        indices = [self.header.index(name) for name in names]
        return Table(
            title=self.title, header=names, rows=[[row[index] for index in indices] for row in self.rows]
        )


def aligned(table: Table, *, indent: str = "") -> list[str]:
    """Format a table as lines with aligned columns, numbers to the right.

    >>> aligned(Table(header=("split", "pairs"), rows=(("train", "12"), ("dev", "4"))))
    ['split  pairs', 'train     12', 'dev        4']
    """
    lines = [[printable(cell) for cell in line] for line in (table.header, *table.rows)]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]


def piped(table: Table) -> list[str]:
    """Format a table in Markdown.

    >>> piped(Table(header=("a|b",), rows=(("<i>",),)))
    ['| a\\\\|b |', '| --- |', '| \\\\<i\\\\> |']
    """
    header, *rows = [[escaped(cell) for cell in line] for line in (table.header, *table.rows)]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def escaped(text: str) -> str:
    """Escape text so that Markdown renders it literally."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def printable(text: str) -> str:
    r"""Return one line without control characters, which could move a terminal's cursor.

    >>> printable("a\x1b[2Jb\nc")
    'a?[2Jb c'
    """
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def listed(items: Sequence[str], most: int = 5) -> str:
    """List the first items and the number of the others.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(printable(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def percent(proportion: float) -> str:
    """Format a proportion in percent."""
    return f"{100 * proportion:.1f} %"


def counted(num: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{num} {noun}{'' if num == 1 else 's'}"
