"""Every shipped configuration takes an optimizer step, and leaves a run that others can load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nlicot.cli import main
from tests.small_model import write_small_model

CONFIGS = Path(__file__).parents[2] / "configs"
NO_ABLATION = {"recipe.yaml", "teacher.yaml", "teacher_predecessor.yaml"}
ABLATIONS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in NO_ABLATION)
OVERLAYS = sorted(f"overlays/{path.name}" for path in CONFIGS.glob("overlays/*.yaml"))
LARGER_STEPS = {"overlays/sample.yaml", "overlays/small_model.yaml"}
# What belongs to this machine: a small base, little data, one device.
SMALL = [
    "--data.limit_train=4",
    "--data.limit_dev=2",
    "--trainer.max_steps=1",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.decoding.max_thought_tokens=3",
    "--final_evaluation=false",
]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NLICOT_RUN_FOLDER", "")  # `fit` sets it; it must not outlive the test
    monkeypatch.chdir(tmp_path)


def _fit(small_model: Path, root: Path, *flags: str) -> int:
    return main(
        ["fit", *flags, *SMALL, f"--model.base={small_model}", f"--checkpoints_root={root}", "--run=tried"]
    )


def test_every_shipped_config_is_known() -> None:
    assert ABLATIONS == [
        "correct_only.yaml",
        "label_first.yaml",
        "label_only.yaml",
        "multitask.yaml",
        "reflected.yaml",
        "unmodified.yaml",
    ]
    assert [
        f"overlays/{name}.yaml"
        for name in (
            "all_linear",
            "ddp",
            "label_weight",
            "light_thought",
            "sample",
            "small_model",
        )
    ] == OVERLAYS


@pytest.mark.parametrize("config", [None, *ABLATIONS, *OVERLAYS])
def test_config_takes_a_step_and_leaves_an_adapter_that_peft_loads(
    config: str | None, small_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = [] if config is None else ["--config", str(CONFIGS / config)]
    assert _fit(small_model, tmp_path, *flags) == 0

    run = tmp_path / "tried"
    assert {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")} >= {
        "config.yaml",
        "best.ckpt",
        "last.ckpt",
        "adapter",
        "fit.json",
    }
    assert list(run.glob("events.out.tfevents.*"))
    assert json.loads((run / "fit.json").read_text(encoding="utf-8"))["optimizer_steps"] == 1
    merged = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert merged["model"]["learning_rate"] == (1e-3 if config in LARGER_STEPS else 2e-4)

    stored = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    last = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], last[name]) for name in stored)
    assert any(float(weight.abs().max()) > 0 for name, weight in stored.items() if "lora_B" in name)
    written = load_file(run / "adapter" / "adapter_model.safetensors")
    plain = {name.removeprefix("model.").replace(".default", ""): weight for name, weight in stored.items()}
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], weight) for name, weight in plain.items())
    adapted_names = {name.split(".")[-3] for name in written}
    expected = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config == "overlays/all_linear.yaml":
        expected |= {"gate_proj", "up_proj", "down_proj"}
    assert adapted_names == expected

    dense = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(dense, run / "adapter")
    here = {name: weight for name, weight in loaded.named_parameters() if "lora_" in name}
    assert all(torch.equal(weight, stored[f"model.{name}"]) for name, weight in here.items())
    assert len(here) == len(stored)


def test_run_of_the_same_name_is_refused_and_left_alone(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tried").mkdir()
    assert _fit(small_model, tmp_path) == 2
    assert list((tmp_path / "tried").iterdir()) == []
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"nlicot: --run tried: a run of that name exists in {tmp_path}; choose another name, "
        f"or continue it with: fit --resume {tmp_path / 'tried'}"
    )


def test_accumulating_over_batches_is_refused_and_leaves_no_run(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(small_model, tmp_path, "--trainer.accumulate_grad_batches=2") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: --trainer.accumulate_grad_batches: found 2, expected 1; set --data.effective_batch instead"
    )
    assert not (tmp_path / "tried").exists()


def test_a_callback_may_be_named_by_itself(small_model: Path, tmp_path: Path) -> None:
    named = "--trainer.callbacks=lightning.pytorch.callbacks.DeviceStatsMonitor"
    assert _fit(small_model, tmp_path, "--data.builder=label_only", named) == 0
