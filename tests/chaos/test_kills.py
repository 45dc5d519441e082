"""SIGKILL at random moments of every command: no half-written file under a final name, equal bytes after."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.chaos.commands import NUM_KILLS, contents, finish, kill_at_random, leftovers
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer

pytestmark = pytest.mark.chaos

NUM_PAIRS = 5000
CHEAP = ["split", "prepare", "audit", "report"]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def write_pairs(path: Path, num_pairs: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"p{n},Premise {n} {'is long ' * 20},Hypothesis {n}.,{n % 2}" for n in range(num_pairs)]
    path.write_text("\n".join(["id,premise,hypothesis,label", *rows]) + "\n")
    return path


def write_predictions(path: Path, num_pairs: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"p{n}", "premise": f"Premise {n}.", "hypothesis": "It is.", "true_label": n % 2,
         "predicted_label": (n // 2) % 2, "p_entailment": 0.5, "thought_process": "Words. " * 40}
        for n in range(num_pairs)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cheap_command(name: str, folder: Path, out: Path | None = None) -> tuple[list[object], list[Path]]:
    """Return a command that writes large files to `folder`, or to `out`, and these files."""
    out = out or folder
    pairs = write_pairs(folder / "root" / "original_data" / "train.csv", NUM_PAIRS)
    if name == "split":
        files = [out / "out" / "original_data" / name for name in ("train.csv", "dev.csv")]
        return ["split", write_pairs(folder / "pairs.csv", NUM_PAIRS), "--out", out / "out"], files
    if name == "prepare":
        files = [out / "prepared.jsonl"]
        root = ["--root", folder / "root", "--split", "train", "--builder", "label_only"]
        return ["prepare", *root, "--out", *files], files
    if name == "audit":
        files = [out / "audit.json", out / "audit.md"]
        flags = ["--train_pairs", pairs, "--builder", "label_only"]
        return ["audit", *flags, "--json", files[0], "--markdown", files[1]], files
    predictions = write_predictions(folder / "dev.jsonl", 500)
    files = [out / "report.html", out / "report.json"]
    return ["report", predictions, "--html", files[0], "--json", files[1]], files


@pytest.mark.parametrize("name", CHEAP)
def test_commands_on_files(name: str, tmp_path: Path) -> None:
    args, files = cheap_command(name, tmp_path)
    started = time.monotonic()
    finish(args)
    duration_s = time.monotonic() - started
    expected = contents(*files)
    assert list(expected) == files

    chance, num_killed = random.Random(name), 0
    folders = [tmp_path, *{path.parent for path in files}]
    while num_killed < NUM_KILLS:
        for path in files:
            path.unlink(missing_ok=True)
        num_killed += kill_at_random(args, chance, duration_s=duration_s, folders=folders)
        found = contents(*files)
        assert found.items() <= expected.items()
    finish([*args, "--overwrite"])
    assert contents(*files) == expected
    assert leftovers(*folders) == []


@pytest.mark.parametrize("command", ["generate", "reflect", "score", "export"])
def test_teacher_commands(command: str, tmp_path: Path) -> None:
    with FakeServer(keep_seen=False, delay_s=0.002) as server:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        args: Callable[[Path], list[object]]
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        for root in (whole, killed):
            write_pairs(root / "original_data" / "train.csv", 120)
            if command != "generate":
                finish(["generate", "--root", root, *flags])

        def args(root: Path) -> list[object]:
            if command == "export":
                return ["generate", "--root", root, *flags, "--export_journal", root / "journal.jsonl"]
            return [command, "--root", root, *flags]

        folder = {
            "generate": "original_thoughts",
            "reflect": "reflected_thoughts",
            "score": "scored_thoughts",
        }
        name = "journal.jsonl" if command == "export" else f"{folder[command]}/train.jsonl"
        started = time.monotonic()
        finish(args(whole))
        duration_s = time.monotonic() - started
        chance, num_killed = random.Random(command), 0
        while num_killed < NUM_KILLS:
            (killed / name).unlink(missing_ok=True)
            num_killed += kill_at_random(
                args(killed), chance, duration_s=duration_s, folders=[(killed / name).parent]
            )
            if (killed / name).exists() and command != "export":
                assert (killed / name).read_bytes() == (whole / name).read_bytes()
        finish([*args(killed), "--overwrite"])
        if command == "export":  # times differ
            lines = [(root / name).read_text().count("\n") for root in (whole, killed)]
            assert lines[0] == lines[1]
        else:
            assert (killed / name).read_bytes() == (whole / name).read_bytes()
        assert leftovers(killed, (killed / name).parent) == []


FIT = [
    *("--data.builder=reflected", "--data.limit_train=40", "--data.limit_dev=8", "--data.effective_batch=4"),
    *("--trainer.max_epochs=2", "--checkpoint.every_n_steps=3", "--generated_metrics.every_n_epochs=0"),
    *("--final_evaluation=false", "--model.lora.r=4", "--model.learning_rate=1e-2", "--run=run"),
]


def test_fit(small_model: Path, tmp_path: Path) -> None:
    def flags(root: Path) -> list[object]:
        return ["fit", *FIT, f"--checkpoints_root={root}", f"--model.base={small_model}"]

    started = time.monotonic()
    finish(flags(tmp_path / "whole"))
    duration_s = time.monotonic() - started
    whole, chance = tmp_path / "whole" / "run", random.Random("fit")
    run = tmp_path / "killed" / "run"
    args, num_killed = flags(run.parent), 0
    while num_killed < NUM_KILLS:
        num_killed += kill_at_random(args, chance, duration_s=duration_s, folders=[run])
        for path in [path for name in ("last.ckpt", "best.ckpt") if (path := run / name).exists()]:
            torch.load(path, weights_only=True)
        if (run / "config.yaml").exists():
            args = ["fit", "--resume", run]
        if (run / "fit.json").exists() and "best" in json.loads((run / "fit.json").read_text()):
            break  # it was killed as it printed its last lines
    finish(args)
    for name in ("adapter/adapter_model.safetensors", "fit.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    states = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, run)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert leftovers(run) == []


@pytest.fixture(scope="module")
def trained(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("trained")
    finish(["fit", *FIT, f"--checkpoints_root={root}", f"--model.base={small_model}"])
    yield root / "run"


@pytest.mark.parametrize("command", ["predict", "validate", "test"])
def test_predictions(command: str, trained: Path, tmp_path: Path) -> None:
    def args(folder: Path) -> list[object]:
        split = ["--split", "dev"] if command != "predict" else []
        return [command, "--ckpt_path", trained / "best.ckpt", "--output", folder / "predictions", *split]

    started = time.monotonic()
    finish(args(tmp_path / "whole"))
    duration_s = time.monotonic() - started
    whole, killed = (tmp_path / name / "predictions" for name in ("whole", "killed"))
    names = sorted(path.name for path in whole.iterdir())
    chance, num_killed = random.Random(command), 0
    while num_killed < NUM_KILLS:
        for name in names:
            (killed / name).unlink(missing_ok=True)
        num_killed += kill_at_random(args(killed.parent), chance, duration_s=duration_s, folders=[killed])
        for name, content in contents(*(killed / name for name in names)).items():
            assert content == (whole / name.name).read_bytes()
    finish(args(killed.parent))
    assert sorted(path.name for path in killed.iterdir()) == names
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
