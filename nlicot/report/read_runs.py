"""Reads what a run left: its predictions of a split, and the configuration they were made with.

The first step of `report`; figures and tests are `compare`'s, what else lies in a run's folder is read by
`curves` and `sources`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlicot.data.rows import Row, read_rows, shown
from nlicot.errors import ConfigError, DataError
from nlicot.yaml_files import read_yaml

NOT_THE_RECIPE = (
    "seed_everything",
    "run",
    "resume",
    "preflight",
    "checkpoints_root",
    "final_evaluation",
    "config",
)
"""Keys of a configuration that do not make another ablation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A labelled pair and what a run said of it; `predicted_label` is None where it gave no answer.

    The texts are None in files that hold labels alone.
    """

    id: str
    true_label: int
    predicted_label: int | None
    p_entailment: float | None
    premise: str | None = None
    hypothesis: str | None = None
    phenomenon: str | None = None
    thought_process: str | None = None
    status: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the run found the true label; no answer is not correct."""
        return self.predicted_label == self.true_label


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run's answers on one split.

    `recipe` is the configuration without seed and names, as canonical JSON: runs that agree in it are one
    ablation with several seeds. None where there is no configuration. `folder` is the run's, None for
    predictions that lie in no run's folder.
    """

    name: str
    predictions_path: Path
    folder: Path | None
    config: dict[str, Any]
    builder: str
    seed: int | None
    recipe: str | None
    answers: Sequence[Answered]


def read_runs(named: Sequence[str], split: str, root: Path) -> list[ComparedRun]:
    """Runs by their folders, their names within `root`, or predictions files.

    A run is called by its folder's name; where two folders share one, both are called as they were given.

    Raises:
        ConfigError: a run is not there, is given twice, or has no predictions of the split.
        DataError: predictions have no true labels, or are broken.
    """
    runs = [_read_run(name, split, root) for name in named]
    times_given = Counter(run.predictions_path.resolve() for run in runs)
    for run in runs:
        if times_given[run.predictions_path.resolve()] > 1:
            raise ConfigError(f"--compare: found {run.name} twice, expected different runs")
    times_called = Counter(run.name for run in runs)
    return [
        replace(run, name=given) if times_called[run.name] > 1 else run
        for given, run in zip(named, runs, strict=True)
    ]


def _read_run(named: str, split: str, root: Path) -> ComparedRun:
    path = Path(named).expanduser()
    if path.suffix == ".jsonl":
        folder = path.parent.parent if path.parent.name == "predictions" else None
        return _run_of(path, folder, name=path.stem if folder is None else folder.resolve().name)
    folder = _folder_of(named, root)
    predictions_path = folder / "predictions" / f"{split}.jsonl"
    if not predictions_path.is_file():
        raise ConfigError(_no_predictions(named, predictions_path, folder, split))
    return _run_of(predictions_path, folder, name=folder.resolve().name)


def _folder_of(named: str, root: Path) -> Path:
    candidates = [path for path in (Path(named).expanduser(), root / named) if path.is_dir()]
    if not candidates:
        known = ", ".join(sorted({path.parent.parent.name for path in root.glob("*/predictions/*.jsonl")}))
        raise ConfigError(
            f"--compare {named}: found no such run, expected a run's folder, its name in {root} or a "
            f".jsonl file of predictions (in {root}: {known or 'none has predictions'})"
        )
    # A folder of the working folder may happen to be called as a run is: that with predictions is meant.
    return next((path for path in candidates if (path / "predictions").is_dir()), candidates[0])


def _no_predictions(named: str, predictions_path: Path, folder: Path, split: str) -> str:
    others = ", ".join(sorted(path.stem for path in predictions_path.parent.glob("*.jsonl")))
    command = "validate" if split == "dev" else "test"
    flags = f"--ckpt_path {folder / 'best.ckpt'}" + ("" if split in ("dev", "test") else f" --split {split}")
    return (
        f"--compare {named}: found no {predictions_path}"
        + (f" (there are predictions of {others})" if others else "")
        + f", expected predictions of {split}; make them with: python -m nlicot {command} {flags}"
    )


def _run_of(predictions_path: Path, folder: Path | None, *, name: str) -> ComparedRun:
    config = {} if folder is None else _read_config(folder / "config.yaml")
    return ComparedRun(
        name=name,
        predictions_path=predictions_path,
        folder=folder,
        config=config,
        builder=_builder(config) or ("" if folder is None else _fitted_builder(folder / "fit.json")),
        seed=config.get("seed_everything"),
        recipe=_recipe(config) if config else None,
        answers=_read_answers(predictions_path),
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path, label=str(path)) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: found {shown(config)}, expected the configuration that `fit` wrote")
    return config


def _builder(config: dict[str, Any]) -> str:
    named = section(config, "data").get("builder")
    if isinstance(named, dict):
        named = str(named.get("class_path", "")).rpartition(".")[2]
    return str(named or "")


def _fitted_builder(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError("no JSON", "what `fit` wrote there", path=path) from None
    return str(summary.get("builder", "")) if isinstance(summary, dict) else ""


def _recipe(config: dict[str, Any]) -> str:
    kept = {name: value for name, value in config.items() if name not in NOT_THE_RECIPE}
    for part in ("model", "data"):
        kept[part] = {name: value for name, value in section(config, part).items() if name != "seed"}
    return json.dumps(kept, sort_keys=True, default=str)


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a configuration; empty where it is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read_answers(path: Path) -> list[Answered]:
    answers: dict[str, Answered] = {}
    for row in read_rows(path):
        answer = _answer(row)
        if answer.id in answers:
            raise row.error(f"the id {shown(answer.id)} a second time", "each pair once")
        answers[answer.id] = answer
    if not answers:
        raise DataError("no predictions", "one for each pair", path=path)
    return list(answers.values())


def _answer(row: Row) -> Answered:
    id_, true_label = row.identifier(), row.optional_label("true_label")
    if id_ is None:
        raise row.error("a prediction without an id", "the id of its pair")
    if true_label is None:
        raise row.error(
            f"no true_label of {shown(id_)}",
            "predictions of labelled pairs",
            remedy="`validate` writes them for dev, `test` for labelled test pairs",
        )
    return Answered(
        id=id_,
        true_label=true_label,
        predicted_label=row.optional_label("predicted_label"),
        p_entailment=_probability(row),
        premise=row.optional_text("premise"),
        hypothesis=row.optional_text("hypothesis"),
        phenomenon=row.optional_text("phenomenon"),
        thought_process=row.optional_text("thought_process"),
        status=row.optional_text("status"),
    )


def _probability(row: Row) -> float | None:
    p = row.fields.get("p_entailment")
    if p is None:
        return None
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise row.error(f"p_entailment {shown(p)}", "a probability from 0 to 1")
    return float(p)
