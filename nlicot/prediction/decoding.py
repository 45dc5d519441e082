"""Decoding that forces what is known: the scaffold is fed, the thought generated, the label read.

A row generates its thought until the closing quote or until its budget ends; then the scaffold up to the
label is fed, and the label's probability is the softmax over the two label tokens. So every completion
parses by construction. Rows that are done leave the batch, the next prompts take their places, and the
cache is reused for the label step.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nlicot import completion
from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.model.fast.attention.spans import common_prefix_len
from nlicot.model.lora import causal_lm
from nlicot.model.prompt_format import PromptFormat
from nlicot.prediction.answer_script import Choice, FreeText, Said, Script
from nlicot.prediction.answer_script import Row as _Row
from nlicot.prediction.grammar import ThoughtGrammar
from nlicot.prediction.kv_cache import RowCache, roomy_cache
from nlicot.prediction.votes import Vote, combine
from nlicot.records import Prediction
from nlicot.settings import DecodingSettings

COMPACT_BELOW = 0.75
"""Rows leave the cache, and others enter, once fewer than this share of places runs; both copy it."""

PREFILL_TOKENS = 1024
"""Padded prompt tokens that go through the model at once; more only pushes activations out of the caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Encoded prompts that are decoded together, with the ids of their pairs."""

    ids: list[str]
    prompts: list[list[int]]


def answer_forms(trained: Collection[Form], think: bool | None) -> tuple[Form, Form]:
    """Of which form the prompt is, and of which the answer, for a model that was trained on these forms.

    Raises:
        ConfigError: it was never shown how.
    """
    if think is None:
        think = set(trained) == {Form.THOUGHT_FIRST}
    if think:
        order = ((Form.THOUGHT_FIRST, Form.THOUGHT_FIRST), (Form.LABEL_FIRST, Form.LABEL_FIRST))
    else:
        order = ((Form.LABEL_ONLY, Form.LABEL_ONLY), (Form.LABEL_FIRST, Form.LABEL_ONLY))
    for prompt, answer in order:
        if prompt in trained:
            return prompt, answer
    told = ", ".join(sorted(form.value for form in trained))
    raise ConfigError(
        f"--model.decoding.think: found {str(think).lower()}, expected what the run was trained on ({told})"
    )


class Decoder:
    """Decodes prompts with one model.

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
        self.grammar = ThoughtGrammar(prompt_format, self.model.lm_head.weight.shape[0]).to(self.device)

    def decode(self, batch: PromptBatch, *, form: Form) -> list[Prediction]:
        """One prediction for each prompt, in the batch's order."""
        order = {id_: index for index, id_ in enumerate(batch.ids)}
        found = self.decode_all(batch.ids, batch.prompts, form=form)
        return sorted(found, key=lambda prediction: order[prediction.id])

    def decode_all(
        self, ids: Sequence[str], prompts: Sequence[Sequence[int]], *, form: Form = Form.THOUGHT_FIRST
    ) -> Iterator[Prediction]:
        """One prediction for each prompt, as they are done.

        Args:
            ids: of the pairs.
            prompts: their encoded prompts; the longest first pads least.
            form: what a completion holds, and in which order.
        """
        if form is Form.LABEL_ONLY:
            shares = self.label_shares([[*prompt, *self.grammar.label_opening_ids] for prompt in prompts])
            for index, share in shares:
                yield combine(ids[index], [Vote(share, None, "label_only")], form)
            return
        opening, script = self._student_script(form)
        num_votes = self.settings.votes if self.settings.temperature > 0 else 1
        votes: dict[int, list[Vote]] = {}
        rows = [[*prompt, *opening] for prompt in prompts]
        for index, said in self._run(rows, script, num_votes):
            votes.setdefault(index, []).append(
                Vote(said.shares[0][1], said.texts[0], "closed" if said.closed[0] else "truncated")
            )
            if len(votes[index]) == num_votes:
                yield combine(ids[index], votes.pop(index), form)

    def _student_script(self, form: Form) -> tuple[list[int], Script]:
        budget = self.settings.max_thought_tokens
        labels = [[label] for label in self.grammar.label_ids]
        if form is Form.THOUGHT_FIRST:
            thought = FreeText(closing_ids=self.grammar.closing_ids, max_tokens=budget)
            return self.grammar.opening_ids, (thought, Choice(options=labels))
        between, closing = (
            self.prompt_format.encode_segment(text, first=False)
            for text in (completion.LABEL_TO_THOUGHT, completion.THOUGHT_END)
        )
        return self.grammar.label_opening_ids, (
            Choice(options=labels, following_ids=between),
            FreeText(closing_ids=closing, max_tokens=budget),
        )

    def follow(
        self, prompts: Sequence[Sequence[int]], opening_ids: Sequence[int], script: Script
    ) -> list[Said]:
        """What the model says to each prompt when its answer begins with `opening_ids` and keeps to `script`.

        This is how a teacher in this process fills in a JSON object with other fields than a student's.
        """
        rows = [[*prompt, *opening_ids] for prompt in prompts]
        found = dict(self._run(rows, script, 1))
        return [found[index] for index in range(len(rows))]

    @torch.inference_mode()
    def label_shares(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """p(entailment) of rows of ids behind which a label comes next, with each row's index."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        beginning = self._begin(rows)
        for start in range(0, len(order), self.settings.batch_size):
            part = order[start : start + self.settings.batch_size]
            hidden, _ = self._prefill([rows[index] for index in part], beginning)
            two = self.model.lm_head(hidden)[:, list(self.grammar.label_ids)].float()
            yield from zip(part, two.softmax(-1)[:, 1].tolist(), strict=True)

    @torch.inference_mode()
    def _run(
        self, prompts: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Said]]:
        """Walk all prompts through the script, each at its own pace: what each said, as it is done.

        Every prompt is encoded once, whatever the number of samples.
        """
        beginning = self._begin(prompts)
        pending = deque(range(len(prompts)))
        running = _Running(escaping=torch.zeros(0, dtype=torch.bool, device=self.device))
        while pending or running.rows:
            num_places = max(1, (self.settings.batch_size - len(running.rows)) // num_samples)
            if pending and len(running.rows) <= COMPACT_BELOW * self.settings.batch_size:
                entering = [pending.popleft() for _ in range(min(num_places, len(pending)))]
                encoded = self._prefill([prompts[index] for index in entering], beginning)
                names = [_name(prompts[index]) for index in entering]
                self._enter(running, entering, names, encoded, script, num_samples)
            yield from self._step(running)

    def _enter(
        self,
        running: _Running,
        entering: Sequence[int],
        names: Sequence[str],
        encoded: tuple[Tensor, RowCache],
        script: Script,
        num_samples: int,
    ) -> None:
        """Put the rows of these prompts, encoded, behind those that run."""
        hidden, state = encoded
        if num_samples > 1:
            places = torch.arange(len(entering), device=self.device).repeat_interleave(num_samples)
            state.select(places)
            hidden = hidden[places]
        for index, name in zip(entering, names, strict=True):
            for sample in range(num_samples):
                running.rows.append(_Row(script=script))
                running.owners.append(index)
                running.draws.append(random.Random(f"{self.settings.seed}/{sample}/{name}"))
        running.hidden = hidden if running.hidden is None else torch.cat([running.hidden, hidden])
        running.state = state if running.state is None else RowCache.joined([running.state, state])
        running.escaping = torch.cat([running.escaping, running.escaping.new_zeros(len(hidden))])

    def _begin(self, rows: Sequence[Sequence[int]]) -> RowCache | None:
        """The cache of what all rows begin with, instruction and definitions, which is encoded once."""
        if len(rows) < 2:
            return None
        num_shared = common_prefix_len([list(row) for row in rows], min(map(len, rows)) - 1)
        if not num_shared:
            return None
        ids = torch.tensor([list(rows[0][:num_shared])], device=self.device)
        beginning = RowCache(roomy_cache(), torch.ones_like(ids))
        self._forward(
            ids, beginning.mask, torch.arange(num_shared, device=self.device)[None], beginning.cache
        )
        return beginning

    def _prefill(
        self, rows: Sequence[Sequence[int]], beginning: RowCache | None = None
    ) -> tuple[Tensor, RowCache]:
        """The last hidden states `[B, H]` of rows of ids, and the cache behind them.

        Args:
            rows: none of them empty behind the beginning.
            beginning: the cache of what all of them begin with.
        """
        num_shared = 0 if beginning is None else beginning.mask.shape[1]
        hidden, caches = [], []
        size = max(1, PREFILL_TOKENS // (max(map(len, rows)) - num_shared))
        for start in range(0, len(rows), size):
            part = [row[num_shared:] for row in rows[start : start + size]]
            width = max(map(len, part))
            input_ids = torch.full((len(part), width), self.prompt_format.pad_id, dtype=torch.long)
            mask = torch.zeros((len(part), width), dtype=torch.long)
            for index, row in enumerate(part):
                input_ids[index, width - len(row) :] = torch.tensor(row)
                mask[index, width - len(row) :] = 1
            mask = mask.to(self.device)
            positions = (mask.cumsum(1) - 1).clamp(min=0) + num_shared
            if beginning is None:
                state = RowCache(roomy_cache(), mask)
            else:
                state = beginning.repeated(len(part))
                state.mask = torch.cat([state.mask, mask], dim=1)
            hidden.append(self._forward(input_ids.to(self.device), state.mask, positions, state.cache))
            caches.append(state)
        return torch.cat(hidden), RowCache.joined(caches)

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Feed `[B, T]` tokens; returns the last hidden state `[B, H]`."""
        output = self.model.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _step(self, running: _Running) -> Iterator[tuple[int, Said]]:
        """One token for each row; those that are done by it are handed out."""
        assert running.hidden is not None
        assert running.state is not None
        logits = self._logits(running.hidden)
        closing = torch.tensor([row.closing_id for row in running.rows], device=self.device)
        chosen = self._choose(self.grammar.held(logits, running.escaping, closing), running.draws)
        # Behind a backslash the same token, a quote and a comma say, is part of the thought.
        closes = ((chosen == closing) & ~running.escaping).tolist()
        running.escaping = self.grammar.escaping_after(chosen, running.escaping)
        feed = chosen.tolist()
        for place, row in enumerate(running.rows):
            if not row.done:
                feed[place] = row.next_token(feed[place], closes[place], logits[place])
                if row.done:
                    yield running.owners[place], row.said(self.prompt_format)
        kept = [place for place, row in enumerate(running.rows) if not row.done]
        if len(kept) < COMPACT_BELOW * len(running.rows):
            running.select(kept)
            feed = [feed[place] for place in kept]
        if not running.rows:
            return
        state = running.state
        tokens = torch.tensor(feed, device=self.device)[:, None]
        positions, state.mask = state.positions, state.with_next()
        running.hidden = self._forward(tokens, state.mask, positions, state.cache)
        # A field begins outside of any escape, whatever a spent budget left open.
        fresh = torch.tensor([not row.in_text for row in running.rows], device=self.device)
        running.escaping = running.escaping & ~fresh

    def _logits(self, hidden: Tensor) -> Tensor:
        """`[B, V]` float32 of `[B, H]`."""
        head = self.model.lm_head
        if hidden.is_cuda or head.weight.dtype is not torch.float32 or head.bias is not None:
            logits: Tensor = head(hidden).float()
        else:  # the long matrix first: so the product takes half the time on a CPU, the copy back included
            logits = (head.weight @ hidden.t().float()).t().contiguous()
        return logits

    def _choose(self, logits: Tensor, draws: Sequence[random.Random]) -> Tensor:
        """`[B]` tokens of `[B, V]` logits: the likeliest, or one drawn from each row's own numbers."""
        if self.settings.temperature <= 0:
            return logits.argmax(-1)
        shares = (logits / self.settings.temperature).softmax(-1)
        if self.settings.top_p < 1:
            ordered, indices = shares.sort(-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.settings.top_p
            shares = shares.scatter(-1, indices, ordered.masked_fill(beyond, 0.0))
        # A race: a token arrives after an exponential time at the rate of its share; the first one is taken.
        # A sum of shares up to a drawn number would let rounding, and with it a row's company, decide where
        # shares are small.
        generator = torch.Generator(shares.device)
        times = torch.empty_like(shares)
        for row, draw in zip(times, draws, strict=True):
            row.exponential_(generator=generator.manual_seed(draw.getrandbits(63)))
        return (shares / times).argmax(-1)


def _name(prompt: Sequence[int]) -> str:
    """What a row's draws come from: its prompt and not its place, so that it says the same in any company."""
    return hashlib.sha256(repr(list(prompt)).encode()).hexdigest()


@dataclass(slots=True, kw_only=True)
class _Running:
    """The rows in flight and all that is kept of them, place by place."""

    escaping: Tensor
    rows: list[_Row] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    draws: list[random.Random] = field(default_factory=list)
    hidden: Tensor | None = None
    state: RowCache | None = None

    def select(self, kept: Sequence[int]) -> None:
        """Let all other rows leave."""
        self.rows = [self.rows[place] for place in kept]
        self.owners = [self.owners[place] for place in kept]
        self.draws = [self.draws[place] for place in kept]
        places = torch.tensor(kept, dtype=torch.long, device=self.escaping.device)
        self.escaping = self.escaping[places]
        if not kept:
            self.hidden = self.state = None
        elif self.state is not None:
            self.state.select(places)


def by_length(ids: Sequence[str], prompts: Sequence[list[int]]) -> PromptBatch:
    """The prompts sorted by length, the longest first, so that little is padded and memory peaks at once."""
    order = sorted(range(len(ids)), key=lambda index: (-len(prompts[index]), index))
    return PromptBatch(ids=[ids[i] for i in order], prompts=[prompts[i] for i in order])


def prompt_batches(ids: Sequence[str], prompts: Sequence[list[int]], batch_size: int) -> list[PromptBatch]:
    """Prompts sorted by length, cut into batches."""
    every = by_length(ids, prompts)
    return [
        PromptBatch(ids=every.ids[at : at + batch_size], prompts=every.prompts[at : at + batch_size])
        for at in range(0, len(ids), batch_size)
    ]
