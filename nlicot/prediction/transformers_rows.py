"""Rows that are decoded together by the forward pass of transformers: any model, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SPARE_COLUMNS = 64
"""Spare columns after the last token, so that a step writes one column instead of copying the cache."""


class TransformersRows:
    """Their caches and last hidden states, slot by slot; the same methods as `model.fast.forward.Rows`.

    Args:
        model: a causal language model.
        prefix: ids that all rows start with; may be empty.
    """

    def __init__(self, model: Any, prefix: Sequence[int]) -> None:
        self._model, self._head = model.model, model.lm_head
        self._device = model.lm_head.weight.device
        self._state: RowCache | None = None
        self._prefix: RowCache | None = None
        self.hidden = torch.empty(0)
        if prefix:
            ids = torch.tensor([list(prefix)], device=self._device)
            self._prefix = RowCache(_growing_cache(), torch.ones_like(ids))
            positions = torch.arange(len(prefix), device=self._device)[None]
            self._forward(ids, self._prefix.mask, positions, self._prefix.cache)

    def logits(self) -> Tensor:
        """Return `[slots, V]`, in the model's dtype."""
        logits: Tensor = self._head(self.hidden)
        return logits

    def encode(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states `[B, H]` of rows of ids after the prefix, without keeping them."""
        return self._encode(rows)[0]

    def _encode(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, RowCache]:
        prefix_len = 0 if self._prefix is None else self._prefix.mask.shape[1]
        width = max(map(len, rows))
        input_ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
        mask = mask.to(self._device)
        positions = (mask.cumsum(1) - 1).clamp(min=0) + prefix_len
        if self._prefix is None:
            state = RowCache(_growing_cache(), mask)
        else:
            state = self._prefix.repeated(len(rows))
            state.mask = torch.cat([state.mask, mask], dim=1)
        return self._forward(input_ids.to(self._device), state.mask, positions, state.cache), state

    def enter(self, rows: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Encode rows of ids and put each into one slot or several; new slots follow the last one."""
        hidden, state = self._encode(rows)
        copies = torch.arange(len(rows), device=self._device).repeat_interleave(len(slots) // len(rows))
        num_slots = 0 if self._state is None else len(self.hidden)
        order = list(range(max(num_slots, *(slot + 1 for slot in slots))))
        for index, slot in enumerate(slots):
            order[slot] = num_slots + index
        state.select(copies)
        hidden = hidden[copies]
        if self._state is not None:
            hidden, state = torch.cat([self.hidden, hidden]), RowCache.joined([self._state, state])
        where = torch.tensor(order, device=self._device)
        state.select(where)
        self.hidden, self._state = hidden[where], state

    def feed(self, tokens: Tensor) -> None:
        """Append one token to each row; updates the hidden states."""
        state = self._state
        assert state is not None
        positions = state.mask.sum(1, keepdim=True)
        state.mask = functional.pad(state.mask, [0, 1], value=1)
        self.hidden = self._forward(tokens[:, None].to(self._device), state.mask, positions, state.cache)

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots in this order."""
        assert self._state is not None
        where = torch.tensor(slots, device=self._device)
        self._state.select(where)
        self.hidden = self.hidden[where]

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Feed `[B, T]` tokens; return the last hidden states `[B, H]`."""
        output = self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden


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
