"""The key/value cache of rows that are decoded together, where rows leave and others take their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROOM = 64
"""Tokens that there is room for behind the last one, so that a step copies one column and not all."""


def roomy_cache() -> Any:
    """An empty cache of `transformers` whose layers grow by `ROOM` columns at once."""
    from transformers.cache_utils import Cache, DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
                self.roomy_keys, self.roomy_values = self.keys, self.values
            self.roomy_keys, self.keys = _appended(self.roomy_keys, self.keys, key_states)
            self.roomy_values, self.values = _appended(self.roomy_values, self.values, value_states)
            return self.keys, self.values

    return Cache(layer_class_to_replicate=RoomyLayer)


def _appended(roomy: Tensor, kept: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """`new` behind `kept`: in `roomy`, which `kept` begins, or in a copy with room of its own.

    Args:
        roomy: `[B, heads, C, D]`.
        kept: `[B, heads, T, D]`; not the beginning of `roomy` once rows have left or entered.
        new: `[B, heads, t, D]`.

    Returns:
        What has room now, and its first T + t columns.
    """
    length, width = kept.shape[2], kept.shape[2] + new.shape[2]
    begins = roomy.shape[0] == kept.shape[0] and roomy.data_ptr() == kept.data_ptr()
    if not begins or roomy.shape[2] < width or not length:
        roomy = new.new_empty(*new.shape[:2], width + ROOM, new.shape[3])
        roomy[:, :, :length] = kept
    roomy[:, :, length:width] = new
    return roomy, roomy[:, :, :width]


@dataclass(slots=True)
class RowCache:
    """What a model keeps of B rows of one width; a row's padding stands before or within it, masked.

    Attributes:
        cache: a cache of `transformers`; keys and values are `[B, heads, T, D]`.
        mask: `[B, T]`, 1 where a row has a token.
    """

    cache: Any
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """`[B, 1]`: the position of each row's next token."""
        return self.mask.sum(1, keepdim=True)

    def with_next(self) -> Tensor:
        """`[B, T + 1]`: the mask once each row has one token more."""
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    def select(self, places: Tensor) -> None:
        """Keep these rows, in this order; a place may stand more than once. Columns that all lack go too."""
        mask = self.mask[places]
        used = torch.nonzero(mask.any(0)).squeeze(1)
        every = len(used) == mask.shape[1]  # then there is no second copy
        self.mask = mask if every else mask[:, used]
        for layer in self.cache.layers:
            keys, values = layer.keys[places], layer.values[places]
            layer.keys, layer.values = (keys, values) if every else (keys[:, :, used], values[:, :, used])

    def repeated(self, num_rows: int) -> RowCache:
        """A cache of its own for `num_rows` rows that all begin with this one's only row."""
        cache = roomy_cache()
        for number, layer in enumerate(self.cache.layers):
            keys, values = (part.expand(num_rows, -1, -1, -1) for part in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return RowCache(cache, self.mask.expand(num_rows, -1))

    @classmethod
    def joined(cls, parts: Sequence[RowCache]) -> RowCache:
        """The rows of all parts in one cache, the first part's first."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.mask.shape[1] for part in parts)
        mask = torch.cat([_widened(part.mask, width, dim=1) for part in parts])
        cache = parts[0].cache
        for number, layer in enumerate(cache.layers):
            alike = [part.cache.layers[number] for part in parts]
            layer.keys = torch.cat([_widened(one.keys, width, dim=2) for one in alike])
            layer.values = torch.cat([_widened(one.values, width, dim=2) for one in alike])
        return cls(cache, mask)


def _widened(values: Tensor, width: int, *, dim: int) -> Tensor:
    """Zeros put before `values` along `dim`, up to `width`."""
    missing = width - values.shape[dim]
    return functional.pad(values, [0, 0] * (values.dim() - 1 - dim) + [missing, 0]) if missing else values
