"""Files of predictions: a CSV to submit, JSON lines to read, and partial files that survive a kill."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import disk_errors, write_csv, write_jsonl
from nlicot.data.shards import ShardOfWork
from nlicot.errors import ConfigError
from nlicot.records import Example, Prediction, to_json_dict

CSV_COLUMN = "prediction"


def final_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the paths of a split's CSV and JSON lines."""
    return folder / f"{split}.csv", folder / f"{split}.jsonl"


def write_predictions(
    folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[Path, Path]:
    """Write or replace `<split>.csv` (one `prediction` column) and `<split>.jsonl`, in order of `examples`.

    Raises:
        KeyError: an example has no prediction; nothing is written then.
    """
    ordered = in_order_of(examples, predictions)
    csv_path, jsonl_path = final_paths(folder, split)
    write_jsonl(jsonl_path, _rows(examples, ordered), overwrite=True)
    write_csv(csv_path, [CSV_COLUMN], [[found.predicted_label] for found in ordered], overwrite=True)
    return csv_path, jsonl_path


def refuse_other_files(folder: Path, split: str) -> None:
    """Refuse to replace files of a split that are not predictions, such as its pairs or thoughts."""
    csv_path, jsonl_path = final_paths(folder, split)
    for path, is_ours in ((csv_path, _starts_csv), (jsonl_path, _starts_jsonl)):
        if path.is_file() and not is_ours(_first_line(path)):
            raise ConfigError(
                f"--output {folder}: {path} exists and has no predictions, so it is not replaced; "
                "choose another folder"
            )


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip()


def _starts_csv(line: str) -> bool:
    return line == CSV_COLUMN


def _starts_jsonl(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and {"predicted_label", "status", "completion"} <= row.keys()


def write_shard(
    path: Path, part: ShardOfWork, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> None:
    """Write or replace a shard's JSON lines, for `merge-shards`."""
    rows = _rows(examples, in_order_of(examples, predictions))
    write_jsonl(path, itertools.chain([part.first_line(len(examples))], rows), overwrite=True)


def _rows(examples: Sequence[Example], ordered: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    for example, found in zip(examples, ordered, strict=True):
        pair = to_json_dict(replace(example, p_entailment=None))
        if "label" in pair:
            pair["true_label"] = pair.pop("label")
        yield {**pair, **to_json_dict(found)}


def in_order_of(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return each example's prediction; raise KeyError if one is missing."""
    by_id = {prediction.id: prediction for prediction in predictions}
    return [by_id[example.id] for example in examples]


class PartialPredictions:
    """JSON lines next to the final file, one file per rank; removed once the final file is written.

    Args:
        folder: the folder of the final files.
        name: the split that is predicted, with the shard if it is a part.
        fingerprint: hash of everything that decides a prediction; others are ignored.
        rank: index of this process.
    """

    def __init__(self, folder: Path, name: str, fingerprint: str, rank: int) -> None:
        self._folder, self._name = folder, name
        self._stem = f".{name}-{fingerprint[:16]}"
        self._path = folder / f"{self._stem}.{rank}.partial"

    def read(self) -> list[Prediction]:
        """Read what all ranks of an earlier process left, each pair once; skip damaged lines."""
        found: dict[str, Prediction] = {}
        for path in sorted(self._folder.glob(f"{self._stem}.*.partial")):
            for line in path.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, TypeError):
                    prediction = Prediction(**{"thought_process": None, **json.loads(line)})
                    found.setdefault(prediction.id, prediction)
        return list(found.values())

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[Prediction], None]]:
        """Yield a function that appends one prediction and flushes it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # All of it, as closing the file writes again what could not be written.
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")  # ends a truncated line

            def append(prediction: Prediction) -> None:
                file.write(json.dumps(to_json_dict(prediction), ensure_ascii=False) + "\n")
                file.flush()

            yield append

    def remove(self) -> None:
        """Remove the partial files, also those of other settings, once the final file is written."""
        for path in self._folder.glob(f".{self._name}-{'[0-9a-f]' * 16}.*.partial"):
            path.unlink(missing_ok=True)
