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
def rms_norm_backward(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor, residual: Tensor | None
) -> Tensor:
    """Return the gradient of `x`, plus that of a residual."""
    grad = (grad * weight).to(torch.float32, copy=True)
    normed = x.to(torch.float32, copy=True).mul_(scale)
    projection = (grad * normed).mean(dim=-1, keepdim=True)
    grad = grad.addcmul_(normed, projection, value=-1).mul_(scale)
    return (grad if residual is None else grad.add_(residual)).to(x.dtype)


@fused
def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotary embeddings (Su et al. 2021) of `[N, heads, d]`, with `[N, d]` cosines and sines."""
    return _rotated(query, cos, sin), _rotated(key, cos, sin)


@fused
def rotate_backward(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients before the rotation."""
    return _rotated(query, cos, -sin), _rotated(key, cos, -sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


@fused
def gate(gate_and_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` (Shazeer 2020) of `[N, 2 * width]`."""
    width = gate_and_up.shape[1] // 2
    return silu(gate_and_up[:, :width]).mul_(gate_and_up[:, width:])


@fused
def gate_backward(grad: Tensor, gate_and_up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and of up: in one array, they would take twice as long to write."""
    width = grad.shape[1]
    gate, up = gate_and_up[:, :width].float(), gate_and_up[:, width:].float()
    sigmoid = gate.sigmoid()
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    return grad_gate.to(grad.dtype), (grad * gate * sigmoid).to(grad.dtype)


@fused
def dropout(x: Tensor, seeds: list[int], num_dropped: int, num_masks: int) -> list[Tensor]:
    """Return copies of `x` in each of which other entries are 0, the rest not scaled.

    An entry is dropped with probability `num_dropped / DROPOUT_LEVELS`.
    """
    return [torch.where(keep, x, 0) for keep in _keep_masks(x, seeds, num_dropped)[:num_masks]]


@fused
def add_dropout(total: Tensor, parts: list[Tensor], seeds: list[int], num_dropped: int) -> Tensor:
    """Return `total` plus each part without the entries that are dropped in the copy of its number."""
    for keep, part in zip(_keep_masks(total, seeds, num_dropped), parts, strict=False):
        total = total + torch.where(keep, part, 0)
    return total


def _keep_masks(x: Tensor, seeds: list[int], num_dropped: int) -> list[Tensor]:
    """Hash each entry's index and two seeds into two masks, by C. Wellons' lowbias32."""
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    masks = []
    for seed, other_seed in zip(seeds[::2], seeds[1::2], strict=True):
        bits = index + seed
        bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
        bits = (bits ^ ((bits >> 15) & 0x1FFFF) ^ other_seed) * (0x846CA68B - (1 << 32))
        upper = (bits >> 16) & 0xFFFF
        masks += [((bits ^ upper) & 0xFFFF) >= num_dropped, upper >= num_dropped]
    return [mask.view(x.shape) for mask in masks]


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
    """Dropout of the adapters that read one input in one micro-batch, each with its own mask.

    The same entries are dropped in the forward and the backward pass; entries that are kept are not scaled.
    Compiled, it keeps seeds and hashes the masks again. Eagerly that hash takes eight passes over memory, so
    masks from torch's random numbers are kept instead. Both are seeded by torch's default generator.
    """

    def __init__(self, p: float, num_masks: int = 1) -> None:
        self._num_dropped = round(p * DROPOUT_LEVELS)
        self._num_masks = num_masks
        self._masks: list[Tensor] = []

    @property
    def p(self) -> float:
        """The probability, rounded to a multiple of 1 / 65,536."""
        return self._num_dropped / DROPOUT_LEVELS

    def apply(self, x: Tensor) -> list[Tensor]:
        """Return `x` without the entries that each mask drops: in each call the same, for the same shape."""
        if not self._num_dropped:
            return [x] * self._num_masks
        if are_compiled():
            return dropout(x, self._seeds, self._num_dropped, self._num_masks)
        masks = self._drawn_masks(x)
        if x.dtype is torch.bfloat16 and not x.is_cuda:
            # A bitwise AND is four times as fast as multiplying by a mask.
            bits = x.contiguous().view(torch.int16)
            return [(bits & mask.to(torch.int16).neg_()).view(torch.bfloat16) for mask in masks]
        return [x * mask for mask in masks]

    def add_to(self, total: Tensor, parts: list[Tensor]) -> Tensor:
        """Return `total` plus each part without the entries that its mask drops; may overwrite `total`."""
        if self._num_dropped and are_compiled():
            return add_dropout(total, parts, self._seeds, self._num_dropped)
        masks = self._drawn_masks(total) if self._num_dropped else [None] * len(parts)
        for part, mask in zip(parts, masks, strict=True):
            total.add_(part if mask is None else part * mask)
        return total

    @functools.cached_property
    def _seeds(self) -> list[int]:
        """Two for each two masks."""
        return torch.randint(-(2**31), 2**31, (2 * -(-self._num_masks // 2),)).tolist()

    def _drawn_masks(self, x: Tensor) -> list[Tensor]:
        """Bool of `x`'s shape; four entries from each random number."""
        while len(self._masks) < self._num_masks:
            numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
            bits = numbers.random_(-(2**63), None).view(torch.int16)[: x.numel()]
            self._masks.append((bits >= self._num_dropped - DROPOUT_LEVELS // 2).view(x.shape))
        return self._masks


def seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed torch by a micro-batch's position in training, so that a resumed run drops the same entries."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
