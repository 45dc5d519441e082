"""A run's folder: what lies in it, and reading the flags that name one before anything is parsed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nlicot.errors import CheckpointError
from nlicot.training.datamodule import PairsData
from nlicot.training.module import CHECKPOINT_KEY

RECIPE = Path(__file__).parents[2] / "configs" / "recipe.yaml"
CONFIG, FIT_SUMMARY, METRICS = "config.yaml", "fit.json", "metrics.json"


def values_of(args: Sequence[str], flag: str) -> list[str]:
    """All values of a flag, before anything is parsed: they decide which configuration is the default."""
    found = []
    for index, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            found.append(arg.partition("=")[2])
        elif arg == flag and index + 1 < len(args):
            found.append(args[index + 1])
    return found


def value_of(args: Sequence[str], flag: str) -> str | None:
    """A flag's first value."""
    return next(iter(values_of(args, flag)), None)


def run_file(folder: Path, name: str) -> Path:
    """A file of a run's folder.

    Raises:
        CheckpointError: it is not there; runs that have one are named.
    """
    path = folder / name
    if path.is_file():
        return path
    runs = sorted(other.parent.name for other in folder.parent.glob(f"*/{name}"))
    near = difflib.get_close_matches(folder.name, runs, n=1)
    hint = (
        f"did you mean {folder.parent / near[0]}?"
        if near
        else f"runs that have it: {', '.join(runs) or 'none'}"
    )
    raise CheckpointError(f"{path}: found no such file, expected one written by `fit`; {hint}")


def stored_entry(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself besides its weights.

    Raises:
        CheckpointError: it is not one of ours.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        found: dict[str, Any] = content[CHECKPOINT_KEY]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: found no nlicot checkpoint ({type(error).__name__}), "
            "expected one that `fit` wrote"
        ) from error
    return found


def say_which_data(data: PairsData) -> None:
    """Tell a person that no data of their own was named."""
    if data.on_sample:
        print(
            "SAMPLE DATA: no --root was given, so this runs on the small sample in data/sample. "
            "For your own pairs: "
            "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
        )
