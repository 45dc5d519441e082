"""The layout of examples packed into one row after a shared prefix.

All prompts of a builder start alike: the model's markers, the instruction, the label definitions. Under
causal attention the hidden states of that prefix do not depend on what follows, so a micro-batch holds it
once:

    shared prefix | suffix of example 1 | suffix of example 2 | ... | padding

Everything but attention treats tokens independently. In attention, each suffix attends to the prefix and to
itself. In all of `attention`, `N` is the row's number of tokens and `d` the head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A stretch of a row that attends to itself and to the first `prefix_len` tokens of the row."""

    start: int
    end: int
    prefix_len: int


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The layout of one row.

    Attributes:
        prefix_len: tokens of the shared prefix; 0 if there is none.
        suffix_lens: tokens of each example after the prefix, in row order.
        padding: tokens at the end that belong to no example.
    """

    prefix_len: int
    suffix_lens: tuple[int, ...]
    padding: int = 0

    @property
    def num_tokens(self) -> int:
        """The length of the whole row, `N`."""
        return self.prefix_len + sum(self.suffix_lens) + self.padding

    @cached_property
    def blocks(self) -> list[Block]:
        """The prefix, the suffixes and the padding, those that are not empty."""
        found, start = [], self.prefix_len
        if self.prefix_len:
            found.append(Block(0, self.prefix_len, 0))
        for length in self.suffix_lens:
            found.append(Block(start, start + length, self.prefix_len))
            start += length
        if self.padding:
            found.append(Block(start, start + self.padding, 0))
        return found

    def position_ids(self) -> Tensor:
        """Return `[N]`: each token's position in its own example."""
        return torch.cat([torch.arange(end - start) + prefix for start, end, prefix in self.blocks])

    @lru_cache(maxsize=8)  # noqa: B019 (a few small tensors, shared by all layers of a micro-batch)
    def padded_index(self, device: torch.device) -> Tensor:
        """Return `[sum(suffix_lens)]`: each suffix token's index in a flattened `[examples, longest]`."""
        longest = max(self.suffix_lens)
        indices = [torch.arange(length) + row * longest for row, length in enumerate(self.suffix_lens)]
        return torch.cat(indices).to(device)

    @lru_cache(maxsize=8)  # noqa: B019 (as above)
    def cu_seqlens(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a variable-length kernel needs to treat each block as a sequence.

        `[keys]` int64, the row index of each block's keys, block after block; and the cumulative lengths of
        the blocks' queries and keys, each `[blocks + 1]` int32 from 0.
        """
        keys = [
            torch.cat([torch.arange(prefix), torch.arange(start, end)]) for start, end, prefix in self.blocks
        ]
        query_lens, key_lens = [end - start for start, end, _ in self.blocks], [len(each) for each in keys]
        cu_q, cu_k = (
            torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
            for lengths in (query_lens, key_lens)
        )
        return torch.cat(keys).to(device), cu_q, cu_k


def common_prefix_len(rows: Sequence[list[int]], limit: int) -> int:
    """Return how many leading tokens all rows have in common, at most `limit`.

    >>> common_prefix_len([[1, 2, 3], [1, 2, 4]], limit=9)
    2
    """
    first, last = min(rows), max(rows)  # a prefix of both is a prefix of every row between them
    limit = min(limit, len(first), len(last))
    return next((index for index in range(limit) if first[index] != last[index]), limit)
