"""Two runs teach one by soft labels, also of pairs without a label, and the run says so everywhere."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nlicot.cli import main
from nlicot.config_files import SAMPLE
from tests.small_model import write_small_model
from tests.training.short_fit import SHORT_FIT

FLAGS = [*SHORT_FIT, "--model.quantization=none", "--model.dtype=float32", "--model.learning_rate=1e-2"]
NUM_TRAIN, NUM_POOL = 16, 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def project(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data root, and an ensemble's predictions for train and for a pool without labels."""
    folder = tmp_path_factory.mktemp("project")
    pairs = folder / "data" / "original_data"
    pairs.mkdir(parents=True)
    for split, num in (("train", NUM_TRAIN), ("dev", 4)):
        write_rows(pairs / f"{split}.csv", rows(split)[:num])
    unlabelled = [{**row, "label": "", "id": f"{number}"} for number, row in enumerate(rows("test"))]
    write_rows(pairs / "pool.csv", unlabelled[:NUM_POOL])
    write_rows(pairs / "test.csv", unlabelled[NUM_POOL - 3 :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the process that evaluates
        patch.chdir(folder)
        members = []
        for seed in (1, 2):
            assert fit(base, f"--seed_everything={seed}", run=f"s{seed}") == 0
            members += ["--ckpt_path", f"checkpoints/s{seed}/best.ckpt"]
        for split in ("train", "pool"):
            assert main(["predict", *members, "--split", split]) == 0
        yield folder


@pytest.fixture(autouse=True)
def in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(project)


TRAIN_PREDICTIONS, POOL_PREDICTIONS = (
    f"checkpoints/s1+s2/predictions/{name}.jsonl" for name in ("train", "pool")
)
BOTH = [f"--data.soft_labels={TRAIN_PREDICTIONS}", f"--data.unlabelled_pairs={POOL_PREDICTIONS}"]


def fit(base: Path, *flags: str, run: str) -> int:
    return main(["fit", *FLAGS, "--root=data", f"--model.base={base}", f"--run={run}", *flags])


def rows(split: str) -> list[dict[str, str]]:
    with (SAMPLE / "original_data" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, content: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)


def read_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def summary(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("checkpoints", run, "fit.json").read_text(encoding="utf-8"))
    return found


def adapter(run: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(f"checkpoints/{run}/last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


def same(first: str, second: str) -> bool:
    one, other = adapter(first), adapter(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_ensemble_teaches_one_adapter_with_and_without_labels(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, *BOTH, "--final_evaluation=true", run="taught") == 0
    files = {
        path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for path in (POOL_PREDICTIONS, TRAIN_PREDICTIONS)
    }
    assert summary("taught")["soft_labels"] == {
        "files": files,
        "num_pairs": NUM_TRAIN + NUM_POOL,
        "num_unlabelled": NUM_POOL,
        "num_in_test": 3,
        "temperature": 1.0,
    }
    num_examples = NUM_TRAIN + NUM_POOL
    assert summary("taught")["built"]["train"].startswith(
        f"{num_examples} examples from {num_examples} pairs (label: {NUM_TRAIN}, soft label: {NUM_POOL}; "
    )
    assert summary("taught")["optimizer_steps"] == 2 * num_examples / 4
    line = f"soft labels of {num_examples} pairs, {NUM_POOL} of them unlabelled, at temperature 1, from "
    printed = capsys.readouterr().out
    assert f"learning from {line}" in printed
    assert "TRANSDUCTIVE: 3 are pairs of the test split" in printed
    assert not same("taught", "s1")

    assert main(["report", "taught", "--json=r.json", "--card=c.md", "--html=r.html", "--overwrite"]) == 0
    assert f"\n1 learnt {line}" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["runs"][0]["soft_labels"]["num_in_test"] == 3
    assert f"Run 1 learnt {line}" in Path("r.html").read_text()
    card = Path("c.md").read_text()
    assert f"{num_examples} training pairs had soft labels, {NUM_POOL} of them no other one" in card
    assert all(sha256 in card for sha256 in files.values())
    assert "**Transductive:** 3 of these are pairs of the test split" in card
    assert "checkpoints/s1" not in card

    assert main(["predict", "--ckpt_path=checkpoints/taught/best.ckpt"]) == 0
    learnt = "checkpoints/taught/best.ckpt has learnt soft labels of 3 of these"
    assert f"TRANSDUCTIVE: {learnt} {len(read_lines('checkpoints/taught/predictions/test.jsonl'))} pairs" in (
        capsys.readouterr().out
    )


def test_soft_labels_of_0_and_1_give_the_adapter_of_the_labels(base: Path) -> None:
    certain = [{**row, "p_entailment": row["label"]} for row in rows("train")[:NUM_TRAIN]]
    write_rows(Path("certain.csv"), certain)
    assert fit(base, "--data.train_pairs=certain.csv", run="certain") == 0
    assert fit(base, run="hard") == 0
    assert same("certain", "hard")
    assert summary("certain")["soft_labels"]["num_pairs"] == NUM_TRAIN
    assert "soft_labels" not in summary("hard")
    halves = [{**row, "p_entailment": 0.5} for row in certain]
    write_rows(Path("halves.csv"), halves)
    assert fit(base, "--data.train_pairs=halves.csv", run="halves") == 0
    assert not same("halves", "hard")


def test_a_temperature_near_0_teaches_the_label_that_is_likelier(base: Path) -> None:
    predictions = read_lines(TRAIN_PREDICTIONS)
    hard = [
        {**row, "label": each["predicted_label"]}
        for row, each in zip(rows("train"), predictions, strict=False)
    ]
    write_rows(Path("predicted.csv"), hard)
    assert fit(base, "--data.train_pairs=predicted.csv", run="predicted") == 0
    without = [{**row, "label": ""} for row in hard]
    write_rows(Path("without.csv"), without)
    flags = ["--data.train_pairs=without.csv", BOTH[0], "--data.soft_label_temperature=1e-6"]
    assert fit(base, *flags, run="sharp") == 0
    assert same("sharp", "predicted")


def test_the_rules_of_a_shared_task_can_forbid_pairs_of_the_test_split(
    base: Path, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, *BOTH, "--data.blind_test=true", run="forbidden") == 2
    test_path = Path("data", "original_data", "test.csv")
    assert f"--data.blind_test: found soft labels of 3 pairs of {test_path}, expected none" in (
        capsys.readouterr().err
    )
    assert not Path("checkpoints/forbidden").exists()

    # The test pairs may come after the fit: then predict refuses them.
    early = shutil.copytree(project / "data", tmp_path / "data")
    (early / "original_data" / "test.csv").unlink()
    assert fit(base, *BOTH, "--data.blind_test=true", f"--root={early}", run="early") == 0
    capsys.readouterr()
    assert main(["predict", "--ckpt_path=checkpoints/early/best.ckpt", "--root=data"]) == 2
    assert (
        f"--data.blind_test: found 3 of the pairs to predict in {POOL_PREDICTIONS}" in capsys.readouterr().err
    )
    flags = ["--root=data", "--data.unlabelled_pairs=moved.csv"]
    assert main(["predict", "--ckpt_path=checkpoints/early/best.ckpt", *flags]) == 2
    assert "--data.blind_test: found no file moved.csv, whose soft labels" in capsys.readouterr().err


def test_dev_pairs_cannot_be_unlabelled_training_pairs(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = [{**row, "label": "", "p_entailment": 0.5} for row in rows("dev")]
    write_rows(Path("dev_pool.csv"), dev)
    assert fit(base, "--data.unlabelled_pairs=dev_pool.csv", run="leaking") == 2
    assert "of dev in train too (there 'unlabelled-" in capsys.readouterr().err


def test_a_limit_of_the_training_pairs_leaves_the_other_soft_labels_unused(base: Path) -> None:
    assert fit(base, BOTH[0], "--data.limit_train=8", run="limited") == 0
    assert summary("limited")["soft_labels"]["num_pairs"] == 8
