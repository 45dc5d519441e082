"""The training benchmark runs in full on a small shape, so that it is ready when a GPU is available."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_training_benchmark_runs_on_a_two_layer_mistral(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    command = [sys.executable, "benchmarks/train.py", "--shape=tiny", "--examples=16", "--dev=4", "--steps=3"]
    flags = ["--effective_batch=8", "--repeats=1", f"--json={out}", "--only", "nlicot", "trainer/4"]
    environment = os.environ | {"NLICOT_CACHE": str(tmp_path / "cache")}
    environment.pop("NLICOT_REAL_DATA", None)
    done = subprocess.run(
        [*command, *flags], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500
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


@pytest.mark.chaos
def test_long_runs_do_not_grow(tmp_path: Path) -> None:
    out = tmp_path / "endurance.json"
    command = [sys.executable, "benchmarks/endurance.py", "--pairs=4000", "--steps=150", f"--json={out}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for found in (json.loads(out.read_text(encoding="utf-8"))[name] for name in ("generate", "fit")):
        assert found["num_files"]["growth"] <= 0
        assert found["num_threads"]["growth"] <= 0
        assert found["memory_mb"]["growth"] < 0.1  # 2 % in the long form: this one is hardly warm
