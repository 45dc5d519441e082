"""Faster replacements for parts of a decoder's layers, in training and for the dev loss.

Training a small model spends most of its time outside matrix products: in attention (`attention`), and in
chains of element-wise passes over memory (`kernels`). The replacements compute the same numbers in less time
and memory; parameters, their names and the content of a checkpoint stay the same.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from nlicot.model.fast import kernels
from nlicot.model.fast.attention import use_packed_attention


def patch_layers(adapted: Any) -> None:
    """Patch every layer of a known kind in a PEFT model with a LoRA adapter: those of Llama and Mistral."""
    use_packed_attention(adapted.get_base_model())
    for module in adapted.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _replace_forward(module, _norm_forward)
        elif _is_gated(module):
            _replace_forward(module, _gated_forward)
        elif _is_plain_lora(module):
            _replace_forward(module, _lora_forward)


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Use `forward(module, x)`; calls with more arguments than `x` still run the module's own."""
    plain = module.forward

    def dispatch(self: nn.Module, x: Tensor, *args: Any, **options: Any) -> Any:
        return plain(x, *args, **options) if args or options else forward(self, x)

    module.forward = types.MethodType(dispatch, module)  # type: ignore[method-assign]


def _norm_forward(module: Any, x: Tensor) -> Any:
    return _RMSNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed: Tensor
        normed, scale = kernels.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, scale, weight)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return kernels.rms_norm_backward(grad, *ctx.saved_tensors), None, None  # the weight is frozen


def _is_gated(module: nn.Module) -> bool:
    parts = ("gate_proj", "up_proj", "down_proj")
    activation = type(getattr(module, "act_fn", None)).__name__
    return all(hasattr(module, part) for part in parts) and activation in ("SiLU", "SiLUActivation")


def _gated_forward(module: Any, x: Tensor) -> Any:
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-untyped-call]


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return kernels.gate(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return kernels.gate_backward(grad, *ctx.saved_tensors)


def _is_plain_lora(module: nn.Module) -> bool:
    """A linear layer without bias, with plain LoRA and only the adapter "default"."""
    from peft.tuners.lora import LoraLayer

    return (
        isinstance(module, LoraLayer)
        and isinstance(module.get_base_layer(), nn.Linear)
        and module.get_base_layer().bias is None
        and list(module.lora_A) == ["default"]
        and not module.lora_bias.get("default", False)
        and not module.use_dora.get("default", False)
    )


def _lora_forward(module: Any, x: Tensor) -> Tensor:
    dropout = module.lora_dropout["default"]
    p = float(getattr(dropout, "p", 0.0)) if module.training else 0.0
    return _LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
        x,
        module.lora_A["default"].weight,
        module.lora_B["default"].weight,
        module.scaling["default"],
        kernels.Dropout(p),
        module.get_base_layer(),
    )


def dense_weight(linear: Any) -> Tensor:
    """Return the weight matrix of a linear layer, dequantised if it is in 4 bits."""
    weight: Tensor = linear.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense.to(linear.compute_dtype)


class _LoraLinear(Function):
    """`x W' + scale * dropout(x) A' B'` with W frozen; saves x and the `[tokens, r]` products with A."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: kernels.Dropout, base: Any
    ) -> Tensor:
        weight = dense_weight(base)
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        scale = scale / (1.0 - dropout.p)
        inner = dropout.apply(rows) @ a.to(rows.dtype).t()
        out = rows @ weight.t()
        out.addmm_(inner, b.to(rows.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, a, b, inner)
        ctx.scale, ctx.dropout, ctx.base, ctx.shape, ctx.dtype = scale, dropout, base, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, a, b, inner = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)
        grad_inner = (grad @ b.to(rows.dtype)).mul_(ctx.scale)
        grad_a = grad_inner.t() @ ctx.dropout.apply(rows)
        grad_b = (grad.t() @ inner).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.dropout.add_to(grad @ dense_weight(ctx.base), grad_inner @ a.to(rows.dtype))
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None, None
