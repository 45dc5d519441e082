"""The command line: its help, and its messages for mistyped settings."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nlicot import cli

PROJECT = Path(__file__).parents[1]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the one message of a command line that must be refused with exit code 2."""
    assert cli.main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nlicot: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_lists_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for title, commands in cli.GROUPS.items():
        assert f"{title}:" in printed
        for command in commands:
            assert f"  {command.name}" in printed


def test_help_takes_under_half_a_second() -> None:
    """Of processor time, which does not depend on what else runs."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    durations = []
    for _ in range(5):
        started = seconds()
        subprocess.run(
            [sys.executable, "-m", "nlicot", "--help"], cwd=PROJECT, check=True, capture_output=True
        )
        durations.append(seconds() - started)
    assert min(durations) < 0.5


@pytest.mark.parametrize(
    "command",
    ["fit", "validate", "test", "predict", "split", "datasets", "report", "inspect", "audit", "merge-shards"],
)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"xample: python -m nlicot {command}" in printed


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean predict?" in refused(capsys, "predikt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle:\n  base: x\n", "modle.base: unknown setting; did you mean --model.base?"),
        ("model:\n  lora:\n    rr: 3\n", "model.lora.rr: unknown setting; did you mean --model.lora.r?"),
        ("model:\n  learning_rate: abc\n", "--model.learning_rate: found 'abc', expected a number"),
        ("trainer:\n  max_epoch: 3\n", "did you mean --trainer.max_epochs?"),
    ],
)
def test_a_wrong_setting_in_a_file_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mistaken.yaml"
    config.write_text(content)
    assert message in refused(capsys, "fit", "--config", str(config))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.effective_batch", "x"], "--data.effective_batch: found 'x', expected a whole number"),
        (["--data.buidler", "y"], "--data.buidler: unknown setting; did you mean --data.builder?"),
        (["--data.over_budget=x"], "--data.over_budget: found 'x', expected one of cut, drop"),
        (["--trainer.max_epochs=x"], "--trainer.max_epochs: found 'x', expected a whole number"),
        (["--trainer.devics=1"], "did you mean --trainer.devices?"),
        (["--label_map=a=3"], "expected NAME=0, NAME=1 or NAME=skip"),
        (["--checkpoint.mode=least"], "--checkpoint.mode: found 'least', expected one of min, max"),
        (["--config"], "--config needs a file name"),
    ],
)
def test_a_wrong_flag_is_refused(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "fit", *args)


@pytest.mark.parametrize("args", [["fit", "--help"], ["fit", "--trainer.help"], ["fit", "--data.rot", "x"]])
def test_help_and_configuration_errors_of_fit_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import contextlib, sys; from nlicot.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({args!r})\n"
        "print(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert finished.stderr.splitlines()[-1] == "[]"


def test_the_trainer_has_a_help_page_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for flag in ("--help", "--trainer.help"):
        with pytest.raises(SystemExit):
            cli.main(["fit", flag])
        pages.append(capsys.readouterr().out)
    assert "--trainer.help" in pages[0]
    assert "--trainer.max_epochs" not in pages[0] and "--trainer.max_epochs" in pages[1]
    assert "--data.builder" in pages[0] and "--data.builder" not in pages[1]


def test_a_missing_config_names_the_files_next_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", "--config", str(PROJECT / "configs" / "reflect.yaml"))
    assert "no such file" in message and "reflected.yaml" in message


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text("data:\n  root: [1, 2\nmodel: x\n")
    message = refused(capsys, "fit", "--config", str(config))
    assert message.startswith(f"nlicot: --config {config}:3: not valid YAML")


def test_later_configs_win_and_flags_win_over_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model:\n  learning_rate: 0.1\n  weight_decay: 0.2\ndata:\n  effective_batch: 3\n")
    second.write_text("model:\n  weight_decay: 0.3\ndata:\n  effective_batch: 4\n")
    with pytest.raises(SystemExit):
        args = ["fit", "--config", str(first), "--config", str(second), "--data.effective_batch", "5"]
        cli.main([*args, "--print_config"])
    printed = capsys.readouterr().out
    assert "learning_rate: 0.1" in printed
    assert "weight_decay: 0.3" in printed
    assert "effective_batch: 5" in printed
    assert "base: mistralai/Mistral-7B-v0.3" in printed  # the recipe below them


def test_an_unknown_builder_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "correct_only, reflected, unmodified, label_only" in refused(
        capsys, "fit", "--data.builder", "refleted"
    )


def test_a_missing_checkpoint_is_refused_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ckpt_path nowhere/best.ckpt: no such file" in refused(
        capsys, "predict", "--ckpt_path", "nowhere/best.ckpt"
    )
    assert "test needs --ckpt_path checkpoints/RUN/best.ckpt" in refused(capsys, "test")


def test_resuming_what_is_not_there_is_an_error_and_no_fresh_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gone/config.yaml: no such file" in refused(capsys, "fit", "--resume", str(tmp_path / "gone"))


def test_data_mistakes_come_before_the_base_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    (folder / "train.csv").write_text("premise,hypothesis,label\nA,B,2\n")
    message = refused(capsys, "fit", "--root", str(tmp_path), "--model.base", "no/such-model")
    assert f"{folder / 'train.csv'}:2: found" in message and "0 or 1" in message


@pytest.mark.parametrize(("accelerator", "visible"), [("cpu", ""), ("auto", "0")])
def test_on_the_processor_torch_finds_no_gpu(
    accelerator: str,
    visible: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    flags = ["--root", str(tmp_path), f"--trainer.accelerator={accelerator}"]
    assert "train.csv: no such file" in refused(capsys, "fit", *flags)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_a_hub_base_without_a_gpu_stops_on_your_own_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, where the base would be fetched")
    folder = tmp_path / "original_data"
    folder.mkdir()
    (folder / "train.csv").write_text("premise,hypothesis,label\nA b.,B.,1\nC d.,D.,0\n")
    (folder / "dev.csv").write_text("premise,hypothesis,label\nE f.,F.,1\n")
    message = refused(
        capsys, "fit", "--config", str(PROJECT / "configs/label_only.yaml"), "--root", str(tmp_path)
    )
    assert "--model.base mistralai/Mistral-7B-v0.3: this machine has no NVIDIA device" in message
    for choice in ("driver", "local folder", "HF_TOKEN", "terms", "--model.base bundled"):
        assert choice in message


def test_the_garbage_collector_works_again_after_imports() -> None:
    code = """
import gc
from nlicot.cli import quick_imports
try:
    with quick_imports():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_log_lines_do_not_go_on_at_the_end_of_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    handler = cli.AboveBars(sys.stderr)
    with Tqdm(total=2, desc="Epoch 0", file=sys.stdout) as bar:
        handler.emit(logging.makeLogRecord({"msg": "other programs use the cores"}))
        bar.update()
    printed = capsys.readouterr()
    assert printed.err == "other programs use the cores\n"
    assert re.search(r"Epoch 0[^\r]+\r +\r.*Epoch 0", printed.out, re.DOTALL)  # drawn, cleared, drawn


def test_split_writes_a_data_root_and_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.csv"
    rows = [f"Premise {i // 2}.,Hypothesis {i}.,{i % 2}" for i in range(40)]
    pairs.write_text("premise,hypothesis,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "data"
    assert cli.main(["split", str(pairs), "--dev", "0.25", "--out", str(out)]) == 0
    assert f"fit --config configs/label_only.yaml --root {out}" in capsys.readouterr().out
    assert (out / "original_data" / "dev.csv").read_text().count("\n") == 11
    assert "--overwrite" in refused(capsys, "split", str(pairs), "--out", str(out))


def test_every_shipped_config_contains_only_what_differs_from_the_recipe() -> None:
    import yaml

    recipe = yaml.safe_load((PROJECT / "configs" / "recipe.yaml").read_text())
    for path in sorted((PROJECT / "configs").glob("*.yaml")):
        if path.name == "recipe.yaml" or path.name.startswith("teacher"):
            continue
        found = yaml.safe_load(path.read_text())
        assert list(found["data"]) == ["builder"], path.name
        # Without thoughts there is only the label to learn (see label_only.yaml).
        assert found.keys() - {"data"} == ({"model"} if path.name == "label_only.yaml" else set()), path.name
        assert found["data"]["builder"] == path.stem
    assert json.dumps(recipe["model"]["lora"]["target_modules"]) == '["q_proj", "k_proj", "v_proj", "o_proj"]'


def test_a_python_without_the_packages_says_how_to_get_them(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "nlicot", "predict", "--ckpt_path", "x.ckpt"]  # -S: none is found
    environment = {"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nlicot: {sys.executable} has no module ")
    assert done.stderr.count("\n") == 1
