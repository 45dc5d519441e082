"""The models of the benchmarks: the bundled one, or one with random weights in the shape of a known model.

A random model is written to the cache once and needs no download: its tokenizer is Mistral's, from the
package mistral_common. Its speed and memory are those of the real model; its losses and labels mean nothing,
and its thoughts never close, so each takes the whole budget.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

BUNDLED = "bundled"
MISTRAL_7B = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
SHAPES = {
    "mistral-7b": MISTRAL_7B,
    # The same path in seconds on a CPU, for the tests.
    "tiny": MISTRAL_7B
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
# Its heads are of a size that nlicot's own forward pass takes on a CPU.
SHAPES["tiny-on-cpu"] = SHAPES["tiny"] | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def resolved_base(shape: str) -> Any:
    """Return the base model of a shape for `load_base`; writes a random one if it is not in the cache."""
    from nlicot.data.atomic_write import build_folder_once
    from nlicot.model.base_model import ResolvedBase, resolve

    if shape == BUNDLED:
        return resolve(BUNDLED)
    folder = random_model_folder(shape)
    # Not `build_cache`, which reads all 14 GB again in each process to check them.
    build_folder_once(folder, lambda fresh: write_random_model(fresh, shape), problem=_missing)
    return ResolvedBase(name=str(folder), folder=folder)


def random_model_folder(shape: str) -> Path:
    """Return the folder in the cache that `resolved_base` writes a random model to."""
    from nlicot.model.base_model import cache_folder

    return cache_folder() / f"random-{shape}"


def _missing(folder: Path) -> str | None:
    return None if (folder / "config.json").is_file() else "missing"


def write_random_model(folder: Path, shape: str) -> None:
    """Write random bfloat16 weights and no tokenizer, so that the prompt format is Mistral's."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM._from_config(MistralConfig(**SHAPES[shape]), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def peers_tokenizer(shape: str) -> Any:
    """Return a tokenizer for libraries that ask for one; of a random model's, they only use the padding."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if shape == BUNDLED:
        return AutoTokenizer.from_pretrained(resolved_base(shape).folder)
    from tokenizers import Tokenizer, models

    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")


def flash_attention_installed() -> bool:
    """Check for the package flash-attn, which transformers' padding-free attention needs to be fast."""
    return importlib.util.find_spec("flash_attn") is not None
