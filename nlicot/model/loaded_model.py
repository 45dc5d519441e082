"""A base model in memory with its adapter, its tokenizer's format and its name: built once and handed on.

Finding the base comes first and is cheap (`resolve_model`), so that what is wrong with it is reported before
anything heavy happens; loading differs for training and for prediction.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlicot.errors import CheckpointError, ModelError
from nlicot.model import base_model, lora
from nlicot.model.base_model import ResolvedBase
from nlicot.model.fast import kernels
from nlicot.model.fast.patch import patch_layers
from nlicot.model.prompt_format import PromptFormat, load_prompt_format
from nlicot.settings import ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A base model that can be loaded, and the prompt format of its tokenizer."""

    base: ResolvedBase
    prompt_format: PromptFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A base model in memory, with an adapter on it unless it was loaded by name.

    Attributes:
        model: base weights frozen, adapter weights (`peft.PeftModel`) in float32.
        prompt_format: markers and tokenizer.
        base: name and folder of the base.
    """

    model: Any
    prompt_format: PromptFormat
    base: ResolvedBase

    def load_adapter(self, weights: Mapping[str, Tensor], *, label: str) -> None:
        """Copy the adapter's weights from a checkpoint.

        Args:
            weights: a checkpoint's `state_dict`.
            label: how messages name the checkpoint.

        Raises:
            CheckpointError: the checkpoint's adapter has other matrices or shapes.
        """
        mine = {f"model.{name}": each for name, each in lora.adapter_parameters(self.model).items()}
        shapes = [{name: tuple(each.shape) for name, each in found.items()} for found in (mine, weights)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{label}: the adapter has other matrices than --model.lora describes; leave those flags out"
            )
        for name, parameter in mine.items():
            parameter.data.copy_(weights[name])

    def adapter_weights(self) -> dict[str, Tensor]:
        """Return the adapter's float32 weights under their names in a checkpoint."""
        return {
            f"model.{name}": weight.detach() for name, weight in lora.adapter_parameters(self.model).items()
        }

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a plain PEFT folder."""
        is_bundled = self.base.name == base_model.BUNDLED
        name = str(self.base.folder) if is_bundled else self.base.name
        lora.save_peft_folder(self.model, folder, name)


def silence_libraries() -> None:
    """Silence messages of libraries that the user cannot act on."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes", "bitsandbytes.backends"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*lr_scheduler.step.*",
        ".*is_gradient_checkpointing.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def resolve_model(settings: ModelSettings, *, on_sample: bool) -> ResolvedModel:
    """Find the base and its tokenizer; nothing heavy happens.

    Raises:
        ModelError: the base cannot be found, or cannot run on this machine.
    """
    device = base_model.device_state()
    name = base_model.choose(settings.base, settings.fallback_base, on_sample=on_sample, device=device)
    base = base_model.resolve(name)
    return ResolvedModel(base=base, prompt_format=load_prompt_format(base.folder, settings.prompt_format))


def load_for_training(resolved: ResolvedModel, settings: ModelSettings, *, seed: int) -> LoadedModel:
    """Load the base with a fresh adapter, and fast layers that have gradients."""
    loaded = _load(resolved, settings, seed=seed, for_training=True)
    kernels.use_compiler(settings.compile_kernels)
    patch_layers(loaded.model)
    loaded.model.train()  # from_pretrained returns eval mode, and Lightning would keep it
    return loaded


def load_for_prediction(resolved: ResolvedModel, settings: ModelSettings) -> LoadedModel:
    """Load the base with an adapter whose weights are yet to come from a checkpoint.

    A process that only predicts can use kernels of bitsandbytes that have no gradient.
    """
    loaded = _load(resolved, settings, seed=0, for_training=False)
    loaded.model.eval()
    return loaded


def load_by_name(name: str) -> LoadedModel:
    """Load `bundled`, a model folder, a hub name, or a PEFT or run folder with its adapter merged, to decode.

    Raises:
        ModelError: the model does not exist, or this machine cannot run it.
    """
    from peft import PeftModel

    silence_libraries()
    folder = Path(name).expanduser()
    adapter = next((path for path in (folder, folder / "adapter") if (path / PEFT_CONFIG).is_file()), None)
    base = name if adapter is None else _base_of(adapter / PEFT_CONFIG)
    resolved = resolve_model(ModelSettings(base=base, fallback_base=None), on_sample=False)
    model = base_model.load(resolved.base, for_training=False)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
        lora.merge_dense(model)
    model.eval()
    return LoadedModel(model=model, prompt_format=resolved.prompt_format, base=resolved.base)


def _base_of(config_path: Path) -> str:
    found = json.loads(config_path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not found:
        raise ModelError(
            f"{config_path}: base_model_name_or_path is missing; add the base's folder or hub name"
        )
    return str(found)


def _load(resolved: ResolvedModel, settings: ModelSettings, *, seed: int, for_training: bool) -> LoadedModel:
    model = base_model.load(
        resolved.base, quantization=settings.quantization, dtype=settings.dtype, for_training=for_training
    )
    if settings.gradient_checkpointing and for_training:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return LoadedModel(
        model=lora.attach(model, settings.lora, seed=seed),
        prompt_format=resolved.prompt_format,
        base=resolved.base,
    )
