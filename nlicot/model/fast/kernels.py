"""Element-wise kernels of training, each fused into one loop by `torch.compile` if a compiler works.

Run separately, norms, dropout, the activation and the softmax after the LM head read and write whole arrays
in each of their passes. Compiling a chain of passes takes a second or two the first time, for any number of
tokens, and the result is cached. Without a compiler the same functions run eagerly.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import silu

from nlicot.model.base_model import cache_folder

logger = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

DROPOUT_LEVELS = 1 << 16
"""Dropout compares 16 random bits with its probability, so 0.05 becomes 0.050003."""


_wants_compiler = False


def use_compiler(wanted: bool) -> None:
    """Compile kernels from now on; if no compiler works, warn at the first kernel and run them eagerly."""
    global _wants_compiler
    _wants_compiler = wanted and os.environ.get("TORCHDYNAMO_DISABLE") != "1"


def are_compiled() -> bool:
    """Return whether kernels are compiled; the first call takes seconds, to try the compiler."""
    return _wants_compiler and _compiler_works()


@functools.cache
def _compiler_works() -> bool:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # noqa: BLE001 (whatever fails, training works without the compiler)
        logger.warning(
            "torch.compile does not work here (%s); training continues without it, slower: "
            "install g++, or set --model.compile_kernels false",
            " ".join(str(error).partition("\n\n")[0].split()),
        )
        return False
    return True


def fused(function: Kernel) -> Kernel:
    """Decorate a function of tensors, whose sizes may change from call to call."""

    compiled = functools.cache(lambda: torch.compile(function, dynamic=True))

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return (compiled() if are_compiled() else function)(*args)

    return run  # type: ignore[return-value]


@fused
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return RMSNorm (Zhang & Sennrich 2019) of `[.., H]`, and the `[.., 1]` float32 scales."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
    scale = squares.div(x.shape[-1]).add(epsilon).rsqrt()
    return x.to(torch.float32, copy=True).mul_(scale).to(x.dtype) * weight, scale


@fused
def rms_norm_backward(grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of `x`."""
    grad = (grad * weight).to(torch.float32, copy=True)
    normed = x.to(torch.float32, copy=True).mul_(scale)
    projection = (grad * normed).mean(dim=-1, keepdim=True)
    return grad.addcmul_(normed, projection, value=-1).mul_(scale).to(x.dtype)


@fused
def gate(x: Tensor, up: Tensor) -> Tensor:
    """Return `silu(x) * up` (Shazeer 2020)."""
    return silu(x).mul_(up)


@fused
def gate_backward(grad: Tensor, x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x` and of `up`."""
    grad_up = silu(x).mul_(grad)
    return torch.ops.aten.silu_backward(grad * up, x), grad_up


@fused
def dropout(x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Set each entry of `x` to 0 with probability `num_dropped / DROPOUT_LEVELS`; others are not scaled."""
    return torch.where(_keep_mask(x, seed, other_seed, num_dropped), x, 0)


@fused
def add_dropout(total: Tensor, x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Return `total + dropout(x, ..)`."""
    return total + torch.where(_keep_mask(x, seed, other_seed, num_dropped), x, 0)


def _keep_mask(x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Hash each entry's index and the seeds: a multiply-xorshift with C. Wellons' constants (lowbias32)."""
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device) + seed
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF) ^ other_seed) * (0x846CA68B - (1 << 32))
    bits = (bits ^ (bits >> 16)) & 0xFFFF
    return (bits >= num_dropped).view(x.shape)


@fused
def negative_log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[N]` float32 losses in nats of `[N, V]` logits, and their `[N, 1]` log-sum-exps."""
    logits = logits.float()
    sums = logits.logsumexp(dim=-1, keepdim=True)
    return (sums - logits.gather(1, targets[:, None])).squeeze(1), sums


@fused
def logits_gradient(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """Return the `[N, V]` gradient of each loss with respect to its logits, in their dtype."""
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return (logits.float() - sums).exp_().sub_(hit.float()).to(logits.dtype)


class Dropout:
    """Dropout of one layer in one micro-batch: the same entries in the forward and the backward pass.

    It does not scale the entries that it keeps. Compiled, it keeps two seeds and hashes the mask again.
    Eagerly that hash takes eight passes over memory, so a mask from torch's random numbers is kept instead.
    Both are seeded by torch's default generator.
    """

    def __init__(self, p: float) -> None:
        self._num_dropped = round(p * DROPOUT_LEVELS)
        self._mask: Tensor | None = None

    @property
    def p(self) -> float:
        """The probability, rounded to a multiple of 1 / 65,536."""
        return self._num_dropped / DROPOUT_LEVELS

    def apply(self, x: Tensor) -> Tensor:
        """Set the dropped entries of `x` to 0: the same in each call, which must have the same shape."""
        if not self._num_dropped:
            return x
        if are_compiled():
            return dropout(x, *self._seeds, self._num_dropped)
        mask = self._drawn_mask(x)
        if x.dtype is torch.bfloat16 and not x.is_cuda:
            # A bitwise AND is four times as fast as multiplying by a mask.
            ones = mask.to(torch.int16).neg_()
            return x.contiguous().view(torch.int16).bitwise_and(ones).view(torch.bfloat16)
        return x * mask

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Return `total + apply(x)`; may overwrite `total`."""
        if self._num_dropped and are_compiled():
            return add_dropout(total, x, *self._seeds, self._num_dropped)
        return total.add_(self.apply(x))

    @functools.cached_property
    def _seeds(self) -> tuple[int, int]:
        first, second = torch.randint(-(2**31), 2**31, (2,)).tolist()
        return first, second

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
