"""Time and peak memory of `audit`, `report`, `predict` and `fit` on 1,000, 10,000 and 100,000 pairs.

    python benchmarks/growth.py --quick --json growth.json                       (1,000 and 10,000)
    python benchmarks/growth.py --only audit report --sizes 100000 --json growth.json

Each command runs as `python -m nlicot` in a process of its own, its memory read from the kernel. What grows
is the data: the model has two layers and random weights, so that the rest is not hidden by it.

    audit       a split with a thought for each pair
    report      the page of two runs with predictions and thoughts for each pair
    predict     the labels of a split, without thoughts
    fit         40 steps of 16 examples, the first time and again from the cache of encoded examples: from the
                start to the end of the first step, and each step after it

Processor time depends less than seconds on what else runs on the machine. Pairs are real ones with exchanged
words if NLICOT_REAL_DATA is set, else random ones. Measurements are added to those of other sizes and
commands in FILE, one after the other, and replace those of the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit import write_real_root
from circumstances import PROJECT, Usage, processor, versions, with_usage
from prepare import write_dev, write_root
from shapes import random_model_folder, resolved_base

SIZES = (1_000, 10_000, 100_000)
PACKAGES = ("torch", "transformers", "lightning", "datasets", "numpy")
SHAPE = "tiny-on-cpu"
STEPS, EXAMPLES_PER_STEP = 40, 16


def nlicot(*args: object, codes: tuple[int, ...] = (0,), environment: dict[str, str] | None = None) -> Usage:
    """Run one command of the program."""
    command = [sys.executable, "-m", "nlicot", *map(str, args)]
    return with_usage(command, codes=codes, environment=environment)


# ------------------------------------------------------------------ inputs


def write_pairs(root: Path, num_pairs: int) -> None:
    """Write a data root with this number of train pairs with thoughts, and 200 dev pairs."""
    if real := os.environ.get("NLICOT_REAL_DATA"):
        write_real_root(Path(real) / "comp34812", root, num_pairs)
    else:
        write_root(root, num_pairs)
    write_dev(root, 200)


def write_run(root: Path, run: Path, seed: int) -> None:
    """Write the predictions of a run that is right about 70 % of the pairs, with their thoughts."""
    from nlicot.data.pairs import read_examples
    from nlicot.data.root import DataRoot
    from nlicot.data.thoughts import TextFiles, read_joined
    from nlicot.prediction.prediction_files import write_predictions
    from nlicot.records import Prediction

    files, chosen = DataRoot(root), random.Random(seed)
    pairs = read_examples(files.pairs("train"))
    texts = TextFiles.found(files.thoughts("train"), root / "none", root / "none", needed=set())
    thoughts = {thought.id: thought.thought_process for thought in read_joined(pairs, texts).thoughts}
    predictions = []
    for pair in pairs:
        p_right = min(1.0, max(0.0, chosen.gauss(0.6, 0.2)))
        p = p_right if pair.label else 1 - p_right
        predictions.append(
            Prediction(
                id=pair.id,
                predicted_label=int(p >= 0.5),
                p_entailment=p,
                thought_process=thoughts[pair.id],
                status="closed",
                completion="",
            )
        )
    write_predictions(run / "predictions", "dev", pairs, predictions)


def in_child(*args: object) -> None:
    """Run a step of this file that imports much, so that this process stays small.

    Linux counts the memory of the process that starts another one towards the peak of the other.
    """
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, *map(str, args)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})


# ------------------------------------------------------------------ commands


def audit(root: Path, folder: Path) -> dict[str, Any]:
    """Measure `audit`, whose exit code is 1 if it finds something."""
    return _figures(nlicot("audit", "--root", root, codes=(0, 1)))


def report(root: Path, folder: Path) -> dict[str, Any]:
    """Measure `report` with two runs."""
    runs = [folder / f"run-{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, start=1):
        if not run.exists():
            in_child("--write_run", root, run, seed)
    page = folder / "report.html"
    found = nlicot("report", *runs, "--html", page, "--overwrite")
    return _figures(found) | {"page_mb": page.stat().st_size / 2**20}


def predict(root: Path, folder: Path) -> dict[str, Any]:
    """Measure `predict` by a run that predicts labels only."""
    checkpoint = folder / "labels" / "last.ckpt"
    if not checkpoint.exists():
        config = ("--config", PROJECT / "configs" / "label_only.yaml", "--data.limit_train=64")
        nlicot(*_fit_flags(root, folder), *config, "--run=labels", "--trainer.max_steps=2")
    output = folder / "predicted"
    flags = ["--split=train", "--data.limit_train=null", f"--output={output}"]
    found = nlicot("predict", f"--ckpt_path={checkpoint}", *flags)
    with (output / "train.csv").open(encoding="utf-8") as file:
        num_predicted = sum(1 for _ in file) - 1
    return _figures(found) | {"predicted": num_predicted}


def fit(root: Path, folder: Path) -> dict[str, Any]:
    """Measure 40 steps of `fit`, once with an empty cache of encoded examples and once with a full one."""
    found: dict[str, Any] = {}
    cache = Path(tempfile.mkdtemp(dir=folder))
    for name in ("first", "again"):
        run = folder / f"fit-{name}-{time.time_ns()}"
        started = time.time()
        used = nlicot(
            *_fit_flags(root, folder),
            *("--config", PROJECT / "configs" / "unmodified.yaml", f"--run={run.name}"),
            *(f"--trainer.max_steps={STEPS}", f"--data.effective_batch={EXAMPLES_PER_STEP}"),
            environment={"NLICOT_CACHE": str(cache)},
        )
        times = _step_times(run)
        found[f"{name}_start_s"] = times[0] - started
        steps = [after - before for before, after in itertools.pairwise(times)]
        found[f"{name}_step_s"] = statistics.median(steps)
        found |= {f"{name}_{quantity}": value for quantity, value in _figures(used).items()}
    encoded = [path for path in (cache / "encoded").rglob("*") if path.is_file()]
    return found | {"cache_mb": sum(path.stat().st_size for path in encoded) / 2**20}


def _fit_flags(root: Path, folder: Path) -> list[str]:
    return [
        *(
            "fit",
            f"--root={root}",
            f"--model.base={random_model_folder(SHAPE)}",
            f"--checkpoints_root={folder}",
        ),
        *("--model.compile_kernels=false", "--data.allow_overlap=true", "--final_evaluation=false"),
        *("--trainer.val_check_interval=1.0", "--generated_metrics.every_n_epochs=0"),
        "--checkpoint.every_n_steps=1000",
    ]


def _step_times(run: Path) -> list[float]:
    """Return when each step had ended, by the run's event files, in seconds since the epoch."""
    from nlicot.report.read_runs import read_curves

    return [point.wall_time for point in read_curves(run)["train/loss"]]


def _figures(used: Usage) -> dict[str, Any]:
    return {"seconds": used.seconds, "cpu_s": used.cpu_s, "peak_mb": used.peak_mb}


COMMANDS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "audit": audit,
    "report": report,
    "predict": predict,
    "fit": fit,  # the last: this process reads event files then, and grows
}


# ------------------------------------------------------------------ report of the benchmark


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print medians with ranges, and what a pair adds from one size to the next."""
    names = list(dict.fromkeys(row["command"] for row in rows))
    for name in names:
        alike = sorted((row for row in rows if row["command"] == name), key=lambda row: row["pairs"])
        print(f"\n{name}")
        for row, before in zip(alike, [None, *alike], strict=False):
            print(f"{row['pairs']:>9,} pairs, {row['repeats']} times")
            for quantity, values in row["figures"].items():
                middle = statistics.median(values)
                added = ""
                if before is not None:
                    more = middle - statistics.median(before["figures"][quantity])
                    added = f"{1000 * more / (row['pairs'] - before['pairs']):>12.3f} for 1,000 more pairs"
                spread = f"{min(values):.2f} to {max(values):.2f}"
                print(f"    {quantity:<16}{middle:>10.2f}  {spread:<20}{added}")


def with_measured(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with a new one, which replaces that of the same command and size."""
    others = [each for each in rows if (each["command"], each["pairs"]) != (row["command"], row["pairs"])]
    return sorted([*others, row], key=lambda each: ([*COMMANDS].index(each["command"]), each["pairs"]))


def write_report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows with what they depend on."""
    from nlicot.data.atomic_write import write_json

    data = "real pairs, words exchanged" if os.environ.get("NLICOT_REAL_DATA") else "random pairs"
    write_json(path, {"machine": processor(), "versions": versions(PACKAGES), "data": data, "rows": rows})


def main() -> int:
    """Measure and print the table; `--json` also writes it to a file."""
    options = _parser().parse_args()
    if options.write_run:
        root, run, seed = options.write_run
        write_run(Path(root), Path(run), int(seed))
        return 0
    if options.write_model:
        resolved_base(SHAPE)
        return 0
    sizes = options.sizes or (SIZES[:-1] if options.quick else SIZES)
    rows: list[dict[str, Any]] = []
    if options.json and options.json.is_file():
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    in_child("--write_model")
    with tempfile.TemporaryDirectory(prefix="nlicot-growth-") as name:
        for command in (name for name in COMMANDS if name in options.only):
            for size in sizes:
                folder = Path(name) / str(size)
                if not folder.exists():
                    write_pairs(folder / "root", size)
                runs = [COMMANDS[command](folder / "root", folder) for _ in range(options.repeats)]
                figures = {quantity: [round(run[quantity], 3) for run in runs] for quantity in runs[0]}
                row = {"command": command, "pairs": size, "repeats": options.repeats, "figures": figures}
                rows = with_measured(rows, row | {"by": shlex.join(["python", *sys.argv])})
                print(f"{command}, {size:,} pairs: {figures}", file=sys.stderr, flush=True)
                if options.json:
                    write_report(options.json, rows)
    print_table(rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and memory of the commands for more and more pairs.")
    add = parser.add_argument
    add("--sizes", nargs="+", type=int, metavar="PAIRS", help="default: 1000 10000 100000")
    add("--quick", action="store_true", help="1,000 and 10,000 pairs")
    add("--only", nargs="+", choices=COMMANDS, default=tuple(COMMANDS), metavar="COMMAND")
    add("--repeats", type=int, default=1)
    add("--json", type=Path, metavar="FILE")
    add("--write_run", nargs=3, help=argparse.SUPPRESS)
    add("--write_model", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
