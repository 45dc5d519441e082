"""The benchmarks of a GPU run in full on a small shape, so that they are ready when one is available."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from tests.small_model import write_small_model
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_training_benchmark_runs_on_a_two_layer_mistral(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    command = [sys.executable, "benchmarks/train.py", "--shape=tiny", "--examples=16", "--dev=4", "--steps=3"]
    flags = ["--effective_batch=8", "--repeats=1", f"--json={out}", "--only", "nlicot", "trainer/4"]
    environment = os.environ | {"NLICOT_CACHE": str(tmp_path / "cache")}
    environment.pop("NLICOT_REAL_DATA", None)
    done = subprocess.run(
        [*command, *flags], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert not found["skipped"]
    for name in ("nlicot", "trainer/4"):
        (run,) = found["runs"][name]
        assert run["tokens_per_s"] > 0
        assert 0 < run["gemm_share"] < 1
    # The same model and examples: only the order and the dropout masks differ.
    ours, theirs = (found["runs"][name][0]["dev_loss"] for name in ("nlicot", "trainer/4"))
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.slow
def test_every_part_for_a_gpu_has_figures_on_a_two_layer_mistral(tmp_path: Path) -> None:
    out, wheels = tmp_path / "gpu.json", tmp_path / "wheels"
    wheels.mkdir()
    command = ["bash", "benchmarks/gpu.sh", "--wheels", str(wheels), "--dry_run", "--json", str(out)]
    environment = os.environ | {"PYTHON": sys.executable, "NLICOT_CACHE": str(tmp_path / "cache")}
    environment.pop("NLICOT_REAL_DATA", None)
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "no .whl in it" in done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    parts = {name: part["figures"] for name, part in found["parts"].items()}
    assert {part["status"] for part in found["parts"].values()} == {"done"}
    assert parts["model"]["shape"] == "tiny"
    for kernel in ("chosen by nlicot", "padded"):
        differences = parts["attention"]["kernels"][kernel]["differences"]
        assert max(differences.values()) < 0.05, kernel  # 1e-6 where the kernel computes in float32
    assert parts["training"]["fastest_peer"] in ("trainer/4", "trl/4")
    assert parts["training_22gb"]["runs"]["nlicot"][0]["tokens_per_s"] > 0
    assert parts["predict"]["speedup_vs_generate"] > 0
    assert parts["predict"]["runs"]["nlicot"][0]["closed_share"] == 0  # random weights
    assert parts["predict_label_only"]["speedup_vs_forward"] > 0
    assert parts["resume"]["bit_equal"]
    assert parts["resume"]["killed_at_step"] < parts["resume"]["steps"]
    assert set(parts["kernels"]["milliseconds"]["norm"]) == {"nlicot", "transformers"}
    assert found["summary"]["resume: bit_equal"]["met"]


def test_a_part_that_outlasts_its_limit_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import gpu  # type: ignore[import-not-found]

    def part(name: str, code: str, *, minutes: float = 1, needs: tuple[str, ...] = ()) -> Any:
        # As `python -c CODE --json FILE`.
        return gpu.Part(name=name, command=[sys.executable, "-c", code], minutes=minutes, needs=needs)

    write = "import json, pathlib, sys; pathlib.Path(sys.argv[2]).write_text(json.dumps({'figure': %d}));"
    parts = [
        part("slow", f"{write % 1} print('half done', flush=True); import time; time.sleep(600)"),
        part("broken", "import missing_package"),
        part("silent", "pass"),
        part("skipped", write % 2, needs=("json", "missing_package")),
        part("good", write % 3, minutes=96),
    ]
    reported: list[list[str]] = []
    started = time.monotonic()
    found = gpu.run_parts(parts, started + 500, lambda results: reported.append(list(results)))
    assert time.monotonic() - started < 100
    assert reported == [list(found)[: number + 1] for number in range(5)]
    assert [part["status"] for part in found.values()] == [
        *("out of time", "failed", "failed", "skipped", "done")
    ]
    assert (found["slow"]["figures"], found["slow"]["error"]) == ({"figure": 1}, "half done")
    assert found["slow"]["limit_s"] == pytest.approx(5.0, abs=0.5)
    assert found["broken"]["error"] == "ModuleNotFoundError: No module named 'missing_package'"
    assert found["skipped"]["error"] == "not installed: missing_package"
    assert found["good"]["figures"] == {"figure": 3}


def test_no_part_starts_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import gpu  # type: ignore[import-not-found]

    part = gpu.Part(name="late", command=[sys.executable, "-c", "import time; time.sleep(600)"], minutes=1)
    found = gpu.run_parts([part], time.monotonic() - 1, lambda results: None)
    assert found == {"late": {"status": "out of time", "error": "not started"}}


@pytest.mark.slow
def test_growth_has_figures_of_every_command_and_keeps_those_of_earlier_calls(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    environment = os.environ | {"NLICOT_CACHE": str(tmp_path / "cache")}
    environment.pop("NLICOT_REAL_DATA", None)
    command = [sys.executable, "benchmarks/growth.py", "--sizes", "700", f"--json={out}", "--only"]
    for only in (["audit", "report"], ["predict", "fit"]):
        done = subprocess.run(
            [*command, *only], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=HANGS_S
        )
        assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["command"]: row["figures"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["audit", "report", "predict", "fit"]
    assert rows["predict"]["predicted"] == [700]
    assert all(rows[name]["peak_mb"][0] > 50 for name in ("audit", "report", "predict"))
    assert 0 < rows["fit"]["again_step_s"][0] < rows["fit"]["again_start_s"][0]


def test_every_lever_of_accuracy_can_be_fitted(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    import accuracy  # type: ignore[import-not-found]

    work = accuracy.Work(tmp_path, None, ())
    work.make_root(real_data / "comp34812")
    accuracy.write_smoothing(work)
    # Files that fits of this benchmark would predict.
    thoughts = Path("data/original_thoughts/train.jsonl").read_text(encoding="utf-8").splitlines()
    right = next(line for line in thoughts if json.loads(line)["correct"])
    for path, text in {
        "soft/train.jsonl": Path("soft/smoothing.jsonl").read_text(encoding="utf-8"),
        "soft-dense/train.jsonl": Path("soft/smoothing.jsonl").read_text(encoding="utf-8"),
        "soft/test.jsonl": json.dumps({"id": "0", "premise": "A.", "hypothesis": "B.", "p_entailment": 0.3}),
        "own/train.jsonl": right,
        "own/reflections.jsonl": "",
    }.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    assert main(["sweep", str(accuracy.FILE), "--dry_run", "--seeds=0"]) == 0
    examples = dict(re.findall(r"^([\w-]+): (\d+) examples", capsys.readouterr().out, re.MULTILINE))
    assert (examples["labels"], examples["labels-soft-unlabelled"]) == ("5237", "5238")
    assert (examples["label-first-15-words"], examples["multitask"]) == ("1200", "6437")
    assert (examples["thinking-draft"], examples["thinking-draft-false"]) == ("1200", "1200")
    assert examples.keys() >= {reading.experiment for reading in accuracy.READINGS}
    assert examples.keys() >= accuracy.PREPARED.keys()


@pytest.mark.slow
def test_accuracy_has_a_line_for_each_lever_and_continues(real_data: Path, tmp_path: Path) -> None:
    base, out = write_small_model(tmp_path / "base"), tmp_path / "accuracy.json"
    command = [sys.executable, "benchmarks/accuracy.py", f"--work={tmp_path / 'work'}"]
    short = [
        "--data.limit_train=16",
        "--data.limit_dev=20",
        "--data.effective_batch=4",
        "--trainer.max_steps=2",
    ]
    short += [f"--model.base={base}", "--trainer.enable_progress_bar=false"]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NLICOT_REAL_DATA": str(real_data)}
        return subprocess.run(
            [*command, *flags], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=HANGS_S
        )

    stopped = run("--only", "labels-epoch-rank-16", "--minutes=0.02", *short)
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (8, "no fit is finished")
    done = run("--only", "labels-epoch-rank-16", *short)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run("--table", f"--json={out}").returncode == 0
    levers = json.loads(out.read_text(encoding="utf-8"))["levers"]
    assert [lever["name"] for lever in levers] == ["labels", "labels-epoch-rank-16", "labels, 2 averaged"]
    assert levers[1]["change"].split() == [
        "model.quantization=none",
        "model.lora.r=16",
        "model.lora.alpha=32",
        "trainer.max_epochs=1",
    ]
    assert levers[1]["runs"][:2] == ["labels-epoch-rank-16-0", "labels-epoch-rank-16-1"]


@pytest.mark.chaos
@pytest.mark.long
def test_long_runs_do_not_grow(tmp_path: Path) -> None:
    out = tmp_path / "endurance.json"
    command = [sys.executable, "benchmarks/endurance.py", "--pairs=4000", "--steps=150", f"--json={out}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr[-3000:]
    for found in (json.loads(out.read_text(encoding="utf-8"))[name] for name in ("generate", "fit")):
        assert found["num_files"]["growth"] <= 0
        assert found["most_connections"] <= 34  # 32 in flight, and asyncio's own pair
        assert found["num_threads"]["growth"] <= 0
        assert found["memory_mb"]["growth"] < 0.1  # 2 % in the long form: this one is hardly warm


def test_the_tables_of_the_scaling_page_are_those_of_its_inputs() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/scaling.py"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    page = (PROJECT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert table in page, "write them again: python benchmarks/scaling.py --write"
