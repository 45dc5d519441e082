"""Other systems' predictions, and baselines, in the table of the runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlicot.cli import main
from nlicot.evaluation.metrics import mcnemar_exact

TRUE = [1, 1, 1, 1, 0, 0, 0, 0]
OURS = [1, 1, 1, 0, 0, 0, 0, 1]
THEIRS = [1, 0, 0, 0, 0, 0, 0, 0]
# A model that reads hypotheses only learns that "wet" is entailed; one of pairs needs no more.
TRAIN = [
    (f"Rain falls on the {place}.", f"The {place} is {state}.", state == "wet")
    for place in ("town", "hill", "lake", "road", "port", "wood")
    for state in ("wet", "dry")
]
DEV = [
    (f"Snow lies on {number} roofs.", f"{number} roofs are {'wet' if label else 'dry'}.")
    for number, label in enumerate(TRUE)
]


def texts_of(index: int) -> dict[str, str]:
    return dict(zip(("premise", "hypothesis"), DEV[index], strict=True))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on 12 training pairs with predictions of 8 dev pairs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "data" / "original_data" / "train.csv"
    pairs.parent.mkdir(parents=True)
    lines = [f"{premise},{hypothesis},{'yes' if label else 'no'}" for premise, hypothesis, label in TRAIN]
    pairs.write_text("\n".join(["premise,hypothesis,label", *lines, "A cat.,A cat is wet.,yes"]) + "\n")
    rows = [
        {
            "id": f"d{index}",
            **texts_of(index),
            "true_label": label,
            "predicted_label": OURS[index],
            "p_entailment": 0.8 if OURS[index] else 0.2,
            "thought_process": "So.",
        }
        for index, label in enumerate(TRUE)
    ]
    run = tmp_path / "checkpoints" / "ours"
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = {"class_path": "not_here.Builder"}
    config = {"root": "data", "label_map": "yes=1,no=0", "data": {"builder": builder}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def write_csv(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reported(*args: str) -> dict[str, Any]:
    assert main(["report", *args, "--json=r.json", "--overwrite"]) == 0
    found: dict[str, Any] = json.loads(Path("r.json").read_text(encoding="utf-8"))
    return found


def test_labels_by_id_are_compared_with_the_run(root: Path) -> None:
    rows = [(f"d{index}", label) for index, label in enumerate(THEIRS)]
    write_csv(root / "cross_encoder.csv", "id,label", rows[::-1])
    found = reported("--compare", "ours", "--predictions", "cross_encoder.csv")
    assert (found["split"], found["num_pairs"]) == ("dev", 8)
    ours, theirs = found["runs"]
    assert (theirs["name"], theirs["builder"], theirs["seed"]) == ("cross_encoder", "", None)
    assert (ours["accuracy"]["value"], theirs["accuracy"]["value"]) == (6 / 8, 5 / 8)
    assert theirs["accuracy"]["low"] < 5 / 8 < theirs["accuracy"]["high"]
    assert "auroc" not in theirs
    (test,) = found["tests"]
    assert (test["only_first"], test["only_second"]) == (["d1", "d2"], ["d7"])
    assert test["p_value"] == mcnemar_exact(2, 1) == 1.0


def test_another_system_has_no_drafts(root: Path) -> None:
    path = root / "checkpoints" / "ours" / "predictions" / "dev.jsonl"
    rows = [json.loads(line) | {"draft_label": 1} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(root / "api.csv", "id,label", [(f"d{index}", label) for index, label in enumerate(THEIRS)])
    ours, theirs = reported("ours", "--predictions=api.csv")["runs"]
    assert ours["drafts"]
    assert "drafts" not in theirs


def test_probabilities_by_texts_give_labels_and_calibration(root: Path) -> None:
    rows = [(*DEV[index], 0.5 if label else 0.49) for index, label in enumerate(THEIRS)]
    write_csv(root / "api.csv", "Sentence1,sentence2,probability", rows)
    theirs = reported("ours", "--predictions=api.csv")["runs"][1]
    assert theirs["accuracy"]["value"] == 5 / 8
    assert theirs["brier"]["value"] == pytest.approx((0.25 + 3 * 0.51**2 + 4 * 0.49**2) / 8)
    assert theirs["auroc"]["value"] == (4 + 3 * 4 * 0.5) / 16


def test_an_unnamed_column_of_row_numbers_is_not_read(root: Path) -> None:
    """As pandas writes it."""
    rows = [[index, *DEV[index], THEIRS[index]] for index in range(len(TRUE))]
    write_csv(root / "theirs.csv", ",premise,hypothesis,prediction", rows)
    found = reported("ours", "--predictions=theirs.csv")
    assert [run["accuracy"]["value"] for run in found["runs"]] == [6 / 8, 5 / 8]
    assert "auroc" not in found["runs"][1]
    rows = [[index, f"d{index}", 0.9 if THEIRS[index] else 0.2] for index in range(len(TRUE))]
    write_csv(root / "p.csv", ",id,p_entailment", rows)
    assert reported("ours", "--predictions=p.csv")["runs"][1]["accuracy"]["value"] == 5 / 8


def test_the_column_of_probabilities_may_have_another_name_or_none(root: Path) -> None:
    rows = [[f"d{index}", THEIRS[index], 0.9 if THEIRS[index] else 0.2] for index in range(len(TRUE))]
    write_csv(root / "theirs.csv", "id,prediction,score", rows)
    named = reported("ours", "--predictions=theirs.csv", "--columns=p_entailment=score")
    assert "auroc" in named["runs"][1]
    write_csv(root / "theirs.csv", "id,prediction,p_entailment", rows)
    unread = reported("ours", "--predictions=theirs.csv", "--columns=p_entailment=")
    assert "auroc" not in unread["runs"][1]


def test_labels_may_be_words_and_columns_have_other_names(root: Path) -> None:
    words = {1: "Entailment", 0: "neutral"}
    rows = [(index, f"d{index}", words[label], "gold") for index, label in enumerate(THEIRS)]
    write_csv(root / "api.csv", "row,uid,guess,label", rows)
    flags = ["--columns=label=guess,id=uid", "--label_map=entailment=1,neutral=0,contradiction=0"]
    assert reported("ours", "--predictions=api.csv", *flags)["runs"][1]["accuracy"]["value"] == 5 / 8


def test_a_pair_without_an_answer_counts_as_wrong(root: Path) -> None:
    rows = [{"id": f"d{index}", "prediction": label} for index, label in enumerate(TRUE)]
    del rows[0]["prediction"]
    rows[1]["prediction"] = None  # type: ignore[assignment]
    Path("api.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = reported("ours", "--predictions=api.jsonl")["runs"][1]
    assert (theirs["accuracy"]["value"], theirs["num_unanswered"]) == (6 / 8, 2)


def test_pairs_with_equal_texts_are_taken_in_order(root: Path) -> None:
    path = root / "checkpoints" / "ours" / "predictions" / "dev.jsonl"
    rows = [json.loads(line) | texts_of(0) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(root / "api.csv", "premise,hypothesis,label", [(*DEV[0], label) for label in THEIRS])
    assert reported("ours", "--predictions=api.csv")["tests"][0]["only_second"] == ["d7"]
    write_csv(root / "api.csv", "premise,hypothesis,label", [(*DEV[0], 1)] * 9)
    assert main(["report", "ours", "--predictions=api.csv"]) == 2


def test_several_systems_may_have_files_of_one_name(root: Path) -> None:
    names = []
    for folder, predicted in (("a", THEIRS), ("b", TRUE)):
        (root / folder).mkdir()
        rows = [(f"d{index}", label) for index, label in enumerate(predicted)]
        names.append(f"{folder}/dev.csv")
        write_csv(root / names[-1], "id,predicted_label", rows)
    found = reported("ours", *(f"--predictions={name}" for name in names))
    assert [run["name"] for run in found["runs"]] == ["ours", *names]
    assert len(found["tests"]) == 3


def test_missing_predictions_are_counted_and_the_first_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(root / "api.csv", "id,label", [("d0", 1), ("d2", 1)])
    assert main(["report", "ours", "--predictions=api.csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "api.csv: found no prediction of pair 'd1' and 5 more pairs, expected one for each pair of ours ("
        in line
    )


def test_true_labels_are_not_taken_for_predictions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"d{index}", label, 0.9 if THEIRS[index] else 0.1) for index, label in enumerate(TRUE)]
    write_csv(root / "api.csv", "id,label,p_entailment", rows)
    assert main(["report", "ours", "--predictions=api.csv"]) == 2
    assert "api.csv: found the true labels in the column label" in capsys.readouterr().err
    theirs = reported("ours", "--predictions=api.csv", "--columns=label=")["runs"][1]
    assert theirs["accuracy"]["value"] == 5 / 8


# ------------------------------------------------------------------- baselines


def test_baselines_learn_from_the_runs_training_pairs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = reported("ours", "--baselines")
    assert [run["name"] for run in found["runs"]] == [
        *("ours", "majority label", "hypothesis only", "pair n-grams")
    ]
    _, majority, hypothesis_only, ngrams = found["runs"]
    assert (majority["accuracy"]["value"], majority["predicted_positive_share"]) == (0.5, 1.0)
    assert majority["brier"]["value"] == pytest.approx((4 * (6 / 13) ** 2 + 4 * (7 / 13) ** 2) / 8)
    assert hypothesis_only["accuracy"]["value"] == 1.0
    assert ngrams["accuracy"]["value"] == 1.0
    # Each baseline against the run; two baselines are not compared.
    assert [test["first"] for test in found["tests"]] == ["ours"] * 3
    assert re.search(r"^2 +majority label +- +- +50\.0 \(", capsys.readouterr().out, re.MULTILINE)


def test_baselines_have_the_size_of_the_runs_training_data(root: Path) -> None:
    """A limited run saw one label only, so nothing can be learned from it."""
    path = root / "checkpoints" / "ours" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"data": {"limit_train": 1}}))
    assert main(["report", "ours", "--baselines"]) == 2
    path.write_text(yaml.safe_dump(config | {"data": {"limit_train": 2}}))
    assert reported("ours", "--baselines")["runs"][1]["brier"]["value"] == 0.25


def test_predictions_without_a_run_name_their_training_pairs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = root / "checkpoints" / "ours" / "predictions" / "dev.jsonl"
    Path("loose.jsonl").write_text(predictions.read_text())
    assert main(["report", "loose.jsonl", "--baselines"]) == 2
    assert "found no config.yaml that belongs to loose.jsonl" in capsys.readouterr().err
    write_csv(root / "t.csv", "premise,hypothesis,label", [(*pair[:2], int(pair[2])) for pair in TRAIN])
    found = reported("loose.jsonl", "--baselines", "--train_pairs=t.csv")
    assert found["runs"][1]["brier"]["value"] == 0.25
    assert reported("ours", "--baselines", "--train_pairs", "data/original_data/train.csv") == reported(
        "ours", "--baselines"
    )


def test_training_pairs_of_predictions_without_a_run_are_read_as_told(root: Path) -> None:
    predictions = root / "checkpoints" / "ours" / "predictions" / "dev.jsonl"
    Path("loose.jsonl").write_text(predictions.read_text())
    flags = ["--baselines", "--train_pairs=data/original_data/train.csv", "--label_map=yes=1,no=0"]
    assert len(reported("loose.jsonl", *flags)["runs"]) == 4


def test_baselines_do_not_answer_the_pairs_that_they_learn_from(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = root / "checkpoints" / "ours" / "predictions"
    (predictions / "dev.jsonl").rename(predictions / "train.jsonl")
    assert main(["report", "ours", "--split=train", "--baselines"]) == 2
    assert "--baselines: found the split train" in capsys.readouterr().err


def test_the_page_shows_every_row(root: Path) -> None:
    write_csv(root / "api.csv", "id,label", [(f"d{index}", label) for index, label in enumerate(THEIRS)])
    reported("ours", "--predictions=api.csv", "--baselines", "--html=r.html", "--markdown=r.md")
    page = Path("r.html").read_text(encoding="utf-8")
    for name in ("api", "majority label", "hypothesis only", "pair n-grams"):
        assert f'<span class="name">{name}</span>' in page
    assert "| 5 | pair n-grams | - | - | 100.0" in Path("r.md").read_text(encoding="utf-8")
