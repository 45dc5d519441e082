"""`--format peft`: the adapter, for peft on the base in 4 bits."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from nlicot.export.agreement import Consumer
from nlicot.export.format import ASK, BYTES, SMALL_FILES, Format, num_adapter_weights
from nlicot.export.transformers_consumer import TransformersConsumer
from nlicot.model.loaded_model import load_base
from nlicot.prediction.predictor import Member, load_member
from nlicot.report.card import Package

USAGE = """\
Load it with `peft`, on the base{in_4_bits}:

```python
import json

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer{imports}

folder = "."
model = AutoPeftModelForCausalLM.from_pretrained(folder{options})
{ask}
```"""
NF4_OPTIONS = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
)"""


class PeftFolder(Format):
    """The adapter in float32, as it was trained."""

    name = "peft"
    has_lm_eval_task = True
    dtypes = ("float32",)

    @classmethod
    def default_dtype(cls, member: Member) -> str:
        """Float32, the adapter's own."""
        return "float32"

    def num_bytes(self, *, checked: bool) -> int:
        """The adapter's size."""
        return num_adapter_weights(self.member) * BYTES[self.dtype] + SMALL_FILES

    def write(self, folder: Path) -> None:
        """Write the adapter and the tokenizer."""
        load_member(self.member).save_adapter(folder)
        resolved = self.member.resolved
        resolved.prompt_format.save_tokenizer(folder, base_folder=resolved.base.folder)

    def load(self, folder: Path) -> Consumer:
        """Load the base as it was tuned, and put the adapter on it, without merging."""
        from peft import PeftModel

        settings = self.member.settings
        base = load_base(
            self.member.resolved.base,
            quantization=settings.quantization,
            dtype=settings.dtype,
            for_training=False,
            dense=False,
        )
        name = f"peft {version('peft')}, transformers {version('transformers')}"
        return TransformersConsumer(name, PeftModel.from_pretrained(base, str(folder)), folder)

    def package(self) -> Package:
        """An adapter, on the base in 4 bits if it was tuned so."""
        in_4_bits = self.member.settings.quantization != "none"
        return Package(
            usage=USAGE.format(
                in_4_bits=" in 4 bits, as it was tuned" if in_4_bits else "",
                imports=", BitsAndBytesConfig" if in_4_bits else "",
                options=NF4_OPTIONS if in_4_bits else "",
                ask=ASK,
            )
        )

    def next_step(self, folder: Path) -> str:
        """The call that loads it."""
        return f"peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}), as its README.md shows"
