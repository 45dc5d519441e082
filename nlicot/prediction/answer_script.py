"""The script of a forced answer: texts that the model writes, choices it makes, and literals it is fed.

The decoder takes each row through a script. A student's has a thought and a label; a teacher's has the fields
of its stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nlicot import completion
from nlicot.model.prompt_format import PromptFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeText:
    """The inside of a JSON string, up to its closing quote or token budget; then `closing_ids` are fed."""

    closing_ids: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several literals, chosen by the logits of their first tokens; then `following_ids` are fed."""

    options: Sequence[Sequence[int]]
    following_ids: Sequence[int] = ()


Script = Sequence[FreeText | Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row's texts, whether each closed by itself, and its choices' probabilities, in script order."""

    texts: list[str]
    closed: list[bool]
    probabilities: list[list[float]]


@dataclass(slots=True, kw_only=True)
class Row:
    """A row and its progress through a script."""

    script: Script
    step: int = 0
    pending: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True if the model has nothing left to decide; trailing literals are skipped."""
        return self.step == len(self.script)

    @property
    def in_text(self) -> bool:
        """True if the model writes the next token, inside a text."""
        return not self.done and not self.pending and isinstance(self.script[self.step], FreeText)

    @property
    def closing_id(self) -> int:
        """The token that ends the current text; arbitrary outside of a text."""
        step = None if self.done else self.script[self.step]
        return step.closing_ids[0] if isinstance(step, FreeText) else 0

    def next_token(self, chosen: int, closes: bool, logits: Tensor) -> int:
        """Return the token to feed, given the model's choice and its logits `[V]`."""
        if self.pending:
            return self.pending.pop(0)
        step = self.script[self.step]
        if isinstance(step, Choice):
            return self._choose(step, logits)
        if len(self.tokens) == len(self.closed):
            self.tokens.append([])
        text = self.tokens[-1]
        if not closes and len(text) < step.max_tokens:
            text.append(chosen)
            return chosen
        self.closed.append(closes)
        self.step += 1
        first, *self.pending = step.closing_ids
        return first

    def _choose(self, step: Choice, logits: Tensor) -> int:
        first_logits = logits[[option[0] for option in step.options]]
        probabilities: list[float] = first_logits.softmax(-1).tolist()
        self.probabilities.append(probabilities)
        self.step += 1
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        first, *self.pending = [*step.options[best], *step.following_ids]
        return first

    def answer(self, prompt_format: PromptFormat) -> Answer:
        """Return the finished answer."""
        texts = [_without_open_escape(prompt_format.decode_inner(ids)) for ids in self.tokens]
        return Answer(
            texts=[completion.unescape(text) for text in texts],
            closed=self.closed,
            probabilities=self.probabilities,
        )


def _without_open_escape(text: str) -> str:
    """Drop a final backslash that the token budget left open."""
    trailing = len(text) - len(text.rstrip("\\"))
    return text[:-1] if trailing % 2 else text
