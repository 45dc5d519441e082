"""A fit that is killed with SIGKILL and resumed ends with the adapter of an uninterrupted fit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlicot.config_files import SAMPLE
from tests.small_model import write_small_model
from tests.time_limits import HANGS_S

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
# 40 examples in windows of 4: ten steps an epoch, an evaluation after steps 2, 4, 6, 8 and so on.
FLAGS = [
    "--data.builder=reflected",
    "--data.limit_train=40",
    "--data.limit_dev=8",
    "--data.effective_batch=4",
    "--trainer.max_epochs=2",
    "--checkpoint.every_n_steps=3",
    "--generated_metrics.every_n_epochs=0",
    "--final_evaluation=false",
    "--model.lora.r=4",
    "--model.learning_rate=1e-2",
]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def whole_run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return _fit_whole(tmp_path_factory.mktemp("runs"), str(small_model))


# What the progress bar shows when the process is killed. `last.ckpt` is written after every third step
# and after every evaluation, so that each of these falls between two of them.
MOMENTS = {
    "in the middle of the first epoch": r"Epoch 0:[^\r]* 7/10 ",
    "while an evaluation runs": r"Epoch 0:[^\r]* 8/10 .*Validation DataLoader 0:",
    "while the evaluation at an epoch's end runs": r"Epoch 0:[^\r]* 10/10 .*Validation DataLoader 0:",
    "after the first step of the second epoch": r"Epoch 1:[^\r]* 1/10 ",
    "after the very last step": r"Epoch 1:[^\r]* 10/10 ",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_run_has_the_adapter_of_the_whole_run(
    moment: str, small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    _fit_until(MOMENTS[moment], tmp_path, str(small_model))
    _resume(tmp_path / "run")
    _assert_same_run(whole_run, tmp_path / "run")


def test_run_that_is_killed_twice_has_the_adapter_of_the_whole_run(
    small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    _fit_until(MOMENTS["in the middle of the first epoch"], tmp_path, str(small_model))
    _until(r"Epoch 1:[^\r]* 5/10 ", ["--resume", str(tmp_path / "run")])
    _resume(tmp_path / "run")
    _assert_same_run(whole_run, tmp_path / "run")


def test_bundled_model_in_4_bits_resumes_to_the_same_adapter(tmp_path: Path) -> None:
    flags = ["--data.limit_train=24", "--trainer.max_epochs=1", "--model.learning_rate=1e-3"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = _fit_whole(tmp_path / "whole", "bundled", *flags)
    _fit_until(r"Epoch 0:[^\r]* 5/6 ", tmp_path / "killed", "bundled", *flags)
    _resume(tmp_path / "killed" / "run")
    _assert_same_run(whole, tmp_path / "killed" / "run")


def test_a_weight_that_changes_and_samples_that_take_turns_resume_to_the_same_adapter(
    small_model: Path, tmp_path: Path
) -> None:
    """Three samples for each pair: the second epoch, in which the fit is killed, has other ones."""
    data = shutil.copytree(SAMPLE, tmp_path / "data")
    path = data / "original_thoughts" / "train.jsonl"
    thoughts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    samples = [
        {**each, "sample": number, "thought_process": f"Sample {number}. {each['thought_process']}"}
        for each in thoughts
        for number in range(3)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in samples), encoding="utf-8")
    (data / "reflected_thoughts" / "train.jsonl").unlink()
    flags = [
        f"--root={data}",
        "--data.builder=nlicot.builders.CorrectOnly",
        "--data.builder.samples=all",
        "--model.segment_weights.thought_weight=2",
        "--model.segment_weights.final_thought_weight=0.1",
    ]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = _fit_whole(tmp_path / "whole", str(small_model), *flags)
    steps = _summary(whole)["optimizer_steps"] // 2
    _fit_until(rf"Epoch 1:[^\r]* 3/{steps} ", tmp_path / "killed", str(small_model), *flags)
    _resume(tmp_path / "killed" / "run")
    _assert_same_run(whole, tmp_path / "killed" / "run")
    events = EventAccumulator(str(whole))
    events.Reload()
    weights = [event.value for event in events.Scalars("train/thought_weight")]
    last = 2 * steps - 1
    assert weights == pytest.approx([2 - 1.9 * step / last for step in range(2 * steps)])


def test_resuming_a_finished_run_changes_nothing(small_model: Path, tmp_path: Path) -> None:
    folder = _fit_whole(tmp_path, str(small_model), "--trainer.max_epochs=1")
    before = _state(folder / "last.ckpt"), _summary(folder)
    _resume(folder)
    assert _differing(before[0], _state(folder / "last.ckpt")) == []
    assert _summary(folder) == before[1]


def test_finished_run_can_be_given_more_epochs(small_model: Path, tmp_path: Path) -> None:
    folder = _fit_whole(tmp_path, str(small_model), "--trainer.max_epochs=1", "--data.limit_train=12")
    _run(["--resume", str(folder), "--trainer.max_epochs=3"])
    assert _summary(folder)["optimizer_steps"] == 3 * 3


def test_resuming_an_unknown_run_names_the_existing_runs(
    whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlicot.cli import main

    assert main(["fit", "--resume", str(whole_run.parent / "rum")]) == 2
    assert f"did you mean {whole_run}?" in capsys.readouterr().err


# ------------------------------------------------------------------ processes


def _command(flags: list[str]) -> list[str]:
    return [sys.executable, "-m", "nlicot", "fit", *flags]


def _flags(root: Path, base: str, *more: str) -> list[str]:
    return [*FLAGS, f"--checkpoints_root={root}", "--run=run", f"--model.base={base}", *more]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}


def _fit_whole(root: Path, base: str, *more: str) -> Path:
    _run(_flags(root, base, *more))
    return root / "run"


def _resume(folder: Path) -> None:
    _run(["--resume", str(folder)])


def _run(flags: list[str]) -> None:
    done = subprocess.run(
        _command(flags), cwd=PROJECT, env=_environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _fit_until(shown: str, root: Path, base: str, *more: str) -> None:
    _until(shown, _flags(root, base, *more))


def _until(shown: str, flags: list[str]) -> None:
    """Start a fit and kill it once its output shows the pattern."""
    process = subprocess.Popen(
        _command(flags), cwd=PROJECT, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    guard = threading.Timer(HANGS_S, process.kill)
    guard.start()
    output = ""
    try:
        while piece := os.read(process.stdout.fileno(), 4096):
            output += piece.decode(errors="replace")
            if re.search(shown, output, re.DOTALL):
                break
        else:
            pytest.fail(f"the fit ended without showing {shown}: {output[-2000:]}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        guard.cancel()
    assert process.returncode == -9, f"it had ended by itself: {output[-2000:]}"


# ---------------------------------------------------------------- comparisons


def _assert_same_run(expected: Path, found: Path) -> None:
    assert _summary(found) == _summary(expected)
    for name in ("best.ckpt", "last.ckpt"):
        assert _differing(_state(expected / name), _state(found / name)) == [], name
    files = [folder / "adapter" / "adapter_model.safetensors" for folder in (expected, found)]
    assert files[0].read_bytes() == files[1].read_bytes()


def _summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    return summary


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors, and the optimizer's where the checkpoint has them."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = dict(content["state_dict"])
    for optimizer in content.get("optimizer_states", []):
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return tensors


def _differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
