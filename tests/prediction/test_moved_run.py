"""A run of the bundled model, copied to another machine, whose cache is elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nlicot.cli import main
from nlicot.model.base_model import BUNDLED_HUB_NAME, cache_folder, resolve
from nlicot.model.loaded_model import load_by_name

NUM_PAIRS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitted")
    flags = [
        "--data.limit_train=2",
        "--data.limit_dev=2",
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
    ]
    flags += [
        "--model.compile_kernels=false",
        "--generated_metrics.every_n_epochs=0",
        "--final_evaluation=false",
    ]
    assert main(["fit", "--model.base=bundled", f"--checkpoints_root={root}", "--run=run", *flags]) == 0
    return root / "run"


@pytest.fixture
def moved(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copied run, on a machine with another home and another cache."""
    shutil.copytree(run, tmp_path / "copied")
    (tmp_path / "cache").mkdir()
    for unpacked in cache_folder().glob("bundled-*"):  # unpacking again would take a minute
        (tmp_path / "cache" / unpacked.name).symlink_to(unpacked.resolve())
    for name, folder in (("HOME", "home"), ("NLICOT_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path / "copied"


def test_the_adapter_names_the_hubs_model_and_no_folder_of_this_machine(run: Path) -> None:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BUNDLED_HUB_NAME
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {BUNDLED_HUB_NAME}" in card
    for path in (cache_folder(), Path.home()):
        assert str(path) not in card


def test_the_copied_run_predicts(moved: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "data" / "original_data"
    pairs.mkdir(parents=True)
    rows = "id,premise,hypothesis\na,A dog runs.,An animal moves.\nb,It rains.,It is dry.\n"
    (pairs / "test.csv").write_text(rows, encoding="utf-8")
    flags = [f"--root={tmp_path / 'data'}", "--model.decoding.max_thought_tokens=4"]
    assert main(["predict", f"--ckpt_path={moved / 'best.ckpt'}", *flags]) == 0
    predictions = (moved / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in predictions] == ["a", "b"]


@pytest.mark.parametrize("named", [BUNDLED_HUB_NAME, "/home/other/.cache/nlicot/bundled-0123456789ab"])
def test_the_copied_adapter_finds_the_bundled_model(named: str, moved: Path, tmp_path: Path) -> None:
    path = moved / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": named}
    path.write_text(json.dumps(config), encoding="utf-8")
    loaded = load_by_name(str(moved))
    assert (loaded.base.name, loaded.base.folder) == ("bundled", resolve("bundled").folder)
    assert loaded.base.folder.parent == tmp_path / "cache"
