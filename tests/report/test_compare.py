"""Runs side by side, against figures computed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlicot.cli import main
from nlicot.report.compare import holm

TRUE = [1, 1, 1, 1, 0, 0, 0, 0]
HOSTILE = "p{}|<b>\n\\|\u2028\x1b[2J`_"
"""Ends a table's cell and a line of JSON lines or of a terminal, and starts all kinds of Markdown."""


def _rows(predicted: Sequence[int | None], true: Sequence[int | None] = TRUE) -> list[dict[str, Any]]:
    rows = [
        {"id": HOSTILE.format(index), "true_label": label, "predicted_label": said}
        for index, (label, said) in enumerate(zip(true, predicted, strict=True))
    ]
    for row in rows:
        if row["predicted_label"] is not None:
            row["p_entailment"] = 0.8 if row["predicted_label"] else 0.2
    # Like `write_predictions`, without fields that are None.
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_run(
    root: Path, name: str, rows: Sequence[dict[str, Any]], *, seed: int = 0, builder: object = "reflected"
) -> None:
    _write_rows(root / name / "predictions" / "dev.jsonl", rows)
    config = {
        "seed_everything": seed,
        "run": name,
        "model": {"seed": seed, "learning_rate": 1e-3},
        "data": {"seed": seed, "builder": builder},
    }
    (root / name / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write_run(tmp_path, "a0", _rows([1, 1, 1, 1, 0, 0, 0, 1]))  # 7 of 8
    # In another order, as a run whose pairs were shuffled.
    _write_run(tmp_path, "a1", _rows([1, 1, 0, 0, 0, 0, 0, 1])[::-1], seed=1)  # 5 of 8
    _write_run(tmp_path, "b", _rows([0, 0, 0, 0, 1, 1, 0, 0]), builder="label_only")  # 2 of 8
    return tmp_path


def _compared(root: Path, *runs: str) -> dict[str, Any]:
    out = root / "compared"
    flags = ["--checkpoints_root", str(root), "--out", str(out), "--overwrite"]
    assert main(["report", "--compare", *runs, *flags]) == 0
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    return found


def _refusal(root: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["report", *args, "--checkpoints_root", str(root)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_report_says_how_often_a_thought_changed_the_draft(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows([1, 1, 1, 0, 0, 0, 0, 1])
    for row, draft in zip(rows, [1, 0, 0, 1, 0, 0, 1, 1], strict=True):
        row["draft_label"] = draft
    _write_run(root, "drafts", rows, builder="draft_first")
    a0, drafts = _compared(root, "a0", "drafts")["runs"]
    assert drafts["drafts"] == {"num": 8, "num_right": 4, "num_corrected": 3, "num_spoiled": 1}
    assert "drafts" not in a0
    line = (
        "2 has drafts: the label differs from the draft on 4 of 8 pairs (3 corrected, 1 spoiled); "
        "50.0% of the drafts are right"
    )
    assert line in capsys.readouterr().out.splitlines()


def test_figures_of_a_run_are_those_computed_by_hand(root: Path) -> None:
    found = _compared(root, "a0", "a1", "b")
    assert (found["split"], found["num_pairs"]) == ("dev", 8)
    a0, _, b = found["runs"]
    assert (a0["name"], a0["builder"], a0["seed"], a0["support"]) == ("a0", "reflected", 0, 8)
    assert a0["accuracy"]["value"] == 7 / 8
    assert a0["f1"]["value"] == pytest.approx(8 / 9)  # 4 hits, 1 false alarm
    assert a0["macro_f1"]["value"] == pytest.approx((8 / 9 + 6 / 7) / 2)
    assert a0["auroc"]["value"] == 14 / 16  # 12 comparisons won, 4 tied
    assert a0["expected_calibration_error"]["value"] == pytest.approx(7 / 8 - 0.8)
    assert a0["brier"]["value"] == pytest.approx((7 * 0.04 + 0.64) / 8)
    assert a0["accuracy"]["low"] < 7 / 8 < a0["accuracy"]["high"]
    assert (b["builder"], b["f1"]["value"]) == ("label_only", 0)


def test_runs_that_differ_only_in_the_seed_are_one_group(root: Path) -> None:
    _write_run(root, "by_class", _rows(TRUE), builder={"class_path": "my.Own", "init_args": {"seed": 1}})
    group, single, by_class = _compared(root, "a0", "a1", "b", "by_class")["groups"]
    assert [group["names"], single["names"], by_class["names"]] == [["a0", "a1"], ["b"], ["by_class"]]
    assert group["accuracy"] == {
        "mean": 0.75,
        "sd": pytest.approx(0.25 / 2**0.5),
        "lowest": 5 / 8,
        "highest": 7 / 8,
    }
    # Macro F1: (8/9 + 6/7) / 2 = 55/63 of a0, (4/7 + 2/3) / 2 = 39/63 of a1.
    assert group["macro_f1"] == {
        "mean": pytest.approx(47 / 63),
        "sd": pytest.approx(16 / 63 / 2**0.5),
        "lowest": pytest.approx(39 / 63),
        "highest": pytest.approx(55 / 63),
    }
    assert single["accuracy"] == {"mean": 0.25, "sd": None, "lowest": 0.25, "highest": 0.25}
    assert by_class["builder"] == "Own"


def test_mcnemar_counts_the_pairs_that_only_one_run_got_right(root: Path) -> None:
    tests = _compared(root, "a0", "a1", "b")["tests"]
    assert [(test["first"], test["second"]) for test in tests] == [("a0", "a1"), ("a0", "b"), ("a1", "b")]
    only = [(test["only_first"], test["only_second"]) for test in tests]
    ids = [row["id"] for row in _rows(TRUE)]
    assert only[0] == ([ids[2], ids[3]], [])
    assert only[1] == (ids[:4] + ids[4:6], [ids[7]])
    assert only[2] == ([ids[0], ids[1], ids[4], ids[5]], [ids[7]])
    # 2 * 1 / 2^2, 2 * (1 + 7) / 2^7, 2 * (1 + 5) / 2^5
    assert [test["p_value"] for test in tests] == [0.5, 0.125, 0.375]
    # 3 * 0.125, then 2 * 0.375, then 0.5 raised to the one before
    assert [test["p_holm"] for test in tests] == [0.75, 0.375, 0.75]


def test_tied_runs_have_a_p_value_of_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_run(root, "twin", _rows([1, 1, 1, 1, 0, 0, 0, 1]), seed=2)
    found = _compared(root, "a0", "twin")
    (test,) = found["tests"]
    assert (test["only_first"], test["only_second"], test["p_value"]) == ([], [], 1.0)
    assert found["groups"][0]["accuracy"]["sd"] == 0
    assert found["runs"][0]["accuracy"] == found["runs"][1]["accuracy"]
    printed = capsys.readouterr().out
    assert "right in" not in printed
    assert re.search(r"^1 : 2 +0 +0 +1.000$", printed, re.MULTILINE)


def test_no_answer_is_wrong_but_not_a_guess(root: Path) -> None:
    _write_run(root, "silent", _rows([None, 1, 1, 1, None, 0, 0, 0]))
    found = _compared(root, "a0", "silent")
    silent = found["runs"][1]
    assert (silent["accuracy"]["value"], silent["num_unanswered"]) == (6 / 8, 2)
    assert "auroc" not in silent
    assert len(found["tests"][0]["only_first"]) == 2


def test_a_predictions_file_serves_as_a_run(root: Path) -> None:
    _write_rows(root / "elsewhere" / "test.jsonl", _rows(TRUE))
    _write_rows(root / "other" / "test.jsonl", _rows(TRUE))
    in_run = str(root / "a0" / "predictions" / "dev.jsonl")
    found = _compared(root, in_run, "a1", str(root / "elsewhere" / "test.jsonl"))
    assert [run["name"] for run in found["runs"]] == ["a0", "a1", "test"]
    assert [group["names"] for group in found["groups"]] == [["a0", "a1"], ["test"]]
    assert found["split"] == "dev, test"
    same_name = [str(root / folder / "test.jsonl") for folder in ("elsewhere", "other")]
    assert [run["name"] for run in _compared(root, *same_name)["runs"]] == same_name


def test_runs_may_be_named_between_flags(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path = root / "mixed.json"
    args = ["a0", "--json", str(json_path), "b", "--overwrite", "a1", f"--checkpoints-root={root}"]
    assert main(["report", *args]) == 0
    assert main(["report", "--overwrite", "true", *args]) == 0
    found = json.loads(json_path.read_text(encoding="utf-8"))
    assert [run["name"] for run in found["runs"]] == ["a0", "b", "a1"]
    assert main(["report", "a0", "--compare", "b", "a1", "--checkpoints_root", str(root)]) == 0
    assert "--htm: unknown setting; did you mean --html?" in _refusal(root, capsys, "a0", "--htm", "x")


def test_fit_json_names_the_builder_if_the_configuration_is_missing(root: Path) -> None:
    (root / "b" / "config.yaml").unlink()
    (root / "b" / "fit.json").write_text('{"builder": "LabelOnly"}', encoding="utf-8")
    run = _compared(root, "a0", "b")["runs"][1]
    assert (run["builder"], run["seed"]) == ("LabelOnly", None)


def test_an_ensemble_names_its_members_and_what_they_learnt(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = {"files": {"test.jsonl": "0" * 64}, "temperature": 1.0, "num_pairs": 9, "num_unlabelled": 4}
    members = [
        {"checkpoint": "runs/a0/best.ckpt", "weight": 2.0, "fit": {"builder": "Reflected"}},
        {
            "checkpoint": "runs/a1/best.ckpt",
            "weight": 1.0,
            "fit": {"soft_labels": {**soft, "num_in_test": 4}},
        },
    ]
    _write_rows(root / "a0+a1" / "predictions" / "dev.jsonl", _rows(TRUE))
    path = root / "a0+a1" / "predictions" / "dev.ensemble.json"
    path.write_text(json.dumps({"members": members}), encoding="utf-8")
    found = _compared(root, "a0+a1", "b")["runs"][0]
    assert [member["weight"] for member in found["members"]] == [2.0, 1.0]
    printed = capsys.readouterr().out
    assert "\n1 averages runs/a0/best.ckpt (weight 2), runs/a1/best.ckpt (weight 1)\n" in printed
    assert "\n1's runs/a1/best.ckpt learnt soft labels of 9 pairs" in printed
    assert "TRANSDUCTIVE: 4 are pairs of the test split" in printed
    path.write_text('{"members": [{"weight": "much"}]}', encoding="utf-8")
    assert f"{path}: not as `fit`, `validate` or `generate` writes it" in _refusal(root, capsys, "a0+a1")


def test_a_folder_with_the_name_of_a_run_does_not_hide_the_run(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = tmp_path_factory.mktemp("working")
    (working / "a0").mkdir()
    monkeypatch.chdir(working)
    assert _compared(root, "a0", "b")["runs"][0]["accuracy"]["value"] == 7 / 8


def test_text_fits_a_terminal_and_keeps_ids_harmless(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_name = "correct_only-20261124-001416-and-more"
    _write_run(root, long_name, _rows([1] * 8), seed=2026, builder="correct_only")
    _compared(root, "a0", "a1", "b", long_name)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert "dev: 8 pairs" in lines[0]
    assert max(map(len, lines)) <= 100
    assert "4  correct_only...1416-and-more  correct_only  2026" in printed
    assert "87.5 (62.5 to 100.0)" in printed
    assert re.search(
        r"^1, 2 +reflected +75.0 \(62.5 to 87.5\) +17.7 +74.6 \(61.9 to 87.3\) +18.0$", printed, re.M
    )
    assert re.search(r"^1 : 3 +6 +1 +0.125 +0.\d+$", printed, re.MULTILINE)
    assert "right in 3, wrong in 1: p7|<b> \\| ?[2J`_" in lines
    assert "\x1b" not in printed


def test_markdown_tables_stay_tables_whatever_the_ids_hold(root: Path) -> None:
    _write_run(root, "c|\\|d", _rows(TRUE))
    _compared(root, "a0", "c|\\|d")
    title, *tables, ids = (root / "compared" / "comparison.md").read_text(encoding="utf-8").split("\n\n")
    assert title.startswith("dev: 8 pairs")
    assert len(tables) == 3
    for table in tables:
        # A pipe that no backslash escapes ends a cell; an escaped backslash escapes nothing.
        cells = [re.sub(r"\\.", "", line).count("|") for line in table.splitlines()]
        assert len(set(cells)) == 1, table
    assert r"c\|\\\|d" in tables[0]
    assert ids == "- right in 2, wrong in 1: " + r"p7\|\<b\> \\\| ?\[2J\`\_" + "\n"


def test_a_report_is_replaced_only_with_overwrite(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path, markdown_path = root / "x.json", root / "x.md"
    markdown_path.write_text("mine", encoding="utf-8")
    args = ["--compare", "a0", "b", "--json", str(json_path), "--markdown", str(markdown_path)]
    assert "x.md exists already; add --overwrite" in _refusal(root, capsys, *args)
    assert markdown_path.read_text(encoding="utf-8") == "mine"
    assert not json_path.exists()
    assert main(["report", *args, "--checkpoints_root", str(root), "--overwrite"]) == 0
    assert "a0" in markdown_path.read_text(encoding="utf-8")
    twice = ["--compare", "a0", "b", "--json", str(root / "y"), "--markdown", str(root / "y")]
    assert "one file named twice" in _refusal(root, capsys, *twice)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "found no run, expected report RUN [RUN ...], or --compare RUN RUN ..."),
        (["a0"], "found 1 run, expected two or more"),
        (["a0", "a0"], "a0: found it twice"),
        (["a0", "gone"], "gone: found no such run"),
        (["a0", "relabelled"], "|' labelled 0 and labelled 1 in a0, expected"),
        (["a0", "shorter"], "shorter: found pair |' missing and labelled 0 in a0 and 1 more pairs"),
        (["shorter", "a0"], "a0: found pair |' labelled 0 and missing in shorter"),
        (
            ["a0", "empty"],
            "expected predictions of dev; make them with: python -m nlicot validate --ckpt_path",
        ),
        (["a0", "b", "--split", "test"], "(there are predictions of dev), expected predictions of test"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    root: Path, args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_run(root, "relabelled", _rows(TRUE, [*TRUE[:3], 0, *TRUE[4:]]))
    _write_run(root, "shorter", _rows(TRUE)[:6])
    (root / "empty").mkdir()
    message = _refusal(root, capsys, *(["--compare", *args] if args else []))
    assert expected in re.sub(r"'p\d\|.*?_'", "|'", message)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"true_label": None}, "found no true_label of"),
        ({"true_label": 2}, "found true_label 2, expected 0 or 1"),
        ({"predicted_label": "yes"}, "found predicted_label 'yes', expected 0 or 1"),
        ({"p_entailment": 1.5}, "found p_entailment 1.5, expected a probability"),
        ({"p_entailment": float("nan")}, "found p_entailment nan, expected a probability"),
        ({"id": None}, "found a prediction without an id"),
        ({"id": HOSTILE.format(0)}, "a second time, expected each pair once"),
    ],
)
def test_a_broken_prediction_is_refused_with_its_line(
    root: Path, row: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows(TRUE)
    rows[2] |= row
    _write_run(root, "broken", rows)
    message = _refusal(root, capsys, "--compare", "a0", "broken")
    assert f"{root / 'broken' / 'predictions' / 'dev.jsonl'}:3: found" in message
    assert expected in message


def test_holm_is_monotone_and_never_above_one() -> None:
    assert holm([0.5, 0.01, 0.6]) == [1.0, 0.03, 1.0]
    assert holm([0.2]) == [0.2]
