"""Element-wise kernels of training, each fused into one loop by `torch.compile` if a compiler works.

Besides its matrix products, training is a chain of element-wise passes: norms, dropout, the activation, the
softmax after the LM head. Run separately, each of them reads and writes whole arrays. Compiling a chain takes
a second or two the first time, for any number of tokens, and the result is cached. Without a compiler the
same functions run eagerly. `N` is the tokens of a micro-batch, `V` the vocabulary size.
"""

from __future__ import annotations

import functools
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


class _Compiler:
    """The process-wide choice to compile kernels."""

    wanted = False


def use_compiler(wanted: bool) -> None:
    """Compile kernels from now on; if no compiler works, warn at the first kernel and run them eagerly."""
    _Compiler.wanted = wanted and os.environ.get("TORCHDYNAMO_DISABLE") != "1"


def are_compiled() -> bool:
    """Return whether kernels are compiled; the first call tries the compiler, which takes seconds."""
    return _Compiler.wanted and _compiler_works()


@functools.cache
def _compiler_works() -> bool:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # noqa: BLE001 (whatever fails, training works without the compiler)
        reason = " ".join(str(error).partition("\n\n")[0].split())
        logger.warning(
            "torch.compile does not work here (%s); training continues without it, slower: "
            "install g++, or set --model.compile_kernels false",
            reason,
        )
        return False
    return True


def fused(function: Kernel) -> Kernel:
    """Decorate a function of tensors, whose sizes may change from call to call."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return (compiled() if are_compiled() else function)(*args)

    return run  # type: ignore[return-value]


def _float32_copy(x: Tensor) -> Tensor:
    return x.to(torch.float32, copy=True)


@fused
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return RMSNorm (Zhang & Sennrich 2019) of `[.., H]`, and the `[.., 1]` float32 scales."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
    scale = squares.div(x.shape[-1]).add(epsilon).rsqrt()
    return _float32_copy(x).mul_(scale).to(x.dtype) * weight, scale


@fused
def rms_norm_backward(grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of `x`."""
    grad = _float32_copy(grad * weight)
    normed = _float32_copy(x).mul_(scale)
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
    """Set each entry of `x` to 0 with probability `num_dropped / DROPOUT_LEVELS`; others are not scaled.

    An entry's random bits are a hash of its index and the seeds, so the same entries can be dropped again
    without a stored mask.
    """
    return torch.where(_keep_mask(x, seed, other_seed, num_dropped), x, 0)


@fused
def add_dropout(total: Tensor, x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Return `total + dropout(x, ..)`."""
    return total + torch.where(_keep_mask(x, seed, other_seed, num_dropped), x, 0)


def _keep_mask(x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Bool of `x`'s shape. The hash is a multiply-xorshift with C. Wellons' constants (lowbias32)."""
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device) + seed
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF) ^ other_seed) * (0x846CA68B - (1 << 32))
    bits = (bits ^ (bits >> 16)) & 0xFFFF
    return (bits >= num_dropped).view(x.shape)


@fused
def negative_log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `[N]` float32 losses of `[N, V]` logits in nats, and their `[N, 1]` log-sum-exps."""
    logits = logits.float()
    sums = logits.logsumexp(dim=-1, keepdim=True)
    return (sums - logits.gather(1, targets[:, None])).squeeze(1), sums


@fused
def logits_gradient(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """Return `[N, V]` in the logits' dtype: the gradient of each loss with respect to its logits."""
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return (logits.float() - sums).exp_().sub_(hit.float()).to(logits.dtype)
