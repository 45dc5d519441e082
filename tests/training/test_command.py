"""`fit` ends early, continues with other settings, and refuses what it cannot continue with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from nlicot.cli import main
from nlicot.config_files import SAMPLE, read_settings
from nlicot.errors import Interrupted
from nlicot.model.loaded_model import causal_lm
from nlicot.training.command import _validate_in_a_new_process
from nlicot.training.module import warm_up_and_decay
from tests.small_model import write_small_model
from tests.training.short_fit import SHORT_FIT

FLAGS = [*SHORT_FIT, "--run=run"]
# No evaluation after the first is an improvement, so patience 1 ends a run at its second.
NEVER_BETTER = "--early_stopping.min_delta=100"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the process that evaluates
    monkeypatch.chdir(tmp_path)


def fit(base: Path, *flags: str) -> int:
    return main(["fit", *FLAGS, f"--model.base={base}", *flags])


def resume(*flags: str, run: Path = Path("checkpoints/run")) -> int:
    return main(["fit", f"--resume={run}", *flags])


def summary(run: Path = Path("checkpoints/run")) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "fit.json").read_text(encoding="utf-8"))
    return found


def state(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    optimizer = content.get("optimizer_states", [{"state": {}}])[0]["state"]
    moments = {f"{i}.{name}": value for i, each in optimizer.items() for name, value in each.items()}
    return {**content["state_dict"], **moments}


def learning_rates(run: Path = Path("checkpoints/run")) -> list[float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("train/learning_rate")}
    return [rates[step] for step in sorted(rates)]


def hyper_parameters(run: Path = Path("checkpoints/run")) -> dict[str, object]:
    """Return what TensorBoard's table of runs shows."""
    events = EventAccumulator(str(run))
    events.Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {name: value.number_value or value.string_value for name, value in session.hparams.items()}


# ------------------------------------------------------------------- an early end


class StoppedCompiler(Callback):
    """In the second step, a signal also stops a program that the fit waits for, which fails."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("C++ compile error")


def test_a_program_that_the_same_signal_stopped_is_no_fault(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, f"--trainer.callbacks={__name__}.StoppedCompiler") == 143
    message = "nlicot: stopped; continue with: python -m nlicot fit --resume checkpoints/run"
    assert capsys.readouterr().err.splitlines()[-1] == message


class SignalInTheLastStep(Callback):
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_last_step_ends_the_fit_and_a_resume_repeats_the_step(base: Path) -> None:
    assert fit(base, "--trainer.max_steps=3", f"--trainer.callbacks={__name__}.SignalInTheLastStep") == 143
    last = torch.load("checkpoints/run/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert "optimizer_steps" not in summary()


class SignalInTheLastEvaluation(Callback):
    """Ends the fit after one step, as a time limit does, with an evaluation before its end."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_last_evaluation_ends_the_fit_before_the_final_evaluation(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--trainer.callbacks={__name__}.SignalInTheLastEvaluation", "--final_evaluation=true"]
    assert fit(base, *flags) == 143
    message = "nlicot: stopped; continue with: python -m nlicot fit --resume checkpoints/run"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert "optimizer_steps" not in summary()


class SignalAtTheEnd(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if os.environ.pop("SIGNAL_AT_THE_END", ""):
            os.kill(os.getpid(), signal.SIGTERM)


def test_after_a_signal_at_the_end_a_resume_only_evaluates(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNAL_AT_THE_END", "1")
    assert fit(base, "--trainer.max_steps=1", f"--trainer.callbacks={__name__}.SignalAtTheEnd") == 143
    assert "optimizer_steps" not in summary()
    assert resume() == 0
    assert summary()["optimizer_steps"] == 1
    assert "adapter      checkpoints/run/adapter (last checkpoint" in capsys.readouterr().out


class FullWhileDecoding(Callback):
    """Only passes that keep a cache find no memory."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        def refuse(module: Any, args: Any, options: dict[str, Any]) -> None:
            if options.get("use_cache"):
                raise torch.OutOfMemoryError("CUDA out of memory")

        causal_lm(pl_module.model).model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_too_little_memory_for_decoding_names_the_rows(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--generated_metrics.every_n_epochs=1", "--model.decoding.fast=false"]
    assert fit(base, *flags, f"--trainer.callbacks={__name__}.FullWhileDecoding") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: not enough memory for 64 rows at once; continue with: python -m nlicot fit "
        "--resume checkpoints/run --model.decoding.batch_size 32"
    )


def test_a_final_evaluation_that_is_killed_leaves_a_line_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Interrupted) as caught:
        _validate_in_a_new_process(Path("run/best.ckpt"), is_one_of_several=False)
    assert caught.value.exit_code == 137
    assert str(caught.value) == (
        "SIGKILL ended the final evaluation; the adapter is trained, evaluate it with: "
        "python -m nlicot validate --ckpt_path run/best.ckpt"
    )


def test_the_final_evaluation_of_several_machines_runs_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert _validate_in_a_new_process(Path("run/best.ckpt"), is_one_of_several=True) == 0
    assert capfd.readouterr().out == (
        "-m nlicot validate --ckpt_path run/best.ckpt --trainer.num_nodes 1 --trainer.devices 1\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["0.5", "1.0"])
def test_fit_that_ends_before_its_first_evaluation_uses_its_last_checkpoint(
    interval: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--trainer.val_check_interval={interval}", "--trainer.max_steps=1", "--final_evaluation=true"]
    assert fit(base, *flags, "--model.decoding.max_thought_tokens=3") == 0
    run = Path("checkpoints/run")
    assert not (run / "best.ckpt").exists()
    assert (summary()["optimizer_steps"], summary()["best"]) == (1, None)
    assert json.loads((run / "metrics.json").read_text())["dev"]["support"] == 4
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert "\nOn 4 pairs of dev, " in (run / "adapter" / "README.md").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert (
        "no best.ckpt: training ended before dev/loss had a value; the adapter is that of "
        "checkpoints/run/last.ckpt" in lines
    )
    assert lines[-4:] == [
        "adapter      checkpoints/run/adapter (last checkpoint checkpoints/run/last.ckpt)",
        "metrics      checkpoints/run/metrics.json",
        "TensorBoard  tensorboard --logdir checkpoints",
        "next         python -m nlicot predict --ckpt_path checkpoints/run/last.ckpt",
    ]


def test_unknown_figures_are_refused_with_the_known_ones(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, "--early_stopping.monitor=dev/los") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("nlicot: --early_stopping.monitor: found 'dev/los', expected one of dev/loss, ")


def test_only_files_that_exist_are_named(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    assert "metrics.json" not in capsys.readouterr().out
    assert not Path("checkpoints/run/metrics.json").exists()
    card = Path("checkpoints/run/adapter/README.md").read_text()
    assert "\nNot measured yet.\n" in card
    assert str(base) not in card


# ------------------------------------------------------------------------- a resume


@pytest.mark.slow
def test_more_patience_continues_inside_the_epoch_as_if_it_had_been_given_before(base: Path) -> None:
    assert fit(base, NEVER_BETTER, "--early_stopping.patience=9", "--checkpoints_root=whole") == 0
    assert summary(Path("whole/run"))["optimizer_steps"] == 8

    # Evaluations after steps 2, 4 and 6: the third is in the middle of the second epoch.
    assert fit(base, NEVER_BETTER, "--early_stopping.patience=2") == 0
    assert summary()["optimizer_steps"] == 6
    assert resume() == 0
    assert summary()["optimizer_steps"] == 6
    assert resume("--early_stopping.patience=9") == 0
    assert summary() == summary(Path("whole/run"))
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = state(Path("whole/run") / name), state(Path("checkpoints/run") / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert read_settings(Path("checkpoints/run/config.yaml"))["early_stopping"]["patience"] == "9"
    assert hyper_parameters()["early_stopping.patience"] == 9


def test_less_patience_ends_a_run_at_its_next_evaluation(base: Path) -> None:
    assert fit(base, NEVER_BETTER, "--early_stopping.patience=9", "--trainer.max_epochs=1") == 0
    assert resume("--trainer.max_epochs=3", "--early_stopping.patience=2") == 0
    assert summary()["optimizer_steps"] == 6


def test_a_run_that_reached_its_threshold_continues_with_another(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, "--early_stopping.stopping_threshold=100") == 0  # any loss reaches it
    assert summary()["optimizer_steps"] == 2
    assert resume("--trainer.max_epochs=3") == 0
    assert summary()["optimizer_steps"] == 2
    assert "or change --early_stopping.stopping_threshold\n" in capsys.readouterr().out
    assert resume("--early_stopping.stopping_threshold=null", "--trainer.max_epochs=2") == 0
    assert summary()["optimizer_steps"] == 8


@pytest.mark.slow
def test_more_epochs_continue_on_the_line_of_the_longer_run(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, "--trainer.max_epochs=1", "--model.warmup_ratio=0.25") == 0
    assert resume("--trainer.max_epochs=3") == 0
    shorter, longer = warm_up_and_decay(4, 0.25), warm_up_and_decay(12, 0.25)
    expected = [2e-4 * shorter(step) for step in range(4)] + [2e-4 * longer(step) for step in range(4, 12)]
    assert learning_rates() == pytest.approx(expected, rel=1e-6)
    assert summary()["optimizer_steps"] == 12
    assert read_settings(Path("checkpoints/run/config.yaml"))["trainer"]["max_epochs"] == "3"
    assert read_settings(Path("checkpoints/run/config.yaml"))["resume"] is None
    assert hyper_parameters()["trainer.max_epochs"] == 3
    assert "--trainer.max_epochs: 1 -> 3\n" in capsys.readouterr().out


def test_more_steps_continue_inside_the_epoch(base: Path) -> None:
    assert fit(base, "--trainer.max_steps=3") == 0
    assert resume("--trainer.max_steps=-1") == 0
    assert (summary()["optimizer_steps"], summary()["epochs"]) == (8, 2)


def test_another_interval_of_evaluations_takes_effect(base: Path) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    assert resume("--trainer.max_epochs=2", "--trainer.val_check_interval=0.25") == 0
    events = EventAccumulator("checkpoints/run")
    events.Reload()
    steps = [event.step for event in events.Scalars("dev/loss")]
    assert steps == [1, 3, 4, 5, 6, 7]  # of the step that was taken last, from 0


def test_a_run_that_early_stopping_ended_for_good_says_why(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, "--early_stopping.divergence_threshold=0.001") == 0  # any loss is above it
    assert resume() == 0
    line = "checkpoints/run was finished at step 2; early stopping ended it: Divergence threshold reached:"
    said = capsys.readouterr().out
    assert line in said
    assert "raise" not in said


def test_a_finished_run_with_a_time_limit_names_it(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(base, "--trainer.max_steps=1", "--trainer.max_time=01:00:00:00") == 0
    assert resume() == 0
    assert "--trainer.max_steps, --trainer.max_time or --early_stopping.patience" in capsys.readouterr().out


def test_a_step_whose_tokens_all_have_weight_0_is_refused(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--model.segment_weights.label_weight=0", "--model.segment_weights.scaffold_weight=0"]
    assert fit(base, *weights) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: --model.segment_weights: found weight 0 for every supervised token of step 0, expected a "
        "weight above 0 for some"
    )


def test_a_finished_run_says_what_would_continue_it(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    before = state(Path("checkpoints/run/last.ckpt"))
    assert resume("--trainer.max_epochs=1", "--model.learning_rate=2e-4", "--run=run") == 0
    assert capsys.readouterr().out.count(
        "checkpoints/run was finished at step 4; raise --trainer.max_epochs, --trainer.max_steps or "
        "--early_stopping.patience to continue it\n"
    )
    after = state(Path("checkpoints/run/last.ckpt"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--trainer.max_epochs=1", "--trainer.max_epochs: found 1, expected 2 or more: 2 epochs are done"),
        ("--trainer.max_steps=7", "--trainer.max_steps: found 7, expected 8 or more: 8 steps are done"),
    ],
)
def test_fewer_steps_than_done_are_refused(
    flag: str, line: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base) == 0
    before = files()
    capsys.readouterr()
    assert resume(flag) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"nlicot: {line}"
    assert files() == before


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("checkpoints").rglob("*") if path.is_file()}


def own_data() -> Path:
    shutil.copytree(SAMPLE / "original_data", "data/original_data")
    return Path("data/original_data")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_data_is_refused_by_its_content(
    split: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = own_data() / f"{split}.csv"
    assert fit(base, "--root=data", "--trainer.max_epochs=1") == 0
    before = files()
    rows = pairs.read_text(encoding="utf-8").splitlines()
    turned = [re.sub(r",([01]),(\w+)$", lambda m: f",{1 - int(m[1])},{m[2]}", row) for row in rows[1:]]
    assert all(map(str.__ne__, turned, rows[1:]))
    pairs.write_text("\n".join([rows[0], *turned]) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert resume("--trainer.max_epochs=2") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    stored = summary()["built"][split]  # type: ignore[index]
    assert line.startswith(f"nlicot: {pairs}: found ")
    assert f"expected {stored}, the content that the run was started with (--resume checkpoints/run " in line
    assert files() == before


def test_the_same_data_elsewhere_is_accepted(base: Path) -> None:
    own_data()
    assert fit(base, "--root=data", "--trainer.max_epochs=1") == 0
    Path("data").rename("moved")
    assert resume("--root=moved", "--trainer.max_epochs=2") == 0
    assert summary()["optimizer_steps"] == 8
    assert read_settings(Path("checkpoints/run/config.yaml"))["root"] == "moved"


def test_run_of_an_earlier_version_without_hashes_continues(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    Path("checkpoints/run/fit.json").unlink()
    assert resume("--trainer.max_epochs=2") == 0
    assert "an earlier version started it, so its data cannot be compared" in caplog.text
    assert summary()["optimizer_steps"] == 8


def test_run_without_a_usable_last_checkpoint_is_refused(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    last = Path("checkpoints/run/last.ckpt")
    last.write_bytes(b"no checkpoint")
    assert resume() == 2
    line = (
        "--resume checkpoints/run: not a checkpoint of nlicot, or damaged (BadZipFile); restore a copy of it"
    )
    assert capsys.readouterr().err.splitlines()[-1] == f"nlicot: {line}, or train again"
    last.unlink()
    assert resume() == 2
    line = "--resume checkpoints/run: found best.ckpt without last.ckpt, expected both; start a new run"
    assert capsys.readouterr().err.splitlines()[-1] == f"nlicot: {line}"


def test_run_that_had_saved_no_step_starts_again(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(base, "--trainer.max_epochs=1") == 0
    folder = Path("checkpoints/run")
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):  # as if it had been killed early
        (folder / name).unlink()
    assert resume() == 0
    assert "checkpoints/run had saved no step yet; it starts again with its own" in capsys.readouterr().out
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_model_that_does_not_load_leaves_no_folder(base: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    assert fit(broken) == 2
    assert not Path("checkpoints/run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ('--model.lora.target_modules=["a"]', "--model.lora.target_modules: the model has no linear module"),
        ("--trainer.accelerator=tpu9", "--trainer.accelerator: Lightning refuses this: "),
        (
            "--trainer.val_check_interval=5",
            "found 5, expected 4 or less, the steps of an epoch; to",
        ),
        (
            "--trainer.limit_train_batches=0.1",
            "found 0.1 of 4 windows of train, expected one or more",
        ),
        (
            "--trainer.limit_val_batches=0.9",
            "found 0.9 of 1 window of dev, expected one or more; ",
        ),
    ],
)
def test_a_refused_setting_leaves_no_folder_that_takes_the_runs_name(
    flag: str, message: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, flag) == 2
    assert message in capsys.readouterr().err
    assert list(Path("checkpoints").glob("*")) == []
