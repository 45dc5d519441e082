"""Decoding that forces what is known: the scaffold is fed, the thought generated, the label read.

A row generates its thought until the closing quote or the end of its token budget; then the scaffold is fed,
and p(entailment) is the softmax over the two label tokens. So every completion parses by construction.
Finished rows leave the batch, and the next prompts take their slots.
"""

from __future__ import annotations

import copy
import hashlib
import os.path
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nlicot import completion
from nlicot.completion import Form
from nlicot.evaluation.metrics import entails
from nlicot.model.loaded_model import causal_lm
from nlicot.model.prompt_format import PromptFormat
from nlicot.prediction.grammar import Answer, Choice, FreeText, Row, Script, ThoughtGrammar
from nlicot.records import Prediction
from nlicot.settings import DecodingSettings

COMPACT_BELOW = 0.75
"""The cache is compacted, and rows enter, when fewer than this fraction of slots run; both copy it."""

PREFILL_TOKENS = 1024
"""Maximum padded prompt tokens of one forward pass; more pushes activations out of the processor's caches."""

SPARE_COLUMNS = 64
"""Spare columns after the last token, so that a step writes one column instead of copying the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Encoded prompts to decode together, with the ids of their pairs."""

    ids: list[str]
    prompts: list[list[int]]


class Decoder:
    """Decodes prompts with a causal language model of transformers, adapted or not, in eval mode."""

    def __init__(self, model: Any, prompt_format: PromptFormat, settings: DecodingSettings) -> None:
        self.model = causal_lm(model)
        self.prompt_format = prompt_format
        self.settings = settings
        self.device = self.model.lm_head.weight.device
        self.grammar = ThoughtGrammar(prompt_format, self.model.lm_head.weight.shape[0]).to(self.device)

    def with_settings(self, settings: DecodingSettings) -> Decoder:
        """Return a decoder of the same model with other settings; tables are shared."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def decode(self, batch: PromptBatch, *, form: Form = Form.THOUGHT_FIRST) -> Iterator[Prediction]:
        """Yield one prediction for each prompt, in the order in which they finish."""
        if form is Form.LABEL_ONLY:
            rows = [[*prompt, *self.grammar.label_opening_ids] for prompt in batch.prompts]
            for index, p_entailment in self.label_probabilities(rows):
                yield average([_vote(batch.ids[index], p_entailment, None, "label_only")], form=form)
            return
        opening, script = self._student_script(form)
        num_votes = self.settings.votes if self.settings.temperature > 0 else 1
        votes: dict[int, list[Prediction]] = {}
        rows = [[*prompt, *opening] for prompt in batch.prompts]
        for index, answer in self._run(rows, script, num_votes):
            status = "closed" if answer.closed[0] else "truncated"
            vote = _vote(batch.ids[index], answer.probabilities[0][1], answer.texts[0], status)
            votes.setdefault(index, []).append(vote)
            if len(votes[index]) == num_votes:
                yield average(votes.pop(index), form=form)

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
    ) -> list[Answer]:
        """Decode an answer to each prompt that begins with `opening_ids` and follows `script`."""
        rows = [[*prompt, *opening_ids] for prompt in prompts]
        found = dict(self._run(rows, script, 1))
        return [found[index] for index in range(len(rows))]

    @torch.inference_mode()
    def label_probabilities(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """Yield p(entailment) for each row of ids that is about to be followed by a label, with its index."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        prefix = self._encode_prefix(rows)
        for start in range(0, len(order), self.settings.batch_size):
            part = order[start : start + self.settings.batch_size]
            hidden, _ = self._prefill([rows[index] for index in part], prefix)
            two = choice_probabilities(self.model.lm_head, hidden, self.grammar.label_ids)
            yield from zip(part, two[:, 1].tolist(), strict=True)

    @torch.inference_mode()
    def _run(
        self, prompts: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Decode all prompts by the script, each row at its own pace; yield an answer when its row finishes.

        Each prompt is encoded once, whatever the number of samples.
        """
        prefix = self._encode_prefix(prompts)
        pending = deque(range(len(prompts)))
        running = _Running(escaping=torch.zeros(0, dtype=torch.bool, device=self.device))
        while pending or running.rows:
            num_slots = max(1, (self.settings.batch_size - len(running.rows)) // num_samples)
            if pending and len(running.rows) <= COMPACT_BELOW * self.settings.batch_size:
                entering = [pending.popleft() for _ in range(min(num_slots, len(pending)))]
                hidden, state = self._prefill([prompts[index] for index in entering], prefix)
                if num_samples > 1:
                    copies = torch.arange(len(entering), device=self.device).repeat_interleave(num_samples)
                    state.select(copies)
                    hidden = hidden[copies]
                for index in entering:
                    # Sampling is seeded by the prompt, not by its slot: a row is the same in any batch.
                    seed = hashlib.sha256(repr(list(prompts[index])).encode()).hexdigest()
                    for sample in range(num_samples):
                        generator = random.Random(f"{self.settings.seed}/{sample}/{seed}")
                        running.rows.append(Row(script=script, owner=index, generator=generator))
                running.append(hidden, state)
            yield from self._step(running)

    def _encode_prefix(self, rows: Sequence[Sequence[int]]) -> RowCache | None:
        """Encode the prefix that all rows share (instruction and definitions) once."""
        if len(rows) < 2:
            return None
        common = os.path.commonprefix([list(row) for row in rows])  # noqa: RUF071 (of ids, not of a path)
        prefix_len = min(len(common), min(map(len, rows)) - 1)
        if not prefix_len:
            return None
        ids = torch.tensor([list(rows[0][:prefix_len])], device=self.device)
        prefix = RowCache(_growing_cache(), torch.ones_like(ids))
        self._forward(ids, prefix.mask, torch.arange(prefix_len, device=self.device)[None], prefix.cache)
        return prefix

    def _prefill(self, rows: Sequence[Sequence[int]], prefix: RowCache | None) -> tuple[Tensor, RowCache]:
        """Encode rows that share the prefix, each longer; return last hidden states `[B, H]` and cache."""
        prefix_len = 0 if prefix is None else prefix.mask.shape[1]
        hidden, caches = [], []
        size = max(1, PREFILL_TOKENS // (max(map(len, rows)) - prefix_len))
        for start in range(0, len(rows), size):
            part = [row[prefix_len:] for row in rows[start : start + size]]
            width = max(map(len, part))
            input_ids = torch.full((len(part), width), self.prompt_format.pad_id, dtype=torch.long)
            mask = torch.zeros((len(part), width), dtype=torch.long)
            for index, row in enumerate(part):
                input_ids[index, width - len(row) :] = torch.tensor(row)
                mask[index, width - len(row) :] = 1
            mask = mask.to(self.device)
            positions = (mask.cumsum(1) - 1).clamp(min=0) + prefix_len
            if prefix is None:
                state = RowCache(_growing_cache(), mask)
            else:
                state = prefix.repeated(len(part))
                state.mask = torch.cat([state.mask, mask], dim=1)
            hidden.append(self._forward(input_ids.to(self.device), state.mask, positions, state.cache))
            caches.append(state)
        return torch.cat(hidden), RowCache.joined(caches)

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Feed `[B, T]` tokens; return the last hidden states `[B, H]`."""
        output = self.model.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _step(self, running: _Running) -> Iterator[tuple[int, Answer]]:
        """Decode one token of each row; yield the answers of the rows that it finishes."""
        assert running.hidden is not None
        logits = self._logits(running.hidden)
        closing = torch.tensor([row.closing_id for row in running.rows], device=self.device)
        generators = [row.generator for row in running.rows]
        chosen = self._choose(self.grammar.constrained(logits, running.escaping, closing), generators)
        # After a backslash the same token (a quote and a comma, say) is part of the thought.
        closes = ((chosen == closing) & ~running.escaping).tolist()
        running.escaping = self.grammar.escaping_after(chosen, running.escaping)
        feed = chosen.tolist()
        for slot, row in enumerate(running.rows):
            if not row.done:
                probabilities = partial(choice_probabilities, self.model.lm_head, running.hidden[slot])
                feed[slot] = row.next_token(feed[slot], closes[slot], probabilities)
                if row.done:
                    yield row.owner, row.answer(self.prompt_format)
        kept = [slot for slot, row in enumerate(running.rows) if not row.done]
        if len(kept) < COMPACT_BELOW * len(running.rows):
            running.select(kept)
            feed = [feed[slot] for slot in kept]
        state = running.state
        if state is None:
            return
        tokens = torch.tensor(feed, device=self.device)[:, None]
        positions = state.mask.sum(1, keepdim=True)
        state.mask = functional.pad(state.mask, [0, 1], value=1)
        running.hidden = self._forward(tokens, state.mask, positions, state.cache)
        # A field starts outside any escape, even if the previous one was cut off inside one.
        fresh = torch.tensor([not row.in_text for row in running.rows], device=self.device)
        running.escaping = running.escaping & ~fresh

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits `[B, V]` for hidden states `[B, H]`."""
        head = self.model.lm_head
        if hidden.is_cuda or head.weight.dtype is not torch.float32 or head.bias is not None:
            logits: Tensor = head(hidden).float()
        else:  # with the large matrix first, the product takes half the time on a CPU, transposing included
            logits = (head.weight @ hidden.t().float()).t().contiguous()
        return logits

    def _choose(self, logits: Tensor, generators: Sequence[random.Random]) -> Tensor:
        """Choose tokens `[B]` from logits `[B, V]`: the most likely, or sampled with each row's generator."""
        if self.settings.temperature <= 0:
            return logits.argmax(-1)
        probabilities = (logits / self.settings.temperature).softmax(-1)
        if self.settings.top_p < 1:
            ordered, indices = probabilities.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.settings.top_p
            probabilities = probabilities.scatter(-1, indices, ordered.masked_fill(outside, 0.0))
        # Exponential race: a token arrives after an exponential time at the rate of its probability, and the
        # first to arrive is chosen. Comparing a uniform number with cumulative probabilities would let
        # rounding errors, and so the other rows of the batch, decide between unlikely tokens.
        generator = torch.Generator(probabilities.device)
        times = torch.empty_like(probabilities)
        for row, numbers in zip(times, generators, strict=True):
            row.exponential_(generator=generator.manual_seed(numbers.getrandbits(63)))
        return (probabilities / times).argmax(-1)


@dataclass(slots=True, kw_only=True)
class _Running:
    """The running rows and their state, slot by slot."""

    escaping: Tensor
    rows: list[Row] = field(default_factory=list)
    hidden: Tensor | None = None
    state: RowCache | None = None

    def append(self, hidden: Tensor, state: RowCache) -> None:
        self.hidden = hidden if self.hidden is None else torch.cat([self.hidden, hidden])
        self.state = state if self.state is None else RowCache.joined([self.state, state])
        self.escaping = torch.cat([self.escaping, self.escaping.new_zeros(len(hidden))])

    def select(self, kept: Sequence[int]) -> None:
        self.rows = [self.rows[slot] for slot in kept]
        slots = torch.tensor(kept, dtype=torch.long, device=self.escaping.device)
        self.escaping = self.escaping[slots]
        if not kept:
            self.hidden = self.state = None
        elif self.state is not None:
            self.state.select(slots)


def _growing_cache() -> Any:
    """Return an empty cache of transformers whose layers grow by `SPARE_COLUMNS` at a time."""
    from transformers.cache_utils import Cache, DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
                self.key_buffer, self.value_buffer = self.keys, self.values
            self.key_buffer, self.keys = _append(self.key_buffer, self.keys, key_states)
            self.value_buffer, self.values = _append(self.value_buffer, self.values, value_states)
            return self.keys, self.values

    return Cache(layer_class_to_replicate=GrowingLayer)


def _append(buffer: Tensor, kept: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Append `new` to `kept`, in place if it is the start of `buffer` and fits, else in a larger copy.

    All are `[B, heads, columns, D]`; `kept` is no longer the start of `buffer` once rows left or entered.
    Returns the over-allocated buffer, and a view of its columns in use.
    """
    length, width = kept.shape[2], kept.shape[2] + new.shape[2]
    in_place = buffer.shape[0] == kept.shape[0] and buffer.data_ptr() == kept.data_ptr()
    if not in_place or buffer.shape[2] < width or not length:
        buffer = new.new_empty(*new.shape[:2], width + SPARE_COLUMNS, new.shape[3])
        buffer[:, :, :length] = kept
    buffer[:, :, length:width] = new
    return buffer, buffer[:, :, :width]


@dataclass(slots=True)
class RowCache:
    """The cache of B rows of one width; masked padding may precede or interrupt a row."""

    cache: Any  # a cache of transformers; keys and values are `[B, heads, T, D]`
    mask: Tensor  # `[B, T]`, 1 for a token, 0 for padding

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order, repeats allowed; drop columns that are padding in all of them."""
        mask = self.mask[rows]
        used = torch.nonzero(mask.any(0)).squeeze(1)
        all_used = len(used) == mask.shape[1]  # avoids a second copy
        self.mask = mask if all_used else mask[:, used]
        for layer in self.cache.layers:
            keys, values = layer.keys[rows], layer.values[rows]
            layer.keys, layer.values = (keys, values) if all_used else (keys[:, :, used], values[:, :, used])

    def repeated(self, num_rows: int) -> RowCache:
        """Return a new cache of `num_rows` rows, each a copy of this one's single row."""
        cache = _growing_cache()
        for number, layer in enumerate(self.cache.layers):
            keys, values = (part.expand(num_rows, -1, -1, -1) for part in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return RowCache(cache, self.mask.expand(num_rows, -1))

    @classmethod
    def joined(cls, parts: Sequence[RowCache]) -> RowCache:
        """Join the rows of all parts in one cache, in order."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.mask.shape[1] for part in parts)
        mask = torch.cat([_left_padded(part.mask, width, dim=1) for part in parts])
        cache = parts[0].cache
        for number, layer in enumerate(cache.layers):
            alike = [part.cache.layers[number] for part in parts]
            layer.keys = torch.cat([_left_padded(one.keys, width, dim=2) for one in alike])
            layer.values = torch.cat([_left_padded(one.values, width, dim=2) for one in alike])
        return cls(cache, mask)


def _left_padded(values: Tensor, width: int, *, dim: int) -> Tensor:
    """Pad with zeros on the left along `dim`, up to `width`."""
    missing = width - values.shape[dim]
    return functional.pad(values, [0, 0] * (values.dim() - 1 - dim) + [missing, 0]) if missing else values


def choice_probabilities(head: Any, hidden: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the probabilities `[..., K]` of K tokens among each other, given hidden states `[..., H]`.

    In float32 whatever the model computes in: in bfloat16 two labels often have equal logits. No matrix
    product, because autocast would round its factors.
    """
    chosen = torch.tensor(ids, device=head.weight.device)
    logits = (hidden.float()[..., None, :] * head.weight[chosen].float()).sum(-1)
    if head.bias is not None:
        logits = logits + head.bias[chosen].float()
    probabilities: Tensor = logits.softmax(-1)
    return probabilities


def _vote(id_: str, p_entailment: float, thought_process: str | None, status: str) -> Prediction:
    return Prediction(
        id=id_,
        predicted_label=int(entails(p_entailment)),
        p_entailment=p_entailment,
        thought_process=thought_process,
        status=status,
        completion="",
    )


def average(
    answers: Sequence[Prediction], weights: Sequence[float] | None = None, form: Form = Form.THOUGHT_FIRST
) -> Prediction:
    """Average several answers to one pair: votes of one model, or predictions of an ensemble's members.

    The thought is that of the answer with the largest weight among those with a thought and the same label,
    else of the largest with a thought. Weights are equal by default; none is negative, not all are 0.
    """
    weights = weights or [1.0] * len(answers)
    probabilities = [float(answer.p_entailment or 0.0) for answer in answers]
    mean = sum(weight * p for weight, p in zip(weights, probabilities, strict=True)) / sum(weights)
    label = int(entails(mean))
    by_weight = [answers[index] for index in sorted(range(len(answers)), key=lambda i: -weights[i])]
    thinking = [answer for answer in by_weight if answer.thought_process is not None]
    chosen = next((one for one in thinking if one.predicted_label == label), (thinking or by_weight)[0])
    num_agreeing = sum(answer.predicted_label == label for answer in answers)
    return replace(
        chosen,
        predicted_label=label,
        p_entailment=mean,
        completion=completion.render(chosen.thought_process, label, form),
        agreement=num_agreeing / len(answers) if len(answers) > 1 else None,
    )


def by_length(
    ids: Sequence[str],
    prompts: Sequence[list[int]],
    *,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> PromptBatch:
    """Sort prompts by length, longest first: little padding, and memory peaks at the start.

    Several ranks take batches in turn, so that no pair is decoded twice; this returns those of one rank.
    """
    order = sorted(range(len(ids)), key=lambda index: (-len(prompts[index]), index))
    mine = [index for place, index in enumerate(order) if place // batch_size % world_size == rank]
    return PromptBatch(ids=[ids[index] for index in mine], prompts=[prompts[index] for index in mine])
