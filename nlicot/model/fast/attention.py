"""Packed attention: examples in one row after a shared prefix, on a CPU and on a GPU.

All prompts of a builder start alike. Under causal attention the hidden states of that prefix do not depend on
what follows, so a micro-batch holds it once; each suffix attends to the prefix and to itself:

    shared prefix | suffix of example 1 | suffix of example 2 | ... | padding
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from nlicot.model.fast import compiled_attention

logger = logging.getLogger(__name__)

NAME = "nlicot_packed"
LENGTH_MULTIPLE = 16
"""Block lengths are rounded up to a multiple of this, for fewer distinct shapes."""


class Block(NamedTuple):
    """A stretch of a row that attends to itself and to the first `prefix_len` tokens of the row."""

    start: int
    end: int
    prefix_len: int


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The layout of one row.

    Attributes:
        prefix_len: tokens of the shared prefix; 0 if there is none.
        suffix_lens: tokens of each example after the prefix, in row order.
        padding: tokens at the end that belong to no example.
    """

    prefix_len: int
    suffix_lens: tuple[int, ...]
    padding: int = 0

    @property
    def num_tokens(self) -> int:
        """The length of the whole row, `N` in shapes."""
        return self.prefix_len + sum(self.suffix_lens) + self.padding

    @cached_property
    def blocks(self) -> list[Block]:
        """The prefix, the suffixes and the padding, those that are not empty."""
        lengths = [(self.prefix_len, 0), *((each, self.prefix_len) for each in self.suffix_lens)]
        found, start = [], 0
        for length, prefix_len in [*lengths, (self.padding, 0)]:
            if length:
                found.append(Block(start, start + length, prefix_len))
                start += length
        return found

    def position_ids(self) -> Tensor:
        """Return `[N]`: each token's position in its own example."""
        return torch.cat([torch.arange(end - start) + prefix for start, end, prefix in self.blocks])

    @lru_cache(maxsize=8)  # noqa: B019 (a few small tensors, shared by all layers of a micro-batch)
    def padded_index(self, device: torch.device) -> Tensor:
        """Return `[sum(suffix_lens)]`: each suffix token's index in a flattened `[examples, longest]`."""
        longest = max(self.suffix_lens)
        indices = [torch.arange(length) + row * longest for row, length in enumerate(self.suffix_lens)]
        return torch.cat(indices).to(device)

    @lru_cache(maxsize=8)  # noqa: B019 (as above)
    def cu_seqlens(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return each block's keys as row indices, one block after another, and cumulative lengths.

        `[keys]` int64; `[blocks + 1]` int32 from 0 for the blocks' queries, and the same for their keys.
        """
        keys = [
            torch.cat([torch.arange(prefix), torch.arange(start, end)]) for start, end, prefix in self.blocks
        ]
        lengths = [end - start for start, end, _ in self.blocks], [len(each) for each in keys]
        cu_q, cu_k = (torch.tensor([0, *each]).cumsum(0).to(device, torch.int32) for each in lengths)
        return torch.cat(keys).to(device), cu_q, cu_k


def use_packed_attention(model: Any) -> None:
    """Let a transformers model take `spans`; a call without them attends as before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def dummy_mask(device: torch.device) -> Tensor:
    """Return a mask that keeps transformers from building one of `[N, N]`."""
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
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(query, key, value, spans, scale)[None], None


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Map `[N, heads, d]` queries and `[N, kv heads, d]` keys and values to `[N, heads, d]`."""
    if compiled_attention.supports(query):
        return compiled_attention.attend(query, key, value, spans.blocks, scale)
    if not query.is_cuda:
        kernel = attend_on_cpu
    elif varlen_works(query.dtype, query.shape[-1]):
        kernel = varlen_attention
    else:
        kernel = padded_attention
    return kernel(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), spans, scale)


def attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Map `[heads, N, d]` queries and `[kv heads, N, d]` keys and values to `[N, heads, d]`."""
    out: Tensor = _PackedAttention.apply(query, key, value, spans, scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)


class _PackedAttention(Function):
    # Block by block, so that a block's scores stay in the processor's cache. Only the inputs are saved; the
    # backward pass recomputes the attention weights (as FlashAttention, Dao et al. 2022). torch's own
    # backward pass takes three times as long at these lengths.

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
        out = torch.empty_like(query)
        with torch.autocast(query.device.type, enabled=False):
            for block in spans.blocks:
                _, _, values, weights = _attend_block(query, key, value, spans, block, scale)
                mixed = torch.bmm(weights, values).view(query.shape[0], -1, query.shape[-1])
                out[:, block.start : block.end] = mixed[:, : block.end - block.start]
        ctx.save_for_backward(query, key, value)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for block in ctx.spans.blocks:
            start, end, prefix_len = block
            q, keys, values, weights = _attend_block(query, key, value, ctx.spans, block, ctx.scale)
            grad_out = query.new_zeros(query.shape[0], keys.shape[1] - prefix_len, query.shape[-1])
            grad_out[:, : end - start] = grad[:, start:end]
            grad_out = grad_out.view(q.shape)
            _add_to_keys(grad_value, torch.bmm(weights.transpose(1, 2), grad_out), start, prefix_len)
            grad_weights = torch.bmm(grad_out, values.transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q = torch.bmm(grad_scores, keys).view(query.shape[0], -1, query.shape[-1])
            grad_query[:, start:end] = grad_q[:, : end - start]
            _add_to_keys(grad_key, torch.bmm(grad_scores.transpose(1, 2), q), start, prefix_len)
        return grad_query.mul_(ctx.scale), grad_key.mul_(ctx.scale), grad_value, None, None


def _attend_block(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, block: Block, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a block's queries, the keys and values that they see, and the attention weights.

    Shapes: `[kv heads, groups * T, d]`, twice `[kv heads, prefix_len + T, d]`, and
    `[kv heads, groups * T, prefix_len + T]`. oneDNN prepares a kernel for each shape of a product, in some
    milliseconds, and keeps it. So a block is extended by tokens that follow it, to a length `T` that is a
    multiple of `LENGTH_MULTIPLE`: under causal attention its own queries do not see them, and the results of
    the extra queries are discarded.
    """
    start, end, prefix_len = block
    stop = min(start + -(-(end - start) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, spans.num_tokens)
    keys, values = (
        torch.cat([part[:, :prefix_len], part[:, start:stop]], dim=1) if prefix_len else part[:, start:stop]
        for part in (key, value)
    )
    queries = query[:, start:stop].reshape(key.shape[0], -1, query.shape[-1])
    mask = _causal_mask(stop - start, prefix_len, query.dtype).repeat(query.shape[0] // key.shape[0], 1)
    scores = torch.baddbmm(mask[None], queries, keys.transpose(1, 2), alpha=scale)
    # A separate `exp` would take ten times as long for -inf as for a number.
    return queries, keys, values, torch.softmax(scores, dim=-1)


@lru_cache(maxsize=256)
def _causal_mask(length: int, prefix_len: int, dtype: torch.dtype) -> Tensor:
    """Return `[T, prefix_len + T]`: -inf for keys after the query, else 0."""
    return torch.full((length, prefix_len + length), -torch.inf, dtype=dtype).triu_(prefix_len + 1)


def _add_to_keys(total: Tensor, grad: Tensor, start: int, prefix_len: int) -> None:
    """Add a block's gradients to those of the keys that it attended to."""
    total[:, :prefix_len] += grad[:, :prefix_len]
    total[:, start : start + grad.shape[1] - prefix_len] += grad[:, prefix_len:]


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Run all blocks in one FlashAttention call without padding; shapes as in `attend_on_cpu`."""
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
        window_size=(-1, 0),  # causal from each block's last token
        enable_gqa=True,
    )


@lru_cache(maxsize=8)
def varlen_works(dtype: torch.dtype, head_dim: int) -> bool:
    """Check that FlashAttention runs here and agrees with the plain kernels, gradients included."""
    spans = Spans(prefix_len=3, suffix_lens=(2, 5))
    options: Any = {"dtype": dtype, "device": "cuda", "generator": torch.Generator("cuda").manual_seed(0)}
    results = []
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            query, key, value = (
                torch.randn(num_heads, spans.num_tokens, head_dim, **options).requires_grad_()
                for num_heads in (4, 2, 2)
            )
            for attend in (varlen_attention, padded_attention):
                out = attend(query, key, value, spans, head_dim**-0.5)
                results.append([out, *torch.autograd.grad(out.square().sum(), (query, key, value))])
        torch.testing.assert_close(*results, rtol=0.05, atol=0.05)
    except (RuntimeError, ValueError, TypeError, ImportError, AssertionError) as error:
        # an older GPU, another torch (also with other arguments), float32, or other numbers
        reason = str(error).strip().partition("\n")[0]
        logger.info("attention: torch's scaled_dot_product_attention (FlashAttention: %s)", reason)
        return False
    logger.info("attention: FlashAttention, examples of any length in one call")
    return True


def padded_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Run the prefix, then all suffixes as a batch padded to the longest; shapes as in `attend_on_cpu`."""
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
    query, key, value = (part[None, :, :prefix_len] for part in (query, key, value))
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    prefix = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return torch.cat([prefix[0].transpose(0, 1), out])
