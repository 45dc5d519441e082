"""Load a base model, in 4 bits by default, with its adapter and its tokenizer's prompt format.

`resolve_model` finds both without loading anything heavy; loading differs for training and for prediction.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nlicot.data.atomic_write import disk_errors, scratch_folder
from nlicot.data.checksums import CHECKSUMS, build_cache, damage, write_checksums
from nlicot.errors import CheckpointError, ConfigError, ModelError
from nlicot.model.base_model import (
    BUNDLED,
    BUNDLED_HUB_NAME,
    CONFIG_FILE,
    OTHER_BASE,
    PEFT_CONFIG,
    ResolvedBase,
    base_of_adapter,
    choose,
    resolve,
)
from nlicot.model.fast import kernels
from nlicot.model.fast.heap import available_bytes, keep_few_primitives
from nlicot.model.fast.patch import dense_weight, patch_layers
from nlicot.model.fast.threads import use_threads
from nlicot.model.prompt_format import PromptFormat, load_prompt_format
from nlicot.settings import LoraSettings, ModelSettings

ATTENTION_LAYERS = frozenset(("attention", "full_attention", "sliding_attention"))
"""Names of layers, in a base's configuration, that packed attention can stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A base model that can be loaded, and the prompt format of its tokenizer."""

    base: ResolvedBase
    prompt_format: PromptFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A frozen base in memory: a `peft.PeftModel` with a float32 adapter, unless it was loaded by name."""

    model: Any
    prompt_format: PromptFormat
    base: ResolvedBase

    def adapter_weights(self) -> dict[str, Tensor]:
        """Return the adapter's float32 weights under their names in a checkpoint."""
        return {f"model.{name}": each.detach() for name, each in adapter_parameters(self.model).items()}

    def load_adapter(self, weights: Mapping[str, Tensor], *, label: str) -> None:
        """Copy the adapter's weights from a checkpoint's `state_dict`; messages name it by `label`."""
        mine = self.adapter_weights()
        shapes, expected = ({name: each.shape for name, each in found.items()} for found in (weights, mine))
        if shapes != expected:
            raise CheckpointError(
                f"{label}: the adapter has other matrices than --model.lora describes; leave those flags out"
            )
        for name, weight in mine.items():
            weight.copy_(weights[name])

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter for `peft.PeftModel.from_pretrained` and other tools; replaces `folder`.

        Without PEFT's model card, which is a form to fill in: `fit` and `export` write one at their end.
        """
        base = BUNDLED_HUB_NAME if self.base.name == BUNDLED else self.base.name
        self.model.peft_config["default"].base_model_name_or_path = base
        folder.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder), scratch_folder(folder) as scratch:
            fresh = scratch / "new"
            with safetensors_errors():
                # The default, auto, asks the hub for the base's config.json, even without embeddings.
                self.model.save_pretrained(fresh, save_embedding_layers=False)
            (fresh / "README.md").unlink()
            write_checksums(fresh, "*.safetensors")  # the config may be edited, for another base's name
            if folder.exists():
                folder.rename(scratch / "old")
            fresh.rename(folder)


@contextlib.contextmanager
def safetensors_errors() -> Iterator[None]:
    """Raise the error of a full disk if safetensors cannot write; its own has no errno."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, str(error)) from error


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
        *("does not have many workers", "lr_scheduler.step", "is_gradient_checkpointing", "LeafSpec"),
        "your dataloader is not resumable",  # the state of `PairsData` is
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def resolve_model(settings: ModelSettings, *, on_sample: bool, weights: bool = True) -> ResolvedModel:
    """Find the base and its tokenizer; raises `ModelError` like `choose` and `resolve`.

    Without `weights` the tokenizer of a base that another machine runs.
    """
    name = settings.base
    if weights:
        name = choose(name, settings.fallback_base, on_sample=on_sample)
    base = resolve(name, weights=weights)
    return ResolvedModel(base=base, prompt_format=load_prompt_format(base.folder, settings.prompt_format))


def load_model(
    resolved: ResolvedModel,
    settings: ModelSettings,
    *,
    for_training: bool,
    seed: int = 0,
    dense: bool | None = None,
) -> LoadedModel:
    """Load the base with a fresh adapter, in training mode with fast layers, or in eval mode.

    `dense` is that of `load_base`.
    """
    model = load_base(
        resolved.base,
        quantization=settings.quantization,
        dtype=settings.dtype,
        for_training=for_training,
        dense=dense,
    )
    if settings.gradient_checkpointing and for_training:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    adapted = attach(model, settings.lora, seed=seed)
    if for_training:
        kernels.use_compiler(settings.compile_kernels)
        patch_layers(adapted)
    adapted.train(for_training)  # from_pretrained returns eval mode, and Lightning would keep it
    return LoadedModel(model=adapted, prompt_format=resolved.prompt_format, base=resolved.base)


def load_by_name(name: str) -> LoadedModel:
    """Load `bundled`, a model folder, a hub name, or a PEFT or run folder, whose adapter is merged."""
    silence_libraries()
    from peft import PeftConfig, PeftModel

    folder = Path(name).expanduser()
    adapter = next((path for path in (folder, folder / "adapter") if (path / PEFT_CONFIG).is_file()), None)
    if adapter is not None and (adapter / CHECKSUMS).exists() and (found := damage(adapter)):
        raise CheckpointError(f"{adapter}: {found}; copy it again, or train again")
    with _refused(f"{adapter}/{PEFT_CONFIG}"):
        base = name if adapter is None else PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise ModelError(
            f"{adapter}/{PEFT_CONFIG}: base_model_name_or_path is missing; add the base's folder or hub name"
        )
    base = base if adapter is None else base_of_adapter(base)
    resolved = resolve_model(ModelSettings(base=base, fallback_base=None), on_sample=False)
    model = load_base(resolved.base, for_training=False)
    if adapter is not None:
        with _refused(str(adapter)):
            model = PeftModel.from_pretrained(model, str(adapter))
        merge_dense(model)
    model.eval()
    return LoadedModel(model=model, prompt_format=resolved.prompt_format, base=resolved.base)


@contextlib.contextmanager
def _refused(path: str) -> Iterator[None]:
    """Refuse an adapter that peft cannot load."""
    try:
        yield
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged, or not a LoRA adapter ({reason}); copy it again") from None


def load_base(
    base: ResolvedBase,
    *,
    quantization: str = "nf4",
    dtype: str = "auto",
    for_training: bool,
    dense: bool | None = None,
) -> Any:
    """Load the frozen base model, onto the GPU if there is one.

    Args:
        quantization: `nf4` (4 bits, double quantisation: Dettmers et al. 2023) or `none`.
        dtype: `bfloat16`, `float32` or `auto`, for computing and for weights that stay dense.
        for_training: false allows bitsandbytes' fused CPU kernel, which has no gradient.
        dense: dequantise the 4-bit matrices; None does if memory allows. Ignored for training.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    use_threads()
    keep_few_primitives()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = compute_dtype(dtype)
    folder = base.folder
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if torch.cuda.is_available():
        options["device_map"] = {"": _gpu()}
    in_4_bits = quantization != "none"
    if in_4_bits:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        if base.name == BUNDLED and not torch.cuda.is_available():
            # The NF4 form is cached, so that later starts take under a second.
            quantise = functools.partial(AutoModelForCausalLM.from_pretrained, folder, **options)
            folder = folder.with_name(f"{folder.name}-nf4-{dtype}")
            build_cache(folder, lambda fresh: quantise().save_pretrained(fresh))
            options = {}
    try:
        _check_config(AutoConfig.from_pretrained(folder), base.name)
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except ModelError:
        raise
    except Exception as error:  # libraries raise anything for a damaged file
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"--model.base {base.name}: cannot be loaded ({type(error).__name__}: {reason}); {OTHER_BASE}"
        ) from error
    if missing := sorted(info["missing_keys"]):  # they would be random numbers
        found = f"found no weights of {', '.join(missing[:3])}{' and others' * (len(missing) > 3)}"
        raise ModelError(f"--model.base {base.name}: {found}; copy its folder again, or {OTHER_BASE}")
    if getattr(getattr(model, "lm_head", None), "bias", None) is not None:
        raise ModelError(f"--model.base {base.name}: found lm_head.bias, expected none; {OTHER_BASE}")
    if in_4_bits and for_training:
        # On a CPU with AVX512-BF16, bitsandbytes repacks weights for a kernel without a gradient at the first
        # forward pass in eval mode, such as a dev evaluation; training would continue with gradients missing.
        for module in _matrices_in_4_bits(model):
            module.support_avx512bf16_for_cpu = False
    elif in_4_bits:
        in_16_bits = sum(2 * each.in_features * each.out_features for each in _matrices_in_4_bits(model))
        if in_16_bits < 0.5 * available_bytes() if dense is None else dense:
            _make_dense(model)
    model.requires_grad_(False)
    model.config.use_cache = not for_training
    return model


def _check_config(config: Any, name: str) -> None:
    """Refuse logits or attention that the loss, packed attention and the decoder would leave out."""
    config = config.get_text_config()
    for key in ("layer_types", "layers_block_type"):
        # Such as convolutions or linear attention: in a packed row, they would read the example before.
        other = sorted({*(getattr(config, key, None) or ())} - ATTENTION_LAYERS)
        if other:
            raise ModelError(
                f"--model.base {name}: {CONFIG_FILE}: {key}: found {', '.join(map(str, other))}, expected "
                f"attention layers only; {OTHER_BASE}"
            )
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale"):
        value = getattr(config, key, None)
        if value not in (None, 1):
            raise ModelError(
                f"--model.base {name}: {CONFIG_FILE}: {key}: found {value:g}, expected none; {OTHER_BASE}"
            )


def context_length(config: Any) -> int | None:
    """Return the number of positions that a base was trained for; None if its configuration has none."""
    config = config.get_text_config()
    num: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    # Some configurations have the number before their positions were scaled, others the one after it.
    scaled = [
        int(each["original_max_position_embeddings"] * each["factor"])
        for each in (rope, *(part for part in rope.values() if isinstance(part, dict)))
        if each.get("factor") and each.get("original_max_position_embeddings")
    ]
    return num and max([num, *scaled])


def check_max_length(config: Any, max_length: int) -> None:
    """Refuse training examples longer than the base's context, or its sliding window.

    Packed attention leaves the sliding window out.
    """
    num = context_length(config)
    if num and num < max_length:
        raise ConfigError(
            f"--data.max_length: found {max_length}, expected {num} or less, the base's "
            "max_position_embeddings"
        )
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        raise ConfigError(
            f"--data.max_length: found {max_length}, expected {window} or less, the base's sliding_window"
        )


def _gpu() -> torch.device:
    """Return the GPU that Lightning has chosen for this process."""
    chosen = torch.get_default_device()  # while `fit` loads, before its processes are connected
    return chosen if chosen.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def choose_accelerator(given: Any) -> Any:
    """Return Lightning's accelerator: for `auto` a GPU that torch.cuda knows, or else the processor.

    Lightning may choose Apple's GPUs, which have no float64 and for which nothing here was made.
    """
    return ("cuda" if torch.cuda.is_available() else "cpu") if given == "auto" else given


def compute_dtype(name: str = "auto") -> str:
    """Return `bfloat16` or `float32`: the given one, or for `auto` the faster one on this machine."""
    return ("bfloat16" if multiplies_bfloat16() else "float32") if name == "auto" else name


def multiplies_bfloat16() -> bool:
    """Check whether the GPU, or else the processor, can multiply bfloat16; else float32 is faster."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # ARM's BFMMLA


def _matrices_in_4_bits(model: Any) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _make_dense(model: Any) -> None:
    """Replace 4-bit matrices by dense ones with the same values, which also allows merging the adapter.

    The fused CPU kernel dequantises a matrix for each row again: good for one row, but two thirds of decoding
    time at 32 rows, which dense matrices make three times as fast overall.
    """
    names = {module: name for name, module in model.named_modules()}
    for module in _matrices_in_4_bits(model):
        has_bias = module.bias is not None
        dense = nn.Linear(module.in_features, module.out_features, bias=has_bias, device="meta")
        dense.weight = nn.Parameter(dense_weight(module), requires_grad=False)
        dense.bias = module.bias
        model.set_submodule(names[module], dense)
    # Else the model would be saved as one in 4 bits, by reversing what was done when it was loaded.
    model.hf_quantizer.remove_quantization_config(model)
    vars(model).pop("_weight_conversions", None)


def attach(base: nn.Module, settings: LoraSettings, *, seed: int) -> nn.Module:
    """Freeze the base and add an adapter, in float32 because AdamW's small steps round away in bfloat16."""
    from peft import LoraConfig, get_peft_model

    names = {
        name.rpartition(".")[2] for name, module in base.named_modules() if "Linear" in type(module).__name__
    }
    unknown = [name for name in settings.target_modules if name not in names]
    if unknown:
        raise ConfigError(
            f"--model.lora.target_modules: the model has no linear module named {', '.join(unknown)}; "
            f"it has {', '.join(sorted(names))}"
        )
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
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


def merge_dense(adapted: Any, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """Merge the adapter into dense matrices: one more rounding, and a third less decoding time.

    The sum is rounded to `dtype`, by default that of the matrix. Does nothing if a matrix is in 4 bits.
    Returns a function that restores the original matrices exactly.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    if not layers or any(type(layer.get_base_layer()) is not nn.Linear for layer in layers):
        return lambda: None
    original = [layer.get_base_layer().weight for layer in layers]
    for layer, weight in zip(layers, original, strict=True):
        merged = (weight.data.float() + layer.get_delta_weight("default").float()).to(dtype or weight.dtype)
        layer.get_base_layer().weight = nn.Parameter(merged, requires_grad=False)
    adapted.base_model.disable_adapter_layers()

    def restore() -> None:
        for layer, weight in zip(layers, original, strict=True):
            layer.get_base_layer().weight = weight
        adapted.base_model.enable_adapter_layers()

    return restore
