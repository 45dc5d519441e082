"""A pair passes through a file only if `docs/architecture.md` lists it, and through few files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nlicot.cli import main
from nlicot.config_files import SAMPLE
from tests.small_model import write_small_model
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[1]
MOST_FILES = 29


def test_predict_goes_through_the_files_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [
        "--data.limit_train=4",
        "--data.limit_dev=4",
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
    ]
    flags += ["--model.compile_kernels=false", "--generated_metrics.every_n_epochs=0"]
    flags += ["--final_evaluation=false", "--run=run"]
    base = write_small_model(tmp_path / "base")
    assert main(["fit", f"--model.base={base}", f"--checkpoints_root={tmp_path}", *flags]) == 0

    pairs = tmp_path / "data" / "original_data"
    pairs.mkdir(parents=True)
    shutil.copy(SAMPLE / "original_data" / "train.csv", pairs)
    test_pairs = (SAMPLE / "original_data" / "test.csv").read_text(encoding="utf-8").splitlines()[:5]
    (pairs / "test.csv").write_text("\n".join(test_pairs) + "\n", encoding="utf-8")
    predict = ["predict", f"--ckpt_path={tmp_path / 'run' / 'best.ckpt'}", f"--root={tmp_path / 'data'}"]
    command = [sys.executable, str(PROJECT / "tests" / "pair_route.py"), *predict]
    done = subprocess.run(
        [*command, "--model.decoding.max_thought_tokens=8"], capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    called = {line for line in done.stdout.splitlines() if line.startswith("nlicot/")}

    docs = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(nlicot/[\w/]+\.py)` \|", docs, re.MULTILINE)
    assert called == set(listed)
    assert len(listed) == len(set(listed)) <= MOST_FILES
