"""Memory, open files and threads of long runs: `generate` against a server with 10 % faults, and `fit`.

Both run as `python -m nlicot` in a process of their own, whose state is read from /proc four times a second,
from the first request or the end of the fit's first evaluation on: until then, libraries start threads.
Growth is that of the last tenth's median over the median of the tenth after the warm-up, a fifth of the time.

    python benchmarks/endurance.py --quick --json endurance.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from tests.small_model import write_small_model  # noqa: E402
from tests.teacher.fake_answers import request_key, status  # noqa: E402
from tests.teacher.fake_server import FakeServer  # noqa: E402

FAULTS = 0.1
CONCURRENCY = 32
WARM_UP = 0.2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The state of a process."""

    memory_mb: float
    num_files: int
    num_threads: int
    num_connections: int  # of those to a server, as many as happen to be in flight


def sample(pid: int) -> Sample | None:
    """Read a process's state from /proc; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    found = {name: re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE) for name in ("VmRSS", "Threads")}
    if found["VmRSS"] is None or found["Threads"] is None:  # it is ending
        return None
    num_connections = sum(target.startswith("socket:") for target in opened)
    return Sample(
        memory_mb=int(found["VmRSS"][1]) / 1024,
        num_files=len(opened) - num_connections,
        num_threads=int(found["Threads"][1]),
        num_connections=num_connections,
    )


def watch(args: Sequence[object], has_begun: Callable[[], bool], **environment: str) -> list[Sample]:
    """Run a command to its end, and return its states since it has begun its work."""
    samples = []
    with subprocess.Popen(
        [sys.executable, "-m", "nlicot", *map(str, args)],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            if has_begun() and (found := sample(process.pid)) is not None:
                samples.append(found)
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{args[0]} ended with exit code {process.returncode}")
    return samples


def growth(samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare the end of a run with the time after its warm-up."""
    tenth, start = max(1, len(samples) // 10), int(WARM_UP * len(samples))
    result: dict[str, Any] = {"num_samples": len(samples)}
    result["most_connections"] = max(each.num_connections for each in samples)
    for name in ("memory_mb", "num_files", "num_threads"):
        # The last moments write the outputs.
        early, late = (
            median(getattr(each, name) for each in part)
            for part in (samples[start : start + tenth], samples[-2 * tenth : -tenth])
        )
        result[name] = {"after_warm_up": early, "at_the_end": late, "growth": late / early - 1}
    return result


def generate(num_pairs: int) -> dict[str, Any]:
    """Ask about many pairs; a tenth of the requests fails when it is sent for the first time."""
    with tempfile.TemporaryDirectory() as name, FakeServer(keep_seen=False) as server:
        path = Path(name) / "original_data" / "train.csv"
        path.parent.mkdir()
        rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(num_pairs)]
        path.write_text("\n".join(["id,premise,hypothesis,label", *rows]) + "\n")

        def fails(body: Mapping[str, Any]) -> bool:
            key = request_key(body)
            return server.counts[key] < 2 and random.Random(key).random() < FAULTS

        server.script(fails, [status(503, {"retry-after": "0"})] * num_pairs)
        flags = ["--server_url", server.url, "--model", "teacher", "--yes", "--concurrency", str(CONCURRENCY)]
        started = time.monotonic()
        args = ["generate", "--root", name, "--backend", "openai", *flags]
        samples = watch(args, has_begun=lambda: server.num_requests > 0)
        return {
            "num_pairs": num_pairs,
            "num_requests": server.num_requests,
            "seconds": round(time.monotonic() - started, 1),
            **growth(samples),
        }


def fit(num_steps: int) -> dict[str, Any]:
    """Train a model of two layers on the sample, one micro-batch a step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [
            f"--model.base={write_small_model(folder / 'base')}",
            f"--checkpoints_root={folder / 'runs'}",
            f"--trainer.max_steps={num_steps}",
            *("--data.builder=reflected", "--data.effective_batch=4", "--data.limit_dev=8", "--run=run"),
            *("--trainer.max_epochs=-1", "--early_stopping.patience=1000000", "--final_evaluation=false"),
        ]
        started = time.monotonic()
        # Without this policy, spare threads come and go with other programs (nlicot/model/fast/threads.py).
        environment = {"OMP_WAIT_POLICY": "passive", "TORCHDYNAMO_DISABLE": "1"}
        samples = watch(["fit", *flags], (folder / "runs" / "run" / "best.ckpt").exists, **environment)
        seconds = round(time.monotonic() - started, 1)
        return {"num_steps": num_steps, "seconds": seconds, **growth(samples)}


def main() -> None:
    """Measure, print and write the growth of both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10,000 pairs and 300 steps")
    parser.add_argument("--pairs", type=int, default=None, help="default: 100,000")
    parser.add_argument("--steps", type=int, default=None, help="default: 2,000")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args()
    num_pairs = options.pairs or (10_000 if options.quick else 100_000)
    num_steps = options.steps or (300 if options.quick else 2_000)
    content: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name, measured, num in (("generate", generate, num_pairs), ("fit", fit, num_steps)):
        content[name] = measured(num)
        if options.json:  # after each: both take long
            options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
