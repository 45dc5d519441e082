"""`--format gguf-adapter`: the adapter for llama.cpp, on a GGUF file of the same base."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from nlicot.export.agreement import Consumer
from nlicot.export.format import (
    BYTES,
    SMALL_FILES,
    Format,
    dtype_of_training,
    num_adapter_weights,
    num_base_weights,
)
from nlicot.export.gguf_file import check_shape, write_adapter, write_model
from nlicot.export.gguf_vocabulary import vocabulary_of
from nlicot.export.llama_cpp_consumer import NEEDS, LlamaCppConsumer
from nlicot.model.loaded_model import load_base
from nlicot.prediction.predictor import Member
from nlicot.report.card import Package

ADAPTER_FILE = "adapter.gguf"
PREFIX, SUFFIX = "model.base_model.model.", ".default.weight"
"""Around a matrix's name in a checkpoint."""
USAGE = f"""\
Load it with llama.cpp on a GGUF file of the base: `llama-server -m BASE.gguf --lora {ADAPTER_FILE}`. Ask at
temperature 0, with one user message. The adapter was tuned on a base in 4 bits (NF4): on a file that is
quantised in another way, predictions differ a little."""


class GgufAdapter(Format):
    """A and B in float32 or float16: coarser numbers would lose small updates."""

    name = "gguf-adapter"
    weights = "*.gguf"
    dtypes = ("float32", "float16")
    needs = NEEDS

    def __init__(self, member: Member, dtype: str) -> None:
        super().__init__(member, dtype)
        self._base = member.resolved.base
        self._config = AutoConfig.from_pretrained(self._base.folder)
        check_shape(self._config, name=self._base.name)

    @classmethod
    def default_dtype(cls, member: Member) -> str:
        """Float32, the adapter's own."""
        return "float32"

    def num_bytes(self, *, checked: bool) -> int:
        """The adapter's size; the check also needs a file of the base."""
        base = num_base_weights(self._base.folder) * BYTES[dtype_of_training(self.member)] if checked else 0
        return num_adapter_weights(self.member) * BYTES[self.dtype] + base + SMALL_FILES

    def write(self, folder: Path) -> None:
        """Write the file."""
        folder.mkdir()
        write_adapter(
            adapter_matrices(self.member),
            self._config,
            folder / ADAPTER_FILE,
            alpha=self.member.settings.lora.alpha,
            dtype=self.dtype,
            name=self.member.run_name,
        )

    def load(self, folder: Path) -> Consumer:
        """Load the file in llama.cpp, on the dequantised base, which is written next to the folder."""
        base = folder.parent / "base.gguf"
        settings, prompt_format = self.member.settings, self.member.resolved.prompt_format
        model = load_base(
            self._base,
            quantization=settings.quantization,
            dtype=settings.dtype,
            for_training=False,
            dense=True,
        )
        vocabulary = vocabulary_of(prompt_format, self._base.folder, self._config.vocab_size)
        dtype = dtype_of_training(self.member)
        write_model(model, vocabulary, base, dtype=dtype, name=self._base.name)
        return LlamaCppConsumer(base, folder / ADAPTER_FILE)

    def package(self) -> Package:
        """An adapter for llama.cpp."""
        return Package(usage=USAGE, library="gguf")

    def next_step(self, folder: Path) -> str:
        """A server."""
        return f"llama-server -m BASE.gguf --lora {folder / ADAPTER_FILE}"


def adapter_matrices(member: Member) -> dict[str, torch.Tensor]:
    """Return A and B as `<module>.lora_a` and `.lora_b`, by the modules' names in the base."""
    return {
        name.removeprefix(PREFIX)
        .removesuffix(SUFFIX)
        .replace(".lora_A", ".lora_a")
        .replace(".lora_B", ".lora_b"): each
        for name, each in member.weights.items()
    }
