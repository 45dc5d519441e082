"""`--format gguf`: one file for llama.cpp with the merged model, its tokenizer and its settings."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from nlicot.export.agreement import Consumer
from nlicot.export.format import WholeModel
from nlicot.export.gguf_file import check_shape, write_model
from nlicot.export.gguf_vocabulary import vocabulary_of
from nlicot.export.llama_cpp_consumer import NEEDS, LlamaCppConsumer
from nlicot.export.merged import merged_model
from nlicot.prediction.predictor import Member

MODEL_FILE = "model.gguf"
USAGE = f"""\
Load it with llama.cpp: `llama-server -m {MODEL_FILE}`. The tokenizer and the chat template are in the file.
Ask at temperature 0, with one user message."""


class GgufModel(WholeModel):
    """The same weights as `merged`, for llama.cpp."""

    name = "gguf"
    library, usage = "gguf", USAGE
    weights = "*.gguf"
    needs = NEEDS

    def __init__(self, member: Member, dtype: str) -> None:
        super().__init__(member, dtype)
        base = member.resolved.base
        config = AutoConfig.from_pretrained(base.folder)
        check_shape(config, name=base.name)
        self._vocabulary = vocabulary_of(member.resolved.prompt_format, base.folder, config.vocab_size)

    def write(self, folder: Path) -> None:
        """Write the file."""
        folder.mkdir()
        model = merged_model(self.member, self.dtype)
        name = self.member.run_name
        write_model(model, self._vocabulary, folder / MODEL_FILE, dtype=self.dtype, name=name)

    def load(self, folder: Path) -> Consumer:
        """Load the file in llama.cpp."""
        return LlamaCppConsumer(folder / MODEL_FILE)

    def next_step(self, folder: Path) -> str:
        """A server."""
        return f"llama-server -m {folder / MODEL_FILE}"
