"""Reads what a run left: its predictions of a split, and the configuration they were made with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.errors import ConfigError, DataError
from nlicot.yaml_files import read_yaml

NOT_THE_RECIPE = ("seed_everything", "run", "resume", "checkpoints_root", "final_evaluation", "config")
"""Keys of a configuration that do not make another ablation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A labelled pair and what a run said of it."""

    id: str
    true_label: int
    predicted_label: int
    p_entailment: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run's answers on one split.

    `recipe` is the configuration without seed and names, as canonical JSON: runs that agree in it are one
    ablation with several seeds. None where there is no configuration.
    """

    name: str
    builder: str
    seed: int | None
    recipe: str | None
    answers: Sequence[Answered]


def read_run(named: str, split: str, root: Path) -> ComparedRun:
    """A run by its folder, its name within `root`, or a predictions file.

    Raises:
        ConfigError: there is none, or it has no predictions of the split.
        DataError: they have no true labels, or are broken.
    """
    path = Path(named).expanduser()
    if path.suffix == ".jsonl" and path.is_file():
        return ComparedRun(name=path.stem, builder="", seed=None, recipe=None, answers=_answers(path))
    folder = path if path.is_dir() else root / named
    if not folder.is_dir():
        known = ", ".join(sorted(each.parent.parent.name for each in root.glob("*/predictions/*.jsonl")))
        raise ConfigError(
            f"--compare {named}: found no such run, expected a run's folder or its name in {root} "
            f"({known or 'none has predictions'})"
        )
    predictions = folder / "predictions" / f"{split}.jsonl"
    if not predictions.is_file():
        raise ConfigError(
            f"--compare {named}: found no {predictions}, expected predictions of {split}; make them with: "
            f"python -m nlicot validate --ckpt_path {folder / 'best.ckpt'}"
        )
    config_path = folder / "config.yaml"
    config: dict[str, Any] | None = (
        read_yaml(config_path, told_as=str(config_path)) if config_path.is_file() else None
    )
    return ComparedRun(
        name=folder.name,
        builder="" if config is None else _builder(config),
        seed=None if config is None else config.get("seed_everything"),
        recipe=None if config is None else _recipe(config),
        answers=_answers(predictions),
    )


def _builder(config: dict[str, Any]) -> str:
    named = config.get("data", {}).get("builder", "")
    return str(named.get("class_path", "")).rpartition(".")[2] if isinstance(named, dict) else str(named)


def _recipe(config: dict[str, Any]) -> str:
    kept = {name: value for name, value in config.items() if name not in NOT_THE_RECIPE}
    for part in ("model", "data"):
        kept[part] = {name: value for name, value in kept.get(part, {}).items() if name != "seed"}
    return json.dumps(kept, sort_keys=True, default=str)


def _answers(path: Path) -> list[Answered]:
    answers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            answers.append(
                Answered(
                    id=row["id"],
                    true_label=int(row["true_label"]),
                    predicted_label=int(row["predicted_label"]),
                    p_entailment=row.get("p_entailment"),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"a row without what {error} names" if isinstance(error, KeyError) else "a broken row",
                "predictions of labelled pairs, as `validate` and `test` write them",
                path=path,
                line=number,
            ) from error
    if not answers:
        raise DataError("no predictions", "one for each pair", path=path)
    return answers
