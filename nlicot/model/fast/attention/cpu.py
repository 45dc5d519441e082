"""Packed attention on a CPU, with a hand-written backward pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nlicot.model.fast.attention.spans import Spans

LENGTH_MULTIPLE = 16
"""Block lengths are rounded up to a multiple of this, for fewer distinct shapes."""


def attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Map `[heads, N, d]` queries and `[kv heads, N, d]` keys and values to `[N, heads, d]`."""
    out: Tensor = _PackedAttention.apply(query, key, value, spans, scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)


class _PackedAttention(Function):
    """Attention block by block, so that a block's scores stay in the processor's cache.

    Saves only its inputs; the backward pass recomputes the attention weights (as FlashAttention, Dao et al.
    2022). torch's own backward pass on a CPU takes three times as long at these lengths.

    oneDNN prepares a kernel for each shape of a product, in some milliseconds, and keeps it. So a block is
    extended by tokens that follow it, to a multiple of `LENGTH_MULTIPLE`: under causal attention its own
    queries do not see them, and the results of the extra queries are discarded.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
        out = torch.empty_like(query)
        groups = query.shape[0] // key.shape[0]
        with torch.autocast(query.device.type, enabled=False):
            for start, end, prefix_len in spans.blocks:
                stop = _rounded_up(start, end, spans.num_tokens)
                keys, values = (_visible_keys(part, start, stop, prefix_len) for part in (key, value))
                weights = _attention_weights(
                    _group_heads(query[:, start:stop], groups), keys, prefix_len, scale
                )
                mixed = torch.bmm(weights, values).view(-1, stop - start, query.shape[-1])
                out[:, start:end] = mixed[:, : end - start]
        ctx.save_for_backward(query, key, value)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        groups = query.shape[0] // key.shape[0]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for start, end, prefix_len in ctx.spans.blocks:
            stop = _rounded_up(start, end, ctx.spans.num_tokens)
            keys, values = (_visible_keys(part, start, stop, prefix_len) for part in (key, value))
            q = _group_heads(query[:, start:stop], groups)
            grad_out = query.new_zeros(query.shape[0], stop - start, query.shape[-1])
            grad_out[:, : end - start] = grad[:, start:end]
            grad_out = _group_heads(grad_out, groups)
            weights = _attention_weights(q, keys, prefix_len, ctx.scale)
            _add_to_keys(grad_value, torch.bmm(weights.transpose(1, 2), grad_out), start, prefix_len)
            grad_weights = torch.bmm(grad_out, values.transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q = torch.bmm(grad_scores, keys).view(-1, stop - start, query.shape[-1])
            grad_query[:, start:end] = grad_q[:, : end - start]
            _add_to_keys(grad_key, torch.bmm(grad_scores.transpose(1, 2), q), start, prefix_len)
        return grad_query.mul_(ctx.scale), grad_key.mul_(ctx.scale), grad_value, None, None


def _rounded_up(start: int, end: int, num_tokens: int) -> int:
    """The end of a block extended to a multiple of `LENGTH_MULTIPLE`, within the row."""
    return min(start + -(-(end - start) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, num_tokens)


def _group_heads(part: Tensor, groups: int) -> Tensor:
    """Reshape `[heads, T, d]` to `[kv heads, groups * T, d]`: query heads of one key head together."""
    return part.reshape(part.shape[0] // groups, -1, part.shape[-1])


def _visible_keys(part: Tensor, start: int, end: int, prefix_len: int) -> Tensor:
    """Return `[kv heads, prefix_len + T, d]`: the keys (or values) that a block attends to."""
    own = part[:, start:end]
    return torch.cat([part[:, :prefix_len], own], dim=1) if prefix_len else own


def _attention_weights(query: Tensor, keys: Tensor, prefix_len: int, scale: float) -> Tensor:
    """Return `[kv heads, groups * T, prefix_len + T]`: the softmax of the masked, scaled scores.

    Uses torch's softmax: a separate `exp` takes ten times as long for -inf as for a number.
    """
    length = keys.shape[1] - prefix_len
    mask = _causal_mask(length, prefix_len, query.dtype)[None].expand(query.shape[1] // length, -1, -1)
    scores = torch.baddbmm(mask.reshape(1, query.shape[1], -1), query, keys.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=256)
def _causal_mask(length: int, prefix_len: int, dtype: torch.dtype) -> Tensor:
    """Return `[T, prefix_len + T]`: -inf for keys after the query, else 0."""
    return torch.full((length, prefix_len + length), -torch.inf, dtype=dtype).triu_(prefix_len + 1)


def _add_to_keys(total: Tensor, grad: Tensor, start: int, prefix_len: int) -> None:
    """Add a block's gradients to those of the keys that it attended to; the inverse of `_visible_keys`."""
    total[:, :prefix_len] += grad[:, :prefix_len]
    total[:, start : start + grad.shape[1] - prefix_len] += grad[:, prefix_len:]
