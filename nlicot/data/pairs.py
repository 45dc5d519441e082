"""A file of pairs, checked as a whole and then read as often as needed, in constant memory.

`PairsFile` knows which columns mean what, what the labels must be, and that every pair has an id of its own.
It keeps eight bytes a pair, so a file of millions costs no more than its longest row. `storage.read_examples`
reads a file into a list through it, and `streaming` walks one beside its thoughts.
"""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nlicot.data.rows import RecordList, Row, binary_label, read_rows, shown
from nlicot.errors import ConfigError, DataError
from nlicot.records import LABELS, Example, content_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Other names that public data sets and the predecessor's files give our columns, the likelier first.
ALIASES = {
    "id": (),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "label": ("gold_label", "true_label"),
    "phenomenon": (),
}
LABEL_MAP_HINT = "--label-map entailment=1,neutral=0,contradiction=0"


def parse_label_map(text: str) -> dict[str, int]:
    """The labels that `--label-map` gives to a file's own words.

    >>> parse_label_map("entailment=1, neutral=0")
    {'entailment': 1, 'neutral': 0}

    Raises:
        ConfigError: a part is not NAME=0 or NAME=1, or a name stands twice.
    """
    label_map: dict[str, int] = {}
    for part in text.split(","):
        name, _, digit = (piece.strip() for piece in part.rpartition("="))
        label = binary_label(digit)
        if not name or label is None:
            raise ConfigError(
                f"--label-map: found {part.strip()!r}, expected NAME=0 or NAME=1 ({LABEL_MAP_HINT})"
            )
        if name in label_map:
            raise ConfigError(f"--label-map: found {name!r} twice, expected each name once")
        label_map[name] = label
    return label_map


class PairsFile:
    """The pairs of a CSV (`premise,hypothesis[,label][,id][,phenomenon]`) or of JSON lines.

    The whole file is checked at once; walking it afterwards gives its pairs in order, as often as asked.
    Column names are taken in any case, and under the names in `ALIASES`. A pair without an id gets one from
    its content, with `-2`, `-3` ... behind it where the same content comes again: rows are never dropped.

    Args:
        label_map: what the file's own labels mean; without it they must be 0 or 1.
        id_prefix: stands before ids made from content.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is; also when walking a file that
            has changed since.
    """

    def __init__(
        self, path: Path, *, label_map: Mapping[str, int] | None = None, id_prefix: str = ""
    ) -> None:
        self.path = path
        self._label_map = label_map
        self._id_prefix = id_prefix
        self._columns = _Columns(path)
        self._renamed: dict[int, str] = {}
        hashes = array("q")  # of the ids: Python's own, 64 bits, other ones in every process
        labels = _Labels(path, label_map)
        for _, example, _ in self._rows(labels):
            hashes.append(hash(example.id))
        if not hashes:
            raise DataError("no rows", "a row for each pair", path=path)
        labels.check()
        self._columns.log_aliases()
        self._num_pairs = len(hashes)
        self.is_labelled = labels.any
        self._name_apart(hashes)
        self._state = _state(path)

    def __len__(self) -> int:
        return self._num_pairs

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Example]]:
        """Each pair behind the 1-based line where it starts."""
        if _state(self.path) != self._state:
            raise DataError(
                "another content than a moment ago",
                "a file that stays as it is while a command works on it",
                path=self.path,
            )
        for index, (line, example, _) in enumerate(self._rows(_Labels(self.path, self._label_map))):
            if index in self._renamed:
                example = dataclasses.replace(example, id=self._renamed[index])
            yield line, example

    def read(self) -> RecordList[Example]:
        """All pairs in a list that knows their lines."""
        lines = array("L")
        examples = []
        for line, example in self.numbered():
            examples.append(example)
            lines.append(line)
        return RecordList(examples, lines)

    def _rows(self, labels: _Labels) -> Iterator[tuple[int, Example, bool]]:
        """Line, pair, and whether the file itself gave the pair's id."""
        for row in read_rows(self.path):
            pair = self._columns.renamed(row)
            premise, hypothesis = pair.text("premise"), pair.text("hypothesis")
            own_id = pair.identifier()
            example = Example(
                id=own_id or self._id_prefix + content_id(premise, hypothesis),
                premise=premise,
                hypothesis=hypothesis,
                label=labels.read(pair),
                phenomenon=pair.optional_text("phenomenon"),
            )
            yield row.line, example, own_id is not None

    def _name_apart(self, hashes: array[int]) -> None:
        """Refuse an id given twice, and number those made from content that comes again."""
        import numpy as np

        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not repeated:
            return
        line_of: dict[str, int] = {}  # of ids that the file itself gives
        rows_of: dict[str, list[int]] = {}  # of ids made from content
        for index, (line, example, is_own) in enumerate(self._rows(_Labels(self.path, self._label_map))):
            if hash(example.id) not in repeated:
                continue
            if not is_own:
                rows_of.setdefault(example.id, []).append(index)
                continue
            if example.id in line_of:
                found = f"the id {shown(example.id)} again, after line {line_of[example.id]}"
                raise DataError(found, "an id once", path=self.path, line=line)
            line_of[example.id] = line
        num_alike = 0
        for made, rows in rows_of.items():
            later = rows if made in line_of else rows[1:]
            num_alike += bool(later)
            number = 1
            for index in later:
                number += 1
                while _is_among(ordered, hash(f"{made}-{number}")):
                    number += 1
                self._renamed[index] = f"{made}-{number}"
        if num_alike:
            logger.info("%s: %d pairs come more than once and were kept", self.path, num_alike)


def _is_among(ordered: NDArray[np.int64], value: int) -> bool:
    position = int(ordered.searchsorted(value))
    return position < len(ordered) and int(ordered[position]) == value


def _state(path: Path) -> tuple[int, int]:
    """What tells that a file was written to."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    return found.st_size, found.st_mtime_ns


class _Columns:
    """Finds our columns among a file's own names, and remembers which alias was taken for what."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source_of: dict[tuple[str, ...], dict[str, str]] = {}

    def renamed(self, row: Row) -> Row:
        """The row under our names, other columns left out."""
        names = tuple(row.fields)
        sources = self._source_of.get(names)
        if sources is None:
            sources = self._source_of[names] = self._find(names, row)
        fields = {column: row.fields[name] for column, name in sources.items()}
        return Row(path=row.path, line=row.line, header_line=row.header_line, fields=fields)

    def _find(self, names: tuple[str, ...], row: Row) -> dict[str, str]:
        spelt = {name.strip().casefold(): name for name in names}
        sources = {}
        for column, aliases in ALIASES.items():
            found = next((spelt[name] for name in (column, *aliases) if name in spelt), None)
            if found is not None:
                sources[column] = found
        missing = [column for column in ("premise", "hypothesis") if column not in sources]
        if missing:
            separated = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
            raise DataError(
                f"the columns {', '.join(map(shown, names)) or '(none)'}",
                " and ".join(missing) + " too",
                path=self._path,
                line=row.header_line,
                remedy="separate the columns with commas" if separated else "",
            )
        return sources

    def log_aliases(self) -> None:
        """Say once which alias was taken for what."""
        taken = {
            f"{name.strip()} for {column}": None
            for sources in self._source_of.values()
            for column, name in sources.items()
            if name.strip().casefold() != column
        }
        if taken:
            logger.info("%s: took the column %s", self._path, ", ".join(taken))


class _Labels:
    """Reads a file's labels, and complains at its end with all that were not understood."""

    def __init__(self, path: Path, label_map: Mapping[str, int] | None) -> None:
        self._path, self._map = path, label_map
        self._unknown: dict[str, int] = {}
        self._first_labelled = self._first_unlabelled = 0

    @property
    def any(self) -> bool:
        """Whether a row had one."""
        return self._first_labelled > 0

    def read(self, row: Row) -> int | None:
        """The row's label; None where it has none, or one that `check` will complain about."""
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
        """Raise a `DataError` for unknown labels, or where only some rows have one."""
        if self._unknown:
            found = [shown(label) for label in self._unknown]
            is_word = any(character.isalpha() for character in "".join(self._unknown))
            raise DataError(
                f"the label{'s' if len(found) > 1 else ''} {', '.join(found[:8])}",
                " or ".join(map(str, LABELS if self._map is None else self._map)),
                path=self._path,
                line=min(self._unknown.values()),
                remedy=f"say what it means, for example {LABEL_MAP_HINT}"
                if is_word or self._map is not None
                else "leave the labels out where they are not known",
            )
        if self._first_labelled and self._first_unlabelled:
            raise DataError(
                "no label",
                f"one, as line {self._first_labelled} has",
                path=self._path,
                line=self._first_unlabelled,
                remedy="label every pair or none",
            )
