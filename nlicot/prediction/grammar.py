"""Constrain generation so that a thought stays one valid JSON string."""

from __future__ import annotations

import torch
from torch import Tensor

from nlicot import completion
from nlicot.model.prompt_format import PromptFormat


class ThoughtGrammar:
    """The tokens that may come next inside a thought.

    A thought ends with the first token of the scaffold that follows it, as in training. No other token with
    an unescaped quote, a control character or a control token is allowed; after an odd number of
    backslashes, only what JSON allows there.
    """

    def __init__(self, prompt_format: PromptFormat, num_logits: int) -> None:
        self.opening_ids = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
        self.label_opening_ids = prompt_format.encode_segment(completion.LABEL_OPENING, first=True)
        self.closing_ids = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)
        zero, one = (prompt_format.encode_segment(digit, first=False) for digit in "01")
        assert len(zero) == len(one) == 1, "a label must be one token"
        self.label_ids = (zero[0], one[0])
        self.special_ids = prompt_format.special_ids
        # Lists first: setting one entry of a tensor takes microseconds, and each has 49,152.
        ends, toggles, keeps, plain, escaped = ([False] * num_logits for _ in range(5))
        for token, text in enumerate(prompt_format.token_texts):
            if token in self.special_ids or not text:
                continue
            plain[token] = _stays_in_string(text)
            escaped[token] = text[0] in '"\\/bfnrt' and _stays_in_string(text[1:])
            trailing = len(text) - len(text.rstrip("\\"))
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

    def constrained(self, logits: Tensor, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """Return the logits `[B, V]` with -inf for tokens that may not come next.

        Args:
            logits: `[B, V]`.
            escaping: `[B]`, true if a backslash is open.
            closing: `[B]`, the token that ends each row's text; by default the thought's.
        """
        if closing is None:
            closing = torch.full_like(escaping, self.closing_ids[0], dtype=torch.long)
        constrained = logits + self.masks[0]
        if bool(escaping.any()):
            constrained[escaping] = logits[escaping] + self.masks[1]
        ends = torch.where(
            escaping[:, None], constrained.gather(1, closing[:, None]), logits.gather(1, closing[:, None])
        )
        return constrained.scatter_(1, closing[:, None], ends)

    def mask(self, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """Return `[B, V]` to add to logits: 0 if a token may come next, else -inf; see `constrained`."""
        return self.constrained(self.masks.new_zeros(len(escaping), self.masks.shape[1]), escaping, closing)

    def escaping_after(self, tokens: Tensor, escaping: Tensor) -> Tensor:
        """Return `[B]`: whether a backslash is open after these tokens."""
        return torch.where(
            escaping,
            self.ends_escaping[tokens] | self.keeps_escaping[tokens],
            self.ends_escaping[tokens] | self.toggles_escaping[tokens],
        )


def _stays_in_string(text: str) -> bool:
    """Return whether a JSON string stays open and valid after this text (no backslash open before it)."""
    index = 0
    while index < len(text):
        if text[index] == "\\":
            if index + 1 < len(text) and text[index + 1] not in '"\\/bfnrt':
                return False
            index += 2
            continue
        if text[index] == '"' or ord(text[index]) < 0x20:
            return False
        index += 1
    return True
