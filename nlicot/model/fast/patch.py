"""Faster decoder layers of Llama and Mistral, in training and for the dev loss.

Training a small model spends most of its time outside matrix products: in attention (`attention`), and in
chains of element-wise passes over memory (`kernels`). A patched layer computes the same numbers in three
functions around the attention, each with its own backward pass:

    x -> norm, query, key and value, rotary embedding -> attention -> output + x -> norm, gated MLP + residual

They save little more than their inputs; what is cheap, or large, is computed again in the backward pass.
Parameters, their names and the content of a checkpoint stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nlicot.model.fast import kernels
from nlicot.model.fast.attention import Spans, attend, use_packed_attention

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer")


def patch_layers(adapted: Any) -> None:
    """Patch the layers and the last norm of a PEFT model, if they are Llama's or Mistral's."""
    use_packed_attention(adapted.get_base_model())
    for module in adapted.modules():
        if type(module).__name__ in LAYERS and _is_plain(module):
            module.forward = _FastLayer(module)
            last_norm = decoder_of(adapted.get_base_model()).norm
            last_norm.forward = lambda x, norm=last_norm: _norm(x, norm)


def decoder_of(causal_lm: Any) -> Any:
    """Return the layers and the last norm of a language model, without the LM head."""
    decoder = causal_lm.model
    return getattr(decoder, "language_model", decoder)  # of a model that takes images, too


def _is_plain(layer: Any) -> bool:
    """No biases, no matrices but dense ones and NF4, and no adapter but plain LoRA of the name "default"."""
    from peft.tuners.lora import LoraLayer

    for module in layer.modules():
        if getattr(module, "bias", None) is not None:
            return False
        name = type(module).__name__
        is_matrix = "Linear" in name and not isinstance(module, LoraLayer)
        if is_matrix and type(module) is not nn.Linear and name != "Linear4bit":
            return False  # of another quantisation: its own forward pass knows the scales
        if isinstance(module, LoraLayer) and (
            list(module.lora_A) != ["default"]
            or module.lora_bias.get("default", False)
            or module.use_dora.get("default", False)
        ):
            return False
    return type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


class _FastLayer:
    """The forward pass of a decoder layer; calls without `spans` run the layer's own."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._plain: Callable[..., Any] = layer.forward
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._scale = attention.scaling
        self._head_dim = attention.head_dim
        self._query_key_value = _Linears([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = _Linears([attention.o_proj])
        self._gate_up = _Linears([mlp.gate_proj, mlp.up_proj])
        self._down = _Linears([mlp.down_proj])

    def __call__(self, hidden_states: Tensor, *args: Any, spans: Spans | None = None, **options: Any) -> Any:
        if spans is None:
            return self._plain(hidden_states, *args, **options)
        x = hidden_states[0]
        cos, sin = (part[0] for part in options["position_embeddings"])
        projections = self._query_key_value, self._head_dim
        adapters = self._query_key_value.adapters()
        query, key, value, x = _QueryKeyValue.apply(x, cos, sin, self._norms[0], *projections, *adapters)  # type: ignore[no-untyped-call]
        attended = attend(query, key, value, spans, self._scale)
        x = _Output.apply(attended, x, self._output, *self._output.adapters())  # type: ignore[no-untyped-call]
        linears = self._gate_up, self._down
        adapters = [*self._gate_up.adapters(), *self._down.adapters()]
        return _GatedMLP.apply(x, self._norms[1], *linears, *adapters)[None]  # type: ignore[no-untyped-call]


class _Linears:
    """Linear layers with the same input, multiplied as one matrix, each with or without a LoRA adapter.

    `[N, in]` to `[N, out of all]`: `x W' + scale * dropout(x) A' B'` with W frozen.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules = modules
        self.sizes = [module.out_features for module in modules]
        self._adapted = [(module, index) for index, module in enumerate(modules) if hasattr(module, "lora_A")]

    def adapters(self) -> list[Tensor]:
        """Return each adapter's A and B."""
        return [
            getattr(module, name)["default"].weight
            for module, _ in self._adapted
            for name in ("lora_A", "lora_B")
        ]

    def weight(self) -> Tensor:
        """Return the frozen matrix, `[out, in]`."""
        parts = [dense_weight(getattr(module, "base_layer", module)) for module in self._modules]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def dropout(self) -> kernels.Dropout:
        """Draw the adapters' dropout; all have the same probability."""
        if not self._adapted:
            return kernels.Dropout(0.0)
        layer = self._adapted[0][0].lora_dropout["default"]
        p = getattr(layer, "p", 0.0) if layer.training else 0.0
        return kernels.Dropout(p, len(self._adapted))

    def forward(
        self, x: Tensor, weight: Tensor, dropout: kernels.Dropout, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the product, plus `residual`, and the `[N, adapters * r]` products with each A."""
        x = x.to(weight.dtype)
        out = x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())
        if not self._adapted:
            return out, None
        parts = [
            dropped @ module.lora_A["default"].weight.to(x.dtype).t()
            for dropped, (module, _) in zip(dropout.apply(x), self._adapted, strict=True)
        ]
        inner = torch.cat(parts, dim=1)
        return out.addmm_(inner, self._scaled_b(dropout.p, x.dtype).t()), inner

    def _scaled_b(self, p: float, dtype: torch.dtype) -> Tensor:
        """Return `[out, adapters * r]`: each B times its scale, and zeros."""
        parts = []
        for module, index in self._adapted:
            b = module.lora_B["default"].weight
            part = b.new_zeros(sum(self.sizes), b.shape[1], dtype=dtype)
            torch.split(part, self.sizes)[index].copy_(b * (module.scaling["default"] / (1.0 - p)))
            parts.append(part)
        return torch.cat(parts, dim=1)

    def backward(
        self,
        grads: Sequence[Tensor],
        x: Tensor,
        weight: Tensor,
        dropout: kernels.Dropout,
        inner: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of `x` and of each A and B, from those of each layer's output."""
        first, *others = zip(grads, torch.split(weight, self.sizes), strict=True)
        grad_x = first[0] @ first[1]
        for grad, part in others:
            grad_x.addmm_(grad, part)
        if inner is None:
            return grad_x, []
        x = x.to(weight.dtype)
        found, parts = [], []
        ranks = [len(module.lora_A["default"].weight) for module, _ in self._adapted]
        inners = torch.split(inner, ranks, dim=1)
        for dropped, product, (module, index) in zip(dropout.apply(x), inners, self._adapted, strict=True):
            a, b = (getattr(module, name)["default"].weight for name in ("lora_A", "lora_B"))
            scale = module.scaling["default"] / (1.0 - dropout.p)
            grad_inner = (grads[index] @ b.to(x.dtype)).mul_(scale)
            found.append((grad_inner.t() @ dropped).to(a.dtype))
            found.append((grads[index].t() @ product).mul_(scale).to(b.dtype))
            parts.append(grad_inner @ a.to(x.dtype))
        return dropout.add_to(grad_x, parts), found


def dense_weight(linear: Any) -> Tensor:
    """Return the weight matrix of a linear layer, dequantised if it is in 4 bits."""
    weight: Tensor = linear.weight
    # A weight that was gathered from parts is a plain tensor again.
    state = getattr(weight, "quant_state", None) or getattr(linear, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense.to(linear.compute_dtype)


class _QueryKeyValue(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        norm: Any,
        linears: _Linears,
        dim: int,
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        normed, scale = kernels.rms_norm(x, norm.weight, norm.variance_epsilon)
        ctx.dropout = linears.dropout()
        product, inner = linears.forward(normed, linears.weight(), ctx.dropout)
        product = product.view(len(x), -1, dim)
        ctx.save_for_backward(x, scale, cos, sin, inner)
        ctx.norm, ctx.linears = norm, linears
        num_kv = linears.sizes[1] // dim
        query, key, value = torch.split(product, [product.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1)
        # The input leaves again, so that its gradient from the residual is added in the norm's loop.
        return *kernels.rotate(query, key, cos, sin), value.contiguous(), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, scale, cos, sin, inner = ctx.saved_tensors
        query, key, value, residual = grads
        products = [part.flatten(1) for part in (*kernels.rotate_backward(query, key, cos, sin), value)]
        normed, _ = kernels.rms_norm(x, ctx.norm.weight, ctx.norm.variance_epsilon)
        grad, adapters = ctx.linears.backward(products, normed, ctx.linears.weight(), ctx.dropout, inner)
        grad = kernels.rms_norm_backward(grad, x, scale, ctx.norm.weight, residual)
        return grad, None, None, None, None, None, *adapters


class _Output(Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor, residual: Tensor, linears: _Linears, *adapters: Tensor) -> Tensor:
        ctx.dropout = linears.dropout()
        out, inner = linears.forward(attended.flatten(1), linears.weight(), ctx.dropout, residual)
        ctx.save_for_backward(attended, inner)
        ctx.linears = linears
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        attended, inner = ctx.saved_tensors
        grad_attended, adapters = ctx.linears.backward(
            [grad], attended.flatten(1), ctx.linears.weight(), ctx.dropout, inner
        )
        return grad_attended.view(attended.shape), grad, None, *adapters


class _GatedMLP(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Any, gate_up: _Linears, down: _Linears, *adapters: Tensor
    ) -> Tensor:
        normed, scale = kernels.rms_norm(x, norm.weight, norm.variance_epsilon)
        ctx.dropouts = gate_up.dropout(), down.dropout()
        product, _ = gate_up.forward(normed, gate_up.weight(), ctx.dropouts[0])
        out, inner = down.forward(kernels.gate(product), down.weight(), ctx.dropouts[1], x)
        ctx.save_for_backward(x, scale, inner)
        ctx.norm, ctx.gate_up, ctx.down = norm, gate_up, down
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # The products of gate and up would be half of all that a layer saves; they cost a tenth of its time.
        x, scale, inner = ctx.saved_tensors
        normed, _ = kernels.rms_norm(x, ctx.norm.weight, ctx.norm.variance_epsilon)
        dropout, dropout_of_down = ctx.dropouts
        weight = ctx.gate_up.weight()
        product, inner_of_gate_up = ctx.gate_up.forward(normed, weight, dropout)
        gated = product if inner is None else kernels.gate(product)
        grad_gated, of_down = ctx.down.backward([grad], gated, ctx.down.weight(), dropout_of_down, inner)
        products = kernels.gate_backward(grad_gated, product)
        grad_normed, of_gate_up = ctx.gate_up.backward(products, normed, weight, dropout, inner_of_gate_up)
        grad_x = kernels.rms_norm_backward(grad_normed, x, scale, ctx.norm.weight, grad)
        return grad_x, None, None, None, *of_gate_up, *of_down


def _norm(x: Tensor, norm: Any) -> Tensor:
    normed: Tensor = _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed: Tensor
        normed, scale = kernels.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, scale, weight)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, scale, weight = ctx.saved_tensors  # the weight is frozen
        return kernels.rms_norm_backward(grad, x, scale, weight, None), None, None
