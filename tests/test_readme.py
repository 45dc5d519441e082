"""The commands of README and docs run as written, in a fresh clone, on the sample and the bundled model.

`fit` commands are limited to a few optimizer steps here; only `make fit` runs in full.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlicot.model.loaded_model import multiplies_bfloat16

PROJECT = Path(__file__).parents[1]
CAPS = [
    "--trainer.max_steps=3",  # of 24 examples: an epoch, which ends with an evaluation
    "--data.limit_train=24",
    "--data.limit_dev=8",
    "--data.effective_batch=8",
    "--generated_metrics.every_n_epochs=0",
    "--model.decoding.max_thought_tokens=8",
    "--model.base=bundled",
]


def commands(document: str) -> list[str]:
    """Return the lines of a document's ```sh blocks, except those marked with `# needs`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (PROJECT / document).read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#") and "# needs" not in line]


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "a folder" / "nlicot"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found.pop("PYTHONPATH", None)
    return found


@pytest.mark.slow
@pytest.mark.long  # and timed: the short form shares the cores with other tests
def test_make_fit_ends_above_chance_within_eight_minutes(clone: Path, environment: dict[str, str]) -> None:
    started = time.monotonic()
    finished = run(f"make fit VENV={shlex.quote(sys.prefix)}", clone, environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    # On a processor without bfloat16 products, those in float32 take about twice as long.
    assert time.monotonic() - started < (8 if multiplies_bfloat16() else 16) * 60
    labels, thoughts = sorted(path for path in (clone / "checkpoints").iterdir() if path.is_dir())
    for folder in (labels, thoughts):
        dev = json.loads((folder / "metrics.json").read_text())["dev"]
        assert dev["support"] == 220
        assert dev["accuracy"]["low"] > 0.5
        assert f"\nadapter      checkpoints/{folder.name}/adapter " in finished.stdout
    for line in ("metrics ", "TensorBoard ", "next "):
        assert f"\n{line}" in finished.stdout
    assert finished.stdout.count("with 95 % confidence): above chance; ") == 2
    start = json.loads((thoughts / "fit.json").read_text())["started_from"]
    assert start["path"] == f"checkpoints/{labels.name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", ["README.md", "data/README.md", "docs/training_runs.md", "docs/scaling.md"]
)
def test_the_commands_of_a_document_run_as_written(
    document: str, clone: Path, environment: dict[str, str]
) -> None:
    found = [line for line in commands(document) if not line.startswith(("make ", "git ", "cd "))]
    assert found
    (clone / "pairs.csv").write_text(
        "premise,hypothesis,label\n"
        + "\n".join(f"The {n} boats left port.,Some of the {n} boats moved.,{n % 2}" for n in range(30))
    )
    for line in found:
        command = line.partition("  #")[0]
        if " fit" in command or " sweep" in command:
            command = " ".join([command, *CAPS])
        newest = sorted((clone / "checkpoints").glob("*/best.ckpt"), key=lambda path: path.stat().st_mtime)
        if newest:
            command = re.sub(r"checkpoints/(?:RUN|<run>)", f"checkpoints/{newest[-1].parent.name}", command)
        if command.startswith("tensorboard"):
            command = f"timeout 20 {command} --port 0 || test $? = 124"
        finished = run(command, clone, environment)
        assert finished.returncode == 0, f"{command}\n{finished.stderr[-3000:]}"
