"""Runs side by side, against figures counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from nlicot.cli import main
from nlicot.report.compare import holm

TRUE = [1, 1, 1, 1, 0, 0, 0, 0]


def _write_run(
    root: Path,
    name: str,
    predicted: Sequence[int],
    *,
    seed: int = 0,
    builder: str = "reflected",
    true: Sequence[int | None] = TRUE,
) -> None:
    folder = root / name / "predictions"
    folder.mkdir(parents=True)
    rows = [
        {"id": f"p|{index}\n", "true_label": label, "predicted_label": said, "p_entailment": 0.2 + 0.6 * said}
        for index, (label, said) in enumerate(zip(true, predicted, strict=True))
    ]
    for row in rows:
        if row["true_label"] is None:
            del row["true_label"]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "seed_everything": seed,
        "run": name,
        "model": {"seed": seed, "learning_rate": 1e-3},
        "data": {"seed": seed, "builder": builder},
    }
    (root / name / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def _compare(root: Path, *names: str) -> int:
    return main(["report", "--compare", *names, "--checkpoints_root", str(root)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write_run(tmp_path, "a0", [1, 1, 1, 1, 0, 0, 0, 1])  # 7 of 8
    _write_run(tmp_path, "a1", [1, 1, 0, 0, 0, 0, 0, 1], seed=1)  # 5 of 8
    _write_run(tmp_path, "b", [0, 0, 0, 0, 1, 1, 0, 0], builder="label_only")  # 2 of 8
    return tmp_path


def test_figures_seeds_and_tests_are_those_counted_by_hand(root: Path) -> None:
    out = root / "out.json"
    assert (
        main(["report", "--compare", "a0", "a1", "b", "--checkpoints_root", str(root), "--json", str(out)])
        == 0
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [run["accuracy"]["value"] for run in found["runs"]] == [7 / 8, 5 / 8, 2 / 8]
    group, alone = found["groups"]
    assert (group["names"], alone["names"]) == (["a0", "a1"], ["b"])
    assert group["mean_accuracy"] == 0.75
    assert group["sd_accuracy"] == pytest.approx(0.25 / 2**0.5)
    assert (group["lowest_accuracy"], group["highest_accuracy"]) == (5 / 8, 7 / 8)
    assert alone["sd_accuracy"] is None
    first = found["tests"][0]
    assert (first["only_first"], first["only_second"]) == (["p|2\n", "p|3\n"], [])
    assert first["p_value"] == 0.5  # two coins, both heads or both tails
    versus_b = found["tests"][1]
    # a0 alone is right on 0 to 5, b alone on 7: 2 * (1 + 7) / 2^7
    assert (len(versus_b["only_first"]), len(versus_b["only_second"])) == (6, 1)
    assert versus_b["p_value"] == 0.125
    assert versus_b["p_holm"] == pytest.approx(0.375)


def test_tables_stay_tables_whatever_the_ids_hold(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown = root / "out.md"
    flags = ["--checkpoints_root", str(root), "--markdown", str(markdown)]
    assert main(["report", "--compare", "a0", "b", *flags]) == 0
    text = capsys.readouterr().out
    assert "87.5% (62.5% to 100.0%)" in text
    assert "6 (p|0, p|1, ...)" in text
    for table in markdown.read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = table.strip().splitlines()
        cells = {line.replace("\\|", "").count("|") for line in lines}
        assert len(cells) == 1, lines
    assert main(["report", "--compare", "a0", "b", *flags]) == 2
    assert "add --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a0",), "found 1 run, expected two or more"),
        (("a0", "a0"), "found a name twice"),
        (("a0", "gone"), "found no such run"),
        (("a0", "other"), "'p|0\\n' with label 0 in other and 1 in a0"),
        (("a0", "shorter"), "with label (not there) in shorter"),
        (("a0", "unlabelled"), "true_label"),
        (("a0", "empty"), "python -m nlicot validate --ckpt_path"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    root: Path, names: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_run(root, "other", [1] * 8, true=[0, *TRUE[1:]])
    _write_run(root, "shorter", [1] * 7, true=TRUE[:7])
    _write_run(root, "unlabelled", [1] * 8, true=[None] * 8)
    (root / "empty").mkdir()
    assert _compare(root, *names) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_holm_is_monotone_and_never_above_one() -> None:
    assert holm([0.5, 0.01, 0.6]) == [1.0, 0.03, 1.0]
    assert holm([0.2]) == [0.2]
