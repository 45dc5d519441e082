"""The Lightning data module: encodes a run's training examples and hands out a window of them per step."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from nlicot.errors import ConfigError
from nlicot.model.base_model import cache_folder
from nlicot.model.encoding import EncodingReport, encode_dataset
from nlicot.model.prompt_format import PromptFormat
from nlicot.run.data import RunData
from nlicot.training.batches import Window
from nlicot.training.sampler import WindowDataset, WindowSampler

logger = logging.getLogger(__name__)


class PairsData(LightningDataModule):
    """The encoded training examples of a run.

    Lightning stores its state in checkpoints under the class's name.

    Args:
        data: pairs that were read and built.
        prompt_format: the base's markers and tokenizer.

    Raises:
        ConfigError: no example of a split fits into the token budget.
    """

    def __init__(self, data: RunData, prompt_format: PromptFormat) -> None:
        super().__init__()
        self.data = data
        self.settings = data.settings
        self._resume_at: tuple[int, int] | None = None
        self._encoded: dict[str, Any] = {}
        for split, built in data.built.items():
            self._encoded[split], report = encode_dataset(
                prompt_format,
                built,
                max_length=self.settings.max_length,
                over_budget=self.settings.over_budget,
                cache=cache_folder(),
            )
            logger.info("%s: %s", split, _budget_line(report, self.settings.max_length))
            if not report.num_examples:
                raise ConfigError(
                    f"--data.max_length {self.settings.max_length}: too short for every example of {split}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training: the epoch, and how many of its windows are done."""
        trainer = self._trainer
        completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"epoch": trainer.current_epoch, "window": completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was written."""
        self._resume_at = (state_dict["epoch"], state_dict["window"])

    def train_dataloader(self) -> DataLoader[Window]:
        """Return windows, one per optimizer step."""
        sampler = self.sampler("train", shuffle=True)
        if self._resume_at is not None:
            sampler.resume_at(*self._resume_at)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Window]:
        """Return windows of the dev examples."""
        return self._loader("dev", self.sampler("dev", shuffle=False))

    def sampler(self, split: str, *, shuffle: bool) -> WindowSampler:
        """Return the order of a split's examples, cut into windows."""
        return WindowSampler(
            len(self._encoded[split]),
            window_size=self.settings.effective_batch,
            seed=self.data.seed,
            shuffle=shuffle,
        )

    def windows(self, split: str, *, rank: int = 0, world_size: int = 1) -> WindowDataset:
        """Return the encoded examples of a split, a window at a time."""
        return WindowDataset(
            self._encoded[split],
            token_budget=self.settings.micro_batch_tokens,
            rank=rank,
            world_size=world_size,
            share_prefix=self.settings.share_prefix,
        )

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("loaders need a Trainer: it knows the rank")
        return self.trainer

    def _loader(self, split: str, sampler: WindowSampler) -> DataLoader[Any]:
        windows = self.windows(split, rank=self._trainer.global_rank, world_size=self._trainer.world_size)
        # As `sampler`, not `batch_sampler`: Lightning sets the epoch on the former only.
        return DataLoader(windows, batch_size=None, sampler=sampler, collate_fn=_unchanged)


def _budget_line(report: EncodingReport, max_length: int) -> str:
    return (
        f"{report.num_examples} examples, {report.num_tokens} tokens "
        f"({report.num_supervised} supervised, the longest example {report.longest}); over the budget of "
        f"{max_length}: {report.num_cut} cut at a sentence end, {report.num_dropped} left out"
    )


def _unchanged(batch: Any) -> Any:
    return batch
