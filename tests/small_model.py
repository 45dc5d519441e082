"""A Llama of two layers with random weights and the bundled model's tokenizer: seconds, not minutes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from nlicot.model.base_model import resolve
from nlicot.model.loaded_model import load_model, resolve_model
from nlicot.run.data import RunData
from nlicot.run.folder import CheckpointMetadata
from nlicot.settings import DataSettings, ModelSettings, RunSettings
from nlicot.training.module import NliModule
from nlicot.training.windows import PairsData


def small_training(
    model: ModelSettings, data: DataSettings, *, kind: type[NliModule] = NliModule
) -> tuple[NliModule, PairsData]:
    """Load a model and the sample data for a `Trainer`, as `fit` does."""
    read = RunData(RunSettings(data=data))
    read.read_for_fit()
    resolved = resolve_model(model, on_sample=True)
    metadata = CheckpointMetadata.of(resolved, read.prompts, read.forms)
    loaded = load_model(resolved, model, for_training=True, seed=0)
    return kind(loaded, model, metadata), PairsData(read, resolved.prompt_format)


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def small_llama(vocab_size: int, **options: Any) -> LlamaConfig:
    """The shape of the two layers."""
    return LlamaConfig(vocab_size=vocab_size, **SHAPE, **options)


def small_mistral(vocab_size: int, **options: Any) -> MistralConfig:
    """The same shape as a Mistral."""
    return MistralConfig(vocab_size=vocab_size, **SHAPE, **options)


def write_small_model(folder: Path, *, favoured: dict[int, float] | None = None) -> Path:
    """Write the model to `folder`; the logits of `favoured` tokens are scaled, so that they often win."""
    bundled = resolve("bundled").folder
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        small_llama(
            49152,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    with torch.no_grad():
        for token, scale in (favoured or {}).items():
            model.lm_head.weight[token] *= scale
    model.save_pretrained(folder)
    for path in bundled.glob("tokenizer*"):
        shutil.copy(path, folder)
    shutil.copy(bundled / "chat_template.jinja", folder)
    return folder
