"""`fit --preflight` measures before anything is trained, and leaves no trace."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.training import preflight
from nlicot.training.preflight import Peak
from tests.small_model import write_small_model

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def _flags(base: Path, folder: Path, *more: str) -> list[str]:
    flags = [f"--model.base={base}", f"--checkpoints_root={folder}", "--model.quantization=none"]
    limits = ["--data.limit_train=24", "--data.limit_dev=8", "--data.effective_batch=8"]
    return ["fit", "--preflight", *flags, *limits, *more]


def test_cost_is_printed_and_no_run_is_made(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 24 examples in windows of 8 are 3 steps an epoch; the dev loss is taken after every one of them.
    flags = ["--trainer.max_epochs=2", "--trainer.val_check_interval=0.34", "--data.micro_batch_tokens=1024"]
    assert main(_flags(base, tmp_path, *flags)) == 0
    said = capsys.readouterr().out
    longest = re.search(r"longest micro-batch\s+([\d,]+) tokens, (\d+) examples", said)
    assert longest is not None
    assert 512 < int(longest[1].replace(",", "")) <= 1024
    peak = re.search(r"peak memory\s+([\d,]+) MB of ([\d,]+)", said)
    assert peak is not None
    assert 0 < int(peak[1].replace(",", "")) < int(peak[2].replace(",", ""))
    assert "optimizer step" in said
    assert ": 6 optimizer steps and the dev loss 6 times, and decoding 8 dev pairs after each epoch" in said
    assert list(tmp_path.iterdir()) == []


def test_limits_of_the_trainer_count(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.max_epochs=4", "--trainer.limit_train_batches=2", "--generated_metrics.num_pairs=5"]
    epochs = ["--trainer.check_val_every_n_epoch=2", "--generated_metrics.every_n_epochs=2"]
    assert main(_flags(base, tmp_path, *flags, *epochs, "--trainer.val_check_interval=1.0")) == 0
    said = capsys.readouterr().out
    assert ": 8 optimizer steps and the dev loss 2 times, and decoding 5 dev pairs after every 2 e" in said


def test_with_several_devices_the_cost_is_that_of_ones_part(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokens_per_step(*flags: str) -> int:
        assert main(_flags(base, tmp_path, "--trainer.accelerator=cpu", *flags)) == 0
        found = re.search(r"8 examples, ([\d,]+) tokens (on each of 2 devices )?at ", capsys.readouterr().out)
        assert found is not None
        assert bool(found[2]) == bool(flags)
        return int(found[1].replace(",", ""))

    # The half of the examples, and the prompts' common beginning once more.
    whole, part = tokens_per_step(), tokens_per_step("--trainer.devices=2", "--trainer.strategy=ddp")
    assert 0.5 * whole < part < 0.7 * whole


def test_a_fit_without_an_end_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_flags(base, tmp_path, "--trainer.max_epochs=-1")) == 2
    assert "found -1 without --trainer.max_steps" in capsys.readouterr().err


def _peak(num_tokens: int, megabytes: int) -> Peak:
    return Peak(num_tokens=num_tokens, num_examples=1, num_bytes=megabytes * MEGABYTE)


def test_largest_micro_batch_lies_on_the_line_through_both_peaks() -> None:
    # 1,000 tokens more took 500 MB more, so the 1,000 MB that are left take 2,000 more.
    smaller, longest = _peak(1000, 1500), _peak(2000, 2000)
    assert preflight._largest_budget(smaller, longest, 3000 * MEGABYTE, most=10**6) == 4000
    assert preflight._largest_budget(smaller, longest, 3000 * MEGABYTE, most=4000) is None
    # What does not fit now is too large by as much as it is over.
    assert preflight._largest_budget(smaller, longest, 1750 * MEGABYTE, most=10**6) == 1500


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "interval", "every_n_epochs", "num_steps", "num_dev"),
    [
        (-1, 5, 0.25, 1, 50, 25),  # ten steps an epoch: every second one
        (-1, 5, 1.0, 1, 50, 5),
        (12, 5, 1.0, 1, 12, 1),
        (-1, 3, 7, 1, 30, 3),  # a whole number counts steps: the seventh of each epoch
        (-1, 3, 7, None, 30, 4),  # or each seventh of the fit
        (-1, 5, 0.5, 2, 50, 4),
        (16, 5, 0.5, 2, 16, 1),  # in the second epoch
        (26, 5, 0.5, 2, 26, 2),  # the third is not evaluated
    ],
)
def test_steps_and_dev_losses_are_those_of_the_trainer(
    max_steps: int, max_epochs: int, interval: Any, every_n_epochs: int | None, num_steps: int, num_dev: int
) -> None:
    trainer: Any = SimpleNamespace(
        max_steps=max_steps,
        max_epochs=max_epochs,
        val_check_interval=interval,
        check_val_every_n_epoch=every_n_epochs,
    )
    found = preflight._num_steps(trainer, 10)
    assert found == num_steps
    assert preflight._num_dev(trainer, found, 10) == num_dev
