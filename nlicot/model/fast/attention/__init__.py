"""Packed attention: the entry in transformers' registry of attention functions, and its choice by device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlicot.model.fast.attention.cpu import attend_on_cpu
from nlicot.model.fast.attention.cuda import attend_on_cuda
from nlicot.model.fast.attention.spans import Spans

NAME = "nlicot_packed"


def use_packed_attention(model: Any) -> None:
    """Let a transformers model take `spans`; a call without them attends as before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def dummy_mask(device: torch.device) -> Tensor:
    """A mask that keeps transformers from building one of `[N, N]`."""
    return torch.zeros(1, 1, 1, 1, device=device)


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    spans: Spans | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Follow transformers' signature: `[B, heads, N, d]` to `[B, N, heads, d]`."""
    if spans is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    attend = attend_on_cuda if query.is_cuda else attend_on_cpu
    return attend(query[0], key[0], value[0], spans, scale)[None], None
