"""Dropout that drops the same entries in the forward and the backward pass.

With compiled kernels it keeps two seeds and recomputes the mask as a hash of the entries' indices. Without a
compiler that hash takes eight passes over memory, so a mask from torch's random numbers is kept instead.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from nlicot.model.fast import kernels
from nlicot.model.fast.kernels import DROPOUT_LEVELS


class Dropout:
    """Dropout of one layer in one micro-batch; it does not scale the entries that it keeps.

    Args:
        p: probability of an entry to become 0; seeded by torch's default generator on the CPU.
    """

    def __init__(self, p: float) -> None:
        self._num_dropped = round(p * DROPOUT_LEVELS)
        self._seeds: tuple[int, int] | None = None
        self._mask: Tensor | None = None

    @property
    def p(self) -> float:
        """The probability, rounded to a multiple of 1 / 65,536."""
        return self._num_dropped / DROPOUT_LEVELS

    def apply(self, x: Tensor) -> Tensor:
        """Set the dropped entries of `x` to 0: the same in each call, which must have the same shape."""
        if not self._num_dropped:
            return x
        if kernels.are_compiled():
            return kernels.dropout(x, *self._drawn_seeds(), self._num_dropped)
        mask = self._drawn_mask(x)
        if x.dtype is torch.bfloat16 and not x.is_cuda:
            # A bitwise AND is four times as fast as multiplying by a mask.
            ones = mask.to(torch.int16).neg_()
            return x.contiguous().view(torch.int16).bitwise_and(ones).view(torch.bfloat16)
        return x * mask

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Return `total + apply(x)`; may overwrite `total`."""
        if self._num_dropped and kernels.are_compiled():
            return kernels.add_dropout(total, x, *self._drawn_seeds(), self._num_dropped)
        return total.add_(self.apply(x))

    def _drawn_seeds(self) -> tuple[int, int]:
        if self._seeds is None:
            first, second = torch.randint(-(2**31), 2**31, (2,)).tolist()
            self._seeds = (first, second)
        return self._seeds

    def _drawn_mask(self, x: Tensor) -> Tensor:
        """Bool of `x`'s shape; four entries from each random number."""
        if self._mask is None:
            numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            bits = numbers.random_(-(2**63), None).view(torch.int16)[: x.numel()]
            self._mask = (bits >= self._num_dropped - DROPOUT_LEVELS // 2).view(x.shape)
        return self._mask


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed torch by a micro-batch's position in training, so that a resumed run drops the same entries."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
