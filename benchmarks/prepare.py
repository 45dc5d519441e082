"""Time and memory of `prepare` on 55,000 and 550,000 pairs.

Random pairs (fixed seed) with a thought of about 60 words each, a reflection on every wrong one, builder
`reflected`. Each size runs as `python -m nlicot prepare` in a process of its own: wall time from outside,
peak memory from the kernel.

    python benchmarks/prepare.py --quick --json prepare.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from circumstances import with_usage

SIZES = (55_000, 550_000)
WRONG_SHARE = 0.25
WORDS = tuple(
    """
    a the man woman dog child boat river house market train window letter garden road slowly quickly stands
    walks reads sells carries follows opens paints under over beside before after blue old small wooden broken
    early later never always several no every some because although therefore while
    """.split()  # noqa: SIM905 (one word per line would fill a screen)
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run: its size, wall time and peak memory."""

    num_pairs: int
    seconds: float
    peak_mb: float


def write_root(root: Path, num_pairs: int, seed: int = 0) -> None:
    """Write a data root of random pairs with thoughts and reflections, in the order of the pairs."""
    chosen = random.Random(seed)

    def text(num_words: int) -> str:
        return " ".join(chosen.choices(WORDS, k=num_words))

    paths = [
        root / "original_data" / "train.csv",
        root / "original_thoughts" / "train.jsonl",
        root / "reflected_thoughts" / "train.jsonl",
    ]
    for path in paths:
        path.parent.mkdir(parents=True)
    pairs, thoughts, reflections = (path.open("w", encoding="utf-8", newline="") for path in paths)
    with pairs, thoughts, reflections:
        rows = csv.writer(pairs, lineterminator="\n")
        rows.writerow(["id", "premise", "hypothesis", "label"])
        for number in range(num_pairs):
            label = chosen.getrandbits(1)
            is_wrong = chosen.random() < WRONG_SHARE
            pair = {"id": f"pair-{number}", "premise": f"{text(18)}.", "hypothesis": f"{text(9)}."}
            rows.writerow([*pair.values(), label])
            thought = {
                **pair,
                "thought_process": f"Step 1: {text(25)}. Step 2: {text(20)}. Step 3: {text(9)}.",
                "predicted_label": 1 - label if is_wrong else label,
                "true_label": label,
            }
            thoughts.write(json.dumps(thought) + "\n")
            if is_wrong:
                reflection = {
                    **thought,
                    "error_analysis": text(25),
                    "improved_thought_process": f"Step 1: {text(30)}. Step 2: {text(25)}.",
                    "reflected_label": label,
                }
                reflections.write(json.dumps(reflection) + "\n")


def write_dev(root: Path, num_pairs: int) -> None:
    """Copy the first train pairs and their thoughts to dev."""
    files = ("original_data", "csv", num_pairs + 1), ("original_thoughts", "jsonl", num_pairs)
    for kind, ending, num_lines in files:
        lines = (root / kind / f"train.{ending}").read_text(encoding="utf-8").splitlines(keepends=True)
        (root / kind / f"dev.{ending}").write_text("".join(lines[:num_lines]), encoding="utf-8")


def measure(num_pairs: int, folder: Path) -> Measurement:
    """Prepare a fresh root of a size."""
    root = folder / f"{num_pairs}"
    write_root(root, num_pairs)
    command = [sys.executable, "-m", "nlicot", "prepare", "--root", str(root), "--split", "train"]
    used = with_usage(command)
    return Measurement(num_pairs=num_pairs, seconds=used.seconds, peak_mb=used.peak_mb)


def main() -> None:
    """Run both sizes and print a table; `--json` also writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no effect: both sizes take about two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nlicot-prepare-") as folder:
        small, large = (measure(num_pairs, Path(folder)) for num_pairs in SIZES)
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    print(f"{platform.platform()}, {cores}, Python {platform.python_version()}, numpy {version('numpy')}\n")
    print("  pairs   seconds   peak MB")
    for found in (small, large):
        print(f"{found.num_pairs:>7,} {found.seconds:>9.1f} {found.peak_mb:>9.1f}")
    print(f"\n550,000 pairs take {large.peak_mb - small.peak_mb:.1f} MB more than 55,000")
    if given.json:
        figures = {
            "seconds_55k": round(small.seconds, 2),
            "seconds_550k": round(large.seconds, 2),
            "peak_mb_55k": round(small.peak_mb, 1),
            "peak_mb_550k": round(large.peak_mb, 1),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
