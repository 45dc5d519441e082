"""Which number format a machine computes in.

bfloat16 halves memory and doubles speed where a device multiplies it. Elsewhere, on a processor with AVX2 and
no more for instance, each product converts its inputs first, and float32 is several times as fast.
"""

from __future__ import annotations

import platform

AUTO = "auto"
DTYPES = ("bfloat16", "float32")
PRECISIONS = {"bfloat16": "bf16-mixed", "float32": "32-true"}
"""Lightning's name for computing in each of them; an adapter's own weights are float32 in both."""


def compute_dtype(name: str = AUTO) -> str:
    """`bfloat16` or `float32`: the one that is asked for, or with `auto` the quicker one on this machine."""
    if name != AUTO:
        return name
    return "bfloat16" if multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this machine's device, its processor where it has none, has products of bfloat16 matrices."""
    import torch

    if torch.cuda.is_available():
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # ARM's BFMMLA
