"""Read the weights that a new run starts with (`fit --from`), and check that they belong to its base.

Only the weights are taken: optimizer, schedule, data and position are the new run's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nlicot.data.checksums import CHECKSUMS, damage, sha256_of
from nlicot.errors import CheckpointError
from nlicot.model.base_model import PEFT_CONFIG
from nlicot.model.loaded_model import ResolvedModel
from nlicot.prediction.predictor import read_checkpoint
from nlicot.prompts import StudentPrompts
from nlicot.run.folder import CheckpointMetadata
from nlicot.run.starting_adapter import Origin, StartingAdapter, damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Weights under their names in a checkpoint, and their origin.

    `metadata` is that of a checkpoint of nlicot; a PEFT folder has none.
    """

    label: str
    origin: Origin
    weights: Mapping[str, Tensor]
    metadata: CheckpointMetadata | None

    @classmethod
    def read(cls, adapter: StartingAdapter, base: str) -> WarmStart:
        """Read an adapter for a run on the base of this name.

        Raises:
            CheckpointError: it is damaged, or belongs to another base.
        """
        label, path, metadata = adapter.label, adapter.weights_path, None
        its_base, remedy = adapter.base, f"or correct base_model_name_or_path in its {PEFT_CONFIG}"
        if its_base is None:
            content = read_checkpoint(path, label=label)
            metadata = CheckpointMetadata.from_checkpoint(content, label=label)
            its_base, remedy, weights = metadata.base, "or start from another run", content["state_dict"]
        else:
            weights = _read_peft_weights(adapter)
        if its_base != base:
            raise CheckpointError(
                f"{label} is an adapter of another base; --model.base: found {base}, expected {its_base} "
                f"(give its base, {remedy})"
            )
        if not all(bool(torch.isfinite(each).all()) for each in weights.values()):
            raise CheckpointError(f"{label}: found weights that are not finite; start from another adapter")
        origin = Origin(
            path=adapter.given,
            sha256=sha256_of(path),
            base=its_base,
            builder=adapter.builder,
            started_from=adapter.origin,
        )
        return cls(label=label, origin=origin, weights=weights, metadata=metadata)

    def check_tokenizer(self, resolved: ResolvedModel) -> None:
        """Refuse another tokenizer or prompt format than that of a checkpoint; prompts may differ."""
        if self.metadata is not None:
            prompts = StudentPrompts.from_dict(dict(self.metadata.prompts))
            self.metadata.check(CheckpointMetadata.of(resolved, prompts, self.metadata.forms))


def _read_peft_weights(adapter: StartingAdapter) -> dict[str, Tensor]:
    """Read a PEFT folder's weights; PEFT leaves the adapter's own name, `default`, out of their names."""
    folder = adapter.weights_path.parent
    if (folder / CHECKSUMS).exists() and (found := damage(folder)):
        raise CheckpointError(f"{adapter.label}: {found}; copy it again, or train again")
    try:
        stored = load_file(adapter.weights_path)
    except (SafetensorError, OSError) as error:
        raise damaged(adapter.label, error) from error
    return {
        "model." + re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", name): weight
        for name, weight in stored.items()
    }
