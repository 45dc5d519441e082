"""The parts of a decoding step between its matrix products, in C, compiled for a model's shape.

torch's own take most of a step. Compiling takes a second, once on a machine. Without a C compiler `load`
returns None, and transformers decodes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlicot.model.fast.compiled_library import compiled_library

logger = logging.getLogger(__name__)

LANES = 16
"""Keys whose scores are computed together."""
SOURCE = Path(__file__).with_name("decode_step.c")
COMPILE = (
    "-O3",
    "-march=native",
    "-ffast-math",
    "-mprefer-vector-width=512",
    "-fopenmp",
    "-Wno-psabi",
    "-fPIC",
    "-c",
)
"""Linked in a second step without these: -ffast-math would switch off subnormal numbers in the whole process,
and -fopenmp would add a second OpenMP library, whose threads compete with those of torch's."""


class DecodeStep:
    """The compiled functions; tensors must be contiguous and of the dtype that was compiled for."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("add_norm", "gate", "rotate", "attend"):
            getattr(library, name).restype = None

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """Add `delta` to `hidden`, `[N, H]`, in place; return its RMSNorm."""
        out = torch.empty_like(hidden)
        self._call("add_norm", *hidden.shape, hidden, delta, weight, ctypes.c_float(epsilon), out)
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """Return `silu(first half) * second half` of `[N, 2 * F]`."""
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self._call("gate", *out.shape, gate_up, out)
        return out

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
        """Rotate the first heads of `[N, heads, d]` by the angles of `[N, d]` cosines and sines."""
        out = qkv.new_empty(len(qkv), num_rotated, qkv.shape[2])
        self._call("rotate", len(qkv), qkv, cos, sin, out)
        return out

    def attend(
        self,
        rotated: Tensor,
        qkv: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        prefix: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> Tensor:
        """Append a token to each row's cache and attend to the prefix and the row: `[B, heads * d]`.

        Args:
            rotated: `[B, heads + kv heads, d]`, rotated queries and keys.
            qkv: `[B, heads + 2 * kv heads, d]`, of which the values are used.
            keys: `[B, kv heads, blocks, LANES, d]`, each block arranged by `arrange_keys`.
            values: `[B, kv heads, blocks, LANES, d]`.
            lengths: `[B]` tokens in each row's cache.
            prefix: attention to the prefix, `[B, heads, d]`, and its float32 log-sum-exps, `[B, heads]`.
            scale: factor of the scores.
        """
        prefix_out, prefix_sums = prefix or (None, None)
        out = qkv.new_empty(len(qkv), (2 * rotated.shape[1] - qkv.shape[1]) * qkv.shape[2])
        arguments = (lengths, rotated, qkv, keys, values, prefix_out, prefix_sums, ctypes.c_float(scale), out)
        self._call("attend", len(qkv), keys.shape[2] * LANES, *arguments)
        return out

    def _call(self, name: str, *arguments: Any) -> None:
        converted: list[Any] = [ctypes.c_int(torch.get_num_threads())]
        for each in arguments:
            if isinstance(each, Tensor):
                assert each.is_contiguous(), name
                converted.append(ctypes.c_void_p(each.data_ptr()))
            else:
                converted.append(ctypes.c_long(each) if isinstance(each, int) else each)
        getattr(self._library, name)(*converted)


def arrange_keys(blocks: Tensor) -> Tensor:
    """Arrange `[.., LANES, d]` keys for `DecodeStep.attend`, without changing the shape."""
    pairs = blocks.reshape(*blocks.shape[:-1], -1, 2).transpose(-3, -2)  # [.., d / 2, LANES, 2]
    if blocks.dtype is torch.float32:
        pairs = pairs.transpose(-2, -1)
    return pairs.reshape(blocks.shape)


@cache
def load(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> DecodeStep | None:
    """Compile the functions for a model's shape, or take them from the cache; None if that does not work."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None or platform.system() != "Linux" or dtype not in (torch.bfloat16, torch.float32):
        return None
    shape = {"HEADS": num_heads, "KV_HEADS": num_kv_heads, "HEAD_SIZE": head_size}
    defines = [f"-D{name}={value}" for name, value in [*shape.items(), ("LANES", LANES)]]
    defines += ["-DBF16"] if dtype is torch.bfloat16 else []

    def commands(library: Path) -> list[list[str]]:
        compiled = str(library.with_suffix(".o"))
        return [
            [*COMPILE, *defines, str(SOURCE), "-o", compiled],
            ["-shared", compiled, "-o", str(library), "-lm"],
        ]

    try:
        return DecodeStep(compiled_library("decode_step", SOURCE, commands, compiler=compiler))
    except OSError as error:
        logger.info("decoding without compiled functions: %s", error)
        return None
