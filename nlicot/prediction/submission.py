"""Write predictions: a CSV to hand in, and JSON lines to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import write_csv, write_jsonl
from nlicot.records import Example, Prediction, to_json_dict


def write_predictions(
    folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[Path, Path]:
    """Write `<split>.csv` (one `prediction` column) and `<split>.jsonl`, in the input's order.

    Args:
        folder: output folder; an earlier run's predictions of the same split are replaced.
        examples: the input rows.
        predictions: one for each example, in any order.

    Raises:
        KeyError: an example has no prediction; nothing is written then.
    """
    ordered = in_order_of(examples, predictions)
    csv_path, jsonl_path = folder / f"{split}.csv", folder / f"{split}.jsonl"
    write_jsonl(
        jsonl_path,
        (_with_pair(example, found) for example, found in zip(examples, ordered, strict=True)),
        overwrite=True,
    )
    write_csv(csv_path, ["prediction"], [[str(found.predicted_label)] for found in ordered], overwrite=True)
    return csv_path, jsonl_path


def in_order_of(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return each example's prediction; raise KeyError if one is missing."""
    by_id = {prediction.id: prediction for prediction in predictions}
    return [by_id[example.id] for example in examples]


def _with_pair(example: Example, prediction: Prediction) -> dict[str, Any]:
    pair = to_json_dict(example)
    if "label" in pair:
        pair["true_label"] = pair.pop("label")
    return {**pair, **to_json_dict(prediction)}
