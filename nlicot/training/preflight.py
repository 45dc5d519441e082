"""Measure the cost of a fit before it starts: memory, time, and the largest micro-batch that fits.

`fit --preflight` runs the longest micro-batches that training can encounter, times micro-batches of the first
windows and of dev for a while, and extrapolates. It makes no run folder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer

from nlicot.model.fast import heap as memory
from nlicot.model.loaded_model import adapter_parameters
from nlicot.settings import DataSettings
from nlicot.training.batches import MicroBatch
from nlicot.training.datamodule import PairsData
from nlicot.training.loss import token_losses
from nlicot.training.module import NliModule, clear_gradients
from nlicot.training.sampler import WindowDataset

MEASURED_S = 20.0
"""How long to time micro-batches: many windows on a GPU, part of one on two CPU cores."""
NUM_WINDOWS = 20
"""Number of windows to average token counts over."""
USABLE = 0.9
"""Usable fraction of the memory; the rest is for fragmentation and for examples that need more padding."""
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One micro-batch's tokens and examples, and the process's peak memory while it ran."""

    num_tokens: int
    num_examples: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a fit.

    Attributes:
        longest: the longest micro-batch of the training split.
        usable_bytes: usable memory of the device.
        largest_budget: maximum tokens of a micro-batch that fits; None if a whole window does.
        step_s: duration of one optimizer step.
        dev_s: duration of one evaluation of the dev loss.
        num_steps: optimizer steps of the whole fit; None if nothing ends it.
        num_dev: number of evaluations of the dev loss.
        tokens_per_step: tokens through the model in one step.
    """

    longest: Peak
    usable_bytes: int
    largest_budget: int | None
    step_s: float
    dev_s: float
    num_steps: int | None
    num_dev: int
    tokens_per_step: float

    @property
    def total_s(self) -> float | None:
        """Duration of the whole fit, without decoding dev pairs."""
        return None if self.num_steps is None else self.num_steps * self.step_s + self.num_dev * self.dev_s


def measure(module: NliModule, data: PairsData, trainer: Trainer) -> Cost:
    """Measure micro-batches of a loaded model."""
    device = trainer.strategy.root_device
    module.to(device)
    windows, dev = data.windows("train"), data.windows("dev")
    order = list(islice(data.sampler("train", shuffle=True), NUM_WINDOWS))
    parameters = list(adapter_parameters(module.model).values())
    clear_gradients(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def train(batch: MicroBatch) -> None:
        with trainer.precision_plugin.forward_context():
            token_losses(module.model, batch.to(device))[0].sum().backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def evaluate(batch: MicroBatch) -> None:
        with trainer.precision_plugin.forward_context():
            token_losses(module.model, batch.to(device))

    budget = data.settings.micro_batch_tokens
    smaller, longest = (
        _peak(_longest(data, windows, tokens), train, optimizer) for tokens in (budget // 2, budget)
    )
    usable = int(USABLE * (memory.resident_bytes() + memory.available_bytes()))
    tokens_per_step = _mean_tokens(windows, order)
    module.model.train()
    per_token = _seconds_per_token(_micro_batches(windows, order), train)
    started = time.perf_counter()
    optimizer.step()
    optimizer_s = time.perf_counter() - started
    dev_order = list(data.sampler("dev", shuffle=False))
    module.model.eval()
    dev_per_token = _seconds_per_token(_micro_batches(dev, dev_order), evaluate)
    steps_per_epoch = len(data.sampler("train", shuffle=True))
    num_steps = _num_steps(trainer, steps_per_epoch)
    return Cost(
        longest=longest,
        usable_bytes=usable,
        largest_budget=_largest_budget(smaller, longest, usable, most=int(tokens_per_step)),
        step_s=tokens_per_step * per_token + optimizer_s,
        dev_s=_mean_tokens(dev, dev_order[:NUM_WINDOWS]) * len(dev_order) * dev_per_token,
        num_steps=num_steps,
        num_dev=_num_dev(trainer, num_steps or 0, steps_per_epoch),
        tokens_per_step=tokens_per_step,
    )


def _longest(data: PairsData, windows: WindowDataset, budget: int) -> MicroBatch:
    """The micro-batch with the most tokens at this budget: one of the longest examples."""
    order = sorted(range(len(windows)), key=lambda index: -windows.lengths[index])
    cut = WindowDataset(windows.encoded, token_budget=budget, share_prefix=data.settings.share_prefix)
    return max(
        cut[order[: data.settings.effective_batch]].micro_batches, key=lambda batch: len(batch.input_ids)
    )


def _peak(batch: MicroBatch, train: Callable[[MicroBatch], None], optimizer: Any) -> Peak:
    memory.reset_peak()
    train(batch)
    optimizer.step()
    return Peak(num_tokens=len(batch.input_ids), num_examples=len(batch), num_bytes=memory.peak_bytes())


def _micro_batches(windows: WindowDataset, order: Iterable[list[int]]) -> Iterable[MicroBatch]:
    return (batch for indices in order for batch in windows[indices].micro_batches)


def _mean_tokens(windows: WindowDataset, order: Iterable[list[int]]) -> float:
    """Mean tokens per window through the model; a shared prefix counts once per micro-batch."""
    return statistics.mean(
        sum(len(batch.input_ids) for batch in windows[indices].micro_batches) for indices in order
    )


def _seconds_per_token(batches: Iterable[MicroBatch], run: Callable[[MicroBatch], None]) -> float:
    """Time micro-batches for `MEASURED_S`; the first one counts too: its shapes are warm already."""
    num_tokens, started = 0, time.perf_counter()
    for batch in batches:
        run(batch)
        num_tokens += len(batch.input_ids)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if time.perf_counter() - started > MEASURED_S:
            break
    return (time.perf_counter() - started) / num_tokens


def _largest_budget(smaller: Peak, longest: Peak, usable: int, *, most: int) -> int | None:
    """Extrapolate linearly from two peaks (attention adds per example); None from `most` tokens on."""
    num_tokens = longest.num_tokens - smaller.num_tokens
    bytes_per_token = (longest.num_bytes - smaller.num_bytes) / num_tokens if num_tokens else 0.0
    if bytes_per_token <= 0:
        return longest.num_tokens
    fitting = max(0, longest.num_tokens + int((usable - longest.num_bytes) / bytes_per_token))
    return fitting if fitting < most else None


def _num_steps(trainer: Trainer, steps_per_epoch: int) -> int | None:
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * steps_per_epoch)
    return min(ends, default=None)


def _num_dev(trainer: Trainer, num_steps: int, steps_per_epoch: int) -> int:
    interval = trainer.val_check_interval or 1.0
    every = interval if isinstance(interval, int) else max(1, int(interval * steps_per_epoch))
    return int(num_steps // every)


def format_cost(cost: Cost, data: DataSettings, *, num_generated: int) -> str:
    """Format the cost as `fit --preflight` prints it.

    Args:
        num_generated: number of dev pairs decoded after each epoch.
    """
    longest, per_s = cost.longest, cost.tokens_per_step / cost.step_s
    peak, usable = longest.num_bytes / MEGABYTE, cost.usable_bytes / MEGABYTE
    fitting = (
        "a whole step at once" if cost.largest_budget is None else f"about {cost.largest_budget:,} tokens"
    )
    lines = [
        f"longest micro-batch   {longest.num_tokens:,} tokens, {longest.num_examples} examples",
        f"peak memory           {peak:,.0f} MB of {usable:,.0f}",
        f"largest micro-batch   {fitting} would fit "
        f"(--data.micro_batch_tokens, {data.micro_batch_tokens:,} now)",
        f"optimizer step        {_duration(cost.step_s)}: {data.effective_batch} examples, "
        f"{cost.tokens_per_step:,.0f} tokens at {per_s:,.0f} a second",
        f"dev loss              {_duration(cost.dev_s)} each time",
    ]
    if cost.total_s is None:
        lines.append(
            "time to finish        no --trainer.max_epochs and no --trainer.max_steps: nothing ends it"
        )
    else:
        decoding = f", and decoding {num_generated} dev pairs after each epoch" if num_generated else ""
        lines.append(
            f"time to finish        {_duration(cost.total_s)}: {cost.num_steps} optimizer steps and the dev "
            f"loss {cost.num_dev} times{decoding}; stopping early may end it sooner"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    """Format a duration for humans.

    >>> _duration(0.8), _duration(75), _duration(7_500)
    ('0.8 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
