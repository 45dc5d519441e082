"""Dropout that drops the same entries in the forward and in the backward pass.

Where kernels are compiled it keeps two seeds, and hashes an entry's place whenever it is asked. Without a
compiler that hash is eight passes over memory, so it keeps a mask of torch's random numbers instead.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from nlicot.model.fast import kernels
from nlicot.model.fast.kernels import DROPOUT_LEVELS


class Dropout:
    """One layer's dropout in one micro-batch; what is kept is not scaled.

    Args:
        share: of the entries that become 0; seeded by torch's default generator on the CPU.
    """

    def __init__(self, share: float) -> None:
        self._num_dropped = round(share * DROPOUT_LEVELS)
        self._seeds: tuple[int, int] | None = None
        self._kept: Tensor | None = None

    @property
    def share(self) -> float:
        """The share that is dropped, in steps of 1 in 65,536."""
        return self._num_dropped / DROPOUT_LEVELS

    def of(self, x: Tensor) -> Tensor:
        """`x` with the dropped entries 0; each call, for arrays of one shape, drops the same ones."""
        if not self._num_dropped:
            return x
        if kernels.are_compiled():
            return kernels.dropped(x, *self._drawn_seeds(), self._num_dropped)
        kept = self._mask(x)
        if x.dtype is torch.bfloat16 and not x.is_cuda:
            # An AND of bits is four times as fast as a product with a mask.
            ones = kept.to(torch.int16).neg_()
            return x.contiguous().view(torch.int16).bitwise_and(ones).view(torch.bfloat16)
        return x * kept

    def add(self, total: Tensor, x: Tensor) -> Tensor:
        """`total + of(x)`; `total` is not to be used again."""
        if self._num_dropped and kernels.are_compiled():
            return kernels.add_dropped(total, x, *self._drawn_seeds(), self._num_dropped)
        return total.add_(self.of(x))

    def _drawn_seeds(self) -> tuple[int, int]:
        if self._seeds is None:
            first, second = torch.randint(-(2**31), 2**31, (2,)).tolist()
            self._seeds = (first, second)
        return self._seeds

    def _mask(self, x: Tensor) -> Tensor:
        """Bool of `x`'s shape; four entries from each random number."""
        if self._kept is None:
            numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            bits = numbers.random_(-(2**63), None).view(torch.int16)[: x.numel()]
            self._kept = (bits >= self._num_dropped - DROPOUT_LEVELS // 2).view(x.shape)
        return self._kept


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed torch from a micro-batch's place, so that a resumed run drops the same entries."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
