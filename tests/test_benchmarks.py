"""The training benchmark runs whole on a small shape, so that it is ready when there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.mark.slow
def test_training_is_measured_on_a_mistral_of_two_layers(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    command = [sys.executable, "benchmarks/train.py", "--shape=tiny", "--examples=16", "--dev=4", "--steps=3"]
    flags = ["--effective_batch=8", "--repeats=1", f"--json={out}", "--only", "nlicot", "trainer"]
    environment = os.environ | {"NLICOT_CACHE": str(tmp_path / "cache")}
    environment.pop("NLICOT_REAL_DATA", None)
    done = subprocess.run(
        [*command, *flags], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["skipped"].keys() <= {"trl", "trl-default"}
    for name in ("nlicot", "trainer"):
        (run,) = found["runs"][name]
        assert run["tokens_per_s"] > 0
        assert 0 < run["gemm_share"] < 1
    # The same model on the same examples: only the order and dropout's masks differ.
    ours, theirs = (found["runs"][name][0]["dev_loss"] for name in ("nlicot", "trainer"))
    assert ours == pytest.approx(theirs, rel=0.02)
