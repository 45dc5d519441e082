"""SIGINT, SIGTERM and SIGHUP stop every command in the same way, and the next start goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from nlicot.run.folder import never_trained
from tests.chaos.commands import finish, start, wait_until
from tests.chaos.test_kills import FIT, write_pairs
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer
from tests.time_limits import HANGS_S

pytestmark = pytest.mark.chaos

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
ONE_FIRST = [
    signal.SIGTERM,
    pytest.param(signal.SIGINT, marks=pytest.mark.long),
    pytest.param(signal.SIGHUP, marks=pytest.mark.long),
]
STEPS_PER_EPOCH, NUM_STEPS = 10, 20


class Ended(NamedTuple):
    """How a command ended: its exit code, its last message, and all that it printed."""

    code: int
    line: str
    printed: str


def signalled(args: Sequence[object], shown: str, signum: signal.Signals, **variables: str) -> Ended:
    """Send a signal once a command shows a pattern."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    with start(args, text=False, errors=None, env=environment) as process:
        assert process.stdout is not None
        guard = threading.Timer(HANGS_S, process.kill)
        guard.start()
        printed, was_sent = "", False
        while piece := os.read(process.stdout.fileno(), 4096):
            printed += piece.decode(errors="replace")  # type: ignore[attr-defined]
            if not was_sent and re.search(shown, printed, re.DOTALL):
                process.send_signal(signum)
                was_sent = True
        guard.cancel()
        assert was_sent, printed[-2000:]
        assert process.wait() != -signal.SIGKILL
    assert "Traceback" not in printed, printed[-3000:]
    messages = re.findall(r"^nlicot: [^\r\n]*", printed, re.MULTILINE)  # below the progress bar
    return Ended(process.returncode, messages[-1] if messages else "", printed)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def whole_run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    finish(_fit(root, small_model))
    return root / "run"


def _fit(root: Path, base: Path, *more: str) -> list[object]:
    every = "--checkpoint.every_n_steps=50"
    return ["fit", *FIT, every, f"--checkpoints_root={root}", f"--model.base={base}", *more]


def _step(run: Path) -> int:
    step: int = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    return step


def _step_shown(printed: str) -> int:
    """Return the last step in a progress bar of `_fit`."""
    epoch, step = re.findall(r"Epoch (\d):[^\r]* (\d+)/10 ", printed)[-1]
    return STEPS_PER_EPOCH * int(epoch) + int(step)


def _same_adapters(*runs: Path) -> bool:
    first, *others = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    return all(other == first for other in others)


@pytest.mark.parametrize("signum", ONE_FIRST)
def test_fit_saves_the_step_at_which_it_stops(
    signum: signal.Signals, small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args, continued = _fit(tmp_path, small_model), ["fit", "--resume", run]
    step = 0
    for command, shown in ((args, r"Epoch 0:[^\r]* 3/10 "), (continued, r"Epoch 1:[^\r]* [1-9]/10 ")):
        ended = signalled(command, shown, signum)
        assert ended.code == CODES[signum]
        assert ended.line == f"nlicot: stopped; continue with: python -m nlicot fit --resume {run}"
        # A step is repeated if the signal, on a busy machine, came as late as in the next evaluation.
        assert _step_shown(ended.printed) - _step(run) in (0, 1)
        assert step < _step(run) < NUM_STEPS
        step = _step(run)
    finish(continued)
    assert _same_adapters(whole_run, run)


def test_fit_in_an_evaluation_repeats_one_step(small_model: Path, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = r"Epoch 0:[^\r]* 10/10 .*Validation DataLoader 0:"
    assert signalled(_fit(tmp_path, small_model), shown, signal.SIGTERM).code == 143
    assert _step(run) >= STEPS_PER_EPOCH - 1
    finish(["fit", "--resume", run])
    assert _same_adapters(whole_run, run)


def test_fit_before_its_first_step_leaves_no_folder(small_model: Path, tmp_path: Path) -> None:
    ended = signalled(_fit(tmp_path, small_model), "SAMPLE DATA", signal.SIGTERM)
    assert (ended.code, ended.line) == (143, "nlicot: stopped; run the same command to start again")
    assert list(tmp_path.iterdir()) == []


def test_final_evaluation_is_stopped_too(small_model: Path, tmp_path: Path) -> None:
    args = _fit(tmp_path, small_model, "--final_evaluation=true", "--trainer.max_steps=4")
    # The second line is that of the process that evaluates, before it loads the model.
    ended = signalled(args, "SAMPLE DATA.*SAMPLE DATA", signal.SIGTERM)
    assert ended.code == 143
    assert ended.line.startswith(
        "nlicot: stopped; the adapter is trained, evaluate it with: python -m nlicot validate"
    )


@pytest.mark.parametrize("signum", ONE_FIRST)
@pytest.mark.parametrize("command", ["predict", "validate"])
def test_predictions_are_kept(command: str, signum: signal.Signals, whole_run: Path, tmp_path: Path) -> None:
    args = [command, "--ckpt_path", whole_run / "best.ckpt", "--output", tmp_path / "predictions"]
    args += ["--split=dev", "--data.limit_dev=40", "--model.decoding.batch_size=2"]
    ended = signalled(args, r" [1-9]\d*/40 \[", signum)
    assert ended.code == CODES[signum]
    kept = r"nlicot: stopped; (\d+) of 40 predictions are kept, run the same command to continue"
    assert (found := re.fullmatch(kept, ended.line)), ended.line
    assert f"{found[1]} of 40 predictions were made before" in finish(args)


@pytest.mark.parametrize("signum", CODES)
def test_a_teacher_waits_for_requests_in_flight(signum: signal.Signals, tmp_path: Path) -> None:
    write_pairs(tmp_path / "original_data" / "train.csv", 200)
    with FakeServer(delay_s=0.3) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", tmp_path, *flags]
        ended = signalled(args, r" [1-9]\d*/200 \[", signum)
        assert ended.code == CODES[signum]
        assert ended.line == "nlicot: stopped; all answers are saved, run the same command to continue"
        assert sum(server.answered.values()) == server.num_requests < 200
        server.delay_s = 0.0
        finish(args)
        assert max(server.counts.values()) == 1


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a job, and check that its command asked for a requeue, once."""
    scontrol, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(calls))}\n')
    scontrol.chmod(0o755)
    yield {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    assert calls.read_text() == "requeue 17\n"


def requeued(slurm: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the job that SLURM has started again."""
    return {**os.environ, **slurm, "SLURM_RESTART_COUNT": "1"}


def test_slurm_starts_a_job_again_and_the_same_command_continues(
    slurm: dict[str, str], small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    run, args = tmp_path / "run", _fit(tmp_path, small_model)
    ended = signalled(args, r"Epoch 0:[^\r]* 3/10 ", signal.SIGUSR1, **slurm)
    assert ended.code == 128 + signal.SIGUSR1
    assert ended.line.endswith(f"fit --resume {run} (job 17 is requeued)")
    assert json.loads((run / "fit.json").read_text())["slurm_job"] == "17"
    finish(args, env=requeued(slurm))
    assert _same_adapters(whole_run, run)


@pytest.mark.parametrize("command", ["predict", pytest.param("validate", marks=pytest.mark.long)])
def test_slurm_continues_predictions(
    command: str, slurm: dict[str, str], whole_run: Path, tmp_path: Path
) -> None:
    args = [command, "--ckpt_path", whole_run / "best.ckpt", "--output", tmp_path / "predictions"]
    args += ["--split=dev", "--data.limit_dev=40", "--model.decoding.batch_size=2"]
    ended = signalled(args, r" [1-9]\d*/40 \[", signal.SIGUSR1, **slurm)
    assert ended.code == 128 + signal.SIGUSR1
    assert ended.line.endswith("(job 17 is requeued)")
    assert "of 40 predictions were made before" in finish(args, env=requeued(slurm))


def test_slurm_continues_a_teacher(slurm: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pairs(root / "original_data" / "train.csv", 200)
    with FakeServer(delay_s=0.3) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", root, *flags]
        ended = signalled(args, r" [1-9]\d*/200 \[", signal.SIGUSR1, **slurm)
        assert ended.code == 128 + signal.SIGUSR1
        assert ended.line.endswith("run the same command to continue (job 17 is requeued)")
        server.delay_s = 0.0
        finish(args, env=requeued(slurm))
        assert max(server.counts.values()) == 1


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with start(_fit(tmp_path, small_model), stdout=subprocess.DEVNULL) as process:
        wait_until((run / "fit.json").exists, process)  # the model loads after that
        process.kill()
    assert never_trained(run)
    assert "starts again with its own settings" in finish(["fit", "--resume", run])
    assert _same_adapters(whole_run, run)
