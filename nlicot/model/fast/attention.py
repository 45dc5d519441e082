"""Attention among examples that lie in one row, behind a beginning that they share.

All prompts of a builder begin alike: the model's markers, the instruction, the label definitions. Under
causal attention the hidden states of that beginning do not depend on what follows, so a micro-batch holds it
once:

    shared beginning | rest of example 1 | rest of example 2 | ...

Nothing is padded, and everything but attention is the same for every token. Here each rest attends to the
beginning and to itself. `N` is the tokens of the row, `d` the width of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

logger = logging.getLogger(__name__)

NAME = "nlicot_packed"
SHAPE_STEP = 16
"""On a CPU blocks are lengthened to a multiple of so many tokens."""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Where the examples of a row lie.

    Attributes:
        shared: tokens of the beginning that all share; 0 for none.
        lengths: tokens of each example's rest, in their order behind it.
        filler: tokens at the end that belong to no example.
    """

    shared: int
    lengths: tuple[int, ...]
    filler: int = 0

    @property
    def num_tokens(self) -> int:
        """Of the whole row."""
        return self.shared + sum(self.lengths) + self.filler

    @cached_property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Start, end and number of shared tokens before each stretch; the beginning is the first of them.

        The filler, where there is one, is the last.
        """
        found, start = [], self.shared
        if self.shared:
            found.append((0, self.shared, 0))
        for length in self.lengths:
            found.append((start, start + length, self.shared))
            start += length
        if self.filler:
            found.append((start, start + self.filler, 0))
        return found

    def position_ids(self) -> Tensor:
        """`[N]`: each token's place in its own example."""
        return torch.cat([torch.arange(end - start) + before for start, end, before in self.blocks])

    @lru_cache(maxsize=8)  # noqa: B019 (a few small tensors, for all layers of a micro-batch)
    def side_by_side(self, device: torch.device) -> Tensor:
        """Where each token of the rests stands when they lie side by side, padded to the longest."""
        longest = max(self.lengths)
        places = [torch.arange(length) + index * longest for index, length in enumerate(self.lengths)]
        return torch.cat(places).to(device)

    @lru_cache(maxsize=8)  # noqa: B019 (as above)
    def one_after_another(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The keys of each block one after another: their places, and where queries' and keys' blocks end.

        `[keys]` int64, and twice `[blocks + 1]` int32 that begin with 0.
        """
        seen = [
            torch.cat([torch.arange(before), torch.arange(start, end)]) for start, end, before in self.blocks
        ]
        ends = [
            torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
            for lengths in ([end - start for start, end, _ in self.blocks], [len(keys) for keys in seen])
        ]
        return torch.cat(seen).to(device), ends[0], ends[1]


def use_packed_attention(model: Any) -> None:
    """Let a transformers model take `spans`; without them it attends as before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def no_mask(device: torch.device) -> Tensor:
    """What stands for a mask, so that transformers makes none of `[N, N]`."""
    return torch.zeros(1, 1, 1, 1, device=device)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    spans: Spans | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: `[B, heads, N, d]` in, `[B, N, heads, d]` out."""
    if spans is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if query.is_cuda:
        return _on_gpu(query[0], key[0], value[0], spans, scale)[None], None
    out: Tensor = _PackedAttention.apply(query[0], key[0], value[0], spans, scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None], None


# --------------------------------------------------------------------------- GPU


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """`[heads, N, d]` to `[N, heads, d]` by the best of torch's kernels that works here."""
    chosen = _varlen if _varlen_works(query.dtype, query.shape[-1]) else _side_by_side
    return chosen(query, key, value, spans, scale)


def _varlen(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """All blocks in one call of FlashAttention, not padded; a block's last query sees its last key."""
    from torch.nn.attention.varlen import varlen_attn

    seen, query_ends, key_ends = spans.one_after_another(query.device)
    longest = max(end - start for start, end, _ in spans.blocks)
    most_keys = max(end - start + before for start, end, before in spans.blocks)
    return varlen_attn(  # type: ignore[return-value] # without its log-sums
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1).index_select(0, seen),
        value.transpose(0, 1).index_select(0, seen),
        query_ends,
        key_ends,
        longest,
        most_keys,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )


@lru_cache(maxsize=8)
def _varlen_works(dtype: torch.dtype, width: int) -> bool:
    """Whether FlashAttention takes this, and finds what the plain kernels find: outputs and gradients."""
    spans = Spans(shared=3, lengths=(2, 5))
    generator = torch.Generator("cuda").manual_seed(0)

    def outcome(attend: Callable[..., Tensor]) -> list[Tensor]:
        parts = [
            torch.randn(heads, spans.num_tokens, width, device="cuda", generator=generator.manual_seed(heads))
            .to(dtype)
            .requires_grad_()
            for heads in (4, 2, 2)
        ]
        out = attend(*parts, spans, width**-0.5)
        return [out, *torch.autograd.grad(out.square().sum(), parts)]

    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            pairs = zip(outcome(_varlen), outcome(_side_by_side), strict=True)
        works = all(torch.allclose(one, other, rtol=0.05, atol=0.05) for one, other in pairs)
        reason = "its results differ"
    except (RuntimeError, ValueError, ImportError) as error:  # an older GPU, another torch, float32
        works, reason = False, str(error).strip().partition("\n")[0]
    if works:
        logger.info("attention: FlashAttention, examples of any length in one call")
    else:
        logger.info("attention: torch's scaled_dot_product_attention (FlashAttention: %s)", reason)
    return works


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """The beginning, then all rests side by side, padded to the longest."""
    groups = query.shape[0] // key.shape[0]
    shared, longest = spans.shared, max(spans.lengths)
    place = spans.side_by_side(query.device)

    def side_by_side(part: Tensor) -> Tensor:
        rests = part.new_zeros(part.shape[0], len(spans.lengths) * longest, part.shape[-1])
        rests = rests.index_copy(1, place, part[:, shared : spans.num_tokens - spans.filler])
        return rests.view(part.shape[0], len(spans.lengths), longest, -1).transpose(0, 1)

    def behind_shared(part: Tensor) -> Tensor:
        first = part[:, :shared].expand(len(spans.lengths), -1, -1, -1)
        return torch.cat([first, side_by_side(part)], dim=2).repeat_interleave(groups, dim=1)

    # Causal from the lower right: the last query sees the last key.
    from torch.nn.attention.bias import causal_lower_right

    rests = functional.scaled_dot_product_attention(
        side_by_side(query),
        behind_shared(key),
        behind_shared(value),
        attn_mask=causal_lower_right(longest, shared + longest),  # type: ignore[arg-type]
        scale=scale,
    )
    out = rests.transpose(1, 2).flatten(0, 1).index_select(0, place)
    if spans.filler:
        out = torch.cat([out, out.new_zeros(spans.filler, *out.shape[1:])])
    if not shared:
        return out
    keys, values = (part.repeat_interleave(groups, dim=0) for part in (key, value))
    begun = functional.scaled_dot_product_attention(
        query[None, :, :shared], keys[None, :, :shared], values[None, :, :shared], is_causal=True, scale=scale
    )
    return torch.cat([begun[0].transpose(0, 1), out])


# --------------------------------------------------------------------------- CPU


class _PackedAttention(Function):
    """One example at a time, so that its scores stay in the processor's cache.

    Keeps its inputs; the backward pass computes the shares again (as FlashAttention, Dao et al. 2022).
    torch's own backward pass on a CPU takes three times as long at these lengths.

    oneDNN prepares each shape of a product anew, in some milliseconds, and keeps what it prepared. So a block
    takes in some tokens that follow it, up to a multiple of `SHAPE_STEP`: under causal attention its own
    queries do not see them, and what the others find is left out.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
        out = torch.empty_like(query)
        groups = query.shape[0] // key.shape[0]
        with torch.autocast(query.device.type, enabled=False):
            for start, end, before in spans.blocks:
                last = _rounded_up(start, end, spans.num_tokens)
                keys, values = (_seen(part, start, last, before) for part in (key, value))
                shares = _shares(_grouped(query[:, start:last], groups), keys, before, scale)
                mixed = torch.bmm(shares, values).view(-1, last - start, query.shape[-1])
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
        for start, end, before in ctx.spans.blocks:
            last = _rounded_up(start, end, ctx.spans.num_tokens)
            keys, values = (_seen(part, start, last, before) for part in (key, value))
            q = _grouped(query[:, start:last], groups)
            own = query.new_zeros(query.shape[0], last - start, query.shape[-1])
            own[:, : end - start] = grad[:, start:end]
            g = _grouped(own, groups)
            shares = _shares(q, keys, before, ctx.scale)
            _add_seen(grad_value, torch.bmm(shares.transpose(1, 2), g), start, before)
            grad_shares = torch.bmm(g, values.transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
            found = torch.bmm(grad_scores, keys).view(-1, last - start, query.shape[-1])
            grad_query[:, start:end] = found[:, : end - start]
            _add_seen(grad_key, torch.bmm(grad_scores.transpose(1, 2), q), start, before)
        return grad_query.mul_(ctx.scale), grad_key.mul_(ctx.scale), grad_value, None, None


def _rounded_up(start: int, end: int, num_tokens: int) -> int:
    """Where a block ends that takes in as many tokens as make its length a multiple of `SHAPE_STEP`."""
    return min(start + -(-(end - start) // SHAPE_STEP) * SHAPE_STEP, num_tokens)


def _grouped(part: Tensor, groups: int) -> Tensor:
    """`[heads, T, d]` as `[kv heads, groups * T, d]`: the query heads of one key head in one matrix."""
    return part.reshape(part.shape[0] // groups, -1, part.shape[-1])


def _seen(part: Tensor, start: int, end: int, before: int) -> Tensor:
    """`[kv heads, before + T, d]`: what a stretch attends to."""
    own = part[:, start:end]
    return torch.cat([part[:, :before], own], dim=1) if before else own


def _shares(query: Tensor, keys: Tensor, before: int, scale: float) -> Tensor:
    """`[kv heads, groups * T, before + T]`: how much each query takes of each key.

    By torch's softmax: an `exp` of its own takes ten times as long for -inf as for a number.
    """
    length = keys.shape[1] - before
    later = _later(length, before, query.dtype)[None].expand(query.shape[1] // length, -1, -1)
    scores = torch.baddbmm(later.reshape(1, query.shape[1], -1), query, keys.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=256)
def _later(length: int, before: int, dtype: torch.dtype) -> Tensor:
    """`[T, before + T]`: -inf where a key comes later than the query, else 0."""
    return torch.full((length, before + length), -torch.inf, dtype=dtype).triu_(before + 1)


def _add_seen(total: Tensor, part: Tensor, start: int, before: int) -> None:
    """Add a stretch's gradients to those of the tokens that it attended to."""
    total[:, :before] += part[:, :before]
    total[:, start : start + part.shape[1] - before] += part[:, before:]


def common_beginning(rows: Sequence[list[int]], at_most: int) -> int:
    """How many tokens all rows begin with alike.

    >>> common_beginning([[1, 2, 3], [1, 2, 4]], at_most=9)
    2
    """
    first, last = min(rows), max(rows)  # whatever these two share, all share
    limit = min(at_most, len(first), len(last))
    return next((at for at in range(limit) if first[at] != last[at]), limit)
