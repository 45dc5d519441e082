"""The recipes of CONTRIBUTING.md work: each plug-in is added to its registry as written there, and used."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.model import prompt_format
from tests.small_model import write_small_model

PROJECT = Path(__file__).parents[1]
THOUGHT = "Step 1: A dog is an animal. Step 2: Running is moving. Step 3: So it follows."
PAIRS = [
    {"id": "a", "premise": "A dog runs.", "hypothesis": "An animal moves.", "label": 1},
    {"id": "b", "premise": "A dog runs.", "hypothesis": "Does it sleep?", "label": 0},
]


def blocks(heading: str) -> list[str]:
    """Return the code of one recipe, and its line in the registry."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    return re.findall(r"^```(?:python|text)\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def add_plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that does what a recipe says: one file, and one line in a registry."""

    def add(heading: str) -> None:
        code, line = blocks(heading)
        path = code.partition("\n")[0].removeprefix("# ")
        module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
        exec(compile(code, path, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        first, _, entry = line.partition("\n")
        found = re.fullmatch(r"# in ([A-Z_]+), (nlicot/[\w/]+)\.py", first)
        assert found is not None, first
        registry = importlib.import_module(found[2].replace("/", ".").removesuffix(".__init__"))
        entries = getattr(registry, found[1])
        names = vars(registry) | vars(module)
        if isinstance(entries, dict):
            for name, value in eval(f"{{{entry}}}", names).items():
                monkeypatch.setitem(entries, name, value)
        else:
            monkeypatch.setattr(registry, found[1], (*entries, *eval(f"({entry})", names)))

    return add


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data root of two pairs with a thought each, one of them wrong."""
    for kind, rows in {
        "original_data": PAIRS,
        "original_thoughts": [pair | {"thought_process": THOUGHT, "predicted_label": 1} for pair in PAIRS],
    }.items():
        path = tmp_path / "root" / kind / f"train.{'csv' if kind == 'original_data' else 'jsonl'}"
        path.parent.mkdir(parents=True)
        if kind == "original_data":
            lines = [",".join(PAIRS[0]), *(",".join(map(str, row.values())) for row in rows)]
        else:
            rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
            lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "root"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_builder_is_one_file_and_one_line(add_plugin: Callable[[str], None], root: Path) -> None:
    add_plugin("A builder")
    out = root / "ready.jsonl"
    flags = ["--builder", "short_thoughts", "--split", "train", "--format", "prompt-completion"]
    assert main(["prepare", "--root", str(root), *flags, "--out", str(out)]) == 0
    (example,) = read_lines(out)
    steps = "Step 1: A dog is an animal. Step 2: Running is moving."
    assert json.loads(example["completion"].removesuffix("</s>")) == {
        "thought_process": steps,
        "predicted_label": 1,
    }


def test_a_backend_is_one_file_and_one_line(add_plugin: Callable[[str], None], root: Path) -> None:
    add_plugin("A backend")
    (root / "original_thoughts" / "train.jsonl").unlink()
    flags = ["--backend", "echo", "--model", "any", "--split", "train"]
    assert main(["generate", "--root", str(root), *flags]) == 0
    thoughts = read_lines(root / "original_thoughts" / "train.jsonl")
    assert [thought["thought_process"] for thought in thoughts] == ["Step 1: nothing follows."] * 2
    assert [thought["predicted_label"] for thought in thoughts] == [0, 0]


def test_a_prompt_format_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, line = blocks("A prompt format")
    names = dict(vars(prompt_format))
    exec(code, names)
    added = eval(f"({line})", names)
    monkeypatch.setattr(prompt_format, "PROMPT_FORMATS", (*prompt_format.PROMPT_FORMATS, *added))
    found = prompt_format.load_prompt_format(write_small_model(tmp_path), "alpaca")
    text = found.decode_inner(found.encode_prompt("Does it rain?"))
    assert text == "### Instruction:\nDoes it rain?\n\n### Response:"


def test_an_engine_is_one_file_and_one_line(add_plugin: Callable[[str], None], tmp_path: Path) -> None:
    add_plugin("An engine")
    base = write_small_model(tmp_path / "base")
    fit = ["fit", "--data.builder=multitask", f"--model.base={base}", f"--checkpoints_root={tmp_path}"]
    fit += ["--run=run", "--data.limit_train=4", "--data.limit_dev=4", "--trainer.max_steps=1"]
    assert main([*fit, "--generated_metrics.every_n_epochs=0", "--final_evaluation=false"]) == 0
    flags = [f"--ckpt_path={tmp_path / 'run' / 'best.ckpt'}", "--split=dev", "--data.limit_dev=2"]
    assert main(["predict", *flags, "--engine=coin", "--think=true"]) == 0
    rows = read_lines(tmp_path / "run" / "predictions" / "dev.jsonl")
    assert [(row["thought_process"], row["p_entailment"]) for row in rows] == [
        ("Step 1: who knows.", 0.5)
    ] * 2


def test_an_audit_check_is_one_file_and_one_line(
    add_plugin: Callable[[str], None], root: Path, tmp_path: Path
) -> None:
    add_plugin("An audit check")
    report = tmp_path / "audit.json"
    assert main(["audit", "--root", str(root), "--json", str(report)]) in (0, 1)
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["sections"][-1]["summary"] == "1 of 2 hypotheses are questions"
    (finding,) = (found for found in content["findings"] if found["name"] == "question")
    assert finding["ids"] == ["train/b"]
