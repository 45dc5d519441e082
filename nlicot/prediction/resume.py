"""Keep predictions as they are made, so that a killed process does not repeat them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from nlicot.records import Prediction, to_json_dict


class PartialPredictions:
    """JSON lines next to the final file, one file per rank; removed once the final file is written.

    Args:
        folder: the folder of the final files.
        split: the split that is predicted.
        fingerprint: hash of everything that decides a prediction; others are ignored.
        rank: index of this process.
    """

    def __init__(self, folder: Path, split: str, fingerprint: str, rank: int) -> None:
        self._folder = folder
        self._stem = f".{split}-{fingerprint[:16]}"
        self._path = folder / f"{self._stem}.{rank}.partial"

    def read(self) -> list[Prediction]:
        """Read what all ranks of an earlier process left, each pair once; skip truncated lines."""
        found: dict[str, Prediction] = {}
        for path in sorted(self._folder.glob(f"{self._stem}.*.partial")):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    prediction = Prediction(**{"thought_process": None, **json.loads(line)})
                    found.setdefault(prediction.id, prediction)
        return list(found.values())

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[Prediction], None]]:
        """Yield a function that appends one prediction and flushes it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # ends a truncated line

            def append(prediction: Prediction) -> None:
                file.write(json.dumps(to_json_dict(prediction), ensure_ascii=False) + "\n")
                file.flush()

            yield append

    def remove(self) -> None:
        """Remove the partial files, once the final file is written."""
        for path in self._folder.glob(f"{self._stem}.*.partial"):
            path.unlink(missing_ok=True)
