"""The data root: the folder of a project's files, and the copy of the sample that commands may write to."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from nlicot.config_files import SAMPLE
from nlicot.data.atomic_write import build_folder_once
from nlicot.data.rows import READERS
from nlicot.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# In a clone next to the sample; an installed package's folder may be read-only.
TRY_ROOT = SAMPLE.with_name("try") if SAMPLE.parent.name == "data" else Path("data", "try")


@dataclass(frozen=True, slots=True)
class DataRoot:
    """A folder with a project's data; its methods return the path of each file."""

    path: Path

    def pairs(self, split: str) -> Path:
        """`original_data/<split>.csv`, or the file of another format that exists instead.

        Raises:
            DataError: there are several.
        """
        existing = self.pairs_files(split)
        if len(existing) > 1:
            found, remedy = " and ".join(path.name for path in existing), "move the others to another folder"
            raise DataError(found, f"one file of {split}", path=existing[0].parent, remedy=remedy)
        return existing[0] if existing else self.path / "original_data" / f"{split}.csv"

    def pairs_files(self, split: str) -> list[Path]:
        """Return the existing files of a split's pairs, in any format."""
        endings = [f"{ending}{gz}" for ending in READERS for gz in ("", ".gz")]
        candidates = [self.path / "original_data" / f"{split}{ending}" for ending in endings]
        return [path for path in candidates if path.exists()]

    def thoughts(self, split: str) -> Path:
        """The teacher's thoughts, written without knowing the label."""
        return self.path / "original_thoughts" / f"{split}.jsonl"

    def reflections(self, split: str) -> Path:
        """The stronger teacher's reflections on wrong thoughts."""
        return self.path / "reflected_thoughts" / f"{split}.jsonl"

    def scores(self, split: str) -> Path:
        """The judge's scores and the texts regenerated because of them."""
        return self.path / "scored_thoughts" / f"{split}.jsonl"

    def finetune(self, name: str) -> Path:
        """Prepared instruction data."""
        return self.path / "finetune" / f"{name}.jsonl"

    @property
    def is_sample(self) -> bool:
        """True for the sample data that ships with nlicot, whatever path leads to it."""
        return self.path.resolve() == SAMPLE.resolve()


def ensemble_path(predictions: Path) -> Path:
    """Return the file next to the predictions of several runs: checkpoint, weight and `fit.json` of each."""
    return predictions.with_suffix(".ensemble.json")


def failures_path(output: Path) -> Path:
    """Return the path of the failures next to a teacher's output."""
    return output.with_suffix(".failures.jsonl")


def working_root(root: Path | None) -> DataRoot:
    """Return a data root that a command may write to: `root`, or else `data/try`, a copy of the sample."""
    if root is not None:
        named = DataRoot(root.expanduser())
        if named.is_sample:
            raise ConfigError(
                f"--root {root}: this is the sample itself, which no command writes to; name your own folder "
                f"(without --root a copy of the sample is used: {_relative(TRY_ROOT)})"
            )
        return named
    logger.info(
        "SAMPLE DATA: no --root was given, so this works in %s, a copy of the small sample in %s. For your "
        "own pairs: python -m nlicot split PAIRS.csv, then add --root data (see data/README.md).",
        _relative(TRY_ROOT),
        _relative(SAMPLE),
    )
    if not TRY_ROOT.exists():
        try:
            build_folder_once(
                TRY_ROOT, _copy_sample, problem=lambda folder: None if folder.exists() else "missing"
            )
        except OSError as error:
            raise ConfigError(
                f"{_relative(TRY_ROOT)}: the sample cannot be copied there ({error.strerror or error}); "
                "name your own folder with --root"
            ) from None
    return DataRoot(_relative(TRY_ROOT))


def _copy_sample(folder: Path) -> None:
    for path in SAMPLE.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(SAMPLE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)  # without its mode: the copy is writable


def _relative(path: Path) -> Path:
    """Return the path relative to the working directory, if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
