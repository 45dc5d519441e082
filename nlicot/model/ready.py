"""A model that is ready to decode, from one name: a base, or a run's folder with its adapter on its base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.errors import ModelError
from nlicot.model import base_model
from nlicot.model.lora import merge_dense
from nlicot.model.prompt_format import PromptFormat, load_prompt_format

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyModel:
    """A causal language model in eval mode, and what its ids mean."""

    model: Any
    prompt_format: PromptFormat


def load_ready(name: str) -> ReadyModel:
    """Load `bundled`, a model's folder, a hub name, a PEFT folder, or a run's folder.

    Raises:
        ModelError: it is not there, or this machine cannot run it.
    """
    adapter = _adapter_folder(Path(name).expanduser())
    base_name = name if adapter is None else _base_of(adapter)
    base_name = base_model.choose(base_name, None, on_sample=False, device=base_model.device_state())
    resolved = base_model.resolve(base_name)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = base_model.load(resolved, for_training=False)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
        merge_dense(model)
    model.eval()
    return ReadyModel(model=model, prompt_format=load_prompt_format(resolved.folder))


def _adapter_folder(folder: Path) -> Path | None:
    candidates = (folder, folder / "adapter")
    return next((path for path in candidates if (path / ADAPTER_CONFIG).is_file()), None)


def _base_of(adapter: Path) -> str:
    found = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not found:
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG}: found no base_model_name_or_path, expected the base's name"
        )
    return str(found)
