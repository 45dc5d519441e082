from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

# Tests train for seconds, less than compiling takes; tests/model/fast/test_kernels.py compiles.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a process already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LIBRARIES = ("transformers", "peft", "datasets", "mistral-common", "trl", "llama-cpp-python", "lm-eval")
"""Distributions of the libraries that `make interop` runs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no core waits for one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("training", "chaos"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name the libraries that `make interop` runs, with their versions."""
    return [", ".join(map(_with_version, LIBRARIES))] if config.option.markexpr == "interop" else []


def _with_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True if golden files are to be rewritten instead of compared with."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder in NLICOT_REAL_DATA, with `comp34812/` and `original/`."""
    folder = os.environ.get("NLICOT_REAL_DATA")
    if not folder:
        pytest.skip("NLICOT_REAL_DATA is not set")
    if not (Path(folder) / "comp34812").is_dir():
        pytest.skip(f"NLICOT_REAL_DATA={folder} holds no comp34812/")
    return Path(folder)
