"""Lightning callbacks of a fit: its checkpoints, metrics of generated predictions, and TensorBoard's charts.

`last.ckpt` is written when a batch starts, after the evaluation that may have followed the previous step: so
its early-stopping state, best score and window counter always agree, whenever the process is killed
(Lightning's own mid-epoch state does not: its issues 21938, 19764). A signal that stops the fit takes effect
when a batch starts, too.
"""

from __future__ import annotations

import copy
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import matplotlib as mpl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryConfusionMatrix,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
)

from nlicot import signals
from nlicot.data.atomic_write import disk_errors, scratch_folder
from nlicot.errors import ConfigError
from nlicot.model.fast.heap import large_blocks_apart
from nlicot.prediction.decoding import Decoder
from nlicot.prediction.predictor import Predictor, gather, memory_for_rows
from nlicot.records import LABEL_NAMES, LABELS, Example, Prediction
from nlicot.run.data import RunData
from nlicot.run.folder import BEST, LAST, PEFT_FOLDER
from nlicot.settings import CheckpointSettings, DecodingSettings, GeneratedMetricsSettings
from nlicot.text_tables import printable

GENERATED = "dev_generated/"
LAYOUT = {
    "dev": {
        "loss": ["Multiline", ["^dev/loss$"]],
        "accuracy": ["Multiline", ["^dev_generated/accuracy$"]],
        "loss of the label": ["Multiline", ["^dev/loss_label$"]],
        "F1": ["Multiline", ["^dev_generated/f1$"]],
    },
    "train and dev": {
        "loss": ["Multiline", ["^train/loss$", "^dev/loss$"]],
        "loss of the label": ["Multiline", ["^train/loss_label$", "^dev/loss_label$"]],
    },
}
"""TensorBoard's custom scalars: charts by page section, with regular expressions for their tags."""


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Lightning's, after a resume too: with the present patience, and with the decision to stop.

    Lightning restores the patience of the checkpoint, and forgets the decision. The class has Lightning's
    name because its state in a checkpoint has.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state, and the threshold that a decision to stop was made with."""
        return {**super().state_dict(), "stopping_threshold": self.stopping_threshold}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of evaluations without improvement, and not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        was_reached = self.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD
        if was_reached and state_dict.get("stopping_threshold") != self.stopping_threshold:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step if the run was stopped, unless patience or threshold were changed."""
        reasons = (EarlyStoppingReason.NOT_STOPPED, EarlyStoppingReason.PATIENCE_EXHAUSTED)
        trainer.should_stop |= self.wait_count >= self.patience or self.stopping_reason not in reasons

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check after each epoch if predictions are decoded then."""
        if self._check_on_train_epoch_end is None and self.monitor.startswith(GENERATED):
            self._check_on_train_epoch_end = True
        super().setup(trainer, pl_module, stage)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if _is_measured(trainer, self.monitor, flag="--early_stopping.monitor"):
            super()._run_early_stopping_check(trainer)


@dataclass(eq=False)
class RunCheckpoints(Callback):
    """Write `best.ckpt`, `adapter/` and `last.ckpt` to a run's folder, each atomically.

    `stop` has noted a signal that ends the fit, with `last.ckpt` at the batch that comes next.
    """

    folder: Path
    settings: CheckpointSettings
    stop: signals.Deferred
    best: float | None = None
    best_step: int = -1
    last_saved_step: int = 0
    evaluated: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best, "best_step": self.best_step, "last_saved_step": self.last_saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value of an earlier process."""
        vars(self).update(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's checkpoint writer and signal handlers, and correct a count after a resume."""
        # The number of batches logged before a resume is one too high.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _CheckpointFiles()
        # In place of Lightning's, which call a collective inside the handler, maybe in the middle of another.
        signals.install(self.stop)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write `last` after an evaluation, before the next, or after enough steps; stop after a signal."""
        num_steps = trainer.global_step - self.last_saved_step
        is_due = self.evaluated or num_steps >= self.settings.every_n_steps
        is_stopping = self.stop.signum is not None
        if trainer.world_size > 1:  # all processes stop at the same batch
            is_stopping = trainer.strategy.reduce_boolean_decision(is_stopping, all=False)
        follows = _evaluation_follows(trainer, batch_idx, trainer.global_step + 1)
        if num_steps and (is_due or is_stopping or follows):
            self.evaluated = False
            self._save_last(trainer)
        if is_stopping:
            raise signals.Stopped(self.stop.signum or Signals.SIGTERM)
        self.stop.waits = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let signals stop the fit at once before and in an evaluation, which may take long, or at its end.

        A resume repeats the step before it, at whose start `last` was written.
        """
        if _evaluation_follows(trainer, batch_idx, trainer.global_step):
            self.stop.waits = False
            if self.stop.signum is not None:
                raise signals.Stopped(self.stop.signum)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the adapter if this evaluation is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.evaluated = True
        if not self.settings.monitor.startswith(GENERATED):
            self._save_if_best(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the adapter if this epoch's generated predictions are the best so far."""
        self.evaluated = True
        if self.settings.monitor.startswith(GENERATED):
            self._save_if_best(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write `last`, so that a resume may add steps; and the adapter, if no evaluation has chosen one."""
        epochs: Any = trainer.fit_loop.epoch_progress
        windows = trainer.fit_loop.epoch_loop.batch_progress
        if not trainer.global_step:
            return
        if _inside_an_epoch(trainer):
            # Lightning counts the epoch as done. With these counts, a resume continues it at the next window.
            kept = copy.deepcopy((epochs.current, epochs.total))
            for counts in (epochs.current, epochs.total):
                counts.processed -= 1
                counts.completed -= 1
            windows.increment_ready()
            self._save_last(trainer)
            epochs.current, epochs.total = kept
        else:  # a resume starts the next epoch at its first window
            windows.reset_on_run()
            self._save_last(trainer)
        if self.best is None and trainer.is_global_zero:
            pl_module.loaded.save_adapter(self.folder / PEFT_FOLDER)

    def _save_if_best(self, trainer: Trainer, pl_module: Any) -> None:
        monitor, sign = self.settings.monitor, 1.0 if self.settings.mode == "min" else -1.0
        if not _is_measured(trainer, monitor, flag="--checkpoint.monitor"):
            return
        value = float(trainer.callback_metrics[monitor])
        if math.isnan(value) or (self.best is not None and sign * value >= sign * self.best):
            return
        self.best, self.best_step = value, trainer.global_step
        self._save(trainer, BEST, weights_only=True)
        if trainer.is_global_zero:
            pl_module.loaded.save_adapter(self.folder / PEFT_FOLDER)

    def _save_last(self, trainer: Trainer) -> None:
        self.last_saved_step = trainer.global_step
        self._save(trainer, LAST, weights_only=False)

    def _save(self, trainer: Trainer, name: str, *, weights_only: bool) -> None:
        trainer.save_checkpoint(self.folder / name, weights_only=weights_only)


class _CheckpointFiles(TorchCheckpointIO):
    """Writes next to the final name; Lightning writes to the system's temporary folder, and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # `torch.save` to a file hides the reason of an error
        torch.save(checkpoint, content)
        with disk_errors(Path(path)), scratch_folder(Path(path)) as scratch:
            fresh = scratch / "new"
            with fresh.open("xb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)


def _is_measured(trainer: Trainer, monitor: str, *, flag: str) -> bool:
    """Return whether a figure has a value yet; refuse a name that no figure has."""
    if monitor in trainer.callback_metrics:
        return True
    if (f"{GENERATED}num_pairs" if monitor.startswith(GENERATED) else "dev/loss") in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ConfigError(f"{flag}: found {monitor!r}, expected one of {known}")
    return False


def _inside_an_epoch(trainer: Trainer) -> bool:
    """Return whether some of an epoch's windows are done, and not all."""
    return 0 < trainer.fit_loop.epoch_loop.batch_progress.current.completed < trainer.num_training_batches


def _evaluation_follows(trainer: Trainer, batch_idx: int, step: int) -> bool:
    """Return whether a batch is the last before an evaluation, of an epoch, or of the fit.

    `step` is the number of optimizer steps up to the end of the batch.
    """
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    counted = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    is_last = batch_idx + 1 == trainer.num_training_batches or step == trainer.max_steps
    return is_last or (every is not None and (counted + 1) % every == 0)


@dataclass(eq=False)
class GeneratedMetrics(Callback):
    """Decode a sample of dev pairs at the end of an epoch; log accuracy, precision, recall and F1.

    Users get what the model generates; the module logs the label's accuracy given the true thought, which is
    optimistic.
    """

    settings: GeneratedMetricsSettings
    data: RunData
    decoding: DecodingSettings
    remedy: Callable[[str], str]
    """Returns what to do if memory is too small without a flag."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout of TensorBoard's charts; a resumed run's event file has it."""
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and trainer.is_global_zero and not trainer.global_step:
            board.add_custom_scalars(LAYOUT)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode and log."""
        every = self.settings.every_n_epochs
        if every < 1 or (trainer.current_epoch + 1) % every:
            # Lightning keeps the figures of an earlier epoch, which early stopping would count again.
            for name in [each for each in trainer.callback_metrics if each.startswith(GENERATED)]:
                del trainer.callback_metrics[name]
            return
        examples = self.data.dev_sample(self.settings.num_pairs)
        predictions = self._decode(trainer, pl_module, examples)
        true = torch.tensor([example.label for example in examples])
        found = torch.tensor([predictions[example.id].predicted_label for example in examples])
        metrics = MetricCollection(
            {
                "accuracy": BinaryAccuracy(),
                "precision": BinaryPrecision(),
                "recall": BinaryRecall(),
                "f1": BinaryF1Score(),
            }
        )
        for name, value in metrics(found, true).items():
            pl_module.log(f"{GENERATED}{name}", value, prog_bar=name == "accuracy")
        pl_module.log(f"{GENERATED}num_pairs", float(len(examples)))
        closed = sum(prediction.status != "truncated" for prediction in predictions.values())
        pl_module.log(f"{GENERATED}closed_share", closed / len(examples))
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and trainer.is_global_zero:
            mpl.use("agg")
            confusion, names = BinaryConfusionMatrix(), [LABEL_NAMES[label] for label in LABELS]
            figure, _ = confusion.plot(confusion(found, true), labels=names, cmap="Blues")
            board.add_figure(f"{GENERATED}confusion", figure, trainer.global_step)
            for index, example in enumerate(examples[: self.settings.num_texts]):
                text = _as_markdown(example, predictions[example.id])
                board.add_text(f"{GENERATED}thought_{index}", text, trainer.global_step)

    def _decode(self, trainer: Trainer, pl_module: Any, examples: list[Example]) -> dict[str, Prediction]:
        decoder = Decoder(pl_module.loaded.model, pl_module.loaded.prompt_format, self.decoding)
        predictor = Predictor(
            decoder,
            self.data.prompts,
            self.data.forms,
            autocast=trainer.precision_plugin.forward_context,
        )
        was_training = pl_module.model.training
        pl_module.model.eval()
        batch = predictor.batch(examples, rank=trainer.global_rank, world_size=trainer.world_size)
        with memory_for_rows(decoder.batch_size, self.remedy), large_blocks_apart():
            predictions = list(predictor.decode(batch))
        pl_module.model.train(was_training)
        return {prediction.id: prediction for prediction in gather(predictions, trainer.world_size)}


def _as_markdown(example: Example, prediction: Prediction) -> str:
    verdict = "right" if prediction.predicted_label == example.label else "wrong"
    return (
        f"**Premise:** {_literal(example.premise)}\n\n**Hypothesis:** {_literal(example.hypothesis)}\n\n"
        f"**Thought:** {_literal(prediction.thought_process or '')}\n\n"
        f"**Label:** {prediction.predicted_label} (true {example.label}, {verdict}; "
        f"p(entailment) = {prediction.p_entailment:.3f}, {prediction.status})"
    )


def _literal(text: str) -> str:
    """Spell punctuation as HTML entities: TensorBoard's Markdown would fetch the image in `![](http://...)`.

    >>> _literal("a <b> *c*")
    'a &#60;b&#62; &#42;c&#42;'
    """
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"&#{ord(found[0])};", printable(text))
