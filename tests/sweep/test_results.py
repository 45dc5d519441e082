"""The table of a sweep, against figures computed by hand."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from nlicot.sweep.plan import PlannedRun
from nlicot.sweep.results import Usage, as_text, experiments_table, read_rows, write_results

TRUE = [1, 1, 1, 1, 0, 0, 0, 0]


def finished(out: Path, experiment: str, seed: int, p: Sequence[float]) -> PlannedRun:
    """Write the files of a finished run that predicted these probabilities."""
    folder = out / f"{experiment}-{seed}"
    (folder / "predictions").mkdir(parents=True)
    (folder / "fit.json").write_text(json.dumps({"optimizer_steps": 4}))
    rows = [
        {"id": str(index), "true_label": label, "predicted_label": int(value >= 0.5), "p_entailment": value}
        for index, (label, value) in enumerate(zip(TRUE, p, strict=True))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions" / "dev.jsonl").write_text(lines)
    return PlannedRun(experiment=experiment, seed=seed, folder=folder, args=[], state="new", source=None)


@pytest.fixture
def planned(tmp_path: Path) -> list[PlannedRun]:
    """Experiment a is right on 7 and 5 of 8 pairs, averaged on 6; b on 2 and 3; c has no finished run."""
    return [
        finished(tmp_path, "a", 0, [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9]),
        finished(tmp_path, "a", 1, [0.9, 0.9, 0.4, 0.0, 0.1, 0.1, 0.1, 0.9]),
        finished(tmp_path, "b", 0, [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1]),
        finished(tmp_path, "b", 5, [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1]),
        PlannedRun(experiment="c", seed=0, folder=tmp_path / "c-0", args=[], state="new", source=None),
    ]


USAGE = {"a-0": Usage(seconds=60.0, peak_mb=900.0), "a-1": Usage(seconds=120.0, peak_mb=1500.4)}


def test_figures_are_those_computed_by_hand(planned: list[PlannedRun]) -> None:
    a, b = read_rows(planned, USAGE)
    assert (a.name, [run.name for run in a.runs]) == ("a", ["a-0", "a-1"])
    assert (a.accuracy.mean, a.accuracy.sd) == (6 / 8, pytest.approx(0.25 / 2**0.5))
    assert (a.accuracy.lowest, a.accuracy.highest) == (5 / 8, 7 / 8)
    # 4 hits and 1 false alarm: 8/9; 2 hits, 1 false alarm, 2 misses: 4/7.
    assert a.f1.mean == pytest.approx((8 / 9 + 4 / 7) / 2)
    assert (b.accuracy.mean, b.f1.mean) == (5 / 16, pytest.approx((0 + 2 * 1 / 7) / 2))
    assert (a.seconds, a.peak_mb) == (90.0, 1500.4)
    assert (b.seconds, b.peak_mb) == (None, None)
    assert a.tests == []


def test_mcnemar_compares_runs_in_the_order_of_their_seeds(planned: list[PlannedRun]) -> None:
    _, b = read_rows(planned, USAGE)
    assert [(test.first, test.second) for test in b.tests] == [("a-0", "b-0"), ("a-1", "b-5")]
    # Only a-0 is right on 0 to 5, only b-0 on 7: 2 * (1 + 7) / 2^7. Only a-1 on 0, 1, 4, 5, only b-5 on 3, 7.
    assert [test.p_value for test in b.tests] == pytest.approx([2 * 8 / 2**7, 2 * (1 + 6 + 15) / 2**6])
    assert [test.p_holm for test in b.tests] == pytest.approx([2 * 0.125, 0.6875])


def test_runs_are_compared_with_those_of_their_seeds(tmp_path: Path) -> None:
    p = [0.9] * len(TRUE)
    runs = [finished(tmp_path, "a", seed, p) for seed in (0, 1, 2)]
    runs += [finished(tmp_path, "b", seed, p) for seed in (1, 2, 7)]
    for run in runs:
        (run.folder / "config.yaml").write_text(f"seed_everything: {run.seed}\n")
    _, b = read_rows(runs, USAGE)
    assert [(test.first, test.second) for test in b.tests] == [("a-1", "b-1"), ("a-2", "b-2")]


def test_the_average_of_seeds_is_that_of_their_probabilities(planned: list[PlannedRun]) -> None:
    a = read_rows(planned, USAGE)[0]
    assert a.averaged is not None
    assert [answer.p_entailment for answer in a.averaged.answers] == pytest.approx(
        [0.9, 0.9, 0.65, 0.45, 0.1, 0.1, 0.1, 0.9]
    )
    assert [answer.predicted_label for answer in a.averaged.answers] == [1, 1, 1, 0, 0, 0, 0, 1]
    assert a.averaged.metrics.accuracy.value == 6 / 8
    (single,) = read_rows(planned[:1], USAGE)
    assert single.averaged is None


def test_the_tables_have_a_line_for_each_experiment_run_and_average(planned: list[PlannedRun]) -> None:
    rows = read_rows(planned, USAGE)
    lines = [list(row) for row in experiments_table(rows).rows]
    assert lines == [
        ["a", "2", "75.0", "62.5 to 87.5", "17.7", "73.0", "22.4", "-", "1.5", "1,500"],
        ["b", "2", "31.2", "25.0 to 37.5", "8.8", "14.3", "20.2", "0.250, 0.688", "-", "-"],
    ]
    text = as_text(rows)
    starts = [line.split("  ")[0] for line in text.splitlines()]
    for name in ("a-0", "a-1", "a, 2 seeds averaged", "b-0", "b-5", "b, 2 seeds averaged", "a", "b"):
        assert starts.count(name) == 1, text
    assert max(map(len, text.splitlines())) <= 110


def test_json_and_csv_have_the_figures_of_each_run(planned: list[PlannedRun], tmp_path: Path) -> None:
    rows = read_rows(planned, USAGE)
    json_path, csv_path = write_results(tmp_path, planned, rows, USAGE)
    found = json.loads(json_path.read_text(encoding="utf-8"))
    assert (found["split"], found["num_pairs"]) == ("dev", 8)
    assert [each["name"] for each in found["experiments"]] == ["a", "b"]
    assert found["experiments"][1]["tests"][0]["only_second"] == ["7"]
    assert found["experiments"][0]["averaged"]["accuracy"]["value"] == 6 / 8
    assert found["usage"]["a-0"] == {"seconds": 60.0, "peak_mb": 900.0}
    with csv_path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["run"], line["experiment"], line["seed"]) for line in lines] == [
        *(("a-0", "a", "0"), ("a-1", "a", "1"), ("b-0", "b", "0"), ("b-5", "b", "5"))
    ]
    assert float(lines[0]["accuracy"]) == 7 / 8
    assert float(lines[0]["accuracy_low"]) == found["runs"][0]["accuracy"]["low"] < 7 / 8
    assert [line["seconds"] for line in lines] == ["60.0", "120.0", "", ""]


def test_predictions_older_than_the_end_of_training_are_not_those_of_the_run(
    planned: list[PlannedRun],
) -> None:
    path = planned[0].folder / "predictions" / "dev.jsonl"
    os.utime(path, (0, 0))
    assert [run.name for row in read_rows(planned, USAGE) for run in row.runs] == ["a-1", "b-0", "b-5"]
