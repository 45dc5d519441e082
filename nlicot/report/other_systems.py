"""Read the predictions of other systems for a run's pairs: `report --predictions FILE`."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nlicot.data.pairs import ALIASES, LABEL_MAP_EXAMPLE, LabelMap, PairFormat
from nlicot.data.rows import Row, binary_label, other_delimiter, read_rows, shown
from nlicot.errors import DataError
from nlicot.evaluation.metrics import entails
from nlicot.report.read_runs import Answer, Run

logger = logging.getLogger(__name__)

NAMES = {
    "id": ("id", *ALIASES["id"]),
    "premise": ("premise", *ALIASES["premise"]),
    "hypothesis": ("hypothesis", *ALIASES["hypothesis"]),
    "label": ("predicted_label", "prediction", "label"),
    "p_entailment": ("p_entailment", "probability"),
}
"""Columns that are read, under the first of these names that a file has, in any case."""
Columns: TypeAlias = Mapping[str, str]
"""The file's name of each column that it has."""


def read_predictions(path: Path, run: Run, pair_format: PairFormat) -> Run:
    """Read a file with one prediction for each pair of a run, whose true labels and order are taken.

    Args:
        pair_format: labels that are words, and names of columns; `label` is the predicted one.
    """
    rows = list(read_rows(path, delimiter=pair_format.separator))
    if not rows:
        raise DataError("no predictions", "one for each pair", path=path)
    columns = _columns(rows, pair_format.columns or {})
    pairs = _Pairs(run)
    answers: dict[str, Answer] = {}
    for row in rows:
        pair = pairs.find(row, columns)
        if pair.id in answers:
            raise row.error(f"a second prediction of pair {shown(pair.id)}", "one for each pair")
        p = row.probability(columns["p_entailment"]) if "p_entailment" in columns else None
        label = _label(row, columns, pair_format.label_map)
        if "label" not in columns and p is not None:
            label = int(entails(p))
        answers[pair.id] = pair.answered(label, p)
    if missing := [answer.id for answer in run.answers if answer.id not in answers]:
        more = f" and {len(missing) - 1} more pairs" if missing[1:] else ""
        remedy = "a pair without an answer has an empty label, and counts as wrong"
        found = f"no prediction of pair {shown(missing[0])}{more}"
        raise DataError(found, f"one for each pair of {run.name}", path=path, remedy=remedy)
    ordered = [answers[answer.id] for answer in run.answers]
    _check_are_predictions(ordered, columns, path)
    logger.info("%s: took the columns %s", path, ", ".join(map(shown, columns.values())))
    return Run(
        name=path.stem, split=run.split, predictions_path=path, folder=None, config={}, answers=ordered
    )


def _columns(rows: Sequence[Row], named: Mapping[str, str]) -> Columns:
    """Find the columns in the names of all rows: JSON lines may leave a field out."""
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    original = {name.strip().casefold(): name for name in reversed(names)}

    def missing(expected: str, remedy: str) -> DataError:
        return DataError(
            f"the columns {', '.join(map(shown, names)) or '(none)'}",
            f"{expected} too",
            path=rows[0].path,
            line=rows[0].header_line,
            remedy=other_delimiter(names) or remedy,
        )

    found: dict[str, str] = {}
    for column, usual in NAMES.items():
        given = named.get(column)
        candidates = usual if given is None else (given.casefold(),) if given else ()  # not to be read
        existing = [original[name] for name in candidates if name in original]
        if existing:
            found[column] = existing[0]
        elif given:
            raise missing(shown(given), f"--columns names it as {column}")
    if "id" not in found and not {"premise", "hypothesis"} <= found.keys():
        raise missing("id, or premise and hypothesis", "--columns id=NAME")
    if not {"label", "p_entailment"} & found.keys():
        raise missing("predicted_label or p_entailment", "--columns label=NAME")
    return found


def _value(row: Row, columns: Columns, column: str) -> Any:
    """Return a row's value in a column; None if it is empty or missing."""
    value = row.fields.get(columns[column]) if column in columns else None
    return None if isinstance(value, str) and not value.strip() else value


class _Pairs:
    """Finds the pair of a row by its id, or else by its texts."""

    def __init__(self, run: Run) -> None:
        self._run = run.name
        self._by_id = {answer.id: answer for answer in run.answers}
        self._by_texts: dict[tuple[Any, Any], deque[Answer]] = defaultdict(deque)
        for answer in run.answers:
            self._by_texts[answer.premise, answer.hypothesis].append(answer)

    def find(self, row: Row, columns: Columns) -> Answer:
        if (id_ := _value(row, columns, "id")) is not None:
            if (answer := self._by_id.get(str(id_).strip())) is None:
                raise row.error(f"the id {shown(id_)}", f"the id of a pair of {self._run}")
            return answer
        texts = _value(row, columns, "premise"), _value(row, columns, "hypothesis")
        if not (same := self._by_texts.get(texts)):
            found = f"the texts {' and '.join(map(shown, texts))}"
            remedy = "each pair has one prediction, and its texts must agree letter for letter"
            raise row.error(found, f"those of another pair of {self._run}", remedy=remedy)
        return same.popleft()  # pairs with equal texts are taken in order


def _label(row: Row, columns: Columns, label_map: LabelMap | None) -> int | None:
    """Return the predicted label; None if it is empty, or skipped by the label map."""
    if (value := _value(row, columns, "label")) is None:
        return None
    if label_map is None:
        label = binary_label(value)
    elif (name := label_map.key(str(value).strip())) is not None:
        return label_map[name]
    else:
        label = None
    if label is None:
        expected = "0 or 1" if label_map is None else f"one of {', '.join(label_map)}"
        remedy = f"map words to labels: --label_map {LABEL_MAP_EXAMPLE}"
        raise row.error(f"{columns['label'].strip()} {shown(value)}", expected, remedy=remedy)
    return label


def _check_are_predictions(answers: Sequence[Answer], columns: Columns, path: Path) -> None:
    """Refuse a column `label` that has the true labels, next to probabilities that disagree with it."""
    if columns.get("label", "").strip().casefold() != "label" or not all(each.correct for each in answers):
        return
    if any(
        each.p_entailment is not None and int(entails(each.p_entailment)) != each.predicted_label
        for each in answers
    ):
        raise DataError(
            "the true labels in the column label",
            "predicted ones",
            path=path,
            remedy="--columns label=NAME names another; with --columns label= the probabilities decide",
        )
