"""The adapter that a new run starts from (`fit --from`): its files, its shape, and its record in `fit.json`.

Only configurations are read here, so that an adapter of another shape is refused at once;
`training.warm_start` reads the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.errors import CheckpointError, ConfigError
from nlicot.model.base_model import PEFT_CONFIG, base_name, base_of_adapter
from nlicot.run.folder import PEFT_FOLDER, read_summary
from nlicot.settings import LoraSettings
from nlicot.text_tables import printable

PEFT_WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
STARTED_FROM = "started_from"
"""Key in `fit.json`."""
COMPARED = frozenset(("r", "lora_alpha", "target_modules", "peft_type", "init_lora_weights"))
WITHOUT_EFFECT = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode"),
        *("layers_pattern", "loftq_config", "lora_dropout", "megatron_core", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "task_type"),
    )
)
"""Keys of an `adapter_config.json` that change nothing on their own; any other that is set is refused."""
PLAIN_INITIAL_WEIGHTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initial weights that leave the base as it is; others, such as PiSSA's, subtract the adapter from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The start of a run as `fit.json` records it; `sha256` is that of the file of weights.

    `started_from` is the start of the run that wrote those weights, so the record is a chain.
    """

    path: str
    sha256: str
    base: str
    builder: str | None
    started_from: Origin | None = None

    @classmethod
    def in_summary(cls, summary: Mapping[str, Any]) -> Origin | None:
        """Return the record in a run's `fit.json`; None if the run started from a fresh adapter."""
        try:
            recorded = summary[STARTED_FROM]
            return cls(**{**recorded, STARTED_FROM: cls.in_summary(recorded)})
        except (KeyError, TypeError):
            return None

    def chain(self) -> list[Origin]:
        """Return all starts, the latest first."""
        return [self, *(self.started_from.chain() if self.started_from else [])]

    def __str__(self) -> str:
        return ", which started from ".join(
            printable(
                f"{each.path} ({f'builder {each.builder}, ' if each.builder else ''}base {each.base}, "
                f"sha256 {each.sha256[:12]})"
            )
            for each in self.chain()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingAdapter:
    """An adapter whose configuration was read; `base` is None for a checkpoint, which contains its name."""

    given: str
    weights_path: Path
    shape: Mapping[str, str]
    base: str | None
    builder: str | None
    origin: Origin | None

    @property
    def label(self) -> str:
        """The adapter's name in messages."""
        return f"--from {self.given}"

    def check_shape(self, lora: LoraSettings) -> None:
        """Refuse a shape that differs from that of the new run, with both values."""
        mine = lora_shape(lora.r, lora.alpha, lora.target_modules)
        differing = [
            f"--model.lora.{name}: found {mine[name]}, expected {expected}"
            for name, expected in self.shape.items()
            if mine[name] != expected
        ]
        if differing:
            raise ConfigError(
                f"{self.label} is an adapter of another shape; {'; '.join(differing)} "
                "(give its values, or start from another adapter)"
            )


def lora_shape(r: Any, alpha: Any, target_modules: Iterable[str]) -> dict[str, str]:
    """Return the settings that two adapters must share to be exchanged, as text.

    >>> lora_shape(8, 16.0, ["v_proj", "model.layers.0.self_attn.q_proj"])
    {'r': '8', 'alpha': '16', 'target_modules': '[q_proj,v_proj]'}
    """
    names = sorted({name.rpartition(".")[2] for name in target_modules})
    alpha = f"{alpha:g}" if isinstance(alpha, int | float) else str(alpha)
    return {"r": str(r), "alpha": alpha, "target_modules": f"[{','.join(names)}]"}


def read_peft_folder(given: str) -> StartingAdapter:
    """Read the configuration of a PEFT folder, which any tool may have written."""
    folder, label = Path(given).expanduser(), f"--from {given}"
    config = _read_config(folder / PEFT_CONFIG, label=label)
    weights_path = folder / PEFT_WEIGHTS
    if not weights_path.is_file():
        found = f"no {PEFT_WEIGHTS}"
        if (folder / PICKLED_WEIGHTS).is_file():
            found = f"{PICKLED_WEIGHTS}, a pickle, which could run code"
        raise CheckpointError(f"{label}: found {found}, expected {PEFT_WEIGHTS}; save it with safetensors")
    for name, value in config.items():
        if name not in COMPARED | WITHOUT_EFFECT and value and value != "none":
            raise _other_kind(label, name, value, "false" if value is True else "none")
    for name, expected, allowed in (
        ("peft_type", "LORA", ("LORA",)),
        ("init_lora_weights", "true", PLAIN_INITIAL_WEIGHTS),
    ):
        if (value := config.get(name)) not in allowed:
            raise _other_kind(label, name, value, expected)
    base, targets = config.get("base_model_name_or_path"), config.get("target_modules")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{label}: {PEFT_CONFIG}: base_model_name_or_path is missing; add the base's folder or hub name"
        )
    if not isinstance(targets, list):  # a pattern, which other tools write
        targets = _adapted_modules(weights_path, label=label)
    of_run = read_summary(folder.parent) if folder.name == PEFT_FOLDER else {}
    return StartingAdapter(
        given=given,
        weights_path=weights_path,
        shape=lora_shape(config.get("r"), config.get("lora_alpha"), map(str, targets)),
        base=base_name(base_of_adapter(base)),
        builder=of_run.get("builder"),
        origin=Origin.in_summary(of_run),
    )


def _read_config(path: Path, *, label: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{label}: found no JSON object in {PEFT_CONFIG}, expected the adapter's; copy it again"
        )
    return config


def _other_kind(label: str, name: str, value: object, expected: str) -> CheckpointError:
    shown = json.dumps(value, ensure_ascii=False)
    return CheckpointError(
        f"{label}: {PEFT_CONFIG}: {name}: found {shown[:60]}, expected {expected}, as in adapters of nlicot; "
        "start from another one"
    )


def _adapted_modules(weights_path: Path, *, label: str) -> set[str]:
    """Return the names of the modules that a file has a matrix for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights_path, framework="np") as file:
            names = file.keys()
            return {name.split(".lora_")[0] for name in names}
    except (SafetensorError, OSError) as error:
        raise damaged(label, error) from error


def damaged(label: str, error: Exception) -> CheckpointError:
    """Return the refusal of a file of weights that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{label}: {PEFT_WEIGHTS} is damaged ({reason}); copy it again")
