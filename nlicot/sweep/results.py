"""The results of a sweep: a table of experiments, one of runs, and both as JSON and CSV.

Figures and tests are those of `report`; only their grouping by experiment is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from nlicot.data.atomic_write import write_csv, write_json
from nlicot.errors import DataError
from nlicot.evaluation.metrics import metrics_to_dict
from nlicot.report.compare import PairOfRuns, Spread, compare, holm, run_to_dict, spread
from nlicot.report.read_runs import Run, answering, read_json, read_runs
from nlicot.report.tables import p_value_text, runs_table
from nlicot.run.folder import predictions_path
from nlicot.sweep.plan import PlannedRun, is_finished
from nlicot.text_tables import Table, aligned

JSON_NAME, CSV_NAME = "sweep.json", "sweep.csv"
USAGE = "usage"
"""Key in `sweep.json`: time and memory of each run, by its name."""
CSV_FIGURES = ("accuracy", "f1", "macro_f1", "auroc")
NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Seconds that a run took, over all its starts, and the peak memory of its processes, if it is known."""

    seconds: float
    peak_mb: float | None

    def __add__(self, later: Usage) -> Usage:
        peaks = [each.peak_mb for each in (self, later) if each.peak_mb is not None]
        return Usage(seconds=self.seconds + later.seconds, peak_mb=max(peaks, default=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An experiment's finished runs: the spread of their figures, and tests against the first experiment's.

    `averaged` has the answers of the seeds' mean probabilities; None for one seed.
    """

    name: str
    runs: Sequence[Run]
    averaged: Run | None
    accuracy: Spread
    f1: Spread
    tests: Sequence[PairOfRuns]
    seconds: float | None
    peak_mb: float | None


def read_usage(out: Path) -> dict[str, Usage]:
    """Read the time and the memory that earlier starts of a sweep recorded."""
    path = out / JSON_NAME
    if not path.is_file():
        return {}
    try:
        return {name: Usage(**used) for name, used in read_json(path).get(USAGE, {}).items()}
    except (TypeError, AttributeError):
        raise DataError("not as `sweep` writes it; delete it", path=path) from None


def record_usage(out: Path, usage: Mapping[str, Usage]) -> None:
    """Write time and memory at once, so that a kill loses those of one run only."""
    path = out / JSON_NAME
    before = read_json(path) if path.is_file() else {}
    write_json(path, {**before, USAGE: {name: asdict(used) for name, used in usage.items()}})


def read_rows(planned: Sequence[PlannedRun], usage: Mapping[str, Usage]) -> list[Row]:
    """Compare the finished runs, experiment by experiment, with those of the first one."""
    finished = [run for run in planned if is_finished(run.folder)]
    paths = [str(predictions_path(run.folder)) for run in finished]
    read = read_runs(paths, "dev", Path()) if paths else []
    by_experiment: dict[str, list[Run]] = {}
    for run, found in zip(finished, read, strict=True):
        by_experiment.setdefault(run.experiment, []).append(replace(found, name=run.folder.name))
    return make_rows(by_experiment, usage)


def make_rows(groups: Mapping[str, Sequence[Run]], usage: Mapping[str, Usage]) -> list[Row]:
    """Compare groups of runs, by their names, with the first one."""
    rows = []
    for (name, runs), tests in zip(groups.items(), _tests([*groups.values()]), strict=True):
        used = [usage[run.name] for run in runs if run.name in usage]
        rows.append(
            Row(
                name=name,
                runs=runs,
                averaged=average_runs(f"{name}, {len(runs)} seeds averaged", runs),
                accuracy=spread([run.metrics.accuracy.value for run in runs]),
                f1=spread([run.metrics.f1.value for run in runs]),
                tests=tests,
                seconds=mean(each.seconds for each in used) if used else None,
                peak_mb=max((each.peak_mb for each in used if each.peak_mb is not None), default=None),
            )
        )
    return rows


def average_runs(name: str, runs: Sequence[Run]) -> Run | None:
    """Average probabilities pair by pair, as `predict` does with several checkpoints; None for one run."""
    columns = [[answer.p_entailment for answer in run.answers] for run in runs]
    if len(runs) < 2 or any(p is None for column in columns for p in column):
        return None
    means = [sum(map(float, of_pair)) / len(runs) for of_pair in zip(*columns, strict=True)]
    return answering(name, runs[0], means)


def _tests(groups: Sequence[Sequence[Run]]) -> list[list[PairOfRuns]]:
    """Test each run against the first experiment's of its seed; Holm's correction is over all tests."""
    found = [[compare(pair).tests[0] for pair in _same_seeds(groups[0], group)] for group in groups[1:]]
    corrected = iter(holm([test.p_value for tests in found for test in tests]))
    return [[] for _ in groups[:1]] + [
        [replace(test, p_holm=next(corrected)) for test in tests] for tests in found
    ]


def _same_seeds(first: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pair runs by their seeds, or by their places if one has none, as predictions outside of a run."""
    if None in (run.seed for run in (*first, *others)):
        return list(zip(first, others, strict=False))
    of_seed = {run.seed: run for run in first}
    return [(of_seed[run.seed], run) for run in others if run.seed in of_seed]


def as_text(rows: Sequence[Row]) -> str:
    """Render the table of experiments and that of their runs."""
    runs = [run for row in rows for run in (*row.runs, *([row.averaged] if row.averaged else []))]
    of_runs = runs_table(runs)
    title = f"dev: {len(runs[0].answers)} pairs, 95 % intervals in brackets"
    note = f"p: McNemar's exact test with the runs of {rows[0].name}, seed by seed, corrected (Holm)"
    blocks = [
        [title],
        aligned(of_runs.columns("run", "accuracy %", "F1 %", "AUROC")),
        aligned(experiments_table(rows)),
        [note] if rows[1:] else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def experiments_table(rows: Sequence[Row]) -> Table:
    """Return a line for each experiment."""
    header = (
        "experiment",
        "seeds",
        "accuracy %",
        "min to max",
        "sd",
        "F1 %",
        "sd",
        "p",
        "minutes",
        "peak MB",
    )
    return Table(header=header, rows=[[row.name, str(len(row.runs)), *_cells(row)] for row in rows])


def _cells(row: Row) -> list[str]:
    low, high = 100 * row.accuracy.lowest, 100 * row.accuracy.highest
    return [
        f"{100 * row.accuracy.mean:.1f}",
        f"{low:.1f} to {high:.1f}",
        _or_none(row.accuracy.sd, 100),
        f"{100 * row.f1.mean:.1f}",
        _or_none(row.f1.sd, 100),
        ", ".join(p_value_text(test.p_holm) for test in row.tests) or NONE,
        _or_none(row.seconds, 1 / 60),
        NONE if row.peak_mb is None else f"{row.peak_mb:,.0f}",
    ]


def _or_none(value: float | None, factor: float) -> str:
    return NONE if value is None else f"{factor * value:.1f}"


def write_results(
    out: Path, planned: Sequence[PlannedRun], rows: Sequence[Row], usage: Mapping[str, Usage]
) -> tuple[Path, Path]:
    """Write all figures as JSON, and a line for each run as CSV."""
    runs = {run.name: run for row in rows for run in row.runs}
    of_plan = {run.folder.name: run for run in planned}
    content: dict[str, Any] = {
        "split": "dev",
        "num_pairs": len(rows[0].runs[0].answers),
        "experiments": [row_to_dict(row) for row in rows],
        "runs": [
            {**run_to_dict(run), "experiment": of_plan[name].experiment, "seed": of_plan[name].seed}
            for name, run in runs.items()
        ],
        USAGE: {name: asdict(used) for name, used in usage.items()},
    }
    json_path, csv_path = out / JSON_NAME, out / CSV_NAME
    write_json(json_path, content)
    bounds = [f"{name}{end}" for name in CSV_FIGURES for end in ("", "_low", "_high")]
    header = ["run", "experiment", "seed", *bounds, "seconds", "peak_mb"]
    lines = []
    for name, run in runs.items():
        figures = [getattr(run.metrics, each) for each in CSV_FIGURES]
        cells = [
            (each.value, each.interval.low, each.interval.high) if each else (None,) * 3 for each in figures
        ]
        used = usage.get(name)
        own = (used.seconds, used.peak_mb) if used else (None, None)
        values = [value for cell in cells for value in cell]
        lines.append([name, of_plan[name].experiment, of_plan[name].seed, *values, *own])
    write_csv(csv_path, header, lines, overwrite=True)
    return json_path, csv_path


def row_to_dict(row: Row) -> dict[str, Any]:
    """Return a row as JSON values."""
    averaged = {"averaged": metrics_to_dict(row.averaged.metrics)} if row.averaged else {}
    return {
        "name": row.name,
        "runs": [run.name for run in row.runs],
        "accuracy": asdict(row.accuracy),
        "f1": asdict(row.f1),
        **averaged,
        "tests": [asdict(test) for test in row.tests],
        "seconds": row.seconds,
        "peak_mb": row.peak_mb,
    }
