"""Packed attention on a GPU, by torch's own kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nlicot.model.fast.attention.spans import Spans

logger = logging.getLogger(__name__)


def attend_on_cuda(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Map `[heads, N, d]` to `[N, heads, d]` by the fastest of torch's kernels that works here."""
    attend = varlen_attention if varlen_works(query.dtype, query.shape[-1]) else padded_attention
    return attend(query, key, value, spans, scale)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Run all blocks in one FlashAttention call without padding; causal from each block's last token."""
    from torch.nn.attention.varlen import varlen_attn

    visible, cu_seqlens_q, cu_seqlens_k = spans.cu_seqlens(query.device)
    return varlen_attn(  # type: ignore[return-value] # without its log-sums
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1).index_select(0, visible),
        value.transpose(0, 1).index_select(0, visible),
        cu_seqlens_q,
        cu_seqlens_k,
        max(end - start for start, end, _ in spans.blocks),
        max(end - start + prefix for start, end, prefix in spans.blocks),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )


@lru_cache(maxsize=8)
def varlen_works(dtype: torch.dtype, head_dim: int) -> bool:
    """Check that FlashAttention runs here and agrees with the plain kernels, gradients included."""
    spans = Spans(prefix_len=3, suffix_lens=(2, 5))
    generator = torch.Generator("cuda").manual_seed(0)

    def outputs_and_gradients(attend: Callable[..., Tensor]) -> list[Tensor]:
        shapes = [(heads, spans.num_tokens, head_dim) for heads in (4, 2, 2)]
        inputs = [
            torch.randn(shape, device="cuda", generator=generator.manual_seed(shape[0]))
            .to(dtype)
            .requires_grad_()
            for shape in shapes
        ]
        out = attend(*inputs, spans, head_dim**-0.5)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            pairs = zip(
                outputs_and_gradients(varlen_attention), outputs_and_gradients(padded_attention), strict=True
            )
        works = all(torch.allclose(one, other, rtol=0.05, atol=0.05) for one, other in pairs)
        reason = "its results differ"
    except (RuntimeError, ValueError, ImportError) as error:  # an older GPU, another torch, float32
        works, reason = False, str(error).strip().partition("\n")[0]
    if works:
        logger.info("attention: FlashAttention, examples of any length in one call")
    else:
        logger.info("attention: torch's scaled_dot_product_attention (FlashAttention: %s)", reason)
    return works


def padded_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Run the prefix, then all suffixes as a batch padded to the longest."""
    from torch.nn.attention.bias import causal_lower_right

    groups = query.shape[0] // key.shape[0]
    prefix_len, num_suffixes, longest = spans.prefix_len, len(spans.suffix_lens), max(spans.suffix_lens)
    index = spans.padded_index(query.device)

    def padded(part: Tensor) -> Tensor:
        """`[heads, N, d]` to `[suffixes, heads, longest, d]`."""
        suffixes = part.new_zeros(part.shape[0], num_suffixes * longest, part.shape[-1])
        suffixes = suffixes.index_copy(1, index, part[:, prefix_len : spans.num_tokens - spans.padding])
        return suffixes.view(part.shape[0], num_suffixes, longest, -1).transpose(0, 1)

    def with_prefix(part: Tensor) -> Tensor:
        prefix = part[:, :prefix_len].expand(num_suffixes, -1, -1, -1)
        return torch.cat([prefix, padded(part)], dim=2).repeat_interleave(groups, dim=1)

    suffixes = scaled_dot_product_attention(
        padded(query),
        with_prefix(key),
        with_prefix(value),
        attn_mask=causal_lower_right(longest, prefix_len + longest),  # type: ignore[arg-type]
        scale=scale,
    )
    out = suffixes.transpose(1, 2).flatten(0, 1).index_select(0, index)
    if spans.padding:
        out = torch.cat([out, out.new_zeros(spans.padding, *out.shape[1:])])
    if not prefix_len:
        return out
    keys, values = (part.repeat_interleave(groups, dim=0) for part in (key, value))
    prefix = scaled_dot_product_attention(
        query[None, :, :prefix_len],
        keys[None, :, :prefix_len],
        values[None, :, :prefix_len],
        is_causal=True,
        scale=scale,
    )
    return torch.cat([prefix[0].transpose(0, 1), out])
