"""Measure the cost of a fit before it starts: memory, time, and the largest micro-batch that fits.

`fit --preflight` runs the longest micro-batches that training can encounter, times micro-batches of the first
windows and of dev for a while, and extrapolates. It makes no run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from lightning.pytorch import Trainer

from nlicot.model.fast import heap as memory
from nlicot.model.loaded_model import adapter_parameters
from nlicot.settings import GeneratedMetricsSettings
from nlicot.training.loss import token_losses
from nlicot.training.module import NliModule, clear_gradients
from nlicot.training.windows import MicroBatch, PairsData, WindowDataset

MEASURED_S = 20.0
"""How long to time micro-batches: many windows on a GPU, part of one on two CPU cores."""
NUM_WINDOWS = 20
"""Number of windows to average token counts over."""
USABLE = 0.9
"""Usable fraction of the memory; the rest is for fragmentation and for examples that need more padding."""
MEGABYTE = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One micro-batch's tokens and examples, and the process's peak memory while it ran."""

    num_tokens: int
    num_examples: int
    num_bytes: int


def measure(module: NliModule, data: PairsData, trainer: Trainer, generated: GeneratedMetricsSettings) -> str:
    """Measure micro-batches of a loaded model; return the cost of the fit as text."""
    device = trainer.strategy.root_device
    module.to(device)
    parameters = list(adapter_parameters(module.model).values())
    clear_gradients(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def run(batch: MicroBatch) -> None:
        with trainer.precision_plugin.forward_context():
            losses = token_losses(module.model, batch.to(device))[0]
            if torch.is_grad_enabled():
                losses.sum().backward()  # type: ignore[no-untyped-call]

    def windows_of(split: str) -> WindowDataset:
        return data.windows(split, rank=0, world_size=trainer.world_size)  # this device's part

    def peak(token_budget: int) -> Peak:
        batch = _longest(data, token_budget)
        memory.reset_peak()
        run(batch)
        optimizer.step()
        num_bytes = memory.peak_bytes()
        return Peak(num_tokens=len(batch.input_ids), num_examples=len(batch), num_bytes=num_bytes)

    budget = data.settings.micro_batch_tokens
    smaller, longest = peak(budget // 2), peak(budget)
    usable = int(USABLE * (memory.resident_bytes() + memory.available_bytes()))

    sampler, windows = data.sampler("train", shuffle=True), windows_of("train")
    order = list(islice(sampler, NUM_WINDOWS))
    tokens_per_step = _mean_tokens(windows, order)
    module.model.train()
    per_token_s = _seconds_per_token(windows, order, run)
    started = time.perf_counter()
    optimizer.step()
    step_s = tokens_per_step * per_token_s + time.perf_counter() - started

    dev_order, dev = list(data.sampler("dev", shuffle=False)), windows_of("dev")
    module.model.eval()
    with torch.no_grad():
        dev_per_token_s = _seconds_per_token(dev, dev_order, run)
    num_dev_windows = limited(len(dev_order), trainer.limit_val_batches)
    dev_s = _mean_tokens(dev, dev_order[:NUM_WINDOWS]) * num_dev_windows * dev_per_token_s

    largest = _largest_budget(smaller, longest, usable, most=int(tokens_per_step))
    fitting = "a whole step at once" if largest is None else f"about {largest:,} tokens"
    steps_per_epoch = max(1, limited(len(sampler), trainer.limit_train_batches))
    num_steps = _num_steps(trainer, steps_per_epoch)
    num_dev = _num_dev(trainer, num_steps, steps_per_epoch) if num_dev_windows else 0
    every = generated.every_n_epochs
    num_generated = len(data.data.dev_sample(generated.num_pairs)) if every else 0
    epochs = "each epoch" if every == 1 else f"every {every} epochs"
    decoding = f", and decoding {num_generated} dev pairs after {epochs}" if num_generated else ""
    to_finish = (
        f"{_duration(num_steps * step_s + num_dev * dev_s)}: {num_steps} optimizer steps and the dev "
        f"loss {num_dev} times{decoding}; stopping early may end it sooner"
    )
    each = f"on each of {trainer.world_size} devices " if trainer.world_size > 1 else ""
    return (
        f"longest micro-batch   {longest.num_tokens:,} tokens, {longest.num_examples} examples\n"
        f"peak memory           {longest.num_bytes / MEGABYTE:,.0f} MB of {usable / MEGABYTE:,.0f}\n"
        f"largest micro-batch   {fitting} would fit (--data.micro_batch_tokens, {budget:,} now)\n"
        f"optimizer step        {_duration(step_s)}: {data.settings.effective_batch} examples, "
        f"{tokens_per_step:,.0f} tokens {each}at {tokens_per_step / step_s:,.0f} a second\n"
        f"dev loss              {_duration(dev_s)} each time\n"
        f"time to finish        {to_finish}"
    )


def _longest(data: PairsData, token_budget: int) -> MicroBatch:
    """Return the micro-batch with the most tokens at this budget: one of the longest examples."""
    windows = data.windows("train", token_budget=token_budget)
    order = sorted(range(len(windows)), key=lambda index: -windows.lengths[index])
    window = windows[order[: data.settings.effective_batch]]
    return max(window.micro_batches, key=lambda batch: len(batch.input_ids))


def _mean_tokens(windows: WindowDataset, order: Sequence[list[int]]) -> float:
    """Return the mean tokens per window; a shared prefix counts once per micro-batch."""
    batches = (batch for indices in order for batch in windows[indices].micro_batches)
    return sum(len(batch.input_ids) for batch in batches) / len(order)


def _seconds_per_token(
    windows: WindowDataset, order: Sequence[list[int]], run: Callable[[MicroBatch], None]
) -> float:
    """Time micro-batches for `MEASURED_S`; the first one counts too: its shapes are warm already."""
    num_tokens, started = 0, time.perf_counter()
    for batch in (batch for indices in order for batch in windows[indices].micro_batches):
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


def _num_steps(trainer: Trainer, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole fit; `TrainerSettings` refuses one without an end."""
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * steps_per_epoch)
    return min(ends)


def limited(num_windows: int, limit: float) -> int:
    """Return how many windows of an epoch a limit of the trainer leaves: a number, or a proportion.

    >>> limited(40, 1.0), limited(40, 0.1), limited(40, 9), limited(40, 99)
    (40, 4, 9, 40)
    """
    return min(num_windows, limit) if isinstance(limit, int) else int(num_windows * limit)


def _num_dev(trainer: Trainer, num_steps: int, steps_per_epoch: int) -> int:
    """Return the number of evaluations; Lightning counts steps from each epoch's start, or the fit's."""
    interval = trainer.val_check_interval or 1.0
    every = interval if isinstance(interval, int) else max(1, int(interval * steps_per_epoch))
    if trainer.check_val_every_n_epoch is None:
        return int(num_steps // every)
    num_epochs, left = divmod(num_steps, steps_per_epoch)
    num_dev = num_epochs // trainer.check_val_every_n_epoch * (steps_per_epoch // every)
    is_last_evaluated = (num_epochs + 1) % trainer.check_val_every_n_epoch == 0
    return int(num_dev + is_last_evaluated * (left // every))


def _duration(seconds: float) -> str:
    """Format a duration.

    >>> _duration(0.8), _duration(75), _duration(7_500)
    ('0.8 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
