from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nlicot

PACKAGE = Path(nlicot.__file__).parent
MODULE_PATHS = sorted(PACKAGE.rglob("*.py"))
# Each row may import from itself and from the rows above it.
LAYERS = [
    {"nlicot", "errors", "ranks", "records", "signals"},
    {
        "config_files",
        "command_line",
        "text_tables",
        "words",
        "prompts",
        "completion",
        "evaluation",
        "data",
        "builders",
        "prepare",
        "settings",
        "servers",
    },
    {"model", "run", "teacher", "audit", "report", "inspection"},
    {"prediction"},
    {"training", "export", "sweep"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}
HEAVY = {"torch", "torchmetrics", "lightning", "transformers", "peft", "bitsandbytes"}
MAY_CALL_PREDICTION = {"nlicot.teacher.backends.local"}  # when it is used: a teacher in this process
MAY_BE_HEAVY = {"model", "prediction", "training", "export"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in MODULE_PATHS}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it, those of our own to the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def own_imports(path: Path) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] == "nlicot"}


def unit_of(module: str) -> str:
    """The part of the layout that a module belongs to: the first name after `nlicot`."""
    return module.split(".")[1] if "." in module else "nlicot"


def test_every_part_of_the_package_has_its_layer() -> None:
    assert {unit_of(module) for module in MODULES} - LAYER_OF.keys() == set()


def test_imports_point_one_way() -> None:
    upward = [
        f"{module_name(path)} imports {name}"
        for path in MODULE_PATHS
        for name in sorted(own_imports(path))
        if module_name(path) not in MAY_CALL_PREDICTION
        if LAYER_OF[unit_of(name)] > LAYER_OF[unit_of(module_name(path))]
    ]
    assert upward == []


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module_name(path): own_imports(path) - {module_name(path)} for path in MODULE_PATHS}
    graphlib.TopologicalSorter(graph).prepare()


def test_teacher_and_training_never_import_each_other() -> None:
    crossing = [
        f"{module_name(path)} imports {name}"
        for path in MODULE_PATHS
        for name in own_imports(path)
        if {unit_of(module_name(path)), unit_of(name)} == {"teacher", "training"}
    ]
    assert crossing == []


def test_heavy_libraries_are_imported_only_where_models_are() -> None:
    elsewhere = [
        f"{module_name(path)} imports {name}"
        for path in MODULE_PATHS
        for name in imported(path)
        if name.split(".")[0] in HEAVY and unit_of(module_name(path)) not in MAY_BE_HEAVY
    ]
    assert elsewhere == []


def test_the_records_need_the_standard_library_alone() -> None:
    names = {name.split(".")[0] for name in imported(PACKAGE / "records.py")}
    assert names <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "module",
    [
        "nlicot.cli",
        "nlicot.data.root",
        "nlicot.builders",
        "nlicot.evaluation.metrics",
        "nlicot.audit.command",
        "nlicot.settings",
        "nlicot.run.config",
        "nlicot.run.data",
        "nlicot.sweep.command",
    ],
)
def test_importing_a_light_module_pulls_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY | {'datasets'}!r} & set(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert finished.stdout == "[]\n"


@pytest.mark.parametrize("path", MODULE_PATHS, ids=map(module_name, MODULE_PATHS))
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
