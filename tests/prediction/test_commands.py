"""`validate` and `predict` with votes, ensembles, a tuned threshold, and after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nlicot.cli import main
from nlicot.config_files import SAMPLE
from nlicot.data.pairs import read_examples
from nlicot.prediction import calibration as threshold
from nlicot.prediction.prediction_files import PartialPredictions
from nlicot.prediction.predictor import BLOCK
from nlicot.prompts import StudentPrompts
from nlicot.report.read_runs import read_runs
from tests.small_model import write_small_model

DECODING = ["--data.limit_dev=12", "--model.decoding.max_thought_tokens=6", "--model.decoding.batch_size=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one base: a multitask one, one that only thinks, and others."""
    folder = tmp_path_factory.mktemp("measuring")
    base = write_small_model(folder / "base")
    builders = {"both": "multitask", "thinks": "reflected", "first": "label_first", "drafts": "draft_first"}
    for run, builder in builders.items():
        code = main(
            [
                "fit",
                f"--data.builder={builder}",
                f"--model.base={base}",
                f"--checkpoints_root={folder}",
                f"--run={run}",
                "--data.limit_train=16",
                "--data.limit_dev=12",
                "--data.effective_batch=16",
                "--trainer.max_steps=2",
                "--generated_metrics.every_n_epochs=0",
                "--final_evaluation=false",
                "--model.quantization=none",
                "--model.lora.r=4",
                "--model.learning_rate=1e-2",
            ]
        )
        assert code == 0
    return folder


def _run(root: Path, command: str, runs: list[str], *flags: str) -> list[dict[str, Any]]:
    named = [f"--ckpt_path={root / run / 'best.ckpt'}" for run in runs]
    assert main([command, *named, "--split=dev", f"--output={root / 'out'}", *DECODING, *flags]) == 0
    return _rows(root)


def _rows(root: Path) -> list[dict[str, Any]]:
    lines = (root / "out" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    return [json.loads(line) for line in lines]


def test_multitask_predicts_the_label_directly_or_thinks_when_asked(root: Path) -> None:
    at_once = _run(root, "predict", ["both"])
    assert {row["status"] for row in at_once} == {"label_only"}
    thinking = _run(root, "predict", ["both"], "--think", "true")
    assert {row["status"] for row in thinking} <= {"closed", "truncated"}
    assert [row["id"] for row in thinking] == [row["id"] for row in at_once]


def test_validate_says_that_labels_look_reversed_and_which_map_fits(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of these pairs are the opposite of what the student predicts, as its base does."""
    fit = ["fit", "--data.builder=label_only", f"--model.base={root / 'base'}", "--run=label"]
    fit += [f"--checkpoints_root={tmp_path}", "--data.limit_train=16", "--data.effective_batch=16"]
    fit += ["--trainer.max_steps=1", "--generated_metrics.every_n_epochs=0", "--final_evaluation=false"]
    assert main([*fit, "--model.quantization=none", "--model.lora.r=4", "--model.learning_rate=1e-6"]) == 0
    printed = capsys.readouterr().out
    assert "label 1, read as entailment: " in printed and "label 0, read as no entailment: " in printed
    run = [f"--ckpt_path={tmp_path / 'label' / 'best.ckpt'}", "--split=dev"]
    assert main(["predict", *run]) == 0
    predictions = (tmp_path / "label" / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    predicted = {row["id"]: row["predicted_label"] for row in map(json.loads, predictions)}
    pairs = read_examples(SAMPLE / "original_data" / "dev.csv")
    path = tmp_path / "dev.jsonl"
    path.write_text(
        "\n".join(json.dumps({**asdict(pair), "label": 1 - predicted[pair.id]}) for pair in pairs)
    )
    capsys.readouterr()

    assert main(["validate", *run, f"--data.dev_pairs={path}"]) == 0
    printed = capsys.readouterr().out
    first = next(pair for pair in pairs if predicted[pair.id] == 1)
    assert (
        "labels look reversed: the model finds 0 % of label 1 and 0 % of label 0; with --label_map 0=1,1=0 "
        f"it is right on 100.0 %\n    {first.id}: {first.premise!r} / {first.hypothesis!r}\n"
        "      model: 1 (entailment), file: 0 (no entailment)\n"
    ) in printed
    assert "accuracy 0.0% (0.0% to 0.0% with 95 % confidence): below chance; " in printed

    assert main(["validate", *run, f"--data.dev_pairs={path}", "--label_map", "0=1,1=0"]) == 0
    assert "look reversed" not in capsys.readouterr().out


def test_a_run_is_asked_with_the_prompts_of_its_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version's own words do not make its checkpoints useless."""
    as_learnt = _run(root, "predict", ["both"])
    monkeypatch.setattr(StudentPrompts, "label_only", "{premise} So? {hypothesis}")
    monkeypatch.setattr(
        StudentPrompts.__init__,
        "__kwdefaults__",
        {**(StudentPrompts.__init__.__kwdefaults__ or {}), "label_only": "{premise} So? {hypothesis}"},
    )
    assert StudentPrompts().label_only == "{premise} So? {hypothesis}"
    assert _run(root, "predict", ["both"]) == as_learnt


def test_label_first_explains_only_when_asked(root: Path) -> None:
    at_once = _run(root, "predict", ["first"])
    explained = _run(root, "predict", ["first"], "--think", "true")
    for before, after in zip(at_once, explained, strict=True):
        assert "thought_process" not in before
        assert after["completion"].startswith('{"predicted_label": ')
        assert '"thought_process": ' in after["completion"]
        assert after["p_entailment"] == pytest.approx(before["p_entailment"], abs=0.01)


def test_a_run_with_drafts_says_how_often_its_thoughts_changed_them(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(root, "validate", ["drafts"], "--probe_thoughts=true")
    for row in rows:
        assert row["draft_label"] == int(row["draft_p_entailment"] >= 0.5)
        assert json.loads(row["completion"]) == {
            "draft_label": row["draft_label"],
            "thought_process": row["thought_process"],
            "predicted_label": row["predicted_label"],
        }
    printed = capsys.readouterr().out
    right, kept = (
        [row["draft_label"] == row[name] for row in rows] for name in ("true_label", "predicted_label")
    )
    num_corrected = sum(not was and not same for was, same in zip(right, kept, strict=True))
    num_spoiled = sum(was and not same for was, same in zip(right, kept, strict=True))
    assert (
        f"the label differs from the draft on {kept.count(False)} of 12 pairs ({num_corrected} corrected, "
        f"{num_spoiled} spoiled); {sum(right) / 12:.1%} of the drafts are right\n"
    ) in printed
    metrics = json.loads((root / "out" / "metrics.json").read_text(encoding="utf-8"))["dev"]
    assert metrics["drafts"]["num_right"] == sum(right)
    assert metrics["faithfulness"][-2]["name"] == "draft of the other label"


def test_thinking_run_cannot_leave_the_thought_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, form in (("thinks", "thought_first"), ("drafts", "draft_first")):
        flags = [f"--ckpt_path={root / run / 'best.ckpt'}", "--split=dev", "--think=false"]
        assert main(["predict", *flags]) == 2
        assert f"trained on {form} only" in capsys.readouterr().err


def test_votes_are_averaged_and_say_how_far_they_agree(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(root, "predict", ["thinks"], "--votes=3", "--model.decoding.temperature=1.5")
    assert all(row["agreement"] in (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0) for row in rows)
    assert main(["predict", f"--ckpt_path={root / 'thinks' / 'best.ckpt'}", "--split=dev", "--votes=3"]) == 2
    assert "--model.decoding.temperature 0.7" in capsys.readouterr().err


def test_ensemble_is_the_weighted_mean_of_its_members(root: Path) -> None:
    single = [_run(root, "predict", [run]) for run in ("both", "thinks")]
    together = _run(root, "predict", ["both", "thinks"], "--weights=3,1")
    for first, second, found in zip(*single, together, strict=True):
        mean = (3 * first["p_entailment"] + second["p_entailment"]) / 4
        assert found["p_entailment"] == pytest.approx(mean, abs=1e-6)
        assert found["predicted_label"] == int(mean >= 0.5)
        assert found["thought_process"] == second["thought_process"]
        assert found["agreement"] in (0.5, 1.0)
    ensemble = root / "out" / "dev.ensemble.json"
    members = json.loads(ensemble.read_text(encoding="utf-8"))["members"]
    assert [(member["checkpoint"], member["weight"]) for member in members] == [
        (str(root / run / "best.ckpt"), weight) for run, weight in (("both", 3.0), ("thinks", 1.0))
    ]
    assert [member["fit"]["builder"] for member in members] == ["Multitask", "Reflected"]
    _run(root, "predict", ["both"])
    assert not ensemble.exists()


def test_wrong_weights_are_refused_before_a_model_loads(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--ckpt_path={root / run / 'best.ckpt'}" for run in ("both", "thinks")]
    assert main(["predict", *flags, "--weights=1"]) == 2
    assert "--weights: found '1', expected 2 comma-separated numbers" in capsys.readouterr().err
    assert main(["validate", *flags, "--probe-thoughts"]) == 2
    assert "--probe_thoughts takes one --ckpt_path" in capsys.readouterr().err


def test_a_checkpoint_is_used_only_with_the_base_and_prompts_of_its_training(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["predict", f"--ckpt_path={root / 'both' / 'best.ckpt'}", "--split=dev"]
    assert main([*flags, "--model.base=bundled"]) == 2
    assert f"base: here 'bundled', in the checkpoint '{root / 'base'}'" in capsys.readouterr().err
    assert main([*flags, "--definitions.entailment=it fits"]) == 2
    assert "definitions: here {'entailment': 'it fits'" in capsys.readouterr().err
    assert main([*flags, "--model.lora.r=8"]) == 2
    assert "the adapter has other matrices than --model.lora describes" in capsys.readouterr().err


def test_a_device_that_lightning_refuses_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = root / "both"
    assert main(["validate", f"--ckpt_path={run / 'best.ckpt'}", "--trainer.accelerator=tpu9"]) == 2
    where = "--trainer.accelerator, .strategy, .devices, .num_nodes or .precision (or in "
    assert f"{where}{run / 'config.yaml'}): Lightning refuses this: " in capsys.readouterr().err


def test_a_file_of_another_kind_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = root / "both" / "other.ckpt"
    other.write_text("weights")
    assert main(["predict", f"--ckpt_path={other}"]) == 2
    assert f"--ckpt_path {other}: not a checkpoint of nlicot" in capsys.readouterr().err


def test_killed_predict_continues_where_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _run(root, "predict", ["thinks"])
    made: list[str] = []
    opened = PartialPredictions.writer

    class Killed(BaseException):
        pass

    def counted(self: PartialPredictions, *, limit: int) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def wrapped() -> Any:
            with opened(self) as keep:

                def counting(prediction: Any) -> None:
                    if len(made) == limit:
                        raise Killed
                    keep(prediction)
                    made.append(prediction.id)

                yield counting

        return wrapped()

    monkeypatch.setattr(PartialPredictions, "writer", lambda self: counted(self, limit=5))
    with pytest.raises(BaseException):  # noqa: B017 (Lightning may wrap it)
        _run(root, "predict", ["thinks"])
    first_half = list(made)
    assert len(first_half) == 5
    (left,) = (root / "out").glob(".dev-*.partial")
    with left.open("a", encoding="utf-8") as file:
        file.write('{"id": "cut off in the mid')
    monkeypatch.setattr(PartialPredictions, "writer", lambda self: counted(self, limit=99))
    resumed = _run(root, "predict", ["thinks"], "--model.decoding.batch_size=3")
    assert len(made) == 12
    assert len(set(made)) == 12
    assert "5 of 12 predictions were made before" in capsys.readouterr().out
    assert [row["id"] for row in resumed] == [row["id"] for row in whole]
    assert [row["predicted_label"] for row in resumed] == [row["predicted_label"] for row in whole]
    assert not list((root / "out").glob(".dev-*.partial"))


@pytest.mark.parametrize("run", ["both", "thinks"])
def test_merged_shards_of_predictions_are_the_whole_files_up_to_rounding(
    run: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(root, "predict", [run], "--model.dtype=float32")
    flags = ["predict", f"--ckpt_path={root / run / 'best.ckpt'}", "--split=dev", *DECODING]
    flags += ["--model.dtype=float32"]
    output = tmp_path / "predictions" / "dev.jsonl"
    output.parent.mkdir()
    names = ("", ".shard-2-of-3", ".shard-2-of-3-hard")  # the last is of another split
    others = [output.parent / f".dev{name}-0123456789abcdef.0.partial" for name in names]
    for path in others:
        path.touch()
    for shard in ("3/3", "1/3"):
        assert main([*flags, f"--output={output.parent}", f"--shard={shard}"]) == 0
        assert f"next         python -m nlicot merge-shards {output}\n" in capsys.readouterr().out
    assert all(path.exists() for path in others)  # those of processes that may run at the same time
    assert main(["merge-shards", str(output)]) == 2
    assert f"{output}: found 2 of 3 shards, expected 2/3 too" in capsys.readouterr().err
    assert main([*flags, f"--output={output.parent}", "--shard=2/3"]) == 0
    assert [path.exists() for path in others] == [True, False, True]

    assert main(["merge-shards", str(output)]) == 0

    assert (output.parent / "dev.csv").read_bytes() == (root / "out" / "dev.csv").read_bytes()
    merged = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for row, expected in zip(merged, _rows(root), strict=True):
        assert row.pop("p_entailment") == pytest.approx(expected.pop("p_entailment"), abs=1e-5)
        assert row == expected


@pytest.mark.slow
@pytest.mark.parametrize("run", ["both", "thinks"])
def test_merged_shards_of_whole_blocks_are_the_whole_files_byte_for_byte(
    run: str, root: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "test.csv"
    rows = [
        f"p{n},{'So ' * (n % 7)}{n} boats left port.,Some of {n} boats moved." for n in range(2 * BLOCK + 9)
    ]
    pairs.write_text("\n".join(["id,premise,hypothesis", *rows]) + "\n", encoding="utf-8")
    flags = ["predict", f"--ckpt_path={root / run / 'best.ckpt'}", f"--data.test_pairs={pairs}"]
    flags += ["--model.decoding.max_thought_tokens=4"]
    assert main([*flags, f"--output={tmp_path / 'whole'}"]) == 0
    for shard in ("1/2", "2/2"):
        assert main([*flags, f"--output={tmp_path / 'parts'}", f"--shard={shard}"]) == 0

    assert main(["merge-shards", str(tmp_path / "parts" / "test.jsonl")]) == 0

    for name in ("test.jsonl", "test.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_merge_has_the_members_of_its_own_shards(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "dev.jsonl"
    for runs, num_members in ((["both", "thinks"], 2), (["both"], 0)):
        flags = [f"--ckpt_path={root / run / 'best.ckpt'}" for run in runs]
        flags += ["--split=dev", f"--output={tmp_path}", *DECODING]
        for shard in ("1/2", "2/2"):
            assert main(["predict", *flags, f"--shard={shard}"]) == 0
        assert main(["merge-shards", str(output), "--overwrite"]) == 0
        assert len(read_runs([str(output)], "dev", tmp_path)[0].members) == num_members


def test_shards_of_another_checkpoint_or_of_other_pairs_are_not_merged(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(run: str, shard: str, *flags: str) -> None:
        named = [f"--ckpt_path={root / run / 'best.ckpt'}", "--split=dev", f"--output={tmp_path}"]
        assert main(["predict", *named, *DECODING, f"--shard={shard}", *flags]) == 0

    predict("both", "1/2")
    for run, flags in (("first", []), ("both", ["--data.limit_dev=10"])):
        predict(run, "2/2", *flags)
        assert main(["merge-shards", str(tmp_path / "dev.jsonl")]) == 2
        assert "dev.shard-2-of-2.jsonl: found a shard of `predict` with other pairs or settings" in (
            capsys.readouterr().err
        )
    assert not (tmp_path / "dev.jsonl").exists()


def test_tuned_threshold_is_stored_and_used_and_never_from_test(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"--ckpt_path={root / 'both' / 'best.ckpt'}"
    flags = ["--data.limit_dev=40", f"--output={root / 'tuned'}"]
    assert main(["validate", checkpoint, *flags, "--tune-threshold", "--probe-thoughts"]) == 0
    printed = capsys.readouterr().out
    assert "cross-fitted" in printed
    assert "premise blanked" in printed
    assert f"`test` and `predict` use it with --output {root / 'tuned'}\n" in printed
    decision = threshold.load(root / "tuned" / "decision.json")
    measured = json.loads((root / "tuned" / "metrics.json").read_text(encoding="utf-8"))["dev"]
    assert [probe["name"] for probe in measured["faithfulness"]] == ["as it is", "premise blanked"]
    plain = {row["id"]: row for row in _run(root, "predict", ["both"])}
    capsys.readouterr()
    assert main(["predict", checkpoint, "--split=dev", f"--output={root / 'tuned'}", *DECODING]) == 0
    printed = capsys.readouterr().out
    assert "as `validate` tuned them" in printed
    assert "dev: the first 12 of 220 pairs (--data.limit_dev)\n" in printed
    for line in (root / "tuned" / "dev.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["predicted_label"] == int(row["p_entailment"] >= decision.threshold)
        assert (row["p_entailment"] - 0.5) * (plain[row["id"]]["p_entailment"] - 0.5) >= 0
    assert main(["validate", checkpoint, "--split=test", "--tune-threshold"]) == 2

    # It holds for these probabilities only.
    predict = ["predict", "--split=dev", f"--output={root / 'tuned'}", *DECODING]
    for flags, found in {
        (checkpoint, "--think=true"): "answers label_only, expected thought_first",
        (f"--ckpt_path={root / 'both' / 'last.ckpt'}",): "checkpoints [",
        (checkpoint, f"--ckpt_path={root / 'first' / 'best.ckpt'}"): "checkpoints [",
    }.items():
        capsys.readouterr()
        assert main([*predict, *flags]) == 2
        assert (
            f"{root / 'tuned' / 'decision.json'}: found a threshold that was tuned with {found}"
            in capsys.readouterr().err
        )


def test_too_few_pairs_for_a_threshold_are_refused_before_anything_is_decoded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--ckpt_path={root / 'both' / 'best.ckpt'}", f"--output={tmp_path / 'few'}"]
    assert main(["validate", *flags, "--data.limit_dev=6", "--tune_threshold"]) == 2
    assert "--tune_threshold: found 2 pairs of label 0 and 4 of label 1" in capsys.readouterr().err
    assert list((tmp_path / "few").iterdir()) == []


def test_an_ensemble_predicts_on_the_devices_of_its_first_member(root: Path, tmp_path: Path) -> None:
    several = Path(shutil.copytree(root / "both", tmp_path / "several"))
    config = several / "config.yaml"
    config.write_text(config.read_text().replace("  devices: 1\n", "  devices: 2\n"))
    assert "devices: 2" in config.read_text()
    alone = _run(root, "predict", ["both"])
    together = _run(root, "predict", ["both", str(several)])
    assert {each["agreement"] for each in together} == {1.0}
    assert [each["p_entailment"] for each in together] == [each["p_entailment"] for each in alone]


def test_prompts_that_exceed_the_context_are_counted(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    run = Path(shutil.copytree(root / "both", tmp_path / "run"))
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["nlicot"]["base"] = str(base)
    torch.save(content, run / "best.ckpt")
    flags = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--model.base={base}", *DECODING]
    assert main(["predict", *flags]) == 0
    assert (
        "12 of 12 prompts do not fit, with their answers, into the 64 tokens that the base was trained for"
        in caplog.text
    )


def test_the_threshold_of_the_run_holds_for_predictions_elsewhere(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(root / "both", tmp_path / "run"))
    (run / "decision.json").write_text('{"threshold": 0.01, "temperature": 1.0}')
    flags = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--output={tmp_path / 'elsewhere'}"]
    assert main(["test", *flags, *DECODING]) == 0
    assert f"as `validate` tuned them ({run / 'decision.json'})" in capsys.readouterr().out
    lines = (tmp_path / "elsewhere" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        assert row["predicted_label"] == int(row["p_entailment"] >= 0.01)
    written = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    assert written == ["dev.csv", "dev.jsonl", "metrics.json"]
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.csv", "premise,hypothesis,label\nP,H,1\n"),
        ("dev.jsonl", '{"id": "1", "thought_process": "T", "predicted_label": 1}\n'),
        ("metrics.json", '{"rows": 3}'),
    ],
)
def test_a_file_that_is_not_of_predictions_is_never_replaced(
    name: str, content: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    checkpoint = f"--ckpt_path={root / 'both' / 'best.ckpt'}"
    assert main(["validate", checkpoint, f"--output={tmp_path}", *DECODING]) == 2
    assert str(path) in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("command", ["predict", "test"])
def test_a_damaged_decision_is_refused_before_anything_is_decoded(
    command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "decision.json").write_text("{}")
    flags = [f"--ckpt_path={root / 'both' / 'best.ckpt'}", "--split=dev", f"--output={folder}"]
    assert main([command, *flags, *DECODING]) == 2
    assert f"{folder / 'decision.json'}: no valid threshold and temperature" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [
        "decision.json"
    ]  # predictions are kept as they are made


def test_probes_of_a_thinking_run_change_its_thoughts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = f"--ckpt_path={root / 'thinks' / 'best.ckpt'}"
    output = f"--output={root / 'probed'}"
    assert main(["validate", checkpoint, output, *DECODING, "--probe-thoughts"]) == 0
    printed = capsys.readouterr().out
    for name in ("thought left out", "thought of the next pair", "thought cut half-way", "premise blanked"):
        assert name in printed


def test_pairs_that_any_of_the_runs_was_trained_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"a": "A cat sleeps.,A cat rests.,1\n", "b": "A dog runs.,A dog sits.,0\n"}
    for fold, other in (("a", "b"), ("b", "a")):
        root, run = tmp_path / fold, tmp_path / "runs" / fold
        (root / "original_data").mkdir(parents=True)
        run.mkdir(parents=True)
        for split, text in (("train", texts[other]), ("dev", texts[fold])):
            (root / "original_data" / f"{split}.csv").write_text(f"premise,hypothesis,label\n{text}")
        (run / "config.yaml").write_text(f"root: {root}\nmodel: {{base: bundled}}\n")
        (run / "best.ckpt").touch()
    checkpoints = [f"--ckpt_path={tmp_path / 'runs' / name / 'best.ckpt'}" for name in ("a", "b")]
    for args in (checkpoints, [checkpoints[1], f"--root={tmp_path / 'a'}"]):
        assert main(["validate", *args]) == 2
        errors = capsys.readouterr().err
        assert f"{tmp_path / 'a' / 'original_data' / 'dev.csv'}:2: found pair" in errors
        assert "of dev in train too" in errors
