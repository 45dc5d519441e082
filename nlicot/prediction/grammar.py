"""Which tokens keep a thought one valid JSON string."""

from __future__ import annotations

import torch
from torch import Tensor

from nlicot import completion
from nlicot.model.prompt_format import PromptFormat


class ThoughtGrammar:
    """Which tokens may come next inside a thought, so that it stays one JSON string.

    A thought ends with the first token of the scaffold behind it, as training taught. No other token
    with an unescaped quote, a control character or a control token is allowed; behind an odd number of
    backslashes only what JSON allows there.
    """

    def __init__(self, prompt_format: PromptFormat, num_logits: int) -> None:
        self.opening_ids = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
        self.label_opening_ids = prompt_format.encode_segment(completion.LABEL_OPENING, first=True)
        self.closing_ids = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)
        zero, one = (prompt_format.encode_segment(digit, first=False) for digit in "01")
        assert len(zero) == len(one) == 1, "a label must be one token"
        self.label_ids = (zero[0], one[0])
        self.special_ids = prompt_format.special_ids
        # Lists, then tensors: an entry of a tensor takes microseconds to set, and there are 49,152 of each.
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
        """Move its tables; returns itself."""
        for name in ("masks", "ends_escaping", "toggles_escaping", "keeps_escaping"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def held(self, logits: Tensor, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """`[B, V]`: the logits, at -inf what may not come next.

        Args:
            logits: `[B, V]`.
            escaping: `[B]`, where a backslash is open.
            closing: `[B]`, the token that ends each row's text; None is the thought's.
        """
        if closing is None:
            closing = torch.full_like(escaping, self.closing_ids[0], dtype=torch.long)
        held = logits + self.masks[0]
        if bool(escaping.any()):
            held[escaping] = logits[escaping] + self.masks[1]
        ends = torch.where(
            escaping[:, None], held.gather(1, closing[:, None]), logits.gather(1, closing[:, None])
        )
        return held.scatter_(1, closing[:, None], ends)

    def mask(self, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """`[B, V]` to add to logits: 0 for what may come next, else -inf; arguments as of `held`."""
        return self.held(self.masks.new_zeros(len(escaping), self.masks.shape[1]), escaping, closing)

    def escaping_after(self, tokens: Tensor, escaping: Tensor) -> Tensor:
        """`[B]`: where a backslash is open behind these tokens."""
        return torch.where(
            escaping,
            self.ends_escaping[tokens] | self.keeps_escaping[tokens],
            self.ends_escaping[tokens] | self.toggles_escaping[tokens],
        )


def _stays_in_string(text: str) -> bool:
    """Whether text leaves a JSON string open and valid, from a state without an open backslash."""
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
