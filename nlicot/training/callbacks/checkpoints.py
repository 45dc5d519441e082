"""Write a run's checkpoints: the best adapter, its PEFT folder, and the last state to resume from.

`last` is written when a batch starts, after the evaluation that may have followed the previous step: so its
early-stopping state, best score and window counter always agree, whenever the process is killed (Lightning's
own mid-epoch state does not: its issues 21938, 19764).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from nlicot.errors import ConfigError
from nlicot.run.folder import BEST, LAST, PEFT_FOLDER
from nlicot.training.module import NliModule

GENERATED_PREFIX = "dev_generated/"


class RunCheckpoints(Callback):
    """Write `best.ckpt`, `adapter/` and `last.ckpt` to a run's folder, each atomically.

    Args:
        folder: the run's folder.
        monitor: the logged metric that decides: one under `dev/`, measured at each evaluation, or under
            `dev_generated/`, measured once per epoch.
        mode: `min` or `max`.
        every_n_steps: how often to write `last`, in addition to each evaluation.
    """

    def __init__(
        self, folder: Path, monitor: str = "dev/loss", mode: str = "min", every_n_steps: int = 50
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"--checkpoint.mode: found {mode!r}, expected min or max")
        self.folder = folder
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self.best_step = -1
        self.last_saved_step = 0
        self.evaluated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best, "best_step": self.best_step, "last_saved_step": self.last_saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value of an earlier process."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.last_saved_step = state_dict["last_saved_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct Lightning's count of batches logged before a resume, which is one too high."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write `last` after an evaluation, or after enough steps."""
        if self.evaluated or trainer.global_step - self.last_saved_step >= self.every_n_steps:
            self.evaluated = False
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the adapter if this evaluation is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.evaluated = True
        if not self.monitor.startswith(GENERATED_PREFIX):
            self._save_if_best(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the adapter if this epoch's generated predictions are the best so far."""
        self.evaluated = True
        if self.monitor.startswith(GENERATED_PREFIX):
            self._save_if_best(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last` with the finished state."""
        # The epoch is over: a resume that adds epochs starts the next one at its first window.
        trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()
        self._save_last(trainer)

    def _save_if_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"--checkpoint.monitor: found {self.monitor!r}, expected one of {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if math.isnan(value) or (self.best is not None and self.sign * value >= self.sign * self.best):
            return
        self.best, self.best_step = value, trainer.global_step
        self._save(trainer, BEST, weights_only=True)
        if trainer.is_global_zero:
            module = cast("NliModule", pl_module)
            module.loaded.save_adapter(self.folder / PEFT_FOLDER)

    def _save_last(self, trainer: Trainer) -> None:
        self.last_saved_step = trainer.global_step
        self._save(trainer, LAST, weights_only=False)

    def _save(self, trainer: Trainer, name: str, *, weights_only: bool) -> None:
        fresh = self.folder / f".{name}.tmp"
        trainer.save_checkpoint(fresh, weights_only=weights_only)
        if trainer.is_global_zero:
            fresh.replace(self.folder / name)
