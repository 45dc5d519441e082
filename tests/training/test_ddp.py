"""Two processes take the same optimizer steps as one."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlicot.errors import LostProcess
from tests.chaos.commands import wait_until
from tests.small_model import write_small_model
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


# 7 examples: a window of 4 and one of 3, so that the ranks' shares differ in size and in micro-batches;
# 5 examples in windows of 4 leave a window of one, of which the second rank has no share.
@pytest.mark.parametrize(
    ("num_examples", "token_budget", "builder"),
    [
        (7, 1, "reflected"),
        pytest.param(7, 4096, "reflected", marks=pytest.mark.slow),
        pytest.param(5, 1, "reflected", marks=pytest.mark.slow),
        pytest.param(7, 1, "multitask", marks=pytest.mark.slow),  # with soft labels
    ],
)
def test_two_processes_get_the_gradients_of_one(
    num_examples: int, token_budget: int, builder: str, small_model: Path, tmp_path: Path
) -> None:
    soft_labels = [
        {"id": f"sample-train-{number:03}", "p_entailment": number / 7} for number in range(0, 7, 2)
    ]
    (tmp_path / "soft.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in soft_labels), encoding="utf-8"
    )
    one, two = (
        _steps(small_model, num_examples, token_budget, builder, processes, tmp_path / f"{processes}.pt")
        for processes in (1, 2)
    )
    assert one.keys() == two.keys()
    largest = max(float(weight.abs().max()) for weight in one.values())
    assert largest > 1e-3
    for name, change in one.items():
        torch.testing.assert_close(two[name], change, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_command_line_fits_and_measures_on_two_processes(small_model: Path, tmp_path: Path) -> None:
    overlay = PROJECT / "configs" / "overlays" / "ddp.yaml"
    command = [sys.executable, "-m", "nlicot", "fit", f"--config={overlay}", f"--model.base={small_model}"]
    flags = [
        "--trainer.devices=2",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--data.limit_train=7",
        "--data.limit_dev=5",
        "--data.effective_batch=4",
        "--model.decoding.batch_size=2",
        "--model.decoding.max_thought_tokens=3",
        f"--checkpoints_root={tmp_path}",
        "--run=both",
    ]
    done = subprocess.run(
        [*command, *flags],
        env=_environment(tmp_path),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["both"]
    summary = json.loads((tmp_path / "both" / "fit.json").read_text(encoding="utf-8"))
    assert summary["optimizer_steps"] == 2
    assert json.loads((tmp_path / "both" / "metrics.json").read_text(encoding="utf-8"))["dev"]["support"] == 5
    predictions = (tmp_path / "both" / "predictions" / "dev.csv").read_text(encoding="utf-8").split()
    assert len(predictions) == 1 + 5
    _check_votes_and_resume(tmp_path)


@pytest.mark.slow
def test_each_process_starts_from_the_adapter_of_another_run(small_model: Path, tmp_path: Path) -> None:
    flags = [
        "--data.builder=label_only",
        "--data.limit_train=8",
        "--data.limit_dev=2",
        "--data.effective_batch=8",
        "--trainer.max_steps=4",
        "--trainer.max_epochs=4",
        "--trainer.accelerator=cpu",
        "--model.lora.dropout=0",
        "--model.learning_rate=1e-2",
        "--final_evaluation=false",
        "--generated_metrics.every_n_epochs=0",
        f"--checkpoints_root={tmp_path}",
        f"--model.base={small_model}",
    ]

    def losses(run: str, devices: int, *more: str) -> list[float]:
        many = ["--trainer.strategy=ddp", f"--trainer.devices={devices}"]
        done = _fit(tmp_path, *flags, *many, f"--run={run}", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        return _curve(tmp_path / run, "train/loss")

    fresh = losses("labels", 1)
    start = f"--from={tmp_path / 'labels' / 'last.ckpt'}"
    one, two = losses("one", 1, start), losses("two", 2, start)
    assert one[0] < fresh[-1] < fresh[0]
    assert two == pytest.approx(one, rel=1e-3)


# 7 examples in windows of 4: micro-batches of one example, so that the ranks have different numbers of them.
CURVE = [
    "--data.builder=label_only",
    "--data.limit_train=7",
    "--data.limit_dev=5",
    "--data.effective_batch=4",
    "--data.micro_batch_tokens=1",
    "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.dtype=float32",
    "--model.lora.dropout=0",
    "--model.learning_rate=1e-2",
    "--generated_metrics.every_n_epochs=0",
    "--model.decoding.max_thought_tokens=3",
]


@pytest.mark.slow
def test_two_processes_have_the_loss_curves_of_one_also_if_they_share_the_base(
    small_model: Path, tmp_path: Path
) -> None:
    flags = [*CURVE, f"--model.base={small_model}", f"--checkpoints_root={tmp_path}"]
    done = _fit(tmp_path, *flags, "--run=one", "--trainer.devices=1")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("ddp", "fsdp"):
        overlay = f"--config={PROJECT / 'configs' / 'overlays' / name}.yaml"
        done = _fit(tmp_path, *flags, f"--run={name}", overlay, "--trainer.devices=2")
        assert done.returncode == 0, done.stderr[-3000:]
        for tag in ("train/loss", "train/grad_norm", "dev/loss", "dev/teacher_forced_label_accuracy"):
            expected = _curve(tmp_path / "one", tag)
            assert len(expected) >= 6, tag
            assert _curve(tmp_path / name, tag) == pytest.approx(expected, rel=1e-4), (name, tag)
        rows, others = (_rows(tmp_path / run / "predictions" / "dev.jsonl") for run in (name, "one"))
        assert [row["id"] for row in rows] == [f"sample-dev-{index:03}" for index in range(5)]
        assert [row["predicted_label"] for row in rows] == [row["predicted_label"] for row in others]
        assert _figures(tmp_path / name) == pytest.approx(_figures(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_with_one_message_and_any_number_continues(
    killed: int, small_model: Path, tmp_path: Path
) -> None:
    flags = [
        *CURVE,
        f"--model.base={small_model}",
        f"--checkpoints_root={tmp_path}",
        "--trainer.strategy=ddp",
    ]
    assert _fit(tmp_path, *flags, "--run=whole", "--trainer.devices=1").returncode == 0
    printed, code = _killed_fit(tmp_path, killed, *flags, "--run=run", "--trainer.devices=2")
    assert "Traceback" not in printed, printed[-3000:]
    way = f"continue with: python -m nlicot fit --resume {tmp_path / 'run'}"
    assert re.findall("nlicot: .*", printed) == [
        f"nlicot: one of several processes ended (killed, or out of memory?), so all end; {way}"
    ]
    assert code == (LostProcess.exit_code if killed else -signal.SIGKILL)

    expected, table = _figures(tmp_path / "whole"), []
    for devices in (1, 2, 3) if killed else (2,):
        run = tmp_path / f"on-{devices}"
        shutil.copytree(tmp_path / "run", run)
        done = _fit(tmp_path, f"--resume={run}", f"--trainer.devices={devices}", "--trainer.max_epochs=3")
        assert done.returncode == 0, done.stderr[-3000:]
        table.append(_figures(run))
        assert table[-1] == pytest.approx(expected, rel=1e-4)
    print("last train loss, dev loss, accuracy, Brier score, pairs", expected, *table, sep="\n")


def _figures(run: Path) -> list[float]:
    dev = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["dev"]
    losses = [_curve(run, tag)[-1] for tag in ("train/loss", "dev/loss")]
    return [*losses, dev["accuracy"]["value"], dev["brier"]["value"], dev["support"]]


def _killed_fit(folder: Path, killed: int, *flags: str) -> tuple[str, int]:
    """Kill a rank once a step is saved; return what all printed, and the first process's exit code."""
    command = [sys.executable, "-m", "nlicot", "fit", *flags, "--checkpoint.every_n_steps=1"]
    with subprocess.Popen(
        command,
        env=_environment(folder),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        guard = threading.Timer(HANGS_S, process.kill)
        guard.start()
        wait_until((folder / "run" / "last.ckpt").exists, process)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child) if killed else process.pid, signal.SIGKILL)
        printed, _ = process.communicate()  # the other rank has the pipe open until it ends
        guard.cancel()
    return printed, process.returncode


@pytest.mark.slow
def test_two_processes_of_srun_train_one_run(small_model: Path, tmp_path: Path) -> None:
    """Each takes the other for another machine, as on a cluster."""
    overlay = PROJECT / "configs" / "overlays" / "multi_node.yaml"
    flags = [*CURVE, f"--model.base={small_model}", f"--checkpoints_root={tmp_path}", "--trainer.devices=1"]
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "fit", "SLURM_LOCALID": "0", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        slurm["MASTER_PORT"] = str(free.getsockname()[1])

    def both(*more: str) -> list[subprocess.CompletedProcess[str]]:
        ranks = [{"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
        with ThreadPoolExecutor() as pool:
            return list(
                pool.map(
                    lambda rank: _fit(tmp_path, *flags, f"--config={overlay}", *more, **slurm, **rank), ranks
                )
            )

    for done in both():
        assert done.returncode == 2
        assert "nlicot: --run: found none, expected a name: " in done.stderr
    for done in both("--run=both"):
        assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["both"]
    assert _fit(tmp_path, *flags, "--run=one").returncode == 0
    assert _figures(tmp_path / "both") == pytest.approx(_figures(tmp_path / "one"), rel=1e-4)


def _fit(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nlicot", "fit", *flags],
        env={**_environment(folder), **variables},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )


def _curve(run: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def _check_votes_and_resume(folder: Path) -> None:
    """Two ranks write what one writes, and continue after two interrupted ranks."""
    one = folder / "one"
    assert _votes(folder, one, devices=1).returncode == 0
    two = folder / "two"
    # Enough for each rank's rows, not for all of them.
    full = _votes(folder, two, devices=2, max_file_bytes=(one / "dev.jsonl").stat().st_size - 1)
    assert full.returncode == 5, full.stderr[-3000:]
    left = sorted(two.glob(".dev-*.partial"))
    assert [len(_rows(path)) for path in left] == [3, 2]
    left[0].write_text(json.dumps(_rows(left[0])[0]) + "\n", encoding="utf-8")
    resumed = _votes(folder, two, devices=2)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "3 of 5 predictions were made before" in resumed.stdout
    expected = _rows(one / "dev.jsonl")
    assert [row["id"] for row in expected] == [f"sample-dev-{index:03}" for index in range(5)]
    assert all("agreement" in row for row in expected)
    for row, other in zip(_rows(two / "dev.jsonl"), expected, strict=True):
        assert row.pop("p_entailment") == pytest.approx(other.pop("p_entailment"), abs=1e-5)
        assert row == other


def _votes(
    folder: Path, output: Path, *, devices: int, max_file_bytes: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nlicot", "predict", f"--ckpt_path={folder / 'both' / 'best.ckpt'}"]
    flags = ["--split=dev", "--votes=3", "--model.decoding.temperature=1.5", f"--output={output}"]
    return subprocess.run(
        [*command, *flags, f"--trainer.devices={devices}"],
        env=_environment(folder),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY)
        ),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _steps(
    base: Path, num_examples: int, token_budget: int, builder: str, processes: int, output: Path
) -> dict[str, Any]:
    """Return the change of the adapter over an epoch: at a learning rate of 1, the sum of the gradients."""
    numbers = [str(num_examples), str(token_budget)]
    command = [sys.executable, __file__, str(base), *numbers, builder, str(processes), str(output)]
    done = subprocess.run(
        command, env=_environment(output.parent), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    changes: dict[str, Any] = torch.load(output)
    return changes


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "NLICOT_CACHE": str(folder / "cache")}


def main(base: str, num_examples: str, token_budget: str, builder: str, processes: str, output: str) -> None:
    """Run one epoch of plain gradient descent; write the adapter's change."""
    from lightning.pytorch import Trainer

    from nlicot.settings import DataSettings, LoraSettings, ModelSettings
    from nlicot.training.module import NliModule
    from tests.small_model import small_training

    class PlainDescent(NliModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD((p for p in self.model.parameters() if p.requires_grad), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]

    module, data = small_training(
        ModelSettings(
            base=base,
            quantization="none",
            dtype="float32",
            lora=LoraSettings(r=4, alpha=8, dropout=0.0),
            max_grad_norm=math.inf,
        ),
        DataSettings(
            limit_train=int(num_examples),
            limit_dev=2,
            effective_batch=4,
            micro_batch_tokens=int(token_budget),
            builder=builder,
            soft_labels=str(Path(output).with_name("soft.jsonl")) if builder == "multitask" else None,
        ),
        kind=PlainDescent,
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in module.model.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, which would leave lora_A without gradients
            weight.data.normal_(0, 0.05, generator=generator)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu",
        devices=int(processes),
        strategy="ddp" if processes != "1" else "auto",
        precision="32-true",
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer.fit(module, data)
    if trainer.is_global_zero:
        after = module.state_dict()
        torch.save({name: after[name] - weight for name, weight in before.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
