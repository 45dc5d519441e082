"""`--format merged`: one model for transformers and everything that reads its folders, without an adapter.

The adapter was tuned on 4-bit weights, so it is merged into exactly those, dequantised. The base is loaded
for it: a forward pass may repack 4-bit weights, after which they cannot be read.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nlicot.export.agreement import Consumer
from nlicot.export.format import ASK, WholeModel
from nlicot.export.transformers_consumer import TransformersConsumer
from nlicot.model.base_model import BUNDLED, BUNDLED_HUB_NAME
from nlicot.model.loaded_model import merge_dense, safetensors_errors
from nlicot.prediction.predictor import Member, load_member

SHARD_SIZE = "5GB"
USAGE = f"""\
Load it with `transformers`, or any program that reads its folders:

```python
import json

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
model = AutoModelForCausalLM.from_pretrained(folder)
{ASK}
```"""


class Merged(WholeModel):
    """The dequantised base with the adapter added, rounded once."""

    name = "merged"
    library, usage = "transformers", USAGE
    has_lm_eval_task = True

    def write(self, folder: Path) -> None:
        """Write the model and the tokenizer."""
        folder.mkdir()
        resolved = self.member.resolved
        model = merged_model(self.member, self.dtype)
        name = resolved.base.name
        model.config._name_or_path = BUNDLED_HUB_NAME if name == BUNDLED else name
        with safetensors_errors():
            model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        resolved.prompt_format.save_tokenizer(folder, base_folder=resolved.base.folder)

    def load(self, folder: Path) -> Consumer:
        """Load the folder as any model of transformers."""
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder).to(device)
        return TransformersConsumer(f"transformers {version('transformers')}", model, folder)

    def next_step(self, folder: Path) -> str:
        """The call that loads it."""
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}), as its README.md shows"


def merged_model(member: Member, dtype: str) -> Any:
    """Return the dequantised base with the adapter added in float32 and rounded to `dtype` once."""
    loaded = load_member(member, dense=True)
    merge_dense(loaded.model, getattr(torch, dtype))
    return loaded.model.unload().to(getattr(torch, dtype))
