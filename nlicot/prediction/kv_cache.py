"""The key/value cache of a batch whose rows leave and enter while it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SPARE_COLUMNS = 64
"""Spare columns after the last token, so that a step writes one column instead of copying the cache."""


def growing_cache() -> Any:
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
    """Append `new` to `kept`, in place if `kept` is the start of `buffer` and fits, else in a larger copy.

    Args:
        buffer: `[B, heads, C, D]`.
        kept: `[B, heads, T, D]`; no longer the start of `buffer` once rows have left or entered.
        new: `[B, heads, t, D]`.

    Returns:
        The over-allocated buffer, and a view of its first T + t columns.
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
    """The cache of B rows of one width; masked padding may precede or interrupt a row.

    Attributes:
        cache: a cache of transformers; keys and values are `[B, heads, T, D]`.
        mask: `[B, T]`, 1 for a token, 0 for padding.
    """

    cache: Any
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """The position `[B, 1]` of each row's next token."""
        return self.mask.sum(1, keepdim=True)

    def with_next(self) -> Tensor:
        """Return the mask `[B, T + 1]` after one more token in each row."""
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

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
        cache = growing_cache()
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
