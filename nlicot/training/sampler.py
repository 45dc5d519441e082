"""Choose the examples of each optimizer step and cut them into micro-batches.

An epoch is a seeded permutation cut into windows of the effective batch. A window is sorted by length
and cut by a token budget; the loss is divided by the window's tokens, so the cut changes nothing but speed
and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from nlicot.training.batches import Window, collate, shared_prefix_len


def cut_by_tokens(
    lengths: Sequence[int], indices: Sequence[int], token_budget: int, *, prefix_len: int = 0
) -> list[list[int]]:
    """Sort `indices` by length, longest first, and cut them into runs within the token budget.

    An example longer than the budget gets a run to itself.

    Args:
        prefix_len: number of tokens in the examples' common prefix, which a run holds once.

    >>> cut_by_tokens([5, 3, 4, 9], [0, 1, 2, 3], token_budget=9)
    [[3], [0, 2], [1]]
    """
    ordered = sorted(indices, key=lambda index: (-lengths[index], index))
    runs: list[list[int]] = []
    left = 0
    for index in ordered:
        suffix_len = lengths[index] - prefix_len
        if runs and suffix_len <= left:
            runs[-1].append(index)
            left -= suffix_len
        else:
            runs.append([index])
            left = token_budget - lengths[index]
    return runs


class WindowSampler(Sampler[list[int]]):
    """Yield the indices of one window at a time; continue mid-epoch after `resume_at`.

    Args:
        num_examples: size of the data set.
        window_size: the effective batch, over all ranks.
        seed: seed of the permutations; each epoch has its own.
        shuffle: False for evaluations.
    """

    def __init__(self, num_examples: int, *, window_size: int, seed: int, shuffle: bool) -> None:
        self.num_examples = num_examples
        self.window_size = window_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self._start: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return -(-self.num_examples // self.window_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def resume_at(self, epoch: int, window: int) -> None:
        """Skip the first `window` windows of `epoch` (and of no other)."""
        self._start = (epoch, window)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.num_examples))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_examples, generator=generator).tolist()
        first = self._start[1] if self._start[0] == self.epoch else 0
        for start in range(first * self.window_size, self.num_examples, self.window_size):
            yield order[start : start + self.window_size]


class WindowDataset(Dataset[Window]):
    """Fetch a whole window of an encoded data set at once, this rank's part of it as tensors.

    Args:
        encoded: a data set from `encoding.encode_dataset`.
        token_budget: maximum tokens of a micro-batch.
        rank: index of this process.
        world_size: number of processes; example i of a window, sorted by length, goes to i mod world_size.
        share_prefix: whether a micro-batch holds its examples' common prefix once.
    """

    def __init__(
        self,
        encoded: Any,
        *,
        token_budget: int,
        rank: int = 0,
        world_size: int = 1,
        share_prefix: bool = True,
    ) -> None:
        self.encoded = encoded
        self.token_budget = token_budget
        self.rank = rank
        self.world_size = world_size
        self.share_prefix = share_prefix
        self.lengths: list[int] = list(encoded["length"])
        # A view, so that counting a window's tokens does not decode them.
        self._counts = encoded.select_columns("num_by_kind")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: list[int]) -> Window:
        """Fetch one window; a rank without examples gets no micro-batch."""
        ordered = sorted(indices, key=lambda index: (-self.lengths[index], index))
        mine = ordered[self.rank :: self.world_size]
        rows = self._rows(mine)
        prefix_len = shared_prefix_len(list(rows.values())) if self.share_prefix else 0
        runs = cut_by_tokens(self.lengths, mine, self.token_budget, prefix_len=prefix_len)
        batches = [collate([rows[index] for index in run], prefix_len) for run in runs]
        ids = [rows[index]["id"] for run in runs for index in run]
        labels = [rows[index]["label"] for run in runs for index in run]
        counts = torch.tensor(self._counts[ordered]["num_by_kind"]).sum(dim=0)
        return Window(micro_batches=batches, num_by_kind=counts, ids=ids, labels=labels)

    def _rows(self, indices: list[int]) -> dict[int, dict[str, Any]]:
        """Fetch encoded examples at once, by index."""
        columns = self.encoded[indices]
        return {
            index: {name: column[position] for name, column in columns.items()}
            for position, index in enumerate(indices)
        }
