"""The model card: metadata that the hub's own library reads back, and text with the figures of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from nlicot.cli import main
from nlicot.run.folder import weights_id

HOSTILE = "a|b\n# <b>*c*</b> [x](y)"


def _write_run(root: Path, *, name: str = "run", base: str = "bundled", **data: Any) -> Path:
    folder = root / name
    (folder / "predictions").mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "premise": "p " * (number + 1),
            "hypothesis": "h",
            "phenomenon": HOSTILE,
            "true_label": number % 2,
            "predicted_label": number % 2 if number else 1,
            "p_entailment": 0.9 if number % 2 or not number else 0.1,
            "thought_process": "Step 1: so it is.",
            "status": "truncated" if number < 2 else "closed",
        }
        for number in range(10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions" / "dev.jsonl").write_text(text)
    config = {
        "seed_everything": 7,
        "model": {
            "base": "mistralai/Mistral-7B-v0.3",
            "lora": {"r": 32, "target_modules": ["q_proj", "v_proj"]},
        },
        "data": {"builder": "reflected", "root": str(root / "secret"), **data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    fitted = {
        "base": base,
        "built": {"train": "12 examples from 20 pairs"},
        "optimizer_steps": 24,
        "best_step": 20,
        "best": 1.2345,
        "monitor": "dev/loss",
        "on_sample": True,
    }
    (folder / "fit.json").write_text(json.dumps(fitted))
    return folder


def _card(run: Path, *flags: str) -> ModelCard:
    path = run.parent / "MODEL_CARD.md"
    assert main(["report", str(run), "--card", str(path), "--overwrite", *flags]) == 0
    return ModelCard.load(path)


def test_the_hub_reads_the_metadata_back(tmp_path: Path) -> None:
    card = _card(_write_run(tmp_path), "--dataset", "someone/pairs")
    found = card.data.to_dict()
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found["base_model_relation"] == "adapter"
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "text-generation"
    assert found["datasets"] == ["someone/pairs"]
    assert {"natural-language-inference", "chain-of-thought", "lora"} <= set(found["tags"])
    assert card.data.model_name == "run"
    results = {result.metric_type: result for result in card.data.eval_results}
    # 9 of 10 right; the one mistake is a false alarm: 5 of 6 called entailment are, and none is missed.
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": 0.9,
        "f1": round(10 / 11, 4),
        "precision": round(5 / 6, 4),
        "recall": 1.0,
    }
    assert results["accuracy"].dataset_name == "someone/pairs"
    assert results["accuracy"].dataset_split == "dev"
    assert results["accuracy"].metric_name.startswith("accuracy (95 % interval 0.7000 to 1.0000")


def test_the_prompt_is_that_of_the_form_that_the_builder_is_named_after(tmp_path: Path) -> None:
    builder = {"class_path": "nlicot.builders.draft_first.DraftFirst", "init_args": {"false_drafts": 0.3}}
    text = _card(_write_run(tmp_path, builder=builder)).text
    assert '{"draft_label": 0 or 1, "thought_process": "...", "predicted_label": 0 or 1}' in text


def test_the_text_has_data_recipe_figures_and_limits(tmp_path: Path) -> None:
    audit = tmp_path / "audit.json"
    finding = {
        "name": "voice",
        "severity": "warning",
        "summary": "reveals|the label",
        "advice": "x",
        "ids": ["1"],
    }
    audit.write_text(json.dumps({"findings": [finding]}))
    text = _card(_write_run(tmp_path), "--audit", str(audit)).text
    for line in (
        "- train: 12 examples from 20 pairs",
        "| LoRA rank | 32 |",
        r"| LoRA projections | q\_proj, v\_proj |",
        "| seed | 7 |",
        "| checkpoint | step 20, dev/loss 1.234 |",
        "| accuracy | 0.900 (0.700 to 1.000) |",
        "| 1 | 5 | 0 |",
        "| 0 | 1 | 4 |",
        r"- **warning: voice.** reveals\|the label x (1 ids)",
        "- Measured on only 10 pairs, so the intervals are wide.",
        "- 20 % of the thoughts reached their budget before they ended.",
        "- Label 1 (entailment): it follows from the premise for a careful reader with common sense.",
    ):
        assert line in text.splitlines(), line
    assert r"| a\|b # \<b\>\*c\*\</b\> \[x\](y) | 10 | 0.900" in text
    assert "small sample" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("is_stale", [False, True])
def test_results_of_other_weights_are_left_out(
    is_stale: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _write_run(tmp_path)
    (run / "best.ckpt").write_bytes(b"weights")
    made_with = {"checkpoints": ["0" * 12 if is_stale else weights_id(run / "best.ckpt")]}
    metrics = {"dev": {"accuracy": {"value": 0.9}, "made_with": made_with}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = _card(run).text
    assert ("| accuracy | 0.900" in text) is not is_stale
    assert ("run: its weights changed since they predicted dev" in caplog.text) is is_stale


@pytest.mark.parametrize("is_stale", [False, True])
def test_a_threshold_of_other_weights_is_left_out(is_stale: bool, tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    (run / "best.ckpt").write_bytes(b"weights")
    tuned_with = {"checkpoints": ["0" * 12 if is_stale else weights_id(run / "best.ckpt")]}
    decision = {"threshold": 0.314, "accuracy_cross_fitted": 0.9, "num_pairs": 10, "split": "dev"}
    (run / "decision.json").write_text(json.dumps({**decision, "tuned_with": tuned_with}))
    assert ("0.314" in _card(run).text) is not is_stale


def test_the_prompt_is_the_runs_own(tmp_path: Path) -> None:
    run = _write_run(
        tmp_path,
        definitions={"entailment": "it is ```so```", "no_entailment": "not"},
        prompts={"thinking": "P {premise} H {hypothesis}: 1 if {entailment}, 0 if {no_entailment}"},
    )
    text = _card(run).text
    assert "````text\nP {premise} H {hypothesis}: 1 if it is ```so```, 0 if not\n````\n" in text


def test_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    name = "x: |'\"\n---\n# y *z*"
    card = _card(_write_run(tmp_path, name=name))
    assert card.data.model_name == "x: |'\" --- # y *z*"
    assert card.text.lstrip().splitlines()[0] == r"# x: \|'" + r'" --- # y \*z\*'


def test_the_author_names_the_license_for_an_unknown_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _write_run(tmp_path, base=str(tmp_path / "models" / "own-base"))
    card = _card(run)
    assert "add --license ID" in capsys.readouterr().out
    found = card.data.to_dict()
    assert not {"license", "base_model", "base_model_relation"} & found.keys()
    assert "A LoRA adapter for own-base that" in card.text
    assert str(tmp_path) not in card.content
    assert _card(run, "--license", "cc-by-4.0").data.to_dict()["license"] == "cc-by-4.0"
    assert "add --license" not in capsys.readouterr().out


def test_a_card_describes_one_run_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = (str(_write_run(tmp_path, name=name)) for name in ("a", "b"))
    card = str(tmp_path / "card.md")
    assert main(["report", run, other, "--card", card]) == 2
    assert "--card: found 2 runs, expected the one that the card describes" in capsys.readouterr().err
    loose = tmp_path / "loose.jsonl"
    loose.write_text((tmp_path / "a" / "predictions" / "dev.jsonl").read_text())
    assert main(["report", str(loose), "--card", card]) == 2
    assert "found no config.yaml that belongs to" in capsys.readouterr().err
    assert main(["report", "--card", run, other]) == 2  # the run is taken for the file
    assert "is a folder, expected the name of a file to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metrics.json", {"dev": {"faithfulness": ["blank"]}}, "'str' object has no attribute 'keys'"),
        ("fit.json", {"best_step": 2, "best": "low"}, "Unknown format code 'f'"),
        ("fit.json", {"built": 3}, "'int' object is not iterable"),
        (
            "decision.json",
            {"threshold": 0.5, "accuracy_cross_fitted": 0.6, "split": "dev"},
            "missing 'num_pairs'",
        ),
    ],
)
def test_a_damaged_file_of_the_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: dict[str, Any], expected: str
) -> None:
    run = _write_run(tmp_path)
    (run / name).write_text(json.dumps(content))
    assert main(["report", str(run), "--card", str(tmp_path / "card.md")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / name}: not as `fit`, `validate` or `generate` writes it ({expected}" in line
    assert line.endswith("); delete it or make it again")


def test_a_damaged_configuration_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _write_run(tmp_path, definitions={"entailment": None, "nothing": "else"})
    assert main(["report", str(run), "--card", str(tmp_path / "card.md")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'config.yaml'}: not as `fit`, `validate` or `generate` writes it (" in line
    assert "'nothing'" in line
