"""Passes over memory, each of them compiled to one loop where a compiler is at hand.

Beside its matrix products, training is a chain of element-wise passes: norms, dropout, the activation, the
softmax behind the LM head. One after the other each of them reads and writes whole arrays.
`torch.compile` makes one loop of a chain, for any number of tokens, in a second or two the first time; what
it made is kept in the cache. Without a compiler the same functions run as they are written.

`N` is the tokens of a micro-batch, `V` the vocabulary.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from nlicot.model.base_model import cache_folder

logger = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

DROPOUT_LEVELS = 1 << 16
"""Dropout compares 16 random bits with its share, so 0.05 becomes 0.050003."""


class _Compiler:
    """Whether kernels shall be compiled in this process."""

    wanted = False


def use_compiler(wanted: bool) -> None:
    """Compile kernels from here on, if a compiler works; else the first kernel says in one line that not."""
    _Compiler.wanted = wanted and os.environ.get("TORCHDYNAMO_DISABLE") != "1"


def are_compiled() -> bool:
    """Whether kernels are compiled; the first call tries the compiler, which takes seconds."""
    return _Compiler.wanted and _try_compiler()


@functools.cache
def _try_compiler() -> bool:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.neg, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # noqa: BLE001 (whatever is wrong with it, training goes on without)
        reason = " ".join(str(error).partition("\n\n")[0].split())
        logger.warning(
            "torch.compile does not work here (%s); training goes on without it, slower: install g++, or say "
            "--model.compile_kernels false",
            reason,
        )
        return False
    return True


def one_loop(function: Kernel) -> Kernel:
    """Decorate a function of tensors, whose sizes may change from call to call."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return (compiled() if are_compiled() else function)(*args)

    return run  # type: ignore[return-value]


def _fresh(x: Tensor) -> Tensor:
    """A float32 copy, to work on in place."""
    return x.to(torch.float32, copy=True)


# -------------------------------------------------------------------------- norm


@one_loop
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang & Sennrich 2019) of `[.., H]`, and the `[.., 1]` float32 scales."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
    scale = squares.div(x.shape[-1]).add(epsilon).rsqrt()
    return _fresh(x).mul_(scale).to(x.dtype) * weight, scale


@one_loop
def rms_norm_backward(grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `x`."""
    grad = _fresh(grad * weight)
    normed = _fresh(x).mul_(scale)
    along = (grad * normed).mean(dim=-1, keepdim=True)
    return grad.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype)


# -------------------------------------------------------------------------- gate


@one_loop
def gate(x: Tensor, up: Tensor) -> Tensor:
    """`silu(x) * up` (Shazeer 2020)."""
    return torch.nn.functional.silu(x).mul_(up)


@one_loop
def gate_backward(grad: Tensor, x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and of `up`."""
    grad_up = torch.nn.functional.silu(x).mul_(grad)
    return torch.ops.aten.silu_backward(grad * up, x), grad_up


# ----------------------------------------------------------------------- dropout


@one_loop
def dropped(x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """`x` with each entry 0 in `num_dropped` of `DROPOUT_LEVELS` cases; the others are not scaled.

    An entry's random bits are a hash of its place and of the seeds, so that nothing need be kept to drop
    the same entries again.
    """
    return torch.where(_keep(x, seed, other_seed, num_dropped), x, 0)


@one_loop
def add_dropped(total: Tensor, x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """`total + dropped(x, ..)`."""
    return total + torch.where(_keep(x, seed, other_seed, num_dropped), x, 0)


def _keep(x: Tensor, seed: int, other_seed: int, num_dropped: int) -> Tensor:
    """Bool of `x`'s shape. The hash is a multiply-xorshift with C. Wellons' constants (lowbias32)."""
    bits = torch.arange(x.numel(), dtype=torch.int32, device=x.device) + seed
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF) ^ other_seed) * (0x846CA68B - (1 << 32))
    bits = (bits ^ (bits >> 16)) & 0xFFFF
    return (bits >= num_dropped).view(x.shape)


# -------------------------------------------------------------------------- loss


@one_loop
def negative_log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`[N]` float32 losses of `[N, V]` logits in nats, and `[N, 1]` log-sums of their exponentials."""
    logits = logits.float()
    sums = logits.logsumexp(dim=-1, keepdim=True)
    return (sums - logits.gather(1, targets[:, None])).squeeze(1), sums


@one_loop
def logits_gradient(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """`[N, V]` in the logits' format: the losses' gradient, each by its own logits."""
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return (logits.float() - sums).exp_().sub_(hit.float()).to(logits.dtype)
