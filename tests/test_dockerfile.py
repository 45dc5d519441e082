"""The Dockerfile is linted, and its steps run in a clean folder, because tests have no container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Return the instructions as (name, arguments), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = subprocess.run(
        [linter, "--no-color", PROJECT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_it_runs_as_a_user_and_keeps_data_and_checkpoints_outside() -> None:
    found = dict(instructions())
    assert found["USER"] not in ("root", "0")
    assert found["VOLUME"] == '["/app/data", "/app/checkpoints"]'
    assert found["ENTRYPOINT"] == '["python", "-m", "nlicot"]'


@pytest.mark.slow
def test_its_steps_give_a_working_command_line_in_an_empty_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{tmp_path / '.venv/bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    environment.pop("VIRTUAL_ENV", None)

    def run(command: str) -> str:
        return subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    for name, arguments in instructions():
        if name == "COPY":
            *sources, target = [part for part in arguments.split() if not part.startswith("--")]
            for source in sources:
                if (PROJECT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.ckpt", "events.*")
                    shutil.copytree(PROJECT / source, tmp_path / target, ignore=ignored)
                else:
                    shutil.copy(PROJECT / source, tmp_path / target)
        elif name == "RUN" and "venv" in arguments and "apt-get" not in arguments:
            run(arguments.replace("python3", sys.executable))
    assert "usage: python -m nlicot COMMAND" in run("python -m nlicot --help")
    assert "base: bundled" in run("python -m nlicot fit --config configs/overlays/sample.yaml --print_config")
