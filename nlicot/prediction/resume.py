"""Predictions as they are made, so that a killed process need not make them again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from nlicot.records import Prediction, to_json_dict


class PartialPredictions:
    """JSON lines beside the final file, one file for each rank; gone once that is written.

    Args:
        folder: where the final files will lie.
        split: what is predicted.
        fingerprint: of all that decides a prediction; what was made otherwise is not taken up.
        rank: of this process.
    """

    def __init__(self, folder: Path, split: str, fingerprint: str, rank: int) -> None:
        self._folder = folder
        self._stem = f".{split}-{fingerprint[:16]}"
        self._path = folder / f"{self._stem}.{rank}.partial"

    def read(self) -> list[Prediction]:
        """What all ranks of an earlier process left, each pair once, but for lines that were cut short."""
        found: dict[str, Prediction] = {}
        for path in sorted(self._folder.glob(f"{self._stem}.*.partial")):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    prediction = Prediction(**{"thought_process": None, **json.loads(line)})
                    found.setdefault(prediction.id, prediction)
        return list(found.values())

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[Prediction], None]]:
        """Gives what keeps one prediction, at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # ends a line that was cut short

            def keep(prediction: Prediction) -> None:
                file.write(json.dumps(to_json_dict(prediction), ensure_ascii=False) + "\n")
                file.flush()

            yield keep

    def remove(self) -> None:
        """The final file is written: what led to it may go."""
        for path in self._folder.glob(f"{self._stem}.*.partial"):
            path.unlink(missing_ok=True)
