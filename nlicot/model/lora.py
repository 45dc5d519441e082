"""The LoRA adapter: attaching it to the base, merging it, and writing it in PEFT's format."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlicot.errors import ConfigError
from nlicot.settings import LoraSettings


def attach(base: nn.Module, settings: LoraSettings, *, seed: int) -> nn.Module:
    """Freeze the base and add a new adapter, in float32 because AdamW's small steps round away in bfloat16.

    Raises:
        ConfigError: the model has no linear module of a given name.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    names = {
        name.rpartition(".")[2] for name, module in base.named_modules() if "Linear" in type(module).__name__
    }
    unknown = [name for name in settings.target_modules if name not in names]
    if unknown:
        raise ConfigError(
            f"--model.lora.target_modules: the model has no linear module named {', '.join(unknown)}; "
            f"it has {', '.join(sorted(names))}"
        )
    torch.manual_seed(seed)
    adapted: nn.Module = get_peft_model(base, config, autocast_adapter_dtype=True)
    return adapted


def causal_lm(model: Any) -> Any:
    """Return the language model inside an adapted model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_parameters(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def merge_dense(adapted: Any) -> Callable[[], None]:
    """Merge the adapter into dense matrices: one more rounding, and a third less decoding time.

    Does nothing if a matrix is in 4 bits.

    Returns:
        A function that restores the original matrices exactly.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    if not layers or any(type(layer.get_base_layer()) is not nn.Linear for layer in layers):
        return lambda: None
    original = [layer.get_base_layer().weight for layer in layers]
    for layer, weight in zip(layers, original, strict=True):
        delta = layer.get_delta_weight("default")
        merged = (weight.data.float() + delta.float()).to(weight.dtype)
        layer.get_base_layer().weight = nn.Parameter(merged, requires_grad=False)
    adapted.base_model.disable_adapter_layers()

    def restore() -> None:
        for layer, weight in zip(layers, original, strict=True):
            layer.get_base_layer().weight = weight
        adapted.base_model.enable_adapter_layers()

    return restore


def save_peft_folder(adapted: Any, folder: Path, base_name: str) -> None:
    """Write the adapter for `peft.PeftModel.from_pretrained` and other tools; replaces `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        fresh = Path(temporary) / "new"
        adapted.save_pretrained(fresh)
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        fresh.rename(folder)
