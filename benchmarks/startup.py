"""Time from typing a command to its first result, from a warm cache: `fit` and `predict` on the sample.

    python benchmarks/startup.py --json startup.json

`fit` is timed until its progress bar appears, when the first step starts, and until that step of 16 examples
is done; `predict`, of the first 40 test pairs with thoughts of at most 112 tokens, until its bar appears,
when decoding starts, and until it ends. The first run of each warms the cache and does not count. Processor
time is that of the command and of the processes that it waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from circumstances import PROJECT, processor, versions

PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")
TEST_PAIRS = PROJECT / "data" / "sample" / "original_data" / "test.csv"
NUM_PAIRS = 40
FIT = ["fit", "--config", "configs/reflected.yaml", "--config", "configs/overlays/sample.yaml"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process."""

    ready_s: float
    done_s: float
    cpu_s: float


def timed(args: list[str], *, ready: str, done: str) -> Measurement:
    """Run a command until its output shows `done`; return when it showed both patterns."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "nlicot", *args]
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output, ready_s, done_s = "", 0.0, 0.0
    while piece := os.read(process.stdout.fileno(), 4096):
        output += piece.decode(errors="replace")
        now = time.perf_counter() - started
        ready_s = ready_s or (now if re.search(ready, output) else 0.0)
        if re.search(done, output):
            done_s = now
            process.terminate()
            break
    process.stdout.close()
    process.wait()
    if not done_s:
        raise SystemExit(f"{shlex.join(command)} ended early: {output[-1000:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Measurement(ready_s=ready_s, done_s=done_s, cpu_s=used)


def main() -> int:
    """Print the table; `--json` also writes it to a file."""
    options = _parser().parse_args()
    num_runs = 1 if options.quick else options.repeats
    runs: dict[str, list[Measurement]] = {"fit": [], "predict": []}
    with tempfile.TemporaryDirectory(prefix="nlicot-startup-") as folder:
        flags = [f"--checkpoints_root={folder}", "--final_evaluation=false"]
        short = [*FIT, *flags, "--run=trained", "--trainer.max_steps=1"]
        timed(short, ready=r" 0/\d+ ", done=r"adapter +\S")
        pairs = Path(folder, "test.csv")
        lines = TEST_PAIRS.read_text(encoding="utf-8").splitlines(keepends=True)
        pairs.write_text("".join(lines[: 1 + NUM_PAIRS]), encoding="utf-8")
        predict = ["predict", f"--ckpt_path={folder}/trained/last.ckpt", f"--data.test_pairs={pairs}"]
        for number in range(num_runs + 1):
            found = {
                "fit": timed([*FIT, *flags, f"--run={number}"], ready=r" 0/\d+ ", done=r" 1/\d+ "),
                "predict": timed(
                    [*predict, f"--output={folder}/{number}"], ready=r" 0/\d+ ", done=r"predictions +\S"
                ),
            }
            for name, one in found.items():
                print(f"{name}: {asdict(one)}{'' if number else ' (warming up)'}", file=sys.stderr)
                if number:
                    runs[name].append(one)
    for name, unit in (("ready_s", "ready"), ("done_s", "done"), ("cpu_s", "processor")):
        for command, found_runs in runs.items():
            values = [getattr(one, name) for one in found_runs]
            median = statistics.median(values)
            print(f"{command:<9}{unit:<11}{median:>6.1f} s   {min(values):.1f} to {max(values):.1f}")
    if options.json:
        content = {
            "machine": processor(),
            "versions": versions(PACKAGES),
            "command": shlex.join(["python", *sys.argv]),
            "runs": {name: [asdict(one) for one in found_runs] for name, found_runs in runs.items()},
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time from typing a command to its first result.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="once: two minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
