"""The script that each row of the decoder follows, and the tokens allowed inside a text of it.

A student's script has a thought and a label; a teacher's has the fields of its stage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlicot import completion
from nlicot.model.prompt_format import PromptFormat

INSIDE_STRING = re.compile(r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*\\?')
"""Text after which a JSON string stays open and valid, if no backslash is open before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeText:
    """The inside of a JSON string, up to its closing quote or token budget; then `closing_ids` are fed."""

    closing_ids: Sequence[int]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The likeliest of several literals by their first tokens; then `following_ids` are fed.

    Of equally likely ones it is the last: of the labels 0 and 1, as in `evaluation.metrics.entails`, label 1.
    """

    options: Sequence[Sequence[int]]
    following_ids: Sequence[int] = ()

    @property
    def first_ids(self) -> list[int]:
        """The first token of each option."""
        return [option[0] for option in self.options]

    def choose(self, probabilities: Sequence[float]) -> int:
        """Return the index of the option that is chosen."""
        return max(reversed(range(len(probabilities))), key=probabilities.__getitem__)


Script = Sequence[FreeText | Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row's texts, whether each closed by itself, its choices and their probabilities, in script order."""

    texts: list[str]
    closed: list[bool]
    choices: list[int]
    probabilities: list[list[float]]


@dataclass(slots=True, kw_only=True)
class Row:
    """A row's progress through a script, its prompt's index, and its random numbers."""

    script: Script
    owner: int
    generator: random.Random
    step: int = 0
    pending: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
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

    def next_token(self, chosen: int, closes: bool, probabilities: Callable[[Sequence[int]], Tensor]) -> int:
        """Return the token to feed, given the model's choice, and its probabilities `[K]` of K tokens."""
        if self.pending:
            return self.pending.pop(0)
        step = self.script[self.step]
        if isinstance(step, Choice):
            found: list[float] = probabilities(step.first_ids).tolist()
            best = step.choose(found)
            self.probabilities.append(found)
            self.choices.append(best)
            literal = [*step.options[best], *step.following_ids]
        else:
            if len(self.tokens) == len(self.closed):
                self.tokens.append([])
            text = self.tokens[-1]
            if not closes and len(text) < step.max_tokens:
                text.append(chosen)
                return chosen
            self.closed.append(closes)
            literal = list(step.closing_ids)
        self.step += 1
        first, *self.pending = literal
        return first

    def answer(self, prompt_format: PromptFormat) -> Answer:
        """Return the finished answer."""
        # A token budget may end inside an escape.
        whole = [string_start(prompt_format.decode_inner(ids)) for ids in self.tokens]
        texts = list(map(completion.unescape, whole))
        return Answer(texts=texts, closed=self.closed, choices=self.choices, probabilities=self.probabilities)


class Scaffold:
    """The ids of the labels, and those that end a thought."""

    def __init__(self, prompt_format: PromptFormat) -> None:
        self.closing_ids = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)
        zero, one = (prompt_format.encode_segment(digit, first=False) for digit in "01")
        assert len(zero) == len(one) == 1, "a label must be one token"
        self.label_ids = (zero[0], one[0])


class ThoughtGrammar(Scaffold):
    """The tokens that may come next inside a thought, so that it stays one valid JSON string.

    Only the first token of the scaffold after a thought ends it, as in training.
    """

    def __init__(self, prompt_format: PromptFormat, num_logits: int) -> None:
        super().__init__(prompt_format)
        # Lists first: setting one entry of a tensor takes microseconds, and each has 49,152.
        ends, toggles, keeps, plain, escaped = ([False] * num_logits for _ in range(5))
        for token, text in enumerate(prompt_format.token_texts[:num_logits]):
            if token in prompt_format.special_ids or not text:
                continue
            plain[token] = _stays_in_string(text)
            escaped[token] = text[0] in '"\\/bfnrt' and _stays_in_string(text[1:])
            trailing = _num_trailing_backslashes(text)
            ends[token] = trailing % 2 == 1 and trailing < len(text)
            toggles[token] = trailing % 2 == 1 and trailing == len(text)
            keeps[token] = trailing % 2 == 0 and trailing == len(text)
        self.ends_escaping, self.toggles_escaping, self.keeps_escaping = map(
            torch.tensor, (ends, toggles, keeps)
        )
        self.masks = torch.zeros(2, num_logits).masked_fill_(~torch.tensor([plain, escaped]), float("-inf"))

    def to(self, device: torch.device) -> ThoughtGrammar:
        """Move the tables to a device; return self."""
        for name in ("masks", "ends_escaping", "toggles_escaping", "keeps_escaping"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def constrain(self, logits: Tensor, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """Set the logits `[B, V]` of tokens that may not come next to -inf, in place; return them.

        Args:
            logits: `[B, V]`.
            escaping: `[B]`, true if a backslash is open.
            closing: `[B]`, the token that ends each row's text; by default the thought's.
        """
        if closing is None:
            closing = torch.full_like(escaping, self.closing_ids[0], dtype=torch.long)
        outside, inside = self.masks.to(logits.dtype)
        index = closing[:, None]
        ends = logits.gather(1, index)
        escaped = logits[escaping] + inside
        logits += outside
        logits[escaping] = escaped
        ends = torch.where(escaping[:, None], logits.gather(1, index), ends)
        return logits.scatter_(1, index, ends)

    def mask(self, escaping: Tensor) -> Tensor:
        """Return `[B, V]` to add to logits: 0 if a token may come next, else -inf."""
        return self.constrain(self.masks.new_zeros(len(escaping), self.masks.shape[1]), escaping)

    def escaping_after(self, tokens: Tensor, escaping: Tensor) -> Tensor:
        """Return `[B]`: whether a backslash is open after these tokens."""
        ends, keeps, toggles = self.ends_escaping, self.keeps_escaping, self.toggles_escaping
        return ends[tokens] | torch.where(escaping, keeps[tokens], toggles[tokens])


def string_start(text: str) -> str:
    r"""Return the longest start of a text that is the inside of a JSON string, without an open backslash.

    >>> string_start('He said \\"no\\".", "predicted_label": 1}')
    'He said \\"no\\".'
    """
    found = INSIDE_STRING.match(text)
    start = found[0] if found else ""
    return start[:-1] if _num_trailing_backslashes(start) % 2 else start


def _num_trailing_backslashes(text: str) -> int:
    return len(text) - len(text.rstrip("\\"))


def _stays_in_string(text: str) -> bool:
    return INSIDE_STRING.fullmatch(text) is not None
