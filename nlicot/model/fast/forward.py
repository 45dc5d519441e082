"""Decoding with a Llama or Mistral model on a CPU: rows of a cache after one shared prefix.

The keys and values of the prefix exist once. A row attends to the prefix and to its own tokens separately,
and the two results are merged by their log-sum-exps (cascade attention, as in FlashInfer: Ye et al. 2025).
Matrices that read the same input are joined, and nothing of transformers runs between the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from nlicot.model.fast import decode_step
from nlicot.model.fast.heap import trim_heap

KNOWN_MODELS = ("LlamaForCausalLM", "MistralForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on a row's length."""
BLOCK = decode_step.LANES
ROWS_AT_ONCE = 128
SLOT_MULTIPLE, TOKEN_MULTIPLE = 16, 64
"""oneDNN prepares a kernel for each number of rows, in some milliseconds, so that number is rounded up."""
SPARE_BLOCKS = 4
"""The cache grows by this many blocks of columns, so that few steps copy it."""

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer's number, its rotated queries and keys, and its queries, keys and values: `[N, heads * d]`."""
Keep = Callable[[int, Tensor, Tensor], None]
"""Takes a layer's number, and its keys and values, `[B, kv heads, T, d]`: parts of larger tensors."""


def load_forward(model: Any) -> Forward | None:
    """Return the forward pass of a causal language model, or None if it cannot have one.

    It must be of a known kind, on a CPU, its matrices dense, and `decode_step` must compile for its shape.
    """
    if type(model).__name__ not in KNOWN_MODELS or model.lm_head.weight.is_cuda:
        return None
    config = model.config
    head_size = model.model.layers[0].self_attn.head_dim
    fits = (
        head_size % (2 * decode_step.LANES) == 0
        and config.rope_parameters["rope_type"] in FIXED_ROTATIONS
        and getattr(config, "sliding_window", None) is None
        and config.hidden_act == "silu"
        and all(_is_dense(matrix) for matrix in _matrices(model))
    )
    shape = config.num_attention_heads, config.num_key_value_heads, head_size
    operations = decode_step.load(*shape, model.lm_head.weight.dtype) if fits else None
    return None if operations is None else Forward(model, operations)


def _matrices(model: Any) -> Iterator[Any]:
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _is_dense(matrix: Any) -> bool:
    """Check that a linear layer multiplies by one matrix: not in 4 bits, no adapter active on it."""
    base = _base_layer(matrix)
    return type(base) is nn.Linear and (base is matrix or matrix.disable_adapters)


def _base_layer(matrix: Any) -> Any:
    return matrix.get_base_layer() if hasattr(matrix, "get_base_layer") else matrix


class _Matrix:
    """The matrices of linear layers with the same input, joined.

    In bfloat16 they are arranged for oneDNN, which takes a quarter less time for a hundred rows; in float32
    they are joined as they are, and those of the layers become parts of them.
    """

    def __init__(self, *layers: Any) -> None:
        layers = tuple(map(_base_layer, layers))
        weights = [layer.weight.data for layer in layers]
        self.weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # no copy of the LM head
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        self.is_arranged = self.weight.dtype is torch.bfloat16
        if self.is_arranged:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS_AT_ONCE)
        elif len(layers) > 1:
            start = 0
            for layer in layers:
                layer.weight.data = self.weight[start : start + layer.out_features]
                start += layer.out_features

    def __call__(self, x: Tensor) -> Tensor:
        if not self.is_arranged:
            return linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Matrix(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _Matrix(attention.o_proj)
        self.gate_up = _Matrix(mlp.gate_proj, mlp.up_proj)
        self.down = _Matrix(mlp.down_proj)
        self.attention_norm, self.mlp_norm = (
            (norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )


class Forward:
    """The layers of a model that `load_forward` accepts."""

    def __init__(self, model: Any, operations: decode_step.DecodeStep) -> None:
        config = model.config
        self.embed = model.model.embed_tokens
        self.rotary = model.model.rotary_emb
        self.norm = model.model.norm
        self.layers = [_Layer(layer) for layer in model.model.layers]
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        attention = model.model.layers[0].self_attn
        self.head_size: int = attention.head_dim
        self.scale: float = attention.scaling
        self.operations = operations
        self.head = _Matrix(model.lm_head)

    def run(self, ids: Tensor, positions: Tensor, attend: Attend, last: Tensor | None = None) -> Tensor:
        """Return the last hidden states `[N, H]` of `[N]` tokens, or of those at the indices `last` only."""
        with torch.autocast("cpu", enabled=False):
            return self._run(ids, positions, attend, last)

    def _run(self, ids: Tensor, positions: Tensor, attend: Attend, last: Tensor | None) -> Tensor:
        add_norm, delta = self.operations.add_norm, None
        hidden = self.embed(ids)
        cos, sin = (part[0].contiguous() for part in self.rotary(hidden, positions[None]))
        num_rotated = self.num_heads + self.num_kv_heads
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(add_norm(hidden, delta, *layer.attention_norm))
            qkv = qkv.view(len(ids), num_rotated + self.num_kv_heads, -1)
            mixed = attend(number, self.operations.rotate(qkv, cos, sin, num_rotated), qkv)
            if last is not None and number == len(self.layers) - 1:
                hidden, mixed = hidden[last], mixed[last]
            gate_up = layer.gate_up(add_norm(hidden, layer.out(mixed), *layer.mlp_norm))
            delta = layer.down(self.operations.gate(gate_up))
        return add_norm(hidden, delta, self.norm.weight, self.norm.variance_epsilon)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Map `[B, heads, T, d]` to attention's result and its `[B, heads, T]` float32 log-sum-exps."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal, scale=scale
    )


def merge(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """Return the attention to the keys of both from the results `[.., d]` and log-sum-exps `[..]` of each."""
    weight = torch.sigmoid(other_sums - one_sums)[..., None]
    return torch.lerp(one, other, weight.to(one.dtype))


def _repeat_heads(part: Tensor, groups: int) -> Tensor:
    """`[B, kv heads, T, d]` to `[B, kv heads * groups, T, d]`."""
    num_rows, num_heads, width, size = part.shape
    return part[:, :, None].expand(-1, -1, groups, -1, -1).reshape(num_rows, num_heads * groups, width, size)


class Rows:
    """The rows that are decoded together, slot by slot: their caches and last hidden states.

    Args:
        forward: the model.
        prefix: ids that all rows start with; may be empty.
    """

    def __init__(self, forward: Forward, prefix: Sequence[int]) -> None:
        self.forward = forward
        self._num_slots = 0
        embeddings: Tensor = forward.embed.weight
        self._hidden = embeddings.new_empty(0, embeddings.shape[1])
        self._lengths = torch.zeros(0, dtype=torch.long)
        empty = embeddings.new_empty(0, forward.num_kv_heads, 0, BLOCK, forward.head_size)
        # Each layer's keys and values; see `DecodeStep.attend`.
        self._caches = [[empty, empty] for _ in forward.layers]
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._prefix_len = 0
        if prefix:

            def keep(number: int, key: Tensor, value: Tensor) -> None:
                found.append((key.contiguous(), value.contiguous()))

            found: list[tuple[Tensor, Tensor]] = []
            self._encode([prefix], keep)
            self._prefix, self._prefix_len = found, len(prefix)

    @property
    def hidden(self) -> Tensor:
        """The last hidden states `[slots, H]`."""
        return self._hidden[: self._num_slots]

    def logits(self) -> Tensor:
        """Return `[slots, V]`, in the model's dtype."""
        return self.forward.head(self._hidden)[: self._num_slots]

    def encode(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states `[B, H]` of rows of ids after the prefix, without keeping them."""
        return self._encode(rows)

    def _encode(self, rows: Sequence[Sequence[int]], keep: Keep | None = None) -> Tensor:
        num_rows, width = len(rows), max(map(len, rows))
        num_tokens = num_rows * width
        ids = torch.zeros(_rounded(num_tokens, TOKEN_MULTIPLE), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index * width : index * width + len(row)] = torch.tensor(row)
        positions = torch.arange(len(ids)) % width + self._prefix_len
        last = torch.zeros(_rounded(num_rows, SLOT_MULTIPLE), dtype=torch.long)
        last[:num_rows] = torch.tensor([index * width + len(row) - 1 for index, row in enumerate(rows)])
        num_kv_heads = self.forward.num_kv_heads

        def attend(number: int, rotated: Tensor, qkv: Tensor) -> Tensor:
            query, key, value = (
                part[:num_tokens].view(num_rows, width, *part.shape[1:]).transpose(1, 2)
                for part in (rotated[:, :-num_kv_heads], rotated[:, -num_kv_heads:], qkv[:, -num_kv_heads:])
            )
            if keep is not None:
                keep(number, key, value)
            groups = query.shape[1] // num_kv_heads
            # Padding on the right: under causal attention no token sees it.
            every_key, every_value = (_repeat_heads(part, groups) for part in (key, value))
            out, sums = flash_attention(query, every_key, every_value, self.forward.scale, causal=True)
            if self._prefix:
                other, other_sums = self._attend_to_prefix(number, rotated[:num_tokens, :-num_kv_heads])
                shape = num_rows, width, query.shape[1]
                other, other_sums = (
                    other.view(*shape, -1).transpose(1, 2),
                    other_sums.view(shape).transpose(1, 2),
                )
                out = merge(out, sums, other, other_sums)
            mixed = out.transpose(1, 2).reshape(num_tokens, -1)
            return pad(mixed, [0, 0, 0, len(ids) - num_tokens])

        return self.forward.run(ids, positions, attend, last)[:num_rows]

    def _attend_to_prefix(self, number: int, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the prefix from `[N, heads, d]` queries: the same, and `[N, heads]` log-sum-exps."""
        key, value = self._prefix[number]
        num_kv_heads, num_groups = key.shape[1], query.shape[1] // key.shape[1]
        # Queries of all rows and of all heads that share a key head are the rows of one product.
        grouped = query.reshape(len(query), num_kv_heads, num_groups, -1).transpose(1, 2)
        grouped = grouped.reshape(1, len(query) * num_groups, num_kv_heads, -1).transpose(1, 2)
        out, sums = flash_attention(grouped, key, value, self.forward.scale)
        out, sums = (
            part[0].transpose(0, 1).reshape(len(query), num_groups, num_kv_heads, -1).transpose(1, 2)
            for part in (out, sums[..., None])
        )
        return out.reshape(query.shape), sums.reshape(query.shape[:2])

    def enter(self, rows: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Encode rows of ids and put each into one slot or several; new slots follow the last one."""
        copies = torch.arange(len(rows)).repeat_interleave(len(slots) // len(rows))
        lengths = torch.tensor([len(row) for row in rows])[copies]
        where = torch.tensor(slots)
        self._num_slots = max(self._num_slots, *(slot + 1 for slot in slots))
        self._make_room(int(lengths.max()))

        def keep(number: int, key: Tensor, value: Tensor) -> None:
            arranged = decode_step.arrange_keys(_blocks(key)), _blocks(value)
            for cache, part in zip(self._caches[number], arranged, strict=True):
                cache[where, :, : part.shape[2]] = part[copies]

        self._hidden[where] = self._encode(rows, keep)[copies]
        self._lengths[where] = lengths

    def _make_room(self, num_columns: int) -> None:
        """Make room for the slots in use, of that many columns."""
        num_slots, _, num_blocks = self._caches[0][0].shape[:3]
        new_slots = max(num_slots, _rounded(self._num_slots, SLOT_MULTIPLE))
        new_blocks = -(-num_columns // BLOCK)
        new_blocks = num_blocks if new_blocks <= num_blocks else new_blocks + SPARE_BLOCKS
        if (new_slots, new_blocks) == (num_slots, num_blocks):
            return
        more = [0, new_slots - num_slots]
        self._hidden, self._lengths = pad(self._hidden, [0, 0, *more]), pad(self._lengths, more)
        for caches in self._caches:
            for kind, cache in enumerate(caches):
                caches[kind] = cache.new_empty(new_slots, cache.shape[1], new_blocks, *cache.shape[3:])
                caches[kind][:num_slots, :, :num_blocks] = cache
        trim_heap()

    def feed(self, tokens: Tensor) -> None:
        """Append one token to each row; updates the hidden states."""
        self._make_room(int(self._lengths.max()) + 1)

        def attend(number: int, rotated: Tensor, qkv: Tensor) -> Tensor:
            query = rotated[:, : self.forward.num_heads]
            prefix = self._attend_to_prefix(number, query) if self._prefix else None
            keys, values = self._caches[number]
            return self.forward.operations.attend(
                rotated, qkv, keys, values, self._lengths, prefix, self.forward.scale
            )

        ids = pad(tokens, [0, len(self._lengths) - len(tokens)])
        self._hidden = self.forward.run(ids, self._prefix_len + self._lengths, attend)
        self._lengths[: self._num_slots] += 1

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots in this order."""
        self._num_slots = len(slots)
        where = torch.tensor([*slots, *[slots[0]] * (-len(slots) % SLOT_MULTIPLE)])
        self._hidden, self._lengths = self._hidden[where], self._lengths[where]
        num_blocks = int(self._lengths.max()) // BLOCK + SPARE_BLOCKS
        for caches in self._caches:
            caches[:] = [cache[where, :, :num_blocks] for cache in caches]
        trim_heap()


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _blocks(part: Tensor) -> Tensor:
    """`[B, heads, T, d]` to `[B, heads, blocks, BLOCK, d]`, padded at the end."""
    padded: Tensor = pad(part, [0, 0, 0, -part.shape[2] % BLOCK])
    return padded.reshape(*padded.shape[:2], -1, BLOCK, padded.shape[3])
