"""Read premise/hypothesis pairs: column names, labels and ids, checked for the whole file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from nlicot.data.rows import RecordList, Row, binary_label, read_rows, shown
from nlicot.errors import DataError
from nlicot.records import LABELS, Example, content_id

logger = logging.getLogger(__name__)

# Names that public data sets and the predecessor's files use for our columns, the likeliest first.
ALIASES = {
    "id": (),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "label": ("gold_label", "true_label"),
    "phenomenon": (),
}
LABEL_MAP_EXAMPLE = "--label_map entailment=1,neutral=0,contradiction=0"


def read_examples(
    path: Path, *, label_map: Mapping[str, int] | None = None, id_prefix: str = ""
) -> RecordList[Example]:
    """Read the pairs of a CSV (`premise,hypothesis[,label][,id][,phenomenon]`) or of JSON lines.

    Column names are matched in any case, and by the names in `ALIASES`. A pair without an id gets one from
    its content, with `-2`, `-3` ... appended if the same content appears again: no row is dropped.

    Args:
        path: a `.csv`, `.jsonl` or `.json` file.
        label_map: the meaning of the file's own labels; without it they must be 0 or 1.
        id_prefix: prepended to ids made from content.

    Raises:
        DataError: with path and line, for anything that cannot be read as it is.
    """
    columns, labels = _Columns(path), _Labels(path, label_map)
    examples: list[Example] = []
    lines: list[int] = []
    without_id: list[int] = []
    for row in read_rows(path):
        pair = columns.renamed(row)
        premise, hypothesis = pair.text("premise"), pair.text("hypothesis")
        given_id = pair.identifier()
        if given_id is None:
            without_id.append(len(examples))
        example = Example(
            id=given_id or id_prefix + content_id(premise, hypothesis),
            premise=premise,
            hypothesis=hypothesis,
            label=labels.read(pair),
            phenomenon=pair.optional_text("phenomenon"),
        )
        examples.append(example)
        lines.append(row.line)
    if not examples:
        raise DataError("no rows", "a row for each pair", path=path)
    labels.check()
    columns.log_aliases()
    read = RecordList(examples, lines)
    _make_ids_unique(read, without_id, path)
    return read


def _make_ids_unique(examples: RecordList[Example], without_id: list[int], path: Path) -> None:
    """Refuse repeated ids, and number repeated ids that were made from content."""
    made = set(without_id)
    line_of: dict[str, int] = {}
    for position, example in enumerate(examples):
        if position in made:
            continue
        if example.id in line_of:
            found = f"the id {shown(example.id)} again, after line {line_of[example.id]}"
            raise DataError(found, "each id once", path=path, line=examples.lines[position])
        line_of[example.id] = examples.lines[position]
    positions_of: dict[str, list[int]] = {}
    for position in without_id:
        positions_of.setdefault(examples[position].id, []).append(position)
    num_repeated = 0
    for id_, positions in positions_of.items():
        repeated = positions if id_ in line_of else positions[1:]
        num_repeated += bool(repeated)
        number = 1
        for position in repeated:
            number += 1
            while f"{id_}-{number}" in line_of or f"{id_}-{number}" in positions_of:
                number += 1
            examples[position] = dataclasses.replace(examples[position], id=f"{id_}-{number}")
    if num_repeated:
        logger.info("%s: %d pairs appear more than once; all are kept", path, num_repeated)


class _Columns:
    """Finds our columns among a file's own names, and remembers which aliases were used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source_of: dict[tuple[str, ...], dict[str, str]] = {}

    def renamed(self, row: Row) -> Row:
        """Return the row under our names, without its other columns."""
        names = tuple(row.fields)
        sources = self._source_of.get(names)
        if sources is None:
            sources = self._source_of[names] = self._find(names, row)
        fields = {column: row.fields[name] for column, name in sources.items()}
        return Row(path=row.path, line=row.line, header_line=row.header_line, fields=fields)

    def _find(self, names: tuple[str, ...], row: Row) -> dict[str, str]:
        original = {name.strip().casefold(): name for name in names}
        sources = {}
        for column, aliases in ALIASES.items():
            found = next((original[name] for name in (column, *aliases) if name in original), None)
            if found is not None:
                sources[column] = found
        missing = [column for column in ("premise", "hypothesis") if column not in sources]
        if missing:
            other_separator = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
            raise DataError(
                f"the columns {', '.join(map(shown, names)) or '(none)'}",
                " and ".join(missing) + " too",
                path=self._path,
                line=row.header_line,
                remedy="separate the columns with commas" if other_separator else "",
            )
        return sources

    def log_aliases(self) -> None:
        used = {
            f"{name.strip()} for {column}": None
            for sources in self._source_of.values()
            for column, name in sources.items()
            if name.strip().casefold() != column
        }
        if used:
            logger.info("%s: took the column %s", self._path, ", ".join(used))


class _Labels:
    """Reads a file's labels; `check` reports all unknown ones together after the last row."""

    def __init__(self, path: Path, label_map: Mapping[str, int] | None) -> None:
        self._path, self._map = path, label_map
        self._unknown: dict[str, int] = {}
        self._first_labelled = self._first_unlabelled = 0

    def read(self, row: Row) -> int | None:
        """Return the row's label; None if it has none, or one that `check` will report."""
        value = row.fields.get("label")
        if value is None or (isinstance(value, str) and not value.strip()):
            self._first_unlabelled = self._first_unlabelled or row.line
            return None
        self._first_labelled = self._first_labelled or row.line
        label = binary_label(value) if self._map is None else self._map.get(str(value).strip())
        if label is None:
            self._unknown.setdefault(str(value).strip(), row.line)
        return label

    def check(self) -> None:
        """Raise a `DataError` for unknown labels, or if only some rows have one."""
        if self._unknown:
            found = [shown(label) for label in self._unknown]
            is_word = any(character.isalpha() for character in "".join(self._unknown))
            raise DataError(
                f"the label{'s' if len(found) > 1 else ''} {', '.join(found[:8])}",
                " or ".join(map(str, LABELS if self._map is None else self._map)),
                path=self._path,
                line=min(self._unknown.values()),
                remedy=f"map them to 0 and 1, for example {LABEL_MAP_EXAMPLE}"
                if is_word or self._map is not None
                else "leave the label empty on every row if labels are not known",
            )
        if self._first_labelled and self._first_unlabelled:
            raise DataError(
                "no label",
                f"one, as on line {self._first_labelled}",
                path=self._path,
                line=self._first_unlabelled,
                remedy="label every pair or none",
            )
