"""Configurations: every shipped one takes a step; settings are typed, and old ones are read."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file

from nlicot.cli import main
from nlicot.errors import CheckpointError, ConfigError
from nlicot.prompts import LabelDefinitions
from nlicot.run.config import CHANGED_BY_A_RESUME, parse_fit, parse_inspect, parse_prediction
from nlicot.settings import EarlyStoppingSettings, TrainerSettings
from tests.small_model import write_small_model

CONFIGS = Path(__file__).parents[2] / "configs"
NO_ABLATION = {"recipe.yaml", "teacher.yaml"}
ABLATIONS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in NO_ABLATION)
OVERLAYS = sorted(f"overlays/{path.name}" for path in CONFIGS.glob("overlays/*.yaml"))
SHARED_BASE = "overlays/fsdp.yaml"
"""Needs several processes: tests/training/test_ddp.py."""
LARGER_STEPS = {f"overlays/{name}.yaml" for name in ("best_small", "sample", "small_model")}
# What belongs to this machine: a small base, little data, one device.
SMALL = [
    "--data.limit_train=4",
    "--data.limit_dev=2",
    "--trainer.max_steps=1",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.decoding.max_thought_tokens=3",
    "--final_evaluation=false",
]


OLD_CONFIG = """\
# lightning.pytorch==2.6.6
seed_everything: 0
trainer:
  devices: 1
  logger: null
  callbacks: null
  max_epochs: 5
  max_time: null
  overfit_batches: 0.0
  val_check_interval: 0.25
model:
  base: bundled
  fallback_base: null
  warmup_share: 0.1
data:
  root: old/data
  definitions: null
  prompts: null
  label_map: null
  share_beginning: false
run: 5e-4
resume: null
preflight: false
final_evaluation: true
optimizer: null
lr_scheduler: null
"""
"""Part of what `fit` wrote before version 0.2."""


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _fit(small_model: Path, root: Path, *flags: str) -> int:
    return main(
        ["fit", *flags, *SMALL, f"--model.base={small_model}", f"--checkpoints_root={root}", "--run=tried"]
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("MASTER_PORT", value, "a whole number from 1 to 65535")
            for value in ("x", "", "0", "65536", "1.5")
        ),
        *(
            (name, "-1", "a whole number from 0 to 2147483647")
            for name in ("RANK", "NODE_RANK", "LOCAL_RANK")
        ),
        ("WORLD_SIZE", "two", "a whole number from 0 to 2147483647"),
    ],
)
def test_a_number_that_no_launcher_sets_is_refused(
    name: str,
    value: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    checkpoint = tmp_path / "run" / "best.ckpt"
    for args in (["fit", "--data.builder=label_only"], ["predict", f"--ckpt_path={checkpoint}"]):
        assert main(args) == 2
        refusal = (
            f"nlicot: {name}: found {value!r} in the environment, expected {expected}; correct or unset it\n"
        )
        assert capsys.readouterr().err == refusal


def test_a_process_that_fit_did_not_start_is_refused(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _fit(small_model, tmp_path, "--data.builder=label_only") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: LOCAL_RANK=1: found a process that another program started, "
        "expected one start of fit, which starts a process for each of --trainer.devices"
    )


def test_every_shipped_config_is_known() -> None:
    assert ABLATIONS == [
        "correct_only.yaml",
        "draft_first.yaml",
        "label_first.yaml",
        "label_only.yaml",
        "multitask.yaml",
        "reflected.yaml",
        "unmodified.yaml",
    ]
    assert [
        f"overlays/{name}.yaml"
        for name in (
            "all_linear",
            "best_small",
            "ddp",
            "falling_thought",
            "fsdp",
            "label_weight",
            "light_thought",
            "multi_node",
            "sample",
            "small_model",
        )
    ] == OVERLAYS


@pytest.mark.parametrize("config", [None, *ABLATIONS, *(each for each in OVERLAYS if each != SHARED_BASE)])
def test_config_takes_a_step_and_leaves_an_adapter_that_peft_loads(
    config: str | None, small_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = [] if config is None else ["--config", str(CONFIGS / config)]
    assert _fit(small_model, tmp_path, *flags) == 0

    run = tmp_path / "tried"
    assert {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")} >= {
        "config.yaml",
        "best.ckpt",
        "last.ckpt",
        "adapter",
        "fit.json",
    }
    assert list(run.glob("events.out.tfevents.*"))
    assert json.loads((run / "fit.json").read_text(encoding="utf-8"))["optimizer_steps"] == 1
    merged = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert merged["model"]["learning_rate"] == (1e-3 if config in LARGER_STEPS else 2e-4)

    stored = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    last = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], last[name]) for name in stored)
    assert any(float(weight.abs().max()) > 0 for name, weight in stored.items() if "lora_B" in name)
    written = load_file(run / "adapter" / "adapter_model.safetensors")
    plain = {name.removeprefix("model.").replace(".default", ""): weight for name, weight in stored.items()}
    assert written.keys() == plain.keys()
    assert all(torch.equal(written[name], weight) for name, weight in plain.items())
    adapted_names = {name.split(".")[-3] for name in written}
    expected = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config == "overlays/all_linear.yaml":
        expected |= {"gate_proj", "up_proj", "down_proj"}
    assert adapted_names == expected

    dense = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(dense, run / "adapter")
    here = {name: weight for name, weight in loaded.named_parameters() if "lora_" in name}
    assert all(torch.equal(weight, stored[f"model.{name}"]) for name, weight in here.items())
    assert len(here) == len(stored)


def test_a_run_of_the_same_name_is_refused_and_unchanged(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tried").mkdir()
    (tmp_path / "tried" / "last.ckpt").write_text("")
    assert _fit(small_model, tmp_path) == 2
    assert [path.name for path in (tmp_path / "tried").iterdir()] == ["last.ckpt"]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"nlicot: --run tried: a run of that name exists in {tmp_path}; choose another name, "
        f"or continue it with: fit --resume {tmp_path / 'tried'}"
    )


def test_accumulating_over_batches_is_refused_and_leaves_no_run(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(small_model, tmp_path, "--trainer.accumulate_grad_batches=2") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: --trainer.accumulate_grad_batches: found 2, expected 1; set --data.effective_batch instead"
    )
    assert not (tmp_path / "tried").exists()


def test_a_callback_may_be_named_by_itself(small_model: Path, tmp_path: Path) -> None:
    named = "--trainer.callbacks=lightning.pytorch.callbacks.DeviceStatsMonitor"
    assert _fit(small_model, tmp_path, "--data.builder=label_only", named) == 0


def test_settings_mirror_lightnings_arguments() -> None:
    """A new Lightning may add, rename or drop arguments; then the settings must follow."""
    for settings, theirs in ((TrainerSettings, Trainer), (EarlyStoppingSettings, EarlyStopping)):
        mine = {each.name: each.default for each in dataclasses.fields(settings)}
        parameters = list(inspect.signature(theirs.__init__).parameters.values())[1:]
        expected = {each.name: each.default for each in parameters}
        if settings is EarlyStoppingSettings:
            assert (expected.pop("monitor"), mine.pop("monitor")) == (inspect.Parameter.empty, "dev/loss")
        assert mine == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--trainer.max_epochs", "2"], {"max_epochs": 2}),
        (["--trainer.devices=2"], {"devices": 2}),
        (["--trainer.devices=[0,1]"], {"devices": [0, 1]}),
        (["--trainer.val_check_interval=1.0"], {"val_check_interval": 1.0}),
        (["--trainer.val_check_interval=7"], {"val_check_interval": 7}),
        (["--trainer.max_time=00:12:00:00"], {"max_time": "00:12:00:00"}),
        (["--trainer.deterministic=warn"], {"deterministic": "warn"}),
    ],
)
def test_trainer_arguments_are_typed(flags: list[str], expected: dict[str, Any]) -> None:
    trainer = parse_fit(flags).settings.trainer
    found = {name: getattr(trainer, name) for name in expected}
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize("text", ["5e-4", "1e3", "a: b", "- x", "null-ish", "007"])
def test_text_stays_text_in_flags_and_in_a_runs_own_config(text: str, tmp_path: Path) -> None:
    flags = [f"--run={text}", f"--root={text}", f"--model.base={text}", f"--definitions.entailment={text}"]
    written = parse_fit(flags)
    (tmp_path / "config.yaml").write_text(written.yaml)
    resumed = parse_fit(["--resume", str(tmp_path)])
    for settings in (written.settings, resumed.settings):
        assert settings.run == settings.model.base == settings.definitions.entailment == text
        assert str(settings.root) == text


def test_number_in_yaml_without_a_point_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text."""
    (tmp_path / "c.yaml").write_text("model:\n  learning_rate: 1e-4\n  weight_decay: 1E-2\nrun: 1e-4\n")
    settings = parse_fit([f"--config={tmp_path / 'c.yaml'}"]).settings
    assert (settings.model.learning_rate, settings.model.weight_decay) == (0.0001, 0.01)
    assert settings.run == "1e-4"
    (tmp_path / "config.yaml").write_text(parse_fit([f"--config={tmp_path / 'c.yaml'}"]).yaml)
    assert parse_fit([f"--resume={tmp_path}"]).settings.model.learning_rate == 0.0001


@pytest.mark.parametrize("value", ["x", "3", "[1]", "~"])
@pytest.mark.parametrize("group", ["model", "trainer", "model:\n  lora"])
def test_another_value_than_settings_where_a_group_is(group: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{group}: {value}\n")
    name = group.replace(":\n  ", ".")
    with pytest.raises(ConfigError) as refused:
        parse_fit([f"--config={path}"])
    found = "['1']" if value == "[1]" else repr(value)
    assert str(refused.value) == f"--config {path}: {name}: found {found}, expected settings under it"


@pytest.mark.parametrize("value", ["", " null"])
@pytest.mark.parametrize("group", ["model", "trainer", "model:\n  lora"])
def test_a_group_whose_settings_are_all_commented_out(group: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{group}:{value}\n")
    assert parse_fit([f"--config={tmp_path / 'c.yaml'}"]).yaml == parse_fit([]).yaml
    (tmp_path / "config.yaml").write_text(f"run: r\n{group}:{value}\n")
    (run,) = parse_prediction("predict", [f"--ckpt_path={checkpoint(tmp_path)}"])
    assert run.settings.model.lora == parse_fit([]).settings.model.lora


def test_a_file_names_no_other_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("config: other.yaml\n")
    with pytest.raises(
        ConfigError, match=f"--config {path}: config: found 'other.yaml', expected a --config flag"
    ):
        parse_fit([f"--config={path}"])


def test_definitions_of_a_flag_are_over_those_of_files_in_any_order(tmp_path: Path) -> None:
    definitions, config = tmp_path / "d.yaml", tmp_path / "c.yaml"
    definitions.write_text("entailment: of the flag\nno_entailment: not\n")
    config.write_text("definitions: {entailment: of the file, no_entailment: nor}\n")
    flags = [f"--definitions={definitions}", f"--config={config}"]
    for given in (flags, flags[::-1]):
        assert parse_fit(given).settings.definitions.entailment == "of the flag"


def test_null_in_a_later_file_takes_a_mapping_back(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("trainer.max_time: {hours: 2}\n")
    second.write_text("trainer.max_time: null\n")
    files = [f"--config={first}", f"--config={second}"]
    assert parse_fit(files[:1]).settings.trainer.max_time == {"hours": 2}
    assert parse_fit(files).settings.trainer.max_time is None


@pytest.mark.parametrize("flag", ["--resume=RUN", "--from=RUN"])
def test_inspect_has_no_run(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag[:-4]}: inspect has no run"):
        parse_inspect([flag])


def test_config_of_a_run_cut_anywhere_is_read_or_refused_by_name(tmp_path: Path) -> None:
    whole = parse_fit([]).yaml
    (tmp_path / "best.ckpt").touch()
    for size in range(0, len(whole), 61):
        (tmp_path / "config.yaml").write_text(whole[:size])
        try:
            parse_prediction("predict", [f"--ckpt_path={tmp_path / 'best.ckpt'}"])
        except (ConfigError, CheckpointError) as error:
            assert "config.yaml" in str(error) and "\n" not in str(error), whole[:size][-40:]


def test_a_run_predicts_without_the_class_of_its_builder_and_on_one_machine(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    settings = parse_fit(["--run=r", "--trainer.num_nodes=2", "--trainer.devices=4"]).yaml.replace(
        "builder: reflected", "builder: {class_path: not_here.Builder}"
    )
    assert "not_here" in settings
    (tmp_path / "config.yaml").write_text(settings)
    flag = f"--ckpt_path={tmp_path / 'best.ckpt'}"
    (run,) = parse_prediction("predict", [flag])
    assert (run.settings.trainer.num_nodes, run.settings.trainer.devices) == (1, 4)
    (typed,) = parse_prediction("predict", [flag, "--trainer.num_nodes=2"])
    assert typed.settings.trainer.num_nodes == 2


# ------------------------------------------------------------------- a resume


def started(folder: Path, *flags: str) -> list[str]:
    """Write the settings of a run; return the flag that resumes it."""
    (folder / "config.yaml").write_text(parse_fit(flags).yaml)
    return ["--resume", str(folder)]


def test_settings_that_a_resume_cannot_change_are_refused_with_both_values(tmp_path: Path) -> None:
    run = started(tmp_path, "--model.learning_rate=5e-4", "--data.builder=label_only")
    flags = ["--model.learning_rate=1e-6", "--seed_everything=3", "--early_stopping.patience=50"]
    with pytest.raises(ConfigError) as refused:
        parse_fit([*run, *flags, "--data.limit_train=9", "--checkpoints_root=other"])
    assert str(refused.value) == (
        f"--resume {tmp_path} continues the run with its own settings; --seed_everything: found 3, "
        "expected 0; --model.learning_rate: found 1e-06, expected 0.0005; --data.limit_train: found 9, "
        "expected null; --checkpoints_root: found other, expected checkpoints (leave these out, or start a "
        "new run)"
    )


@pytest.mark.parametrize(
    "flag",
    [
        "--run=other",
        "--model.base=bundled",
        "--model.lora.r=8",
        "--model.segment_weights.label_weight=2.0",
        "--model.dtype=float32",
        "--data.builder=reflected",
        "--data.effective_batch=8",
        "--data.share_prefix=False",
        "--definitions.entailment=it fits",
        "--checkpoint.monitor=dev/loss_label",
        "--early_stopping.monitor=dev/loss_label",
        "--trainer.precision=32-true",
        "--trainer.limit_train_batches=3",
        "--generated_metrics.num_pairs=3",
    ],
)
def test_setting_that_decided_the_steps_so_far_is_refused(flag: str, tmp_path: Path) -> None:
    run = started(tmp_path, "--data.builder=label_only")
    name, _, value = flag.partition("=")
    with pytest.raises(ConfigError, match=f"{name}: found {value}, expected "):
        parse_fit([*run, flag])


def test_one_batch_is_another_value_than_all_of_them(tmp_path: Path) -> None:
    run = started(tmp_path, "--trainer.limit_train_batches=1.0")
    assert parse_fit([*run, "--trainer.limit_train_batches=1.0"]).changes == []
    with pytest.raises(ConfigError, match=r"limit_train_batches: found 1, expected 1\.0"):
        parse_fit([*run, "--trainer.limit_train_batches=1"])


def test_what_a_flag_may_not_change_a_yaml_file_may_not_either(tmp_path: Path) -> None:
    run = started(tmp_path, "--data.builder=label_only")
    (tmp_path / "c.yaml").write_text("model:\n  learning_rate: 0.5\n  lora:\n    r: 3\n")
    with pytest.raises(
        ConfigError, match=r"lora\.r: found 3, .*learning_rate: found 0\.5|found 0\.5.*found 3"
    ):
        parse_fit([*run, f"--config={tmp_path / 'c.yaml'}"])


def test_the_same_values_and_those_that_may_change_are_accepted_and_recorded(tmp_path: Path) -> None:
    own = [
        "--config",
        str(CONFIGS / "label_only.yaml"),
        "--model.learning_rate=5e-4",
        "--label_map=yes=1,no=0",
    ]
    run = started(tmp_path, *own)
    unchanged = parse_fit([*run, *own])
    assert unchanged.changes == [] and unchanged.yaml == (tmp_path / "config.yaml").read_text()
    new = ["--early_stopping.patience=50", "--trainer.max_epochs=9", "--root=moved", "--delimiter=;"]
    changed = parse_fit([*run, *new])
    assert changed.changes == [
        "--delimiter: null -> ;",
        f"--root: {parse_fit([]).settings.root} -> moved",
        "--trainer.max_epochs: 5 -> 9",
        "--early_stopping.patience: 3 -> 50",
    ]
    assert changed.yaml == parse_fit([*own, *new]).yaml


def test_every_setting_that_a_resume_may_change_exists() -> None:
    known = vars(parse_fit([]).values.as_flat())
    assert [name for name in CHANGED_BY_A_RESUME if name not in known] == []


def test_a_run_is_resumed_by_a_flag_only(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("resume: runs/a\n")
    with pytest.raises(ConfigError, match="found it in a YAML file, expected the flag --resume runs/a"):
        parse_fit([f"--config={tmp_path / 'c.yaml'}"])


@pytest.mark.parametrize("prefix", ["--", "--data."])
@pytest.mark.parametrize("delimiter", [";", "tab", "\t", "|"])
def test_a_run_remembers_how_its_pairs_are_read(prefix: str, delimiter: str, tmp_path: Path) -> None:
    flags = [f"{prefix}label_map", "-=skip,yes=1,-1=skip", f"{prefix}columns", "label=gold,id=a b"]
    (tmp_path / "config.yaml").write_text(parse_fit([*flags, f"{prefix}delimiter", delimiter]).yaml)
    (run,) = parse_prediction("predict", ["--ckpt_path", str(checkpoint(tmp_path))])
    assert dict(run.settings.label_map or {}) == {"-": None, "yes": 1, "-1": None}
    assert dict(run.settings.columns or {}) == {"label": "gold", "id": "a b"}
    assert run.settings.delimiter == delimiter
    replaced = ["--columns", "label=verdict", "--label_map", "null"]
    (run,) = parse_prediction("predict", ["--ckpt_path", str(checkpoint(tmp_path)), *replaced])
    assert dict(run.settings.columns or {}) == {"label": "verdict"}
    assert run.settings.label_map is None


def test_a_yaml_file_may_have_mappings_of_columns_and_labels(tmp_path: Path) -> None:
    content = "label_map: {entailment: 1, '-': skip}\ncolumns: {premise: text}\ndelimiter: ';'\n"
    (tmp_path / "c.yaml").write_text(content)
    settings = parse_fit(["--config", str(tmp_path / "c.yaml")]).settings
    assert str(settings.label_map) == "entailment=1,-=skip"
    assert str(settings.columns) == "premise=text" and settings.separator == ";"


@pytest.mark.parametrize("prefix", ["--", "--data."])
def test_root_label_map_and_definitions_have_short_and_old_names(prefix: str, tmp_path: Path) -> None:
    definitions = tmp_path / "definitions.yaml"
    definitions.write_text("entailment: 'it follows: surely.'\nno_entailment: not\n")
    short = [f"{prefix}root=mine", f"{prefix}label_map=yes=1,no=0", f"{prefix}definitions={definitions}"]
    settings = parse_fit([*short, f"{prefix}definitions.no_entailment=1e3"]).settings
    assert settings.root == Path("mine")
    assert dict(settings.label_map or {}) == {"yes": 1, "no": 0}
    assert settings.definitions == LabelDefinitions(entailment="it follows: surely", no_entailment="1e3")


def test_config_of_an_older_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OLD_CONFIG)
    settings = parse_fit(["--resume", str(tmp_path), "--trainer.max_epochs=9"]).settings
    assert (settings.root, settings.run) == (Path("old/data"), "5e-4")
    assert settings.model.warmup_ratio == 0.1 and settings.data.share_prefix is False
    assert settings.trainer == TrainerSettings(devices=1, max_epochs=9, val_check_interval=0.25)
    assert settings.definitions == LabelDefinitions() and settings.label_map is None
    (run,) = parse_prediction("predict", ["--ckpt_path", str(checkpoint(tmp_path)), "--split=dev"])
    assert run.settings.split == "dev" and run.settings.model == settings.model


def test_another_root_replaces_the_single_files_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(parse_fit(["--data.dev_pairs=mine.csv"]).yaml)
    flags = ["--ckpt_path", str(checkpoint(tmp_path))]
    (run,) = parse_prediction("validate", flags)
    assert run.settings.data.dev_pairs == "mine.csv"
    (tmp_path / "root.yaml").write_text("root: other\n")
    for other in ("--root=other", f"--config={tmp_path / 'root.yaml'}"):
        (run,) = parse_prediction("validate", [*flags, other])
        assert (run.settings.root, run.settings.data.dev_pairs) == (Path("other"), None)


def test_a_prediction_takes_no_checkpoints_and_no_address_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(parse_fit([]).yaml)
    flags = ["--ckpt_path", str(checkpoint(tmp_path)), f"--config={tmp_path / 'c.yaml'}"]
    (tmp_path / "c.yaml").write_text("ckpt_path: [a.ckpt, b.ckpt]\n")
    with pytest.raises(ConfigError, match="ckpt_path: found it in a YAML file, expected the flag"):
        parse_prediction("test", flags)
    (tmp_path / "c.yaml").write_text("server_url: http://localhost:1\n")
    with pytest.raises(ConfigError, match="--server_url: --engine transformers cannot use it"):
        parse_prediction("test", flags)


def checkpoint(folder: Path) -> Path:
    (folder / "best.ckpt").touch()
    return folder / "best.ckpt"
