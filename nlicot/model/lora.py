"""The adapter: which matrices get one, and how it is put on and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from nlicot.errors import ConfigError
from nlicot.settings import LoraSettings


def attach(base: nn.Module, settings: LoraSettings, *, seed: int) -> nn.Module:
    """The base frozen, with a fresh float32 adapter on it.

    float32 because AdamW's small steps round away in bfloat16.

    Raises:
        ConfigError: no projection of that name in the model.
    """
    import torch
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
            f"--model.lora.target_modules: found {', '.join(unknown)}, "
            f"expected some of {', '.join(sorted(names))}"
        )
    torch.manual_seed(seed)
    adapted: nn.Module = get_peft_model(base, config, autocast_adapter_dtype=True)
    return adapted


def causal_lm(model: Any) -> Any:
    """The language model below an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_parameters(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def merge_dense(adapted: Any) -> Callable[[], None]:
    """Put the adapter into its dense matrices, which rounds once more and saves a third of decoding.

    Returns:
        What takes it out again, to the bit. 4-bit matrices are left as they are, with the adapter beside.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    if not layers or any(type(layer.get_base_layer()) is not nn.Linear for layer in layers):
        return lambda: None
    before = [layer.get_base_layer().weight for layer in layers]
    for layer, weight in zip(layers, before, strict=True):
        delta = layer.get_delta_weight("default")
        merged = (weight.data.float() + delta.float()).to(weight.dtype)
        layer.get_base_layer().weight = nn.Parameter(merged, requires_grad=False)
    adapted.base_model.disable_adapter_layers()

    def undo() -> None:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight = weight
        adapted.base_model.enable_adapter_layers()

    return undo


def save_peft_folder(adapted: Any, folder: Path, base_name: str) -> None:
    """Write the adapter as `peft.PeftModel.from_pretrained` and others read it; replaces `folder`."""
    import shutil
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.save_pretrained(fresh)
    fresh.chmod(0o755)  # mkdtemp makes folders that only their owner may read
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
