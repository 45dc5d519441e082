"""The packed attention of `attention.cpp`, compiled once per machine.

It needs a processor with AVX512-BF16 and a C++ compiler, as `kernels` does; otherwise `attention` uses
torch's operators, which take four times as long.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nlicot.model.fast import kernels
from nlicot.model.fast.compiled_library import compiled_library

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = (
    *("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"),
)

Blocks = Sequence[tuple[int, int, int]]
"""Start, end and visible prefix of each block: see `attention.Block`."""


class _Shape(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


def supports(query: Tensor) -> bool:
    """Check that the kernel takes such queries and works here; the first call compiles it, in seconds."""
    in_bfloat16 = query.dtype is torch.bfloat16 and query.shape[-1] % 16 == 0 and not query.is_cuda
    return in_bfloat16 and kernels.are_compiled() and _library() is not None


@functools.cache
def _library() -> Any:
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"

    def commands(library: Path) -> list[list[str]]:
        linked = ("-o", str(library), f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}")
        return [[*FLAGS, f"-I{torch_folder / 'include'}", str(SOURCE), *linked]]

    compiler = os.environ.get("CXX") or "g++"
    try:
        return compiled_library("attention", SOURCE, commands, compiler=compiler, headers=torch.__version__)
    except OSError as error:
        logger.warning("attention: the compiled kernel does not work here, torch's operators do: %s", error)
        return None


def attend(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float) -> Tensor:
    """Map `[N, heads, d]` queries and `[N, kv heads, d]` keys and values to `[N, heads, d]`, in bfloat16."""
    out: Tensor = _Attention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        num_tokens, heads, dim = query.shape
        shape = _Shape(heads, key.shape[1], dim, num_tokens, scale)
        out = torch.empty_like(query)
        log_sums = query.new_empty(heads, num_tokens, dtype=torch.float32)
        _call("attend", (query, key, value, out, log_sums), blocks, (), shape)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.blocks, ctx.shape = blocks, shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, out, log_sums = ctx.saved_tensors
        grads = [torch.empty_like(part) for part in (query, key, value)]
        prefix_len = max(prefix for _, _, prefix in ctx.blocks)
        size = 2 * len(ctx.blocks) * key.shape[1] * prefix_len * key.shape[2]
        prefix_grads = query.new_empty(size, dtype=torch.float32)
        tensors = (query, key, value, out, grad.contiguous(), log_sums, *grads, prefix_grads)
        _call("attend_backward", tensors, ctx.blocks, (prefix_len,), ctx.shape)
        return *grads, None, None


def _call(name: str, tensors: Sequence[Tensor], blocks: Blocks, sizes: Sequence[int], shape: _Shape) -> None:
    numbers = [number for block in blocks for number in block]
    getattr(_library(), name)(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        (ctypes.c_int64 * len(numbers))(*numbers),
        *(ctypes.c_int64(number) for number in (len(blocks), *sizes)),
        ctypes.byref(shape),
    )
