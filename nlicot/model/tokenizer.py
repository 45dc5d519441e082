"""A base's tokenizer without its weights, for commands that only look at tokens."""

from __future__ import annotations

from pathlib import Path

from nlicot.errors import ModelError
from nlicot.model.base_model import BUNDLED, bundled_file, choose, device_state, is_unpacked, resolve
from nlicot.model.prompt_format import ChatFormat, MistralFormat, PromptFormat, load_prompt_format

IN_MISTRAL_COMMON = ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3")
"""Models whose tokenizer comes with the package `mistral_common`, so that nothing is fetched."""


def base_to_look_at(base: str, fallback: str | None, *, on_sample: bool) -> str:
    """The base that `fit` would take; where it would refuse for want of a device, the one that was named."""
    try:
        return choose(base, fallback, on_sample=on_sample, device=device_state())
    except ModelError:
        return base


def load_tokenizer(base: str, name: str = "auto") -> PromptFormat:
    """The prompt format of a base; its ids are those that `fit` trains on.

    Args:
        base: `bundled`, a folder with `config.json` and a tokenizer, or a hub name.
        name: `auto`, `mistral` or `chat`.

    Raises:
        ModelError: it is not there, or the format does not fit the tokenizer.
    """
    is_folder = Path(base).expanduser().is_dir()
    if base in IN_MISTRAL_COMMON and not is_folder and name != "chat":
        return MistralFormat()
    if base == BUNDLED and name != "mistral" and not is_unpacked():
        from transformers import AutoTokenizer

        gguf_path = bundled_file()
        return ChatFormat(AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name))
    return load_prompt_format(resolve(base, weights=False).folder, name)
