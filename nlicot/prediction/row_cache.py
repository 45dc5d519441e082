"""The key/value cache of rows that are decoded together, where rows leave and others take their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(slots=True)
class RowCache:
    """What a model keeps of B rows, padded on the left to one width.

    Attributes:
        cache: a `DynamicCache` of `transformers`; keys and values are `[B, heads, T, D]`.
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
        width = int(mask.sum(1).max())
        self.mask = mask[:, -width:]
        for layer in self.cache.layers:
            layer.keys = layer.keys[places, :, -width:]
            layer.values = layer.values[places, :, -width:]

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
