"""Runs of the small model to export, and a few steps of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nlicot.cli import main
from nlicot.prediction.predictor import Member, read_member
from nlicot.run.config import parse_export
from tests.small_model import write_small_model

FIT = [
    *("--data.limit_train=16", "--data.limit_dev=12", "--data.effective_batch=16", "--trainer.max_steps=2"),
    *("--generated_metrics.every_n_epochs=0", "--final_evaluation=false", "--model.lora.r=4"),
    *("--model.learning_rate=3e-2", "--model.decoding.max_thought_tokens=6"),
]


def fit(base: Path | str, root: Path, name: str, *flags: str) -> Path:
    """Fit a run; return its folder."""
    run = [f"--model.base={base}", f"--checkpoints_root={root}", f"--run={name}"]
    assert main(["fit", *run, *FIT, *flags]) == 0
    return root / name


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base") / "small")


@pytest.fixture(scope="session")
def label_run(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that predicts labels only, tuned on 4-bit weights."""
    return fit(small_base, tmp_path_factory.mktemp("runs"), "labels", "--data.builder=label_only")


@pytest.fixture(scope="session")
def thinking_run(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that thinks, tuned on dense weights."""
    flags = ["--data.builder=reflected", "--model.quantization=none"]
    return fit(small_base, tmp_path_factory.mktemp("runs"), "thinks", *flags)


@pytest.fixture(scope="session")
def member() -> Callable[[Path], Member]:
    """Read a run's checkpoint."""
    return lambda run: read_member(parse_export([str(run), "--format", "merged"]))
