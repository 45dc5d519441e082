"""`--engine vllm`: vLLM in this process, with the run's base and its adapter, not merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nlicot.errors import CheckpointError, ModelError
from nlicot.model.loaded_model import compute_dtype
from nlicot.prediction.engines.text import BatchEngine, GeneratedText, TextRequest
from nlicot.run.folder import BEST, PEFT_FOLDER
from nlicot.run.starting_adapter import PEFT_WEIGHTS
from nlicot.settings import PredictionSettings

if TYPE_CHECKING:
    from nlicot.prediction.predictor import Member

BATCH_SIZE = 256
"""Rows handed over together by default, and stored together: as many as vLLM runs at once by default."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank`."""


class VllmEngine(BatchEngine):
    """Hands token ids to vLLM.

    Raises:
        CheckpointError: the run's PEFT folder does not have the checkpoint's weights.
        ModelError: vLLM cannot run the base.
    """

    def __init__(self, member: Member, settings: PredictionSettings) -> None:
        super().__init__(member, settings)
        adapter = member.checkpoint.parent / PEFT_FOLDER
        _check_adapter(adapter, member)
        rank = member.settings.lora.r
        if rank > RANKS[-1]:
            raise ModelError(f"--engine vllm: found an adapter of rank {rank}, expected {RANKS[-1]} at most")
        base = member.resolved.base
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest

            self._model = LLM(
                model=str(base.folder),
                dtype=compute_dtype(member.settings.dtype),
                quantization="bitsandbytes" if member.settings.quantization == "nf4" else None,
                seed=self.settings.seed,
                enable_lora=True,
                max_lora_rank=next(each for each in RANKS if each >= rank),
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"--engine vllm: cannot load {base.name}: {reason}") from error
        self._adapter = LoRARequest("run", 1, str(adapter.resolve()))

    @property
    def batch_size(self) -> int:
        """The number of rows handed over together."""
        return self.settings.batch_size or BATCH_SIZE

    def generate(self, requests: Sequence[TextRequest]) -> list[GeneratedText]:
        """Have the texts generated."""
        outputs = self._generate(
            [each.ids for each in requests],
            [
                {
                    "max_tokens": each.max_tokens,
                    "stop": [each.stop],
                    "seed": each.seed,
                    "temperature": self.settings.temperature,
                    "top_p": self.settings.top_p,
                }
                for each in requests
            ],
        )
        return [GeneratedText(text=each.text, is_closed=each.finish_reason == "stop") for each in outputs]

    def log_probabilities(
        self, rows: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[Mapping[int, float]]:
        """Have one token generated, and exactly those of `ids` rated."""
        options = {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": list(ids)}
        outputs = self._generate(rows, [options] * len(rows))
        return [{token: each.logprob for token, each in output.logprobs[0].items()} for output in outputs]

    def _generate(self, rows: Sequence[Sequence[int]], options: Sequence[Mapping[str, Any]]) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        outputs = self._model.generate(
            [TokensPrompt(prompt_token_ids=list(row)) for row in rows],
            [SamplingParams(**each) for each in options],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        return [output.outputs[0] for output in outputs]


def _check_adapter(folder: Path, member: Member) -> None:
    """Refuse a PEFT folder with other weights than the checkpoint's: `fit` writes those of `best.ckpt`."""
    try:
        found = load_file(folder / PEFT_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder}: no adapter that vLLM can load ({type(error).__name__}); restore a copy of it, "
            "or train again"
        ) from error
    # PEFT leaves the adapter's own name out of those of its weights.
    expected = {
        name.removeprefix("model.").replace(".default.weight", ".weight"): weight
        for name, weight in member.weights.items()
    }
    if found.keys() != expected.keys() or any(not torch.equal(found[name], expected[name]) for name in found):
        raise CheckpointError(
            f"{member.label}: --engine vllm loads {folder}, which has other weights; name {BEST}, or predict "
            "with --engine transformers"
        )
