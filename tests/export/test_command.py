"""`export` writes complete folders that are checked, or nothing."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlicot.cli import main
from nlicot.data.checksums import damage
from nlicot.export.command import FORMATS
from nlicot.export.merged import Merged
from nlicot.model.loaded_model import load_base
from nlicot.prediction.predictor import Member
from nlicot.prompts import StudentPrompts
from nlicot.settings import ExportFormat
from tests.chaos.commands import finish, leftovers, start, wait_until


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def figures(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "agreement.json").read_text())
    return found


def test_the_registry_has_the_formats_of_the_setting() -> None:
    assert tuple(FORMATS) == get_args(ExportFormat)


@pytest.mark.parametrize("run", ["label_run", "thinking_run"])
@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_an_export_has_all_its_files_and_predicts_what_the_run_predicts(
    run: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = request.getfixturevalue(run), tmp_path / "deep" / kind
    assert main(["export", str(folder), "--format", kind, "--out", str(out), "--check_pairs", "8"]) == 0
    printed = capsys.readouterr().out
    weights = {"peft": {"adapter_config.json", "adapter_model.safetensors"}}.get(
        kind, {"config.json", "generation_config.json", "model.safetensors"}
    )
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    papers = {"README.md", "prompt_template.json", "lm_eval.yaml", "agreement.json", "SHA256SUMS"}
    assert files(out) == weights | tokenizer | papers
    assert damage(out) is None
    found = figures(out)["export"]
    assert (found["num_pairs"], found["num_same_prompts"]) == (8, 8)
    assert found["mean_difference"] < 0.01
    assert f"\nexport       {out} (" in printed
    assert "\nnext         " in printed
    assert "the run in " in printed
    assert leftovers(tmp_path, out.parent) == []


def test_the_default_is_a_folder_of_the_run_and_an_existing_one_is_kept(
    label_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(label_run, tmp_path / "run")
    args = ["export", str(run), "--format", "peft", "--unchecked"]
    assert main(args) == 0
    assert ", not checked)" in capsys.readouterr().out
    assert not (run / "peft" / "agreement.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (run / "peft").iterdir()}
    assert main(args) == 2
    assert f"{run / 'peft'} exists already; name another folder (--out)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (run / "peft").iterdir()} == before


def test_merged_weights_are_the_dequantised_ones_plus_the_scaled_product(
    label_run: Path, member: Callable[[Path], Member], tmp_path: Path
) -> None:
    args = ["--format", "merged", "--dtype", "float32", "--out", str(tmp_path / "out"), "--unchecked"]
    assert main(["export", str(label_run), *args]) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    read = member(label_run)
    base = load_base(read.resolved.base, for_training=False, dense=True).state_dict()
    assert written.keys() == base.keys()
    scale = read.settings.lora.alpha / read.settings.lora.r
    num_changed = 0
    for name, weight in base.items():
        expected, prefix = weight.double(), f"model.base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.default.weight" in read.weights:
            a, b = (read.weights[f"{prefix}.lora_{matrix}.default.weight"].double() for matrix in "AB")
            expected = expected + scale * b @ a
            num_changed += not torch.equal(expected, weight.double())
        torch.testing.assert_close(written[name].double(), expected, atol=1e-6, rtol=1e-6)
    assert num_changed == 8
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config


def test_the_prompts_and_the_card_are_those_of_the_run(label_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(label_run), "--format", "merged", "--unchecked", "--out", str(out)]) == 0
    prompts = json.loads((out / "prompt_template.json").read_text())
    assert prompts["form"] == "label_only"
    assert prompts["prompt"] == prompts["prompts"]["label_only"]
    assert prompts["prompt"].endswith("Premise: {premise}\nHypothesis: {hypothesis}")
    card = (out / "README.md").read_text()
    assert prompts["prompt"] in card
    assert "library_name: transformers" in card
    assert "Not measured yet." in card
    assert str(tmp_path) not in card


def test_the_card_of_an_earlier_versions_run_has_the_prompts_of_its_checkpoint(
    label_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {**(StudentPrompts.__init__.__kwdefaults__ or {}), "label_only": "{premise} So? {hypothesis}"}
    monkeypatch.setattr(StudentPrompts.__init__, "__kwdefaults__", words)
    assert StudentPrompts().label_only == "{premise} So? {hypothesis}"
    out = tmp_path / "out"
    assert main(["export", str(label_run), "--format", "merged", "--unchecked", "--out", str(out)]) == 0
    learnt = json.loads((out / "prompt_template.json").read_text())["prompt"]
    assert "So?" not in learnt
    assert learnt in (out / "README.md").read_text()


class Halved(Merged):
    """Writes half of the LM head's weights for label 1: a mistake that only predictions show."""

    def write(self, folder: Path) -> None:
        super().write(folder)
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["lm_head.weight"][self.member.resolved.prompt_format.encode_segment("1", first=False)] *= 0.5
        save_file(weights, path, metadata={"format": "pt"})


def test_an_export_that_predicts_otherwise_is_refused_unless_forced(
    label_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "merged", Halved)
    out = tmp_path / "out"
    args = ["export", str(label_run), "--format", "merged", "--out", str(out), "--check_pairs", "5"]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--format merged: p(entailment) differs from the run's by 0." in error
    assert "nothing was written (--force keeps it)" in error
    assert list(tmp_path.iterdir()) == []
    assert main([*args, "--force"]) == 0
    assert "kept by --force: " in capsys.readouterr().out
    assert figures(out)["export"]["mean_difference"] > 0.01


def test_a_killed_export_leaves_no_target_and_the_next_one_clears_what_it_wrote(
    label_run: Path, tmp_path: Path
) -> None:
    args = ["export", label_run, "--format", "merged", "--out", tmp_path / "out", "--check_pairs", "2"]
    with start(args) as process:
        wait_until(lambda: bool(leftovers(tmp_path)), process)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finish(args)
    assert files(tmp_path) == {"out"}


def test_a_stopped_export_leaves_nothing(label_run: Path, tmp_path: Path) -> None:
    args = ["export", label_run, "--format", "merged", "--out", tmp_path / "out", "--check_pairs", "2"]
    with start(args) as process:
        wait_until(lambda: bool(leftovers(tmp_path)), process)
        process.terminate()
        printed, _ = process.communicate()
    assert process.returncode == 143, printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "limit"), [("peft", 3000), ("peft", 300_000), ("merged", 300_000), ("gguf", 1_000_000)]
)
def test_a_full_disk_ends_with_exit_code_5_and_no_target(
    kind: str, limit: int, label_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ["export", label_run, "--format", kind, "--out", out, "--unchecked"]
    printed = finish(args, code=5, max_file_bytes=limit)
    assert f"nlicot: {out}: cannot be written (" in printed
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "--format gguf --dtype float16": "llama-cpp-python",
    "--format peft --dtype bfloat16 --unchecked": "--dtype: found bfloat16, expected float32 with --f",
    "--format gguf-adapter --dtype bfloat16 --unchecked": "--dtype: found bfloat16, expected float32 or floa",
    "--format merged --model.base bundled": "base: here 'bundled', in the checkpoint '",
    "--format merged --model.base none": "--model.base: found no folder 'none', expected bundled, a fol",
    "--format merged --model.lora.r 8 --unchecked": "the adapter has other matrices than --model.lo",
    "--format merged --data.dev_pairs none.csv": "none.csv: no such file, and the export is checked",
    "--format merged --out README.md/x": "--out README.md/x: README.md is a file, expected a folder",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_mistake_is_refused_in_one_line(
    flags: str,
    label_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as if it were not installed
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    run = shutil.copytree(label_run, tmp_path / "run")
    before = files(run)
    assert main(["export", "run", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert REFUSED[flags] in error
    assert (files(tmp_path), files(run)) == ({"README.md", "run"}, before)
