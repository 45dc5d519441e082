"""Encoding records to token ids: time, memory and bytes on disk, with and without the cache.

The examples are variants of real thoughts with exchanged words if NLICOT_REAL_DATA is set, else the random
pairs of `prepare.py`. Each size is encoded in a process of its own with the bundled model's tokenizer. Then a
`fit` on 40,000 pairs starts twice; the second, from the cache, is timed from the start of its process to its
first micro-batch.

    python benchmarks/encoding.py --quick --json encoding.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from audit import write_real_root
from circumstances import PROJECT, peak_mb, processor
from lightning.pytorch import Callback
from prepare import write_dev, write_root

SIZES = (1_000, 10_000, 40_000, 100_000)
STARTED = "NLICOT_BENCHMARK_STARTED"


class FirstMicroBatch(Callback):
    """Prints the time from the start of the process to its first micro-batch, and exits."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Run before the first forward pass, when the tensors of the window exist."""
        print(f"first micro-batch {time.time() - float(os.environ[STARTED]):.1f}")
        sys.stdout.flush()
        os._exit(0)


def encode(root: Path, num_examples: int, out: Path) -> None:
    """Encode the first examples of a root twice, and write time, memory and size."""
    from dataclasses import replace

    from nlicot.builders import find_builder
    from nlicot.data.pairs import read_examples
    from nlicot.data.root import DataRoot
    from nlicot.data.thoughts import TextFiles, read_joined
    from nlicot.model import base_model as base
    from nlicot.model.encoding import encode_dataset
    from nlicot.model.prompt_format import load_prompt_format
    from nlicot.prompts import StudentPrompts

    files = DataRoot(root)
    pairs = list(read_examples(files.pairs("train")))[:40_000]
    found = read_joined(
        read_examples(files.pairs("train")),
        TextFiles.found(files.thoughts("train"), files.reflections("train"), root / "none", needed=set()),
    )
    built = find_builder("unmodified").build(pairs, found.thoughts, [], prompts=StudentPrompts())
    examples = [replace(built[i % len(built)], id=f"example-{i}") for i in range(num_examples)]
    del pairs, found
    prompt_format = load_prompt_format(base.resolve("bundled").folder)
    import datasets  # noqa: F401 (takes seconds that are not part of the encoding)

    before = peak_mb()
    seconds = []
    cache = out.with_suffix(".cache")
    for _ in range(2):
        started = time.perf_counter()
        encoded, _ = encode_dataset(prompt_format, examples, max_length=768, over_budget="cut", cache=cache)
        seconds.append(time.perf_counter() - started)
    figures = {
        "examples": len(encoded),
        "first_s": round(seconds[0], 2),
        "cached_s": round(seconds[1], 2),
        "added_peak_mb": round(peak_mb() - before),
        "disk_mb": round(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 2**20, 1),
    }
    out.write_text(json.dumps(figures), encoding="utf-8")


def start_of_fit(root: Path, folder: Path) -> float:
    """Return the seconds from a process' start to its first micro-batch, with a warm cache."""
    command = [sys.executable, "-m", "nlicot", "fit", "--root", str(root), "--model.base", "bundled"]
    command += ["--config", str(PROJECT / "configs" / "unmodified.yaml"), "--data.allow_overlap", "true"]
    command += ["--trainer.callbacks", "encoding.FirstMicroBatch", "--checkpoints_root", str(folder / "runs")]
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "benchmarks")])
    for _ in range(2):
        environment = os.environ | {"PYTHONPATH": path, STARTED: str(time.time())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if "first micro-batch" not in done.stdout:
            raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.partition("first micro-batch ")[2].split()[0])


def main() -> None:
    """Print the table; `--json` also writes it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="skip the largest size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--encode", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.encode:
        encode(Path(given.encode[0]), int(given.encode[1]), Path(given.encode[2]))
        return
    real = os.environ.get("NLICOT_REAL_DATA")
    table = []
    with tempfile.TemporaryDirectory(prefix="nlicot-encoding-") as name:
        folder = Path(name)
        root = folder / "root"
        if real:
            write_real_root(Path(real) / "comp34812", root, 40_000)
        else:
            write_root(root, 40_000)
        write_dev(root, 199)
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "TOKENIZERS_PARALLELISM": "true"}
        for size in SIZES[:-1] if given.quick else SIZES:
            out = folder / f"{size}.json"
            command = [sys.executable, __file__, "--encode", str(root), str(size), str(out)]
            subprocess.run(command, env=environment, check=True)
            table.append(json.loads(out.read_text(encoding="utf-8")))
        start_s = start_of_fit(root, folder)
    print(f"machine: {processor()}\ndata: {'real, words exchanged' if real else 'random'}\n")
    print(f"{'examples':>10}{'first s':>10}{'cached s':>10}{'added MB':>10}{'disk MB':>10}")
    for row in table:
        print("".join(f"{value:>10,}" for value in row.values()))
    print(f"\nstart of fit to its first micro-batch, 40,000 examples from the cache: {start_s:.1f} s")
    if given.json:
        figures = {"machine": processor(), "table": table, "start_of_fit_s": start_s}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
