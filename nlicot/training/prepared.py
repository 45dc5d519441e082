"""Reads training examples that `prepare` wrote, so that `fit` can train on an exported file."""

from __future__ import annotations

from pathlib import Path

from nlicot.data.rows import read_rows
from nlicot.errors import DataError
from nlicot.prepare.formats import from_row
from nlicot.records import TrainingExample


def read_prepared(path: Path) -> list[TrainingExample]:
    """The examples of a prepared file, in any of the forms of `preparation`.

    Raises:
        DataError: a row is in none of them, or its completion is not one of ours.
    """
    built = [from_row(row, default_id=f"row-{number}") for number, row in enumerate(read_rows(path), start=1)]
    if not built:
        raise DataError("no rows", "a row for each training example", path=path)
    return built
