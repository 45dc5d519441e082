"""A sweep's file becomes runs, each with the command line of its fit; runs that exist are recognised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nlicot.cli import main
from nlicot.command_line import Names
from nlicot.errors import ConfigError
from nlicot.run.config import parse_fit
from nlicot.sweep.plan import Plan, chosen, make_plan, read_experiments

OUT = Path("checkpoints/sweep")
FILE = Path("sweep.yaml")
TWO = """
config: configs/label_only.yaml
seeds: [0, 1]
model: {base: bundled, lora.r: 8}
experiments:
- name: labels
- name: slow
  config: [configs/overlays/small_model.yaml]
  model.learning_rate: 5e-4
  seeds: 3
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(content: str, *, only: str | None = None, seeds: tuple[str, ...] = ()) -> Plan:
    FILE.write_text(content, encoding="utf-8")
    experiments = read_experiments(FILE, seeds=seeds)
    return make_plan(FILE, chosen(experiments, Names.parse(only) if only else None), OUT)


def existing_run(folder: Path, args: list[str], *, is_finished: bool) -> None:
    """Write what `fit` leaves in a run's folder, without weights."""
    config = parse_fit(args).yaml
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "last.ckpt").write_bytes(b"")
    steps = {"optimizer_steps": 4} if is_finished else {}
    (folder / "fit.json").write_text(json.dumps({"builder": "LabelOnly"} | steps), encoding="utf-8")
    if is_finished:
        (folder / "predictions" / "dev.jsonl").write_text("{}\n", encoding="utf-8")


def test_each_experiment_is_fitted_once_per_seed_with_its_settings_over_the_files() -> None:
    plan = planned(TWO)
    common = ["--config=configs/label_only.yaml"]
    model = ["--model.base=bundled", "--model.lora.r=8"]
    own = ["--config=configs/overlays/small_model.yaml"]

    def ends(name: str, seed: int) -> list[str]:
        return [f"--seed_everything={seed}", f"--checkpoints_root={OUT}", f"--run={name}"]

    assert [(run.experiment, run.seed, run.state) for run in plan.runs] == [
        ("labels", 0, "new"),
        ("labels", 1, "new"),
        ("slow", 3, "new"),
    ]
    assert plan.runs[1].args == ["fit", *common, *model, *ends("labels-1", 1)]
    slow = ["fit", *common, *own, *model, "--model.learning_rate=5e-4", *ends("slow-3", 3)]
    assert plan.runs[2].args == slow
    assert plan.reports["slow"].startswith("1160 examples from 1160 pairs (label: 1160; ")
    # What `fit` makes of the arguments: an overlay's value below the experiment's.
    settings = parse_fit(slow[1:]).settings
    assert (settings.model.learning_rate, settings.model.warmup_ratio) == (5e-4, 0.15)
    assert (settings.seed_everything, settings.run) == (3, "slow-3")


def test_values_of_every_kind_reach_fit() -> None:
    own = """
- name: a
  trainer: {devices: [0, 1], max_time: {minutes: 90}, max_epochs: null, max_steps: 9}
  definitions: {entailment: "it follows: always", no_entailment: "else"}
  data.builder: {class_path: nlicot.builders.label_only.LabelOnly, init_args: {balance: true}}
"""
    plan = planned(f"model.base: bundled\nexperiments:{own}")
    settings = parse_fit(plan.runs[0].args[1:]).settings
    assert settings.trainer.devices == [0, 1]
    assert settings.trainer.max_time == {"minutes": 90}
    assert settings.trainer.max_epochs is None
    assert settings.definitions.entailment == "it follows: always"
    assert not isinstance(settings.data.builder, str) and settings.data.builder.balance is True


def test_a_start_is_the_run_of_the_same_seed_or_the_only_one() -> None:
    file = """
data.builder: label_only
experiments:
- {name: two, seeds: [4, 5]}
- {name: one, seeds: 9}
- {name: after_two, seeds: [5, 4], from: two}
- {name: after_one, seeds: [0, 1], from: one}
- {name: after_both, seeds: 5, from: after_two}
"""
    runs = {run.folder.name: run for run in planned(file).runs}
    starts = {name: run.source.name for name, run in runs.items() if run.source}
    assert starts == {
        "after_two-5": "two-5",
        "after_two-4": "two-4",
        "after_one-0": "one-9",
        "after_one-1": "one-9",
        "after_both-5": "after_two-5",
    }
    assert f"--start_from={OUT / 'two-5'}" in runs["after_two-5"].args
    assert [run.folder.name for run in planned(file, only="after_both").runs] == [
        *("two-4", "two-5", "after_two-5", "after_two-4", "after_both-5")
    ]
    assert [run.seed for run in planned(file, only="after_one", seeds=("7",)).runs] == [7, 7]


def test_a_run_that_exists_is_finished_or_goes_on() -> None:
    new = planned(TWO).runs
    existing_run(new[0].folder, list(new[0].args[1:]), is_finished=True)
    existing_run(new[1].folder, list(new[1].args[1:]), is_finished=False)
    runs = planned(TWO).runs
    assert [run.state for run in runs] == ["finished", "stopped", "new"]
    assert runs[1].args == ["fit", f"--resume={OUT / 'labels-1'}"]


def test_dev_pairs_other_than_those_of_a_finished_run_are_refused_before_a_fit() -> None:
    (new, *_) = planned(TWO).runs
    existing_run(new.folder, list(new.args[1:]), is_finished=True)
    summary = json.loads((new.folder / "fit.json").read_text())
    (new.folder / "fit.json").write_text(json.dumps({**summary, "dev_pairs": "3 pairs, content 0"}))
    (new.folder / "predictions" / "dev.jsonl").touch()
    with pytest.raises(
        ConfigError, match=r"than those of checkpoints/sweep/labels-0, which is finished \(3 pairs"
    ):
        planned(TWO)


def test_a_file_of_settings_cannot_turn_the_evaluation_off(tmp_path: Path) -> None:
    (tmp_path / "fast.yaml").write_text("final_evaluation: false\n")
    with pytest.raises(ConfigError, match="labels: found preflight true or final_evaluation false, expected"):
        planned(TWO.replace("configs/label_only.yaml", str(tmp_path / "fast.yaml")))


def test_a_change_that_a_resume_may_make_goes_on_with_it() -> None:
    (new, *_) = planned(TWO).runs
    existing_run(new.folder, list(new.args[1:]), is_finished=True)
    run = planned(TWO + "trainer.max_epochs: 7\n").runs[0]
    assert run.state == "stopped"
    assert run.args[:2] == ["fit", f"--resume={OUT / 'labels-0'}"]
    assert "--trainer.max_epochs=7" in run.args


def test_a_setting_that_the_file_no_longer_has_goes_back() -> None:
    longer = TWO + "trainer.max_epochs: 7\nlabel_map: {1: 1, 0: 0}\n"
    (new, *_) = planned(longer).runs
    existing_run(new.folder, list(new.args[1:]), is_finished=True)
    run = planned(TWO).runs[0]
    assert run.state == "stopped"
    parsed = parse_fit(run.args[1:])
    assert parsed.settings.trainer.max_epochs == parse_fit([]).settings.trainer.max_epochs
    assert parsed.settings.label_map is None and len(parsed.changes) == 2
    (new.folder / "config.yaml").write_text(parsed.yaml)
    assert planned(TWO).runs[0].state == "finished"


def test_another_start_than_the_files_is_refused() -> None:
    FILE.write_text(TWO + "- {name: then, seeds: 0, from: labels}\n")
    with pytest.raises(ConfigError, match="then: found --from, expected none: it starts from labels"):
        read_experiments(FILE, flags=["--from=elsewhere"])


@pytest.mark.parametrize(
    ("earlier", "later", "found"),
    [
        ("lora.r: 8", "lora.r: 16", "--model.lora.r: found 16, expected 8"),
        (", lora.r: 8", "", "--model.lora.r: found 32, expected 8"),
    ],
)
def test_a_run_with_other_settings_is_refused_with_both_values(earlier: str, later: str, found: str) -> None:
    (new, *_) = planned(TWO).runs
    existing_run(new.folder, list(new.args[1:]), is_finished=True)
    with pytest.raises(ConfigError) as refused:
        planned(TWO.replace(earlier, later))
    assert str(refused.value) == (
        f"sweep.yaml: labels: {OUT / 'labels-0'} is a run with other settings; {found} "
        "(give the experiment another name, or remove that folder)"
    )


def test_a_dry_run_prints_the_commands_and_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    FILE.write_text(TWO, encoding="utf-8")
    assert main(["sweep", str(FILE), "--dry_run", "--only", "labels", "--data.limit_train", "9"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("labels: 9 examples from 9 pairs (")
    assert printed[1] == (
        "labels-0 (new): python -m nlicot fit --config=configs/label_only.yaml --model.base=bundled "
        "--model.lora.r=8 --data.limit_train 9 --seed_everything=0 --checkpoints_root=checkpoints/sweep "
        "--run=labels-0"
    )
    assert len(printed) == 3
    assert list(Path().iterdir()) == [FILE]
