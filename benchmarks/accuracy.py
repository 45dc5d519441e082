"""Accuracy on real pairs, lever by lever: the fits of accuracy.yaml, readings of them, and a table.

    NLICOT_REAL_DATA=FOLDER python benchmarks/accuracy.py            (all: 15 to 40 minutes a fit on 2 cores)
    NLICOT_REAL_DATA=FOLDER python benchmarks/accuracy.py --only labels-epochs labels-dense --minutes 120
    NLICOT_REAL_DATA=FOLDER python benchmarks/accuracy.py --table            (only what is there)

The same command continues: finished fits are skipped, a stopped one is resumed. Steps, in this order:

    fits        of the experiments in accuracy.yaml with seeds 0 and 1, and a third one if they do not lose to
                `labels` by more than two points; before them the soft labels and the student's own
                thoughts that some of them learn, which other fits predict
    readings    other ways to predict with a fit: thinking, votes, and how much the thought decides
    averages    of 2 and of 5 seeds of `labels`
    fresh       the best experiment whose label is read at once, with two seeds that chose nothing

Everything is in --work, a folder in which `sweep` and `report` can be called as well. Figures go to --json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circumstances import PROJECT, processor, versions

FILE = PROJECT / "benchmarks" / "accuracy.yaml"
FIRST = "labels"
"""The experiment that all are compared with."""
DENSE = "labels-dense"
"""The same on a base that is not quantised: the recipe that was chosen."""
SEEDS, THIRD, AVERAGED, FRESH = (0, 1), (2,), (0, 1, 2, 3, 4), (100, 101)
SMOOTHING = 0.05
LOST = 0.02
"""An experiment that loses more than this on average, after two seeds, gets no third one."""
ROOT = {
    "original_data/train.csv": "train.csv",
    "original_data/dev.csv": "dev.csv",
    "original_data/test.csv": "test.csv",
    "original_thoughts/train.jsonl": "thoughts_defined_train.jsonl",
    "original_thoughts/dev.jsonl": "thoughts_defined_dev.jsonl",
    "reflected_thoughts/train.jsonl": "reflections_defined_train.jsonl",
    "reflected_thoughts/dev.jsonl": "reflections_defined_dev.jsonl",
}
"""The files of the data root, and their names among the real data."""
PACKAGES = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "numpy")
UNFINISHED = 8
"""Exit code of a sweep, and of this program, with runs that are not finished."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Another way to predict with each run of an experiment: the flags of `validate`."""

    name: str
    experiment: str
    flags: Sequence[str]

    @property
    def is_probe(self) -> bool:
        """Return whether it only probes: its predictions are those of the fit itself."""
        return self.name.endswith(PROBED)


PROBED = "-probed"
"""End of the names of readings that only probe."""
READINGS = [
    Reading(name="multitask-thinking", experiment="multitask", flags=["--think=true"]),
    Reading(name="thinking-kept-thinking", experiment="thinking-kept", flags=["--think=true"]),
    *(
        Reading(name=f"{name}{PROBED}", experiment=name, flags=["--probe_thoughts"])
        for name in (
            *("thinking", "thinking-draft", "thinking-draft-false"),
            *("thinking-draft-last-step", "thinking-draft-last-step-few"),
        )
    ),
    Reading(
        name="thinking-5-votes",
        experiment="thinking",
        flags=["--model.decoding.votes=5", "--model.decoding.temperature=0.7"],
    ),
]
AVERAGES, FRESH_SEEDS = "averages", "fresh"
READ_AT_ONCE = ("labels", "label-first", "multitask")
"""Starts of the names of experiments that may be chosen."""


class Work:
    """The folder of the benchmark, the commands that are run in it, and the time that is left."""

    def __init__(self, folder: Path, minutes: float | None, flags: Sequence[str]) -> None:
        self.folder, self.runs, self._flags = folder.resolve(), folder.resolve() / "runs", flags
        self._ends_at = None if minutes is None else time.monotonic() + 60 * minutes

    def make_root(self, real: Path) -> None:
        """Copy the real data into a data root."""
        for name, source in ROOT.items():
            path = self.folder / "data" / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(real / source, path)

    def sweep(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Fit experiments with these seeds; ends the program if a signal or the time ends the sweep."""
        if not names:
            return
        args = ["sweep", str(FILE), "--out=runs", f"--only={','.join(names)}"]
        args += [f"--seeds={','.join(map(str, seeds))}", *self._flags]
        if self._ends_at is not None:
            args.append(f"--minutes={max(0.01, (self._ends_at - time.monotonic()) / 60):.2f}")
        self.nlicot(args)

    def nlicot(self, args: Sequence[str]) -> None:
        """Run a command of the program in the folder, unless the time is over."""
        if self._is_over():
            raise SystemExit(UNFINISHED)
        path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "nlicot", *args]
        with subprocess.Popen(command, cwd=self.folder, env=os.environ | {"PYTHONPATH": path}) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the command got it, too, and ends after a step
                process.wait()
                raise
        if code and (code != UNFINISHED or self._is_over()):
            raise SystemExit(code)  # after a fit that failed, the others go on

    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() > self._ends_at

    def finished(self, name: str, *, fresh: bool = False) -> list[Path]:
        """Return the folders of an experiment's finished runs, in the order of their seeds."""
        from nlicot.sweep.plan import is_finished, run_folder

        seeds = FRESH if fresh else AVERAGED
        return [path for seed in seeds if is_finished(path := run_folder(self.runs, name, seed))]

    def reading(self, name: str, run: Path) -> Path:
        """Return the file of a reading's predictions with one run."""
        return self.folder / "readings" / name / run.name / "predictions" / "dev.jsonl"

    def probe(self, name: str, run: Path) -> list[dict[str, Any]]:
        """Return what a reading with `--probe_thoughts` found; empty if it is not finished."""
        path = self.reading(name, run).with_name("metrics.json")
        dev = json.loads(path.read_text(encoding="utf-8"))["dev"] if path.exists() else {}
        return list(dev.get("faithfulness", []))


# ------------------------------------------------------------------ steps


def write_smoothing(work: Work) -> None:
    """Write the soft labels that label smoothing amounts to."""
    from nlicot.data.pairs import read_examples

    pairs = read_examples(work.folder / "data" / "original_data" / "train.csv")
    _write(
        work.folder / "soft" / "smoothing.jsonl",
        [{"id": pair.id, "p_entailment": 1 - SMOOTHING if pair.label else SMOOTHING} for pair in pairs],
    )


def write_soft_labels(work: Work) -> None:
    """Predict the training pairs and the unlabelled ones with five seeds of `labels`, averaged."""
    work.sweep([FIRST], AVERAGED)
    _predict_soft_labels(work, work.finished(FIRST), splits=("train", "test"), output="soft")


def write_dense_soft_labels(work: Work) -> None:
    """Predict the training pairs with the two fresh seeds of `labels-dense`, averaged."""
    work.sweep([DENSE], FRESH)
    _predict_soft_labels(work, work.finished(DENSE, fresh=True), splits=("train",), output="soft-dense")


def _predict_soft_labels(work: Work, runs: Sequence[Path], *, splits: Sequence[str], output: str) -> None:
    members = [f"--ckpt_path={run / 'best.ckpt'}" for run in runs]
    if not members:  # the sweep has said why
        return
    for split in splits:
        if not (work.folder / output / f"{split}.jsonl").exists():
            work.nlicot(["predict", *members, f"--split={split}", f"--output={output}"])


def write_own_thoughts(work: Work) -> None:
    """Let `thinking` write a thought on each training pair, and keep those that reached the true label."""
    out = work.folder / "own"
    if (out / "train.jsonl").exists():
        return
    work.sweep(["thinking"], SEEDS)
    runs = work.finished("thinking")
    if not runs:  # the sweep has said why
        return
    sampling = ["--model.decoding.temperature=0.7", "--output=own/predictions"]
    work.nlicot(["predict", f"--ckpt_path={runs[0] / 'best.ckpt'}", "--split=train", *sampling])
    lines = (out / "predictions" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [row for row in rows if row["predicted_label"] == row["true_label"] and row["status"] == "closed"]
    _write(out / "reflections.jsonl", [])  # those of the teacher's thoughts do not fit
    _write(out / "train.jsonl", kept)
    print(f"own: {len(kept)} of {len(rows)} thoughts reached the true label")


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from nlicot.data.atomic_write import write_jsonl

    write_jsonl(path, rows, overwrite=True)


PREPARED: dict[str, Callable[[Work], None]] = {
    "labels-epoch-smoothing": write_smoothing,
    "labels-soft": write_soft_labels,
    "labels-soft-unlabelled": write_soft_labels,
    "labels-dense-soft": write_dense_soft_labels,
    "thinking-own": write_own_thoughts,
}
"""Experiments that learn from a file, and the step that writes it."""


def read_otherwise(work: Work, reading: Reading) -> None:
    """Predict dev with each run of an experiment, in the way of a reading."""
    for run in work.finished(reading.experiment):
        path = work.reading(reading.name, run)
        if not (work.probe(reading.name, run) if reading.is_probe else path.exists()):
            output = f"--output={path.parent}"
            work.nlicot(["validate", f"--ckpt_path={run / 'best.ckpt'}", output, *reading.flags])


def mean_accuracy(work: Work, name: str) -> float | None:
    """Return the mean over an experiment's finished runs; None without one."""
    dev = [json.loads((run / "metrics.json").read_text())["dev"] for run in work.finished(name)]
    return sum(each["accuracy"]["value"] for each in dev) / len(dev) if dev else None


def still_open(work: Work, names: Sequence[str]) -> list[str]:
    """Return the experiments that do not lose to the first one by more than `LOST`."""
    first = mean_accuracy(work, FIRST)
    means = {name: mean_accuracy(work, name) for name in names}
    return [
        name for name, mean in means.items() if mean is not None and first is not None and mean > first - LOST
    ]


def best(work: Work, names: Sequence[str]) -> str:
    """Return the experiment of the highest mean accuracy whose label is read at once."""
    means = {name: mean_accuracy(work, name) for name in names if name.startswith(READ_AT_ONCE)}
    return max(means, key=lambda name: means[name] or 0.0)


def run_all(work: Work, names: Sequence[str], chosen: Sequence[str]) -> None:
    """Run every step for the chosen levers; `names` are those of all experiments."""
    readings = [reading for reading in READINGS if reading.name in chosen]
    wanted = {FIRST, *chosen, *(reading.experiment for reading in readings)}
    fits = [name for name in names if name in wanted]
    work.sweep([name for name in fits if name not in PREPARED], SEEDS)
    for name in fits:
        if name in PREPARED:
            PREPARED[name](work)
            work.sweep([name], SEEDS)
    work.sweep([name for name in still_open(work, fits) if name != FIRST], THIRD)
    for reading in readings:
        read_otherwise(work, reading)
    if AVERAGES in chosen:
        work.sweep([FIRST], AVERAGED)
    if FRESH_SEEDS in chosen:
        work.sweep([best(work, fits)], FRESH)


# ------------------------------------------------------------------ the table


def levers(work: Work, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the runs of each lever that are there, the first experiment's first."""
    from nlicot.report.read_runs import read_runs
    from nlicot.run.folder import predictions_path
    from nlicot.sweep.results import average_runs

    files: list[tuple[str, str, Path]] = []  # lever, run, predictions
    for name in sorted(names, key=lambda name: name != FIRST):
        for is_fresh in (False, True):
            lever = f"{name}, fresh seeds" if is_fresh else name
            files += [(lever, run.name, predictions_path(run)) for run in work.finished(name, fresh=is_fresh)]
    for reading in (each for each in READINGS if not each.is_probe):
        read = [(run, work.reading(reading.name, run)) for run in work.finished(reading.experiment)]
        files += [
            (reading.name, f"{reading.name} of {run.name}", path) for run, path in read if path.exists()
        ]
    found: dict[str, list[Any]] = {}
    runs = read_runs([str(path) for *_, path in files], "dev", Path()) if files else []
    for (lever, name, _), run in zip(files, runs, strict=True):
        found.setdefault(lever, []).append(replace(run, name=name))
    of_first = found.get(FIRST, [])
    for num in (len(SEEDS), len(AVERAGED)):
        if len(of_first) >= num:
            name = f"{FIRST}, {num} averaged"
            found[name] = [average_runs(name, of_first[:num])]
    return found


def change(name: str, flags: dict[str, Sequence[str]]) -> str:
    """Say what a lever is: its settings that the first experiment does not have, or how it reads a fit."""
    for reading in READINGS:
        if reading.name == name:
            return f"{reading.experiment}, {' '.join(reading.flags)}"
    own = [
        flag.removeprefix("--") for flag in flags.get(name.partition(",")[0], ()) if flag not in flags[FIRST]
    ]
    return " ".join(own)


def probes(work: Work, name: str) -> dict[str, Any]:
    """Return what `validate --probe_thoughts` found out about the runs of an experiment."""
    found = {}
    for run in work.finished(name):
        if probe := work.probe(f"{name}{PROBED}", run):
            found[run.name] = probe
    return {"faithfulness": found} if found else {}


def table(work: Work, flags: dict[str, Sequence[str]], path: Path | None) -> str:
    """Return the line of each lever as text, and write its figures."""
    from nlicot.data.atomic_write import write_json
    from nlicot.evaluation.metrics import metrics_to_dict
    from nlicot.sweep.results import experiments_table, make_rows, read_usage, row_to_dict
    from nlicot.text_tables import Table, aligned

    usage = read_usage(work.runs)
    rows = make_rows(levers(work, list(flags)), usage)
    if not rows:
        return "no fit is finished"
    if path is not None:
        about = {"processor": processor(), "versions": versions(PACKAGES), "command": " ".join(sys.argv)}
        about |= {"num_pairs": len(rows[0].runs[0].answers)}
        about |= {"hours_of_fits": sum(each.seconds for each in usage.values()) / 3600}
        figures = [
            {
                "change": change(row.name, flags),
                **row_to_dict(row),
                "of_runs": [metrics_to_dict(run.metrics) for run in row.runs],
                **probes(work, row.name),
            }
            for row in rows
        ]
        write_json(path, {**about, "levers": figures})
    found = experiments_table(rows)
    first = rows[0].accuracy.mean
    points = [f"{100 * (row.accuracy.mean - first):+.1f}" for row in rows]
    intervals = [row.runs[0].metrics.accuracy.interval for row in rows]
    more = [
        [point, f"{100 * each.low:.1f} to {100 * each.high:.1f}", change(row.name, flags)]
        for row, point, each in zip(rows, points, intervals, strict=True)
    ]
    header = [*found.header, "points", "95 % of the first", "change"]
    return "\n".join(
        aligned(Table(header=header, rows=[[*a, *b] for a, b in zip(found.rows, more, strict=True)]))
    )


def main() -> int:
    """Run the steps for the levers that are asked for, and print the table; returns the exit code."""
    from nlicot.sweep.plan import read_experiments

    flags = {experiment.name: experiment.flags for experiment in read_experiments(FILE)}
    names = [*flags, *(reading.name for reading in READINGS), AVERAGES, FRESH_SEEDS]
    parser = argparse.ArgumentParser(description="Accuracy on real pairs, lever by lever.")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="LEVER", help=", ".join(names)
    )
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command continues")
    parser.add_argument(
        "--work", type=Path, default=PROJECT / "checkpoints" / "accuracy", help="where the fits are"
    )
    parser.add_argument("--json", type=Path, help="file for the figures of all levers")
    parser.add_argument("--table", action="store_true", help="fit nothing, print what is there")
    options, passed = parser.parse_known_args()  # flags of `fit` go to every fit
    work, code = Work(options.work, options.minutes, passed), 0
    if not options.table:
        real = os.environ.get("NLICOT_REAL_DATA") or parser.error(
            "set NLICOT_REAL_DATA to the folder of comp34812/"
        )
        work.make_root(Path(real) / "comp34812")
        try:
            run_all(work, list(flags), options.only)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except KeyboardInterrupt:
            code = 130  # as of a shell; the same command continues
    print(table(work, flags, options.json))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
