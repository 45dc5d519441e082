"""Speed of training and of prediction next to other busy processes, with and without the handling of them.

    python benchmarks/contended.py --json contended.json

One process trains the bundled model (forward and backward passes of micro-batches, as in `fit`), another one
decodes pairs with it (as in `predict`). Each goes through four states in turn: alone and next to a busy
process (`while True: pass`), each with the handling of `nlicot/model/fast/threads.py` (`watch`) and with
libgomp's default (`spin`). The first seconds of a state do not count: the handling takes two to begin and
three to end. The cores that others used meanwhile, the busy processes included, are reported with each speed.
Pairs and thoughts are real ones if NLICOT_REAL_DATA is set, else the sample's.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circumstances import PROJECT, processor, versions

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
WORK = {"fit": "tokens/s", "predict": "pairs/s"}
SETTLE_S = 4.0
LIBGOMPS_DEFAULT = "300000"
"""libgomp's own value of GOMP_SPINCOUNT; as the user's setting it keeps the handling from starting."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One state of one process."""

    handling: str
    num_busy: int
    rate: float
    own_cores: float
    other_cores: float


# -------------------------------------------------------------------------- work


def training(options: argparse.Namespace) -> Callable[[], int]:
    """Return a function that trains on the next micro-batch, and returns its number of tokens."""
    import itertools

    import train as training_benchmark

    from nlicot.model.fast import kernels
    from nlicot.model.fast.patch import patch_layers
    from nlicot.model.loaded_model import attach
    from nlicot.settings import LoraSettings
    from nlicot.training.loss import token_losses
    from nlicot.training.windows import WindowDataset

    setting = training_benchmark.make_parser("").parse_args(["--examples", "64", "--dev", "1"])
    _, examples, _ = training_benchmark.encoded(setting)
    lora = LoraSettings(
        r=training_benchmark.RANK, alpha=2 * training_benchmark.RANK, dropout=training_benchmark.DROPOUT
    )
    model = attach(training_benchmark.loaded(setting), lora, seed=0)
    kernels.use_compiler(True)
    patch_layers(model)
    model.train()
    window = WindowDataset(examples, token_budget=options.micro_batch_tokens)[list(range(64))]
    batches = itertools.cycle(window.micro_batches)

    def learn() -> int:
        batch = next(batches)
        token_losses(model, batch)[0].mean().backward()
        return batch.input_ids.numel()

    return learn


def prediction(options: argparse.Namespace) -> Callable[[], int]:
    """Return a function that decodes some pairs, and returns their number."""
    import predict as prediction_benchmark

    from nlicot.prediction.decoding import Decoder, by_length
    from nlicot.settings import DecodingSettings

    setting = prediction_benchmark.make_parser().parse_args([])
    pairs = prediction_benchmark.read_pairs(options.pairs)
    prompts = prediction_benchmark.encoded(setting, pairs)
    model, prompt_format = prediction_benchmark.load(setting)
    decoder = Decoder(model, prompt_format, DecodingSettings(max_thought_tokens=options.budget))
    batch = by_length([pair.id for pair in pairs], prompts)
    return lambda: len(list(decoder.decode(batch)))


# -------------------------------------------------------------------------- states


@contextmanager
def busy_processes(num: int) -> Iterator[None]:
    """Run this number of busy processes."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def watching(handling: str) -> Iterator[None]:
    """Watch for other programs as `fit` and `predict` do, if `handling` is `watch`."""
    import torch

    from nlicot.model.fast.threads import Watch, own_cores

    if handling == "spin":
        yield
        return
    watch = Watch(len(own_cores()), torch.get_num_threads())
    watch.start()
    try:
        yield
    finally:
        watch.end()


def measure(options: argparse.Namespace) -> None:
    """Go through all states in this process, and write the measurements."""
    from nlicot.model.fast.threads import CpuTimes
    from nlicot.model.loaded_model import silence_libraries

    silence_libraries()
    work = (training if options.work == "fit" else prediction)(options)
    for _ in range(3):  # compile and fill caches
        work()
    found = []
    for _ in range(options.repeats):
        for num_busy in (0, options.busy):
            for handling in options.handling:
                with busy_processes(num_busy), watching(handling):
                    work_for(SETTLE_S, work)
                    before = CpuTimes.now()
                    rate = work_for(options.seconds, work)
                    own, others = CpuTimes.now().cores_since(before)
                state = {"handling": handling, "num_busy": num_busy}
                found.append(Measurement(**state, rate=rate, own_cores=own, other_cores=others))
                print(f"{options.work}: {num_busy} busy, {handling}: {rate:.4g}", file=sys.stderr, flush=True)
    options.out.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")


def work_for(seconds: float, work: Callable[[], int]) -> float:
    """Repeat a piece of work until the time is over; return the rate."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


# -------------------------------------------------------------------------- report


def in_own_process(work: str, out: Path) -> list[Measurement]:
    """Measure one kind of work in a process of its own, with OpenMP's defaults."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"GOMP_SPINCOUNT": LIBGOMPS_DEFAULT, "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, *sys.argv[1:], "--work", work, "--out", str(out)]
    subprocess.run(command, check=True, env=environment)
    return [Measurement(**one) for one in json.loads(out.read_text(encoding="utf-8"))]


def main() -> int:
    """Print the table; `--json` also writes it to a file."""
    options = _parser().parse_args()
    if options.quick:
        options.repeats = 1
    if options.work:
        measure(options)
        return 0
    with tempfile.TemporaryDirectory(prefix="nlicot-contended-") as folder:
        runs = {name: in_own_process(name, Path(folder) / f"{name}.json") for name in options.only}
    figures: dict[str, float] = {}
    for name, found in runs.items():
        print(f"\n{name}, {WORK[name]}{'':<8}{'median':>10}{'range':>18}{'own cores':>11}{'others':>8}")
        for num_busy in (0, options.busy):
            for handling in options.handling:
                alike = [one for one in found if (one.num_busy, one.handling) == (num_busy, handling)]
                rates = [one.rate for one in alike]
                figures[f"{name}_{handling}_{num_busy}"] = statistics.median(rates)
                print(
                    f"{f'{num_busy} busy, {handling}':<24}{statistics.median(rates):>10.4g}"
                    f"{f'{min(rates):.4g} to {max(rates):.4g}':>18}"
                    f"{statistics.mean(one.own_cores for one in alike):>11.2f}"
                    f"{statistics.mean(one.other_cores for one in alike):>8.2f}"
                )
        for handling in options.handling:
            alone, next_to = (figures[f"{name}_{handling}_{num}"] for num in (0, options.busy))
            figures[f"{name}_kept_{handling}"] = next_to / alone
            print(f"kept of its speed alone, {handling}: {next_to / alone:.1%}")
    if options.json:
        content: dict[str, Any] = {
            "machine": processor(),
            "versions": versions(PACKAGES),
            "command": shlex.join(["python", *sys.argv]),
            "data": "real" if os.environ.get("NLICOT_REAL_DATA") else "sample",
            **figures,
            "runs": {name: [asdict(one) for one in found] for name, found in runs.items()},
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Speed of fit and predict next to other busy processes.")
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds through all states")
    parser.add_argument("--seconds", type=float, default=6.0, help="minimum duration of a state that counts")
    parser.add_argument("--micro_batch_tokens", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=16, help="pairs decoded at once")
    parser.add_argument("--budget", type=int, default=8, help="maximum tokens of a thought")
    parser.add_argument("--only", nargs="+", choices=tuple(WORK), default=tuple(WORK), metavar="WORK")
    parser.add_argument("--handling", nargs="+", choices=("watch", "spin"), default=("watch", "spin"))
    parser.add_argument("--quick", action="store_true", help="one round: about three minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", choices=tuple(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
