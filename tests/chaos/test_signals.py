"""SIGINT, SIGTERM and SIGHUP stop every command in the same way, and the next start goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nlicot.run.folder import never_trained
from tests.chaos.commands import LIMIT_S, finish, start
from tests.chaos.test_kills import FIT, write_pairs
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer

pytestmark = pytest.mark.chaos

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def signalled(
    args: Sequence[object], shown: str, signum: signal.Signals, **variables: str
) -> tuple[int, str]:
    """Send a signal once a command shows a pattern; return its exit code, and its last message."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    with start(args, text=False, errors=None, env=environment) as process:
        assert process.stdout is not None
        guard = threading.Timer(LIMIT_S, process.kill)
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
    messages = re.findall(r"nlicot: [^\r\n]*", printed)  # the progress bar may go on after it
    return process.returncode, messages[-1] if messages else ""


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


@pytest.mark.parametrize("signum", CODES)
def test_fit_saves_the_step_at_which_it_stops(
    signum: signal.Signals, small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, line = signalled(_fit(tmp_path, small_model), r"Epoch 0:[^\r]* 3/10 ", signum)
    assert (code, line) == (
        CODES[signum],
        f"nlicot: stopped; continue with: python -m nlicot fit --resume {run}",
    )
    assert 3 <= _step(run) <= 9
    code, _ = signalled(["fit", "--resume", run], r"Epoch 1:[^\r]* 5/10 ", signum)
    assert code == CODES[signum]
    assert 15 <= _step(run) <= 19
    finish(["fit", "--resume", run])
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole_run, run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_fit_in_an_evaluation_repeats_one_step(small_model: Path, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = r"Epoch 0:[^\r]* 10/10 .*Validation DataLoader 0:"
    code, _ = signalled(_fit(tmp_path, small_model), shown, signal.SIGTERM)
    assert code == 143
    assert _step(run) >= 9
    finish(["fit", "--resume", run])
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole_run, run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_fit_before_its_first_step_leaves_no_folder(small_model: Path, tmp_path: Path) -> None:
    code, line = signalled(_fit(tmp_path, small_model), "SAMPLE DATA", signal.SIGTERM)
    assert (code, line) == (143, "nlicot: stopped; run the same command to start again")
    assert list(tmp_path.iterdir()) == []


def test_final_evaluation_is_stopped_too(small_model: Path, tmp_path: Path) -> None:
    args = _fit(tmp_path, small_model, "--final_evaluation=true", "--trainer.max_steps=4")
    code, line = signalled(args, r" 0/8 \[", signal.SIGTERM)
    assert code == 143
    assert line.startswith(
        "nlicot: stopped; the adapter is trained, evaluate it with: python -m nlicot validate"
    )


@pytest.mark.parametrize("signum", CODES)
@pytest.mark.parametrize("command", ["predict", "validate"])
def test_predictions_are_kept(command: str, signum: signal.Signals, whole_run: Path, tmp_path: Path) -> None:
    args = [command, "--ckpt_path", whole_run / "best.ckpt", "--output", tmp_path / "predictions"]
    args += ["--model.decoding.batch_size=4", "--data.limit_dev=40"]
    code, line = signalled(args, r" [1-9]\d*/40 \[", signum)
    assert code == CODES[signum]
    found = re.fullmatch(
        r"nlicot: stopped; (\d+) of 40 predictions are kept, run the same command to continue", line
    )
    assert found, line
    assert f"{found[1]} of 40 predictions were made before" in finish(args)


@pytest.mark.parametrize("signum", CODES)
def test_a_teacher_waits_for_requests_in_flight(signum: signal.Signals, tmp_path: Path) -> None:
    write_pairs(tmp_path / "original_data" / "train.csv", 200)
    with FakeServer(delay_s=0.3) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", tmp_path, *flags]
        code, line = signalled(args, r" [1-9]\d*/200 \[", signum)
        assert code == CODES[signum]
        assert line == "nlicot: stopped; all answers are saved, run the same command to continue"
        assert sum(server.answered.values()) == server.num_requests < 200
        server.delay_s = 0.0
        finish(args)
        assert max(server.counts.values()) == 1


def test_slurm_starts_a_job_again_and_the_same_command_continues(
    small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]))\n"
    )
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    run, args = tmp_path / "run", _fit(tmp_path, small_model)
    code, line = signalled(args, r"Epoch 0:[^\r]* 3/10 ", signal.SIGUSR1, **job)
    assert code == 128 + signal.SIGUSR1
    assert line.endswith(f"fit --resume {run} (job 17 is requeued)")
    assert calls.read_text() == "requeue 17"
    assert json.loads((run / "fit.json").read_text())["slurm_job"] == "17"
    finish(args, env={**os.environ, **job, "SLURM_RESTART_COUNT": "1"})
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole_run, run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    small_model: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, _ = signalled(_fit(tmp_path, small_model), r"Epoch 0:[^\r]* 0/10 ", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert never_trained(run)
    assert "starts again with its own settings" in finish(["fit", "--resume", run])
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole_run, run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
