"""Time and memory of `audit` on 40,000 pairs with a thought each.

If NLICOT_REAL_DATA is set, the pairs are real ones with thoughts and reflections, with about half of their
longer words exchanged at random (fixed seed); else the random pairs of `prepare.py`.

    python benchmarks/audit.py --quick --json audit.json
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
from pathlib import Path
from typing import Any

from circumstances import with_usage
from prepare import write_root

NUM_PAIRS = 40_000
KINDS = {"thoughts": "original_thoughts", "reflections": "reflected_thoughts"}
TEXTS = ("premise", "hypothesis", "thought_process", "improved_thought_process")


def write_real_root(folder: Path, root: Path, num_pairs: int, seed: int = 0) -> None:
    """Write a data root of real pairs, each in many variants with other words."""
    rng = random.Random(seed)
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        label_of = {row["id"]: row["label"] for row in csv.DictReader(file)}
    records: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        with (folder / f"{kind}_train.jsonl").open(encoding="utf-8") as file:
            records[kind] = {row["id"]: row for row in map(json.loads, file)}
    ids = list(records["thoughts"])
    words = sorted({word for row in records["thoughts"].values() for word in row["premise"].split()})
    words = [word for word in words if _may_change(word)]
    paths = {kind: root / name / "train.jsonl" for kind, name in KINDS.items()}
    pairs_path = root / "original_data" / "train.csv"
    for path in (pairs_path, *paths.values()):
        path.parent.mkdir(parents=True)
    files = {kind: path.open("w", encoding="utf-8") for kind, path in paths.items()}
    with pairs_path.open("w", encoding="utf-8", newline="") as pairs:
        rows = csv.writer(pairs, lineterminator="\n")
        rows.writerow(["id", "premise", "hypothesis", "label"])
        for number in range(num_pairs):
            old = ids[number % len(ids)]
            thought = records["thoughts"][old]
            own = sorted(set(f"{thought['premise']} {thought['hypothesis']}".split()))
            swapped = {word: rng.choice(words) for word in own if _may_change(word) and rng.random() < 0.5}
            for kind, file in files.items():
                if old in records[kind]:
                    row = {**records[kind][old], "id": f"pair-{number}"}
                    row |= {name: _exchanged(row[name], swapped) for name in TEXTS if name in row}
                    file.write(json.dumps(row) + "\n")
            texts = [_exchanged(thought[name], swapped) for name in ("premise", "hypothesis")]
            rows.writerow([f"pair-{number}", *texts, label_of[old]])
    for file in files.values():
        file.close()


def _may_change(word: str) -> bool:
    return word.isalpha() and len(word) > 4


def _exchanged(text: str, swapped: dict[str, str]) -> str:
    return " ".join(swapped.get(word, word) for word in text.split())


def main() -> None:
    """Time one audit in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no effect: it takes under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    given = parser.parse_args()
    real = os.environ.get("NLICOT_REAL_DATA")
    with tempfile.TemporaryDirectory(prefix="nlicot-audit-") as folder:
        root = Path(folder) / "root"
        if real:
            write_real_root(Path(real) / "comp34812", root, NUM_PAIRS)
        else:
            write_root(root, NUM_PAIRS)
        command = [sys.executable, "-m", "nlicot", "audit", "--root", str(root)]
        used = with_usage(command, codes=(0, 1))  # 1 if it finds something
    figures = {
        "pairs": NUM_PAIRS,
        "data": "real, words exchanged" if real else "random",
        "seconds": round(used.seconds, 1),
        "cpu_seconds": round(used.cpu_s, 1),
        "peak_mb": round(used.peak_mb),
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
    }
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
