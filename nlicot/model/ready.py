"""Loading a model for decoding by one name: a base, or a run or PEFT folder with its adapter merged in."""

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
    """A causal language model in eval mode, and its prompt format."""

    model: Any
    prompt_format: PromptFormat


def load_ready(name: str) -> ReadyModel:
    """Load `bundled`, a model folder, a hub name, a PEFT folder, or a run folder.

    Raises:
        ModelError: the model does not exist, or this machine cannot run it.
    """
    from peft import PeftModel
    from transformers.utils import logging as transformers_logging

    folder = Path(name).expanduser()
    adapter = next((path for path in (folder, folder / "adapter") if (path / ADAPTER_CONFIG).is_file()), None)
    base_name = name if adapter is None else _base_of(adapter / ADAPTER_CONFIG)
    base_name = base_model.choose(base_name, None, on_sample=False, device=base_model.device_state())
    resolved = base_model.resolve(base_name)
    transformers_logging.disable_progress_bar()
    model = base_model.load(resolved, for_training=False)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
        merge_dense(model)
    model.eval()
    return ReadyModel(model=model, prompt_format=load_prompt_format(resolved.folder))


def _base_of(config_path: Path) -> str:
    found = json.loads(config_path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not found:
        raise ModelError(
            f"{config_path}: base_model_name_or_path is missing; add the base's folder or hub name"
        )
    return str(found)
