"""From pairs to predictions, by one model or by several checkpoints one after the other.

Successive checkpoints of one base share it in memory. With several processes, each is a rank that decodes
a part.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pkgutil
import signal
import zipfile
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from nlicot import ranks
from nlicot.completion import Form
from nlicot.errors import CheckpointError, ConfigError, Interrupted
from nlicot.model.fast.heap import memory_for
from nlicot.model.loaded_model import (
    LoadedModel,
    ResolvedModel,
    choose_accelerator,
    compute_dtype,
    load_model,
    merge_dense,
    resolve_model,
)
from nlicot.prediction.decoding import Decoder, Engine, PromptBatch, average, by_length
from nlicot.prediction.prediction_files import PartialPredictions, in_order_of
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Prediction
from nlicot.run.config import TrainedRun
from nlicot.run.data import RunData
from nlicot.run.engines import ENGINES, TRANSFORMERS
from nlicot.run.folder import CONFIG, CheckpointMetadata
from nlicot.settings import (
    PRECISIONS,
    DecodingSettings,
    ModelSettings,
    PredictionSettings,
    TrainerSettings,
)

logger = logging.getLogger(__name__)

BLOCK = 2048
"""Consecutive pairs that are decoded together, in a whole file and in a shard: others change rounding."""
KEPT = "predictions made are kept, run the same command to continue"
NOT_A_CHECKPOINT = (
    *(OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError),
    *(UnpicklingError, zipfile.BadZipFile),
)
"""Errors of reading a damaged file, or one that something else wrote."""


class Predictor:
    """Asks one model about pairs, with the prompts and in a form of completion that it was trained on.

    Args:
        autocast: context for forward passes, in the number format of `Fabric` or a `Trainer`.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: StudentPrompts,
        forms: Collection[Form],
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._prompts = prompts
        self._prompt_form, self.form = answer_forms(forms, engine.settings.think)
        self.engine = engine
        self.autocast = autocast

    def render(self, premise: str, hypothesis: str) -> str:
        """Return the text of a pair's prompt."""
        return self._prompts.render(premise, hypothesis, form=self._prompt_form)

    def encode(self, premise: str, hypothesis: str) -> list[int]:
        """Return the ids of a pair's prompt."""
        return self.engine.prompt_format.encode_prompt(self.render(premise, hypothesis))

    def batch(self, examples: Sequence[Example], *, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """Encode the prompts that this rank decodes, the longest first."""
        return by_length(
            [example.id for example in examples],
            [array("i", self.encode(example.premise, example.hypothesis)) for example in examples],
            batch_size=self.engine.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def num_beyond_context(self, batch: PromptBatch) -> int:
        """Return how many prompts leave no room for an answer in the base's context."""
        num_answer = self.engine.settings.max_thought_tokens if self.form.thinks else 0
        longest = (self.engine.context_length or math.inf) - num_answer
        return sum(len(prompt) > longest for prompt in batch.prompts)

    def decode(self, batch: PromptBatch) -> Iterator[Prediction]:
        """Yield one prediction per prompt, as soon as it is done."""
        with self.autocast():
            yield from self.engine.decode(batch, form=self.form)


def answer_forms(trained: Collection[Form], think: bool | None) -> tuple[Form, Form]:
    """Return the forms of the prompt and of the answer for a model trained on the forms `trained`."""
    if think is None:
        think = all(form.thinks_before_label for form in trained)
    for form in Form:
        if form in trained and (form.thinks if think else not form.thinks_before_label):
            return form, form if think else Form.LABEL_ONLY
    known = ", ".join(sorted(form.value for form in trained))
    raise ConfigError(
        f"--model.decoding.think: found {str(think).lower()}, but the run was trained on {known} only"
    )


def check_votes(forms: Collection[Form], settings: DecodingSettings) -> None:
    """Refuse votes that would all be the same, and an answer in a form that was not trained."""
    _, form = answer_forms(forms, settings.think)
    if settings.votes > 1 and not form.thinks:
        raise ConfigError(
            f"--votes {settings.votes}: voting needs sampled thoughts, but this run predicts the label "
            "directly (add --think true)"
        )
    if settings.votes > 1 and settings.temperature <= 0:
        raise ConfigError(
            f"--votes {settings.votes}: without a temperature all votes are the same "
            "(add --model.decoding.temperature 0.7)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A checkpoint that was read and whose base was found; nothing heavy is loaded yet."""

    checkpoint: Path
    label: str  # names the checkpoint in messages
    weights: dict[str, torch.Tensor]
    metadata: CheckpointMetadata
    prompts: StudentPrompts
    resolved: ResolvedModel
    settings: ModelSettings
    trainer: TrainerSettings

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return self.checkpoint.resolve().parent.name

    def loaded_as(self) -> tuple[Any, ...]:
        """Return what must be equal for two adapters to fit on one base in memory."""
        settings = self.settings
        return self.resolved.base, settings.quantization, compute_dtype(settings.dtype), settings.lora

    def fingerprint(self, examples: Sequence[Example], predicted_by: str = TRANSFORMERS) -> str:
        """Hash everything that decides a prediction: the weights, how they are decoded, and the pairs."""
        digest = hashlib.sha256(self.checkpoint.read_bytes())
        forms = sorted(form.value for form in self.metadata.forms)
        decoding = replace(self.settings.decoding, batch_size=None)  # which changes rounding only
        digest.update(repr((decoding, forms)).encode())
        numbers = self.settings.quantization, compute_dtype(self.settings.dtype), self.trainer.precision
        digest.update(repr(numbers).encode())
        if predicted_by != TRANSFORMERS:
            digest.update(predicted_by.encode())
        for example in examples:
            digest.update(f"{example.id}\x1f{example.premise}\x1f{example.hypothesis}\x1e".encode())
        return digest.hexdigest()


def read_checkpoint(path: Path, *, label: str) -> dict[str, Any]:
    """Read a checkpoint, its tensors mapped from the file; `label` names it in messages."""
    remedy = "restore a copy of it, or train again"
    try:
        with zipfile.ZipFile(path) as file:  # `torch.load` does not compare the checksums
            if (damaged := file.testzip()) is not None:
                raise CheckpointError(f"{label}: damaged ({damaged} differs from its checksum); {remedy}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except NOT_A_CHECKPOINT as error:
        name = type(error).__name__
        raise CheckpointError(
            f"{label}: not a checkpoint of nlicot, or damaged ({name}); {remedy}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{label}: not a checkpoint of nlicot, but a {type(content).__name__}")
    return content


def read_member(run: TrainedRun, *, weights: bool = True) -> Member:
    """Read a checkpoint, find its base, and check that both can do what the settings ask.

    `weights` is that of `resolve_model`.
    """
    content = read_checkpoint(run.checkpoint, label=run.label)
    metadata = CheckpointMetadata.from_checkpoint(content, label=run.label)
    data = RunData(run.settings)
    settings = run.settings.model
    if "model.base" not in run.typed and settings.base == run.configured_base:
        settings = replace(settings, base=metadata.base)  # the run may have used its fallback
    if any(name.startswith(("data.prompts", "definitions", "config")) for name in run.typed):
        prompts = data.prompts
    else:  # those of its training, even if this version words them differently
        prompts = StudentPrompts.from_dict(dict(metadata.prompts))
    resolved = resolve_model(settings, on_sample=data.on_sample, weights=weights)
    metadata.check(CheckpointMetadata.of(resolved, prompts, metadata.forms))
    check_votes(metadata.forms, settings.decoding)
    return Member(
        checkpoint=run.checkpoint,
        label=run.label,
        weights=content["state_dict"],
        metadata=metadata,
        prompts=prompts,
        resolved=resolved,
        settings=settings,
        trainer=run.settings.trainer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The predictions in the order of the examples, and the predictor of the last member."""

    predictions: list[Prediction]
    partials: list[PartialPredictions]
    predictor: Predictor
    is_main: bool  # this process writes files; the others' predictions are empty


def decode(
    members: Sequence[Member], weights: Sequence[float], examples: Sequence[Example], name: str, folder: Path
) -> Decoded:
    """Predict all examples with each member, and average the predictions of several by `weights`.

    Files of this `name` in `folder` keep predictions as they are made; those that an interrupted process left
    are not repeated.
    """
    decoded: list[list[Prediction]] = []
    partials: list[PartialPredictions] = []
    loaded: LoadedModel | None = None
    predictor: Predictor | None = None
    undo_merge: Callable[[], None] | None = None
    for index, member in enumerate(members):
        # On the devices of the first one: processes start only once.
        fabric = _start_processes(member, members[0].trainer)
        predictor = None  # its prepared matrices would stay next to those of the next one
        if loaded is None or member.loaded_as() != members[index - 1].loaded_as():
            loaded = undo_merge = None  # one model in memory at a time
            loaded = load_member(member)
        else:
            loaded.load_adapter(member.weights, label=member.label)
        predictor, undo_merge = _predictor(member, loaded, fabric)
        partials.append(PartialPredictions(folder, name, member.fingerprint(examples), fabric.global_rank))
        is_one = fabric.world_size == 1
        with nullcontext() if is_one else ranks.ending_together(fabric.strategy, lambda: KEPT):
            decoded.append(_decode(predictor, examples, partials[-1], fabric))
        if undo_merge is not None and index + 1 < len(members):
            undo_merge()
    predictions = decoded[0]
    if len(members) > 1:
        by_id = [{prediction.id: prediction for prediction in each} for each in decoded]
        predictions = [average([each[first.id] for each in by_id], weights) for first in predictions]
    assert predictor is not None  # there is a member
    return Decoded(
        predictions=predictions, partials=partials, predictor=predictor, is_main=fabric.is_global_zero
    )


def decode_elsewhere(
    member: Member, examples: Sequence[Example], name: str, folder: Path, settings: PredictionSettings
) -> Decoded:
    """Predict all examples with an engine other than transformers; the files are those of `decode`."""
    engine_class: Callable[..., Engine] = pkgutil.resolve_name(ENGINES[settings.engine].class_path)
    predictor = Predictor(engine_class(member, settings), member.prompts, member.metadata.forms)
    partial = PartialPredictions(folder, name, member.fingerprint(examples, settings.predicted_by), rank=0)
    fabric = Fabric(accelerator="cpu", devices=1)  # one process
    predictions = _decode(predictor, examples, partial, fabric)
    return Decoded(predictions=predictions, partials=[partial], predictor=predictor, is_main=True)


def load_member(member: Member, *, dense: bool | None = None) -> LoadedModel:
    """Load a checkpoint's base and its adapter, not merged; `dense` as for `load_base`."""
    loaded = load_model(member.resolved, member.settings, for_training=False, dense=dense)
    loaded.load_adapter(member.weights, label=member.label)
    return loaded


def load_predictor(member: Member) -> Predictor:
    """Load a checkpoint to predict with in this process only."""
    fabric = Fabric(
        accelerator=choose_accelerator("auto"),
        devices=1,
        precision=member.trainer.precision or PRECISIONS[compute_dtype(member.settings.dtype)],
    )
    predictor, _ = _predictor(member, load_member(member), fabric)
    return predictor


def _predictor(
    member: Member, loaded: LoadedModel, fabric: Fabric
) -> tuple[Predictor, Callable[[], None] | None]:
    """Return a member's predictor and, if its settings merge the adapter, a function that undoes that."""
    loaded.model.to(fabric.device)
    decoding = member.settings.decoding
    with fabric.autocast():  # the merged update is rounded like the adapter's own products
        undo_merge = merge_dense(loaded.model) if decoding.merge else None
    engine = Decoder(loaded.model, loaded.prompt_format, decoding)
    predictor = Predictor(engine, member.prompts, member.metadata.forms, autocast=fabric.autocast)
    return predictor, undo_merge


def _start_processes(member: Member, trainer: TrainerSettings) -> Fabric:
    """Start one process per device of `trainer`; each runs this command from the start."""
    strategy: Any = trainer.strategy if isinstance(trainer.strategy, str) else "auto"
    try:
        fabric = Fabric(
            accelerator=choose_accelerator(
                trainer.accelerator if isinstance(trainer.accelerator, str) else "auto"
            ),
            strategy=strategy,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            precision=member.trainer.precision or PRECISIONS[compute_dtype(member.settings.dtype)],
        )
        if {ranks.OF_TORCHRUN, ranks.OF_SRUN} & os.environ.keys():
            ranks.check_num_processes(fabric.world_size)
        fabric.launch()
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        names = "--trainer.accelerator, .strategy, .devices, .num_nodes or .precision"
        origin = f"{names} (or in {member.checkpoint.parent / CONFIG})"
        raise ConfigError(f"{origin}: Lightning refuses this: {error}") from error
    return fabric


def memory_for_rows(num_rows: int, way: Callable[[str], str]) -> AbstractContextManager[None]:
    """Name the rows if memory is not enough for them; `way` says what to do, given the flag for fewer."""
    smaller = f"--model.decoding.batch_size {max(1, num_rows // 2)}"
    return memory_for(f"{num_rows} rows at once", remedy=lambda: way(smaller))


def _decode(
    predictor: Predictor, examples: Sequence[Example], partial: PartialPredictions, fabric: Fabric
) -> list[Prediction]:
    done = partial.read()
    fabric.barrier()  # all ranks have read before one of them writes
    if done and fabric.is_global_zero:
        print(f"{len(done)} of {len(examples)} predictions were made before; continuing with the others")
    known = {prediction.id for prediction in done}
    blocks = [
        [example for example in examples[start : start + BLOCK] if example.id not in known]
        for start in range(0, len(examples), BLOCK)
    ]
    fresh: list[Prediction] = []
    num_beyond = 0
    num_mine = -(-sum(map(len, blocks)) // fabric.world_size)
    bar = tqdm(total=num_mine, unit="pair", disable=not fabric.is_global_zero)
    memory = memory_for_rows(
        predictor.engine.batch_size, lambda smaller: f"use {smaller}; predictions made are kept"
    )
    try:
        with memory, partial.writer() as store, bar:
            for block in filter(None, blocks):
                batch = predictor.batch(block, rank=fabric.global_rank, world_size=fabric.world_size)
                num_beyond += predictor.num_beyond_context(batch)
                for prediction in predictor.decode(batch):
                    store(prediction)
                    fresh.append(prediction)
                    bar.update()
    except KeyboardInterrupt as stop:
        num_kept = len(partial.read())  # the file's: a signal may come between writing and counting
        message = f"{num_kept} of {len(examples)} predictions are kept, run the same command to continue"
        raise Interrupted(message, getattr(stop, "signum", signal.SIGINT)) from None
    if num_beyond:
        logger.warning(
            "%d of %d prompts do not fit, with their answers, into the %s tokens that the base was trained "
            "for: do not rely on these predictions",
            *(num_beyond, len(fresh), predictor.engine.context_length),
        )
    every = [*done, *gather(fresh, fabric.world_size)]
    return in_order_of(examples, every) if fabric.is_global_zero else []


def gather(predictions: list[Prediction], world_size: int) -> list[Prediction]:
    """Return the predictions of all ranks."""
    if world_size == 1:
        return predictions
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, predictions)
    return [prediction for part in parts for prediction in part]


def member_weights(given: str | None, num_members: int) -> list[float]:
    """Parse `--weights`; without it all members weigh the same."""
    if given is None:
        return [1.0] * num_members
    try:
        weights = [float(part) for part in given.split(",")]
    except ValueError:
        weights = []
    are_weights = len(weights) == num_members and all(0 <= weight < math.inf for weight in weights)
    if not are_weights or not sum(weights):
        raise ConfigError(
            f"--weights: found {given!r}, expected {num_members} comma-separated numbers, one per "
            "--ckpt_path, none negative, not all zero"
        )
    return weights
