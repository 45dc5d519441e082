"""Predictions for pairs by one loaded model, in this process or as one of several ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist

from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.model.loaded_model import LoadedModel
from nlicot.prediction.decoding import Decoder, PromptBatch, answer_forms, prompt_batches
from nlicot.prediction.faithfulness import Probe, probe_thoughts
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Prediction
from nlicot.settings import DecodingSettings


class Predictor:
    """Asks one model about pairs, in the words it was trained on.

    Args:
        loaded: the model; the caller sets eval mode.
        prompts: the prompts it was trained on.
        forms: the forms of completion it was trained on.
        settings: how to decode.
        autocast: context for forward passes, in the number format of `Fabric` or a `Trainer`.

    Raises:
        ConfigError: the model was not trained to answer as `settings.think` asks.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: StudentPrompts,
        forms: Collection[Form],
        settings: DecodingSettings,
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._prompts = prompts
        self._prompt_form, self._answer_form = answer_forms(forms, settings.think)
        self._decoder = Decoder(loaded.model, loaded.prompt_format, settings)
        self._autocast = autocast

    def batch(self, examples: Sequence[Example], *, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """Encode the prompts that this rank decodes, the longest first.

        Ranks take batches in turn, so that no pair is decoded twice; what one rank takes goes to the decoder
        at once, which refills its rows.
        """
        prompts = [self._encode(example.premise, example.hypothesis) for example in examples]
        ids = [example.id for example in examples]
        batches = prompt_batches(ids, prompts, self._decoder.settings.batch_size)[rank::world_size]
        return PromptBatch(
            ids=[id_ for batch in batches for id_ in batch.ids],
            prompts=[prompt for batch in batches for prompt in batch.prompts],
        )

    def decode(self, batch: PromptBatch) -> Iterator[Prediction]:
        """Yield one prediction per prompt, as soon as it is done."""
        with self._autocast():
            yield from self._decoder.decode_all(batch.ids, batch.prompts, form=self._answer_form)

    def probe(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Probe]:
        """Measure how labels change without the thought, with another one, and without the premise."""
        with self._autocast():
            return probe_thoughts(self._decoder, self._encode, examples, predictions, form=self._answer_form)

    def _encode(self, premise: str, hypothesis: str) -> list[int]:
        prompt = self._prompts.render(premise, hypothesis, form=self._prompt_form)
        return self._decoder.prompt_format.encode_prompt(prompt)


def check_votes(forms: Collection[Form], settings: DecodingSettings) -> None:
    """Refuse votes that would all be the same.

    Raises:
        ConfigError: several votes without a temperature or without thoughts, or as `answer_forms`.
    """
    _, form = answer_forms(forms, settings.think)
    if settings.votes > 1 and form is Form.LABEL_ONLY:
        raise ConfigError(
            f"--votes {settings.votes}: voting needs sampled thoughts, but this run predicts the label "
            "directly (add --think true)"
        )
    if settings.votes > 1 and settings.temperature <= 0:
        raise ConfigError(
            f"--votes {settings.votes}: without a temperature all votes are the same "
            "(add --model.decoding.temperature 0.7)"
        )


def gather(predictions: list[Prediction], world_size: int) -> list[Prediction]:
    """Return the predictions of all ranks."""
    if world_size == 1:
        return predictions
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, predictions)
    return [prediction for part in parts for prediction in part]
