"""What a forced answer is made of: texts that the model writes, choices it makes, and literals it is fed.

The decoder walks each row through such a script. A student's has a thought and a label; a teacher's has the
fields of its stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nlicot import completion
from nlicot.model.prompt_format import PromptFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeText:
    """A JSON string's inside, until its closing quote or its budget; then `closing_ids` are fed."""

    closing_ids: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several literals, read from the logits of their first tokens; then `following_ids` are fed."""

    options: Sequence[Sequence[int]]
    following_ids: Sequence[int] = ()


Script = Sequence[FreeText | Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One row's texts, whether each closed by itself, and each choice's probabilities, in script's order."""

    texts: list[str]
    closed: list[bool]
    shares: list[list[float]]


@dataclass(slots=True, kw_only=True)
class Row:
    """One row on its way through a script."""

    script: Script
    step: int = 0
    waiting: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing more is to be said; what would only be fed is left out."""
        return self.step == len(self.script)

    @property
    def in_text(self) -> bool:
        """Whether the next token is the model's own, inside a text."""
        return not self.done and not self.waiting and isinstance(self.script[self.step], FreeText)

    @property
    def closing_id(self) -> int:
        """The token that would end the present text; any token where there is none."""
        step = None if self.done else self.script[self.step]
        return step.closing_ids[0] if isinstance(step, FreeText) else 0

    def next_token(self, chosen: int, closes: bool, logits: Tensor) -> int:
        """The token to feed, given the one that the model would choose and its logits `[V]`."""
        if self.waiting:
            return self.waiting.pop(0)
        step = self.script[self.step]
        if isinstance(step, Choice):
            return self._take(step, logits)
        if len(self.tokens) == len(self.closed):
            self.tokens.append([])
        text = self.tokens[-1]
        if not closes and len(text) < step.max_tokens:
            text.append(chosen)
            return chosen
        self.closed.append(closes)
        self.step += 1
        first, *self.waiting = step.closing_ids
        return first

    def _take(self, step: Choice, logits: Tensor) -> int:
        firsts = logits[[option[0] for option in step.options]]
        shares: list[float] = firsts.softmax(-1).tolist()
        self.shares.append(shares)
        self.step += 1
        best = max(range(len(shares)), key=shares.__getitem__)
        first, *self.waiting = [*step.options[best], *step.following_ids]
        return first

    def said(self, prompt_format: PromptFormat) -> Said:
        """What the row came to."""
        texts = [_without_open_escape(prompt_format.decode_inner(ids)) for ids in self.tokens]
        return Said(
            texts=[completion.unescape(text) for text in texts], closed=self.closed, shares=self.shares
        )


def _without_open_escape(text: str) -> str:
    """The text without a last backslash that a spent budget left open."""
    trailing = len(text) - len(text.rstrip("\\"))
    return text[:-1] if trailing % 2 else text
