"""Decoding that forces what is known: the scaffold is fed, the thought generated, the label read.

A row generates its thought until the closing quote or until its budget ends; then the scaffold up to the
label is fed, and the label's probability is the softmax over the two label tokens. So every completion
parses by construction. Rows that are done leave the batch, and the cache is reused for the label step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlicot import completion
from nlicot.model.lora import causal_lm
from nlicot.model.prompt_format import PromptFormat
from nlicot.prediction.script import Choice, FreeText, Said, Script
from nlicot.prediction.script import Row as _Row
from nlicot.records import Prediction

COMPACT_BELOW = 0.75
"""Rows leave the cache once fewer than this share of them still runs; selecting copies the cache."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How predictions are made.

    Args:
        batch_size: prompts that are decoded together.
        max_thought_tokens: a thought's budget; after it the scaffold is forced.
        temperature: 0 is greedy.
        top_p: nucleus sampling (Holtzman et al. 2020) where the temperature is above 0.
        seed: of sampling.
    """

    batch_size: int = 32
    max_thought_tokens: int = 160
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Encoded prompts that are decoded together, with the ids of their pairs."""

    ids: list[str]
    prompts: list[list[int]]


class ThoughtGrammar:
    """Which tokens may come next inside a thought, so that it stays one JSON string.

    A thought ends with the first token of the scaffold behind it, as training taught. No other token
    with an unescaped quote, a control character or a control token is allowed; behind an odd number of
    backslashes only what JSON allows there.
    """

    def __init__(self, prompt_format: PromptFormat, num_logits: int) -> None:
        self.opening_ids = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
        self.label_only_ids = prompt_format.encode_segment(completion.LABEL_ONLY_OPENING, first=True)
        self.closing_ids = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)
        zero, one = (prompt_format.encode_segment(digit, first=False) for digit in "01")
        assert len(zero) == len(one) == 1, "a label must be one token"
        self.label_ids = (zero[0], one[0])
        self.special_ids = prompt_format.special_ids
        self.ends_escaping = torch.zeros(num_logits, dtype=torch.bool)
        self.toggles_escaping = torch.zeros(num_logits, dtype=torch.bool)
        self.keeps_escaping = torch.zeros(num_logits, dtype=torch.bool)
        plain, escaped = torch.full((2, num_logits), float("-inf")).unbind()
        for token, text in enumerate(prompt_format.token_texts):
            if token in self.special_ids or not text:
                continue
            if _stays_in_string(text):
                plain[token] = 0.0
            if text[0] in '"\\/bfnrt' and _stays_in_string(text[1:]):
                escaped[token] = 0.0
            trailing = len(text) - len(text.rstrip("\\"))
            self.ends_escaping[token] = trailing % 2 == 1 and trailing < len(text)
            self.toggles_escaping[token] = trailing % 2 == 1 and trailing == len(text)
            self.keeps_escaping[token] = trailing % 2 == 0 and trailing == len(text)
        self.masks = torch.stack([plain, escaped])

    def mask(self, escaping: Tensor, closing: Tensor | None = None) -> Tensor:
        """`[B, V]` to add to logits.

        Args:
            escaping: `[B]`, where a backslash is open.
            closing: `[B]`, the token that ends each row's text; None is the thought's.
        """
        if closing is None:
            closing = torch.full_like(escaping, self.closing_ids[0], dtype=torch.long)
        mask = self.masks[escaping.long()]
        allowed = mask.gather(1, closing[:, None]).masked_fill(~escaping[:, None], 0.0)
        return mask.scatter(1, closing[:, None], allowed)

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


class Decoder:
    """Decodes batches of prompts with one model.

    Args:
        model: a causal language model of `transformers`, an adapter on it or not, in eval mode.
        prompt_format: what its ids mean.
        settings: how to decode.
    """

    def __init__(self, model: Any, prompt_format: PromptFormat, settings: DecodingSettings) -> None:
        self.model = causal_lm(model)
        self.prompt_format = prompt_format
        self.settings = settings
        self.device = self.model.lm_head.weight.device
        self.grammar = ThoughtGrammar(prompt_format, self.model.lm_head.weight.shape[0])
        self.grammar.masks = self.grammar.masks.to(self.device)
        self.grammar.ends_escaping = self.grammar.ends_escaping.to(self.device)
        self.grammar.toggles_escaping = self.grammar.toggles_escaping.to(self.device)
        self.grammar.keeps_escaping = self.grammar.keeps_escaping.to(self.device)

    @torch.inference_mode()
    def decode(self, batch: PromptBatch, *, thinking: bool) -> list[Prediction]:
        """One prediction for each prompt, in the batch's order."""
        opening = self.grammar.opening_ids if thinking else self.grammar.label_only_ids
        rows = [[*prompt, *opening] for prompt in batch.prompts]
        hidden, state = self._prefill(rows)
        if not thinking:
            shares = self._label_shares(self.model.lm_head(hidden))
            return [
                self._finished(id_, None, share, "label_only")
                for id_, share in zip(batch.ids, shares, strict=True)
            ]
        thoughts, shares, closed = self._think(hidden, state)
        return [
            self._finished(id_, thought, share, "closed" if by_itself else "truncated")
            for id_, thought, share, by_itself in zip(batch.ids, thoughts, shares, closed, strict=True)
        ]

    def _prefill(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, _State]:
        """The last hidden states `[B, H]` of left-padded rows, and the cache behind them."""
        from transformers import DynamicCache

        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.prompt_format.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
        state = _State(
            cache=DynamicCache(),
            mask=mask.to(self.device),
            positions=(mask.cumsum(1) - 1).clamp(min=0).to(self.device),
        )
        return self._advance(input_ids.to(self.device), state), state

    def _advance(self, input_ids: Tensor, state: _State) -> Tensor:
        """Feed `[B, T]` tokens; returns the last hidden state `[B, H]`."""
        output = self.model.model(
            input_ids=input_ids,
            attention_mask=state.mask,
            position_ids=state.positions,
            past_key_values=state.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        state.positions = state.positions[:, -1:] + 1
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(state.mask), 1)], dim=1)
        return hidden

    def _think(self, hidden: Tensor, state: _State) -> tuple[list[str], list[float], list[bool]]:
        """Thoughts, entailment shares and whether each thought closed by itself, for `[B, H]`."""
        script = (
            FreeText(closing_ids=self.grammar.closing_ids, max_tokens=self.settings.max_thought_tokens),
            Choice(options=[[label] for label in self.grammar.label_ids]),
        )
        said = self._follow(hidden, state, script)
        thoughts = [row.texts[0] for row in said]
        return thoughts, [row.shares[0][1] for row in said], [row.closed[0] for row in said]

    @torch.inference_mode()
    def follow(
        self, prompts: Sequence[Sequence[int]], opening_ids: Sequence[int], script: Script
    ) -> list[Said]:
        """What the model says to each prompt when its answer begins with `opening_ids` and keeps to `script`.

        This is how a teacher in this process fills in a JSON object with other fields than a student's.
        """
        hidden, state = self._prefill([[*prompt, *opening_ids] for prompt in prompts])
        return self._follow(hidden, state, script)

    def _follow(self, hidden: Tensor, state: _State, script: Script) -> list[Said]:
        """Walk all rows, `[B, H]` behind their prompts, through the script; each at its own pace."""
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        rows = [_Row(script=script) for _ in range(len(hidden))]
        running = list(rows)  # the row of each place in the cache
        escaping = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        while True:
            logits = self.model.lm_head(hidden).float()
            closing = torch.tensor([row.closing_id for row in running], device=self.device)
            chosen = self._choose(logits + self.grammar.mask(escaping, closing), generator)
            # Behind a backslash the same token, a quote and a comma say, is part of the thought.
            closes = ((chosen == closing) & ~escaping).tolist()
            escaping = self.grammar.escaping_after(chosen, escaping)
            feed = chosen.tolist()
            for place, row in enumerate(running):
                if not row.done:
                    feed[place] = row.next_token(feed[place], closes[place], logits[place])
            kept = [place for place, row in enumerate(running) if not row.done]
            if not kept:
                break
            if len(kept) < COMPACT_BELOW * len(running):
                places = torch.tensor(kept, device=self.device)
                state.select(places)
                running = [running[place] for place in kept]
                feed = [feed[place] for place in kept]
                escaping = escaping[places]
            hidden = self._advance(torch.tensor(feed, device=self.device)[:, None], state)
            # A field begins outside of any escape, whatever a spent budget left open.
            fresh = torch.tensor([not row.in_text for row in running], device=self.device)
            escaping = escaping & ~fresh
        return [row.said(self.prompt_format) for row in rows]

    def _choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if self.settings.temperature <= 0:
            return logits.argmax(-1)
        shares = (logits / self.settings.temperature).softmax(-1)
        if self.settings.top_p < 1:
            ordered, indices = shares.sort(-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.settings.top_p
            shares = shares.scatter(-1, indices, ordered.masked_fill(beyond, 0.0))
        return torch.multinomial(shares, 1, generator=generator).squeeze(-1)

    def _label_shares(self, logits: Tensor) -> list[float]:
        """p(entailment) of every row of `[B, V]` logits where a label comes next."""
        two = logits[:, list(self.grammar.label_ids)].float()
        shares: list[float] = two.softmax(-1)[:, 1].tolist()
        return shares

    def _finished(self, id_: str, thought: str | None, share: float, status: str) -> Prediction:
        label = int(share >= 0.5)
        return Prediction(
            id=id_,
            predicted_label=label,
            p_entailment=share,
            thought_process=thought,
            status=status,
            completion=completion.render(thought, label),
        )


@dataclass(slots=True)
class _State:
    """The cache of a running batch: `mask` `[B, T]` over all it holds, `positions` `[B, t]` of what comes."""

    cache: Any
    mask: Tensor
    positions: Tensor

    def select(self, places: Tensor) -> None:
        self.cache.batch_select_indices(places)
        self.mask = self.mask[places]
        self.positions = self.positions[places]


def prompt_batches(ids: Sequence[str], prompts: Sequence[list[int]], batch_size: int) -> list[PromptBatch]:
    """Prompts sorted by length, the longest first, so that little is padded and memory peaks at once."""
    order = sorted(range(len(ids)), key=lambda index: (-len(prompts[index]), index))
    return [
        PromptBatch(ids=[ids[i] for i in part], prompts=[prompts[i] for i in part])
        for part in (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    ]
