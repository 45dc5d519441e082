"""A sweep of the small model: its table, what a failure, a signal and a kill leave, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from math import comb
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from tests.chaos.commands import PROJECT, finish, start, wait_until
from tests.chaos.test_signals import signalled
from tests.small_model import write_small_model
from tests.training.short_fit import SHORT_FIT

pytestmark = pytest.mark.slow

FLAGS = [flag for flag in SHORT_FIT if not flag.startswith("--final_evaluation")]
FLAGS += ["--data.limit_dev=20", "--model.quantization=none", "--model.dtype=float32"]
LABELS = """
seeds: [0, 1]
experiments:
- name: labels
  model.learning_rate: 1e-2
- name: after
  model.learning_rate: 1e-3
  from: labels
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def command(base: Path, folder: Path, *more: str, content: str = LABELS) -> list[str]:
    file = folder / "sweep.yaml"
    file.write_text(content, encoding="utf-8")
    return ["sweep", str(file), f"--out={folder / 'runs'}", *FLAGS, f"--model.base={base}", *more]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A sweep that nothing disturbed: its folder, its command and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    args = command(base, folder)
    return folder / "runs", args, finish(args)


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    return found


def right(run: Path) -> dict[str, bool]:
    """Return which pairs a run got right, by its file of predictions."""
    lines = (run / "predictions" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["id"]: row["true_label"] == row["predicted_label"] for row in rows}


def test_the_table_has_the_figures_of_the_runs_predictions(whole: tuple[Path, list[str], str]) -> None:
    out, _, printed = whole
    found = results(out)
    labels, after = found["experiments"]
    for experiment in (labels, after):
        of_runs = [right(out / name) for name in experiment["runs"]]
        accuracies = [sum(each.values()) / 20 for each in of_runs]
        assert experiment["runs"] == [f"{experiment['name']}-{seed}" for seed in (0, 1)]
        assert experiment["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert experiment["accuracy"]["sd"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
        assert experiment["seconds"] > 1 and experiment["peak_mb"] > 100
    for test in after["tests"]:
        first, second = right(out / test["first"]), right(out / test["second"])
        only = [
            sum(one[id_] and not other[id_] for id_ in first)
            for one, other in ((first, second), (second, first))
        ]
        num = sum(only)
        p = min(1.0, 2 * sum(comb(num, k) for k in range(min(only) + 1)) / 2**num)
        assert [len(test["only_first"]), len(test["only_second"])] == only
        assert test["p_value"] == pytest.approx(p)
    assert [run["started_from"]["path"] for run in found["runs"] if "started_from" in run] == [
        str(out / "labels-0"),
        str(out / "labels-1"),
    ]
    mean = 100 * labels["accuracy"]["mean"]
    assert re.search(rf"^labels +2 +{mean:.1f} ", printed, re.MULTILINE), printed
    assert adapter(out / "labels-0") != adapter(out / "labels-1")


def test_the_same_command_skips_what_is_finished(whole: tuple[Path, list[str], str]) -> None:
    out, args, _ = whole
    before = results(out)
    printed = finish(args)
    assert re.findall(r"\[(\d)/4\] \S+: finished before", printed) == ["1", "2", "3", "4"]
    assert "python -m nlicot fit" not in printed
    assert results(out) == before


def test_a_sweep_goes_on_after_a_kill(whole: tuple[Path, list[str], str], base: Path, tmp_path: Path) -> None:
    args, out = command(base, tmp_path), tmp_path / "runs"
    with start(args) as process:
        wait_until((out / "labels-1" / "last.ckpt").exists, process)
        (fit,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        os.kill(int(fit), signal.SIGKILL)
        process.communicate()  # until the fit has ended too, and holds its run no more
    assert (out / "labels-0" / "predictions" / "dev.jsonl").is_file()
    printed = finish(args)
    assert "[1/4] labels-0: finished before" in printed
    assert f"[2/4] labels-1: python -m nlicot fit --resume={out / 'labels-1'}" in printed
    for name in ("labels-0", "labels-1", "after-0", "after-1"):
        assert adapter(out / name) == adapter(whole[0] / name), name
    assert [each["accuracy"] for each in results(out)["runs"]] == [
        each["accuracy"] for each in results(whole[0])["runs"]
    ]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_fit_that_runs_and_the_same_command_continues(
    signum: signal.Signals, code: int, whole: tuple[Path, list[str], str], base: Path, tmp_path: Path
) -> None:
    only = ["--only=labels", "--trainer.enable_progress_bar=true"]
    args, run = command(base, tmp_path, *only), tmp_path / "runs" / "labels-0"
    ended = signalled(args, r"Epoch 0:[^\r]* 2/4 ", signum)
    assert ended.code == code
    way = f"continue with: python -m nlicot {' '.join(args)}"
    assert ended.line == f"nlicot: stopped; 2 of 2 runs are not finished; {way}"
    assert (run / "last.ckpt").is_file() and not (tmp_path / "runs" / "labels-1").exists()
    printed = finish(args)
    assert f"[1/2] labels-0: python -m nlicot fit --resume={run}" in printed
    assert adapter(run) == adapter(whole[0] / "labels-0")


def test_a_run_that_fails_ends_only_those_that_start_from_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    content = """
experiments:
- {name: bad, trainer.profiler: none_such}
- {name: after, from: bad}
- {name: good}
"""
    assert main(command(base, tmp_path, content=content)) == 8
    printed, error = capfd.readouterr()
    assert "[1/3] bad-0: failed with exit code 2; the sweep goes on" in printed
    assert "[2/3] after-0: not started, since bad-0 is not finished" in printed
    assert [each["name"] for each in results(tmp_path / "runs")["runs"]] == ["good-0"]
    assert "nlicot: 2 of 3 runs are not finished (failed: bad-0, after-0); continue with: python" in error


def test_a_sweep_ends_after_its_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    assert main(command(base, tmp_path, "--minutes=0.01", "--only=labels")) == 8
    error = capfd.readouterr().err
    assert "nlicot: 2 of 2 runs are not finished (--minutes 0.01 are over); continue with: python" in error
    assert not (tmp_path / "runs" / "labels-1").exists()
