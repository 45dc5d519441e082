"""The Lightning module: one optimizer step per window, and the dev loss by segment.

Optimization is manual: `training_step` walks the micro-batches of a window and divides by the window's
supervised tokens over all ranks, so the loss is exact for any micro-batch size and number of ranks
(Lightning's own accumulation averages per micro-batch: its issue 20350).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from nlicot.errors import ConfigError, NlicotError
from nlicot.model.encoding import UNSUPERVISED, TokenKind
from nlicot.model.fast.heap import trim_heap
from nlicot.model.fast.kernels import seed_dropout
from nlicot.model.loaded_model import LoadedModel, adapter_parameters
from nlicot.model.sharded_base import hide_from_ddp, shard_base
from nlicot.run.folder import METADATA_KEY, CheckpointMetadata
from nlicot.settings import ModelSettings
from nlicot.training.loss import (
    num_right_labels,
    sum_by_kind,
    token_losses,
    training_losses,
    weights_by_kind,
)
from nlicot.training.windows import MicroBatch, Window, placeholder

logger = logging.getLogger(__name__)


class NliModule(LightningModule):
    """Trains the adapter of a loaded model to think aloud and to label; `seed` is for dropout.

    `metadata` is stored in every checkpoint.
    """

    def __init__(
        self, loaded: LoadedModel, settings: ModelSettings, metadata: CheckpointMetadata, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the adapter only
        self.loaded = loaded
        self.model = loaded.model
        self.settings = settings
        self.metadata = metadata
        self.seed = seed
        self._is_sharded = False
        zero, one = (loaded.prompt_format.encode_segment(digit, first=False)[0] for digit in "01")
        self._label_ids = zero, one
        self._dev_sums = torch.zeros(len(TokenKind), dtype=torch.float64)
        self._dev_counts = torch.zeros(len(TokenKind), dtype=torch.float64)
        self._dev_labels = torch.zeros(2, dtype=torch.float64)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return only the adapter's weights, in float32."""
        return self.loaded.adapter_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what prediction needs besides the weights."""
        checkpoint[METADATA_KEY] = self.metadata.to_dict()

    def configure_model(self) -> None:
        """Share the base among the devices of a machine, once the processes are connected."""
        trainer = self.trainer
        if not self.settings.shard_base or self._is_sharded:
            return
        shape = trainer.num_nodes, trainer.world_size // trainer.num_nodes
        # Lightning moves the module to its device only after this.
        mesh = init_device_mesh(
            trainer.strategy.root_device.type, shape, mesh_dim_names=("machines", "devices")
        )
        shard_base(self.model, mesh["devices"])
        hide_from_ddp(self)
        self._is_sharded = True

    def _micro_batches(self, window: Window) -> list[MicroBatch]:
        """Return this rank's micro-batches; as many as on the other ranks if they share the base."""
        own = window.micro_batches
        if not self._is_sharded:
            return own
        most = torch.tensor(len(own), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return [*own, *(placeholder().to(self.device) for _ in range(int(most) - len(own)))]

    # --------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Set the learning rate of a resumed run: its checkpoint has that of a run of the earlier length."""
        if not self.global_step:
            return
        schedule: Any = self.lr_schedulers()
        schedule.last_epoch -= 1
        schedule.step()
        logger.info(
            "continuing after step %d of %d, with a learning rate of %.3g",
            self.global_step,
            self.trainer.estimated_stepping_batches,
            schedule.get_last_lr()[0],
        )

    def configure_optimizers(self) -> Any:
        """Return AdamW on the adapter, with linear warm-up, then linear decay to 0."""
        optimizer = torch.optim.AdamW(
            adapter_parameters(self.model).values(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        factor = warm_up_and_decay(int(self.trainer.estimated_stepping_batches), self.settings.warmup_ratio)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, window: Window, batch_idx: int) -> None:
        """Take one optimizer step on one window."""
        started = time.perf_counter()
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        parameters = list(adapter_parameters(self.model).values())
        clear_gradients(parameters)
        num_steps = int(self.trainer.estimated_stepping_batches)
        progress = min(1.0, self.global_step / max(1, num_steps - 1))
        segment_weights = weights_by_kind(self.settings.segment_weights, progress)
        weights = segment_weights.to(self.device)
        weight_total = float((window.num_by_kind * segment_weights).sum())
        if not weight_total:
            raise ConfigError(
                "--model.segment_weights: found weight 0 for every supervised token of step "
                f"{self.global_step}, expected a weight above 0 for some"
            )
        sums = torch.zeros(len(TokenKind), dtype=torch.float64, device=self.device)
        # Gradients are summed over ranks once, below: a synchronising backward pass would wait for ranks that
        # have fewer micro-batches.
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
            for index, batch in enumerate(self._micro_batches(window)):
                seed_dropout(self.seed, self.global_step, index, self.global_rank)
                trim_heap()  # freed blocks fragment the heap
                losses = training_losses(self.model, batch, self._label_ids)
                self.manual_backward((losses * weights[batch.kinds]).sum() / weight_total)
                sums += sum_by_kind(losses, batch.kinds)
                del losses  # and the autograd graph, which would fragment memory in the next micro-batch
        if self.trainer.world_size > 1:
            _sum_gradients_over_ranks(parameters)
            dist.all_reduce(sums)
        norm = clip_grad_norm_(parameters, self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise NlicotError(
                f"step {self.global_step}: the gradient norm is {float(norm)}; lower --model.learning_rate"
            )
        self.log("train/learning_rate", float(schedule.get_last_lr()[0]))  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr, call-arg]
        duration_s = time.perf_counter() - started
        num_supervised = float(window.num_by_kind.sum() - window.num_by_kind[list(UNSUPERVISED)].sum())
        self._log_losses("train", sums.cpu(), window.num_by_kind, segment_weights)
        if self.settings.segment_weights.final_thought_weight is not None:
            self.log("train/thought_weight", float(segment_weights[TokenKind.THOUGHT]))
        self.log("train/grad_norm", float(norm))
        self.log("train/tokens_per_s", float(window.num_by_kind.sum()) / duration_s, prog_bar=True)
        self.log("train/supervised_tokens_per_s", num_supervised / duration_s)

    def _log_losses(self, split: str, sums: Tensor, counts: Tensor, segment_weights: Tensor) -> None:
        """Log the mean loss over tokens, weighted as in training, and the plain mean of each segment."""
        weights = segment_weights.double()
        self.log(f"{split}/loss", float((sums * weights).sum() / (counts * weights).sum()), prog_bar=True)
        for kind in (TokenKind.THOUGHT, TokenKind.SCAFFOLD, TokenKind.LABEL, TokenKind.DRAFT):
            if counts[kind]:
                self.log(f"{split}/loss_{kind.name.lower()}", float(sums[kind] / counts[kind]))

    # --------------------------------------------------------------- dev loss

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of an evaluation."""
        for sums in (self._dev_sums, self._dev_counts, self._dev_labels):
            sums.zero_()

    def validation_step(self, window: Window, batch_idx: int) -> None:
        """Add a window's dev loss."""
        for batch in self._micro_batches(window):
            losses, hidden = token_losses(self.model, batch)
            self._dev_sums += sum_by_kind(losses, batch.kinds).cpu()
            self._dev_counts += torch.bincount(batch.kinds, minlength=len(TokenKind)).cpu()
            self._dev_labels[0] += num_right_labels(self.model, batch, hidden, self._label_ids)
            self._dev_labels[1] += int((batch.kinds == TokenKind.LABEL).sum())

    def on_validation_epoch_end(self) -> None:
        """Log the dev loss, in all and by segment; each rank saw its own part of every window."""
        totals = torch.cat([self._dev_sums, self._dev_counts, self._dev_labels])
        if self.trainer.world_size > 1:
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        sums, counts, labels = totals.cpu().tensor_split([len(TokenKind), 2 * len(TokenKind)])
        if counts.sum():
            self._log_losses("dev", sums, counts, weights_by_kind(self.settings.segment_weights))
            self.log("dev/teacher_forced_label_accuracy", float(labels[0] / labels[1]))


def warm_up_and_decay(num_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """Return each step's factor of the peak learning rate: a linear rise, then a linear fall to 0.

    Unlike transformers' linear schedule, the first step has a learning rate above 0.

    >>> factor = warm_up_and_decay(10, 0.3)
    >>> [round(factor(step), 2) for step in (0, 2, 3, 9, 10)]
    [0.25, 0.75, 1.0, 0.14, 0.0]
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))

    return factor


def clear_gradients(parameters: list[Parameter]) -> None:
    """Set all gradients to zeros.

    They are allocated before the activations: between them, they would fragment the memory that these leave.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()


def _sum_gradients_over_ranks(parameters: list[Parameter]) -> None:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = parameters_to_vector(grads)
    dist.all_reduce(flat)
    vector_to_parameters(flat, grads)
