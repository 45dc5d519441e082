"""`fit --from` starts a new run from another run's adapter, or from a PEFT folder of another tool."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from nlicot.cli import main
from nlicot.config_files import SAMPLE
from nlicot.training import preflight
from tests.interop import needs
from tests.small_model import write_small_model
from tests.training.short_fit import SHORT_FIT

FLAGS = [*SHORT_FIT, "--model.quantization=none", "--model.dtype=float32"]
ONE_STEP = ["--trainer.max_steps=1"]
RUN = Path("checkpoints/run")


class SaveInitialWeights(Callback):
    """Writes the weights before the first step to a file."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), "initial.pt")


SAVE_INITIAL = f"--trainer.callbacks={__name__}.SaveInitialWeights"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def source(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on labels whose steps are large enough to be seen in the loss."""
    root = tmp_path_factory.mktemp("source")
    flags = [f"--model.base={base}", f"--checkpoints_root={root}", "--model.learning_rate=1e-2"]
    assert main(["fit", *FLAGS, *flags, "--run=labels"]) == 0
    return root / "labels"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the process that evaluates
    monkeypatch.chdir(tmp_path)


def fit(base: Path, *flags: str, run: str = "run") -> int:
    return main(["fit", *FLAGS, f"--model.base={base}", f"--run={run}", *flags])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of a refusal, which leaves no folder."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nlicot: ")]
    assert list(Path("checkpoints").glob("*")) == []
    return line


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(tag: str, run: Path = RUN) -> list[float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def summary(run: Path = RUN) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "fit.json").read_text(encoding="utf-8"))
    return found


def foreign_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """Write an adapter of another tool: half the precision, and a pattern instead of a list of names."""
    names = {"target_modules": r".*\.(q|k|v|o)_proj", "lora_alpha": 64, "task_type": "CAUSAL_LM"}
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, **{**names, **options})
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros, as it is fresh
            parameter.data.normal_(0, 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------- the start


@pytest.mark.parametrize("form", ["run", "checkpoint", "adapter"])
def test_the_first_step_starts_with_the_weights_of_the_source_bit_for_bit(
    form: str, base: Path, source: Path
) -> None:
    given = {"run": source, "checkpoint": source / "best.ckpt", "adapter": source / "adapter"}[form]
    assert fit(base, f"--from={given}", *ONE_STEP, SAVE_INITIAL) == 0
    assert same(weights(Path("initial.pt")), weights(source / "best.ckpt"))
    assert not same(weights(RUN / "last.ckpt"), weights(source / "best.ckpt"))


def test_the_first_loss_is_the_dev_loss_of_the_source(base: Path, source: Path) -> None:
    """The source's dev pairs are one window of the new run, whose loss is taken before its first step."""
    pairs = SAMPLE / "original_data"
    flags = [f"--data.train_pairs={pairs / 'dev.csv'}", f"--data.dev_pairs={pairs / 'train.csv'}"]
    flags += ["--data.limit_train=4", "--model.lora.dropout=0", *ONE_STEP]
    assert fit(base, *flags, run="fresh") == 0
    assert fit(base, *flags, f"--from={source}") == 0
    (loss,), (fresh_loss,) = logged("train/loss"), logged("train/loss", Path("checkpoints/fresh"))
    assert loss == pytest.approx(summary(source)["best"], rel=1e-5)
    assert abs(fresh_loss - loss) > 0.1


def test_another_tools_adapter_is_read_by_the_names_of_its_matrices(base: Path, tmp_path: Path) -> None:
    folder = foreign_adapter(base, tmp_path / "foreign")
    assert fit(base, f"--from={folder}", *ONE_STEP, SAVE_INITIAL) == 0
    stored = load_file(folder / "adapter_model.safetensors")
    found = weights(Path("initial.pt"))
    assert len(found) == len(stored) == 16
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        short = name.removeprefix("model.").replace(".default", "")
        assert torch.equal(weight, stored[short].float())
    assert summary()["started_from"]["builder"] is None


@pytest.mark.interop
@pytest.mark.slow
@needs("trl")
def test_a_run_goes_on_from_dpo_that_went_on_from_a_run(base: Path, source: Path, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    shutil.copytree(SAMPLE, "data")
    prepare = ["prepare", "--root=data", "--split=train", "--format=preference", "--out=p.jsonl"]
    assert main([*prepare, "--prompt_format=chatml"]) == 0
    preferences = datasets.load_dataset(
        "json", data_files="p.jsonl", split="train", cache_dir=str(tmp_path / "cache")
    )
    loaded = AutoModelForCausalLM.from_pretrained(base)
    options = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(loaded, source / "adapter", is_trainable=True),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=preferences,
        args=DPOConfig(output_dir="dpo", max_steps=2, learning_rate=1e-3, **options),
    )
    trainer.train()
    trainer.save_model("dpo")
    assert fit(base, "--from=dpo", *ONE_STEP, SAVE_INITIAL) == 0
    found, before = weights(Path("initial.pt")), weights(source / "best.ckpt")
    assert found.keys() == before.keys()
    assert not same(found, before)
    assert all(float((found[name] - before[name]).abs().max()) < 0.01 for name in found)


def test_data_schedule_and_optimizer_are_the_new_runs_own(base: Path, source: Path) -> None:
    pairs = SAMPLE / "original_data" / "train.csv"
    rows = pairs.read_text(encoding="utf-8").splitlines()
    Path("others.csv").write_text("\n".join([rows[0], *rows[31:39]]) + "\n", encoding="utf-8")
    own = ["--data.builder=label_only", "--data.train_pairs=others.csv", "--trainer.max_epochs=1"]
    assert fit(base, f"--from={source}", *own, "--model.learning_rate=3e-4") == 0
    assert (summary()["optimizer_steps"], summary()["epochs"]) == (2, 1)
    assert max(logged("train/learning_rate")) == pytest.approx(3e-4)
    assert summary()["built"]["train"] != summary(source)["built"]["train"]


def test_a_prepared_file_may_follow_labels(base: Path, source: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "thoughts.jsonl"
    shutil.copytree(SAMPLE, "data")
    assert main(["prepare", "--root=data", "--split=train", "--limit=8", f"--out={prepared}"]) == 0
    flags = ["--data.builder=reflected", f"--data.prepared={prepared}", *ONE_STEP]
    assert fit(base, f"--from={source}", *flags) == 0
    assert summary()["built"]["train"].startswith("8 examples from 8 pairs (")
    assert summary()["started_from"]["builder"] == "LabelOnly"


def test_prepared_prompts_that_predictions_will_not_have_are_counted(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = tmp_path / "thoughts.jsonl"
    shutil.copytree(SAMPLE, "data")
    defined = "--definitions.entailment=it fits"
    assert main(["prepare", "--root=data", "--split=train", "--limit=8", f"--out={prepared}", defined]) == 0
    flags = ["--data.builder=reflected", f"--data.prepared={prepared}", *ONE_STEP]
    assert fit(base, *flags, defined, run="same") == 0
    assert "prompts differ" not in caplog.text
    assert fit(base, *flags, run="other") == 0
    assert (
        f"{prepared}: 8 of 8 prompts differ from those that predictions of this run will have" in caplog.text
    )


def test_preflight_measures_the_adapter_and_makes_no_run(
    base: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MEASURED_S", 0.1)
    assert fit(base, f"--from={source}", "--preflight") == 0
    printed = capsys.readouterr().out
    assert f"starting from {source} (builder LabelOnly, base {base}, sha256 " in printed
    assert "time to finish" in printed
    assert not Path("checkpoints").exists()


# ----------------------------------------------------------------- the record


def test_the_chain_of_starts_is_in_the_configuration_in_fit_json_in_the_card_and_in_the_report(
    base: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    middle = Path("checkpoints/middle")
    assert fit(base, f"--from={source}", *ONE_STEP, run="middle") == 0
    assert fit(base, f"--from={middle}", *ONE_STEP, "--final_evaluation=true") == 0
    sha256s = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (middle / "last.ckpt", source / "best.ckpt")
    ]
    first = {"path": str(source), "sha256": sha256s[1], "base": str(base), "builder": "LabelOnly"}
    recorded = first | {"path": str(middle), "sha256": sha256s[0]}
    recorded["started_from"] = first | {"started_from": None}
    line = ", which ".join(
        f"started from {path} (builder LabelOnly, base {base}, sha256 {sha256[:12]})"
        for path, sha256 in zip((middle, source), sha256s, strict=True)
    )
    config = (RUN / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert config[0] == f"# {line}"
    assert f"start_from: {middle}" in config
    assert summary()["started_from"] == recorded
    capsys.readouterr()
    out = ["--json=r.json", "--card=card.md", "--html=r.html", "--markdown=r.md"]
    assert main(["report", str(RUN), *out]) == 0
    assert f"\n1 {line}\n" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["runs"][0]["started_from"] == recorded
    assert f"Run 1 {line}." in Path("r.html").read_text()
    assert f"- 1 started from {middle}" in Path("r.md").read_text()
    card = Path("card.md").read_text()
    assert (
        f"started from another adapter of the builder LabelOnly, SHA-256 {sha256s[0]}, which started from "
        f"another one of the builder LabelOnly, SHA-256 {sha256s[1]}." in card
    )
    assert str(middle) not in card and str(source) not in card


def test_a_fresh_run_records_no_origin(source: Path) -> None:
    assert "started_from" not in summary(source)
    assert not (source / "config.yaml").read_text(encoding="utf-8").startswith("#")


# ------------------------------------------------------------------- a resume

NEVER_BETTER = "--early_stopping.min_delta=100"


def test_a_resume_goes_on_bit_for_bit_and_needs_the_source_no_more(
    base: Path, source: Path, tmp_path: Path
) -> None:
    given = f"--from={shutil.copytree(source, tmp_path / 'labels')}"
    assert fit(base, given, NEVER_BETTER, "--early_stopping.patience=9", run="whole") == 0
    assert fit(base, given, NEVER_BETTER, "--early_stopping.patience=2") == 0
    assert summary()["optimizer_steps"] == 6
    shutil.rmtree(tmp_path / "labels")
    assert main(["fit", f"--resume={RUN}", "--early_stopping.patience=9"]) == 0
    whole = Path("checkpoints/whole")
    assert summary() == summary(whole)
    for name in ("best.ckpt", "last.ckpt"):
        assert same(weights(RUN / name), weights(whole / name)), name
    assert (RUN / "config.yaml").read_text(encoding="utf-8").startswith("# started from ")


def test_a_run_that_had_saved_no_step_starts_again_from_the_same_weights_only(
    base: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(source, tmp_path / "labels")
    assert fit(base, f"--from={copy}", *ONE_STEP) == 0
    before = weights(RUN / "last.ckpt")
    for name in ("last.ckpt", "best.ckpt"):  # as if it had been killed early
        (RUN / name).unlink(missing_ok=True)
    assert main(["fit", f"--resume={RUN}"]) == 0
    assert same(weights(RUN / "last.ckpt"), before)
    (RUN / "last.ckpt").unlink()
    shutil.copy(copy / "last.ckpt", copy / "best.ckpt")
    capsys.readouterr()
    assert main(["fit", f"--resume={RUN}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nlicot: --resume {RUN}: found {copy} (builder LabelOnly, ")
    assert line.endswith(f"started from, sha256 {summary()['started_from']['sha256']}; start a new run")


def test_a_resume_cannot_change_what_the_run_started_from(
    base: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(base, f"--from={source}", *ONE_STEP) == 0
    assert main(["fit", f"--resume={RUN}", "--from=other"]) == 2
    assert f"--start_from: found other, expected {source} (leave these out" in capsys.readouterr().err


# ------------------------------------------------------------------ refusals


def test_another_shape_is_refused_with_both_values(
    base: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--model.lora.r=8", "--model.lora.alpha=16", "--model.lora.target_modules=[q_proj,v_proj]"]
    assert fit(base, f"--from={source}", *other) == 2
    assert refusal(capsys) == (
        f"nlicot: --from {source} is an adapter of another shape; --model.lora.r: found 8, expected 4; "
        "--model.lora.alpha: found 16, expected 64; --model.lora.target_modules: found [q_proj,v_proj], "
        "expected [k_proj,o_proj,q_proj,v_proj] (give its values, or start from another adapter)"
    )


@pytest.mark.parametrize("form", ["run", "adapter"])
def test_another_base_is_refused_with_both_names(
    form: str, base: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = source if form == "run" else source / "adapter"
    other = shutil.copytree(base, tmp_path / "other")
    assert fit(other, f"--from={given}") == 2
    bases = f"--model.base: found {other}, expected {base} (give its base, or "
    assert refusal(capsys).startswith(f"nlicot: --from {given} is an adapter of another base; {bases}")


def test_a_folder_that_has_another_tokenizer_now_is_refused(
    base: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(source, tmp_path / "labels")
    content = torch.load(copy / "best.ckpt", weights_only=True)
    content["nlicot"]["tokenizer_sha256"] = "0"
    torch.save(content, copy / "best.ckpt")
    assert fit(base, f"--from={copy}") == 2
    line = refusal(capsys)
    assert "the checkpoint was trained with different settings: tokenizer_sha256: here " in line


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"use_rslora": True}, "use_rslora: found true, expected false"),
        ({"use_dora": True}, "use_dora: found true, expected false"),
        ({"rank_pattern": {"q_proj": 2}}, 'rank_pattern: found {"q_proj": 2}, expected none'),
        ({"layers_to_transform": [0]}, "layers_to_transform: found [0], expected none"),
        ({"init_lora_weights": "olora"}, 'init_lora_weights: found "olora", expected true'),
    ],
)
def test_kinds_of_lora_that_fit_does_not_train_are_refused(
    options: dict[str, Any], found: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    folder = foreign_adapter(base, tmp_path / "foreign", target_modules=names, **options)
    assert fit(base, f"--from={folder}") == 2
    assert f"--from {folder}: adapter_config.json: {found}, as in adapters of nlicot" in refusal(capsys)


def test_weights_that_cannot_be_read_are_refused_in_one_line(
    base: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(name: str, content: bytes) -> Path:
        copy = shutil.copytree(source, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")
        (copy / name).write_bytes(content)
        return copy

    whole = (source / "best.ckpt").read_bytes()
    cut = damaged("best.ckpt", whole[: len(whole) // 2])
    assert fit(base, f"--from={cut}") == 2
    assert f"--from {cut}: not a checkpoint of nlicot, or damaged (" in refusal(capsys)

    torch.save({"state_dict": {"weight": torch.zeros(1)}}, cut / "best.ckpt")
    assert fit(base, f"--from={cut}") == 2
    assert f"--from {cut}: not a checkpoint of nlicot: it has no 'nlicot'" in refusal(capsys)

    torch.save(print, cut / "best.ckpt")  # a pickle that names a function
    assert fit(base, f"--from={cut}") == 2
    assert f"--from {cut}: not a checkpoint of nlicot, or damaged (UnpicklingError)" in refusal(capsys)

    flipped = bytearray((source / "adapter" / "adapter_model.safetensors").read_bytes())
    flipped[-1] ^= 1
    adapter = damaged("adapter/adapter_model.safetensors", flipped) / "adapter"
    assert fit(base, f"--from={adapter}") == 2
    assert f"--from {adapter}: adapter_model.safetensors is damaged; copy it again" in refusal(capsys)

    (adapter / "SHA256SUMS").unlink()
    (adapter / "adapter_model.safetensors").write_bytes(flipped[:99])
    assert fit(base, f"--from={adapter}") == 2
    assert f"--from {adapter}: adapter_model.safetensors is damaged (" in refusal(capsys)


def test_weights_that_do_not_fit_the_model_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = foreign_adapter(base, tmp_path / "foreign")
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    first = min(stored)
    save_file({**stored, first: torch.full_like(stored[first], float("nan"))}, path)
    assert fit(base, f"--from={folder}") == 2
    assert f"--from {folder}: found weights that are not finite; start from another" in refusal(capsys)
    save_file({name: weight for name, weight in stored.items() if name != first}, path)
    assert fit(base, f"--from={folder}") == 2
    assert f"--from {folder}: the adapter has other matrices than --model.lora describes" in refusal(capsys)
