"""Read rows of CSV and JSON lines together with their line numbers.

This module knows file formats; `pairs` and `thoughts` know what a row means. Any error in a file's content
is a `DataError` with path and line.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from nlicot.errors import DataError

T = TypeVar("T")

# The csv module's default limit is 128 KiB per field; a whole document as a premise is unusual but valid.
csv.field_size_limit(16 * 2**20)


class RecordList(list[T]):
    """The records of one file, with the 1-based line on which each starts."""

    def __init__(self, records: Iterable[T] = (), lines: Sequence[int] = ()) -> None:
        super().__init__(records)
        self.lines = lines


def line_of(records: Sequence[object], index: int) -> int | None:
    """Return the line that `records[index]` was read from; None for records made in memory."""
    lines = records.lines if isinstance(records, RecordList) else ()
    return lines[index] if len(lines) == len(records) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One CSV row or JSON object; its getters raise a `DataError` if a field is invalid.

    `header_line` is the line of the field names: the CSV's header, or the JSON object itself.
    """

    path: Path
    line: int
    header_line: int
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """Return the raw field, which must be a non-blank string."""
        value = self.optional_text(name)
        if value is None:
            raise self.error(f"an empty {name}" if name in self.fields else self._missing(name), "text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return the raw field; None if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f"{name} {shown(value)}", "a string")
        if not value.strip():
            return None
        if not value.isascii() or "\0" in value:
            self._refuse_unwritable(name, value)
        return value

    def identifier(self, name: str = "id") -> str | None:
        """Return the id as a string (an integer is accepted too); None if there is none."""
        value = self.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = self.optional_text(name)
        return None if text is None else text.strip()

    def label(self, name: str) -> int:
        """Return the label 0 or 1, given as a number or as a digit in a string."""
        label = self.optional_label(name)
        if label is None:
            raise self.error(f"an empty {name}" if name in self.fields else self._missing(name), "0 or 1")
        return label

    def optional_label(self, name: str) -> int | None:
        """Like `label`; None if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        label = binary_label(value)
        if label is None:
            raise self.error(f"{name} {shown(value)}", "0 or 1")
        return label

    def whole_number(self, name: str, default: int) -> int:
        """Return the field as an integer, 0 or more; `default` if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or value == "":
            return default
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.error(f"{name} {shown(value)}", "a whole number, 0 or more")
        return value

    def nested(self, name: str) -> Row:
        """Return a nested JSON object as a row; without fields if it is missing or null."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{name} {shown(value)}", "a JSON object")
        return dataclasses.replace(self, fields=value or {})

    def error(self, found: str, expected: str = "", *, remedy: str = "") -> DataError:
        """Build a `DataError` for this row's line."""
        return DataError(found, expected, path=self.path, line=self.line, remedy=remedy)

    def _missing(self, name: str) -> str:
        return f"no {name} among {', '.join(map(shown, self.fields)) or 'no fields at all'}"

    def _refuse_unwritable(self, name: str, value: str) -> None:
        if "\0" in value:
            raise self.error(f"a NUL character in {name}", "text", remedy="save the file as UTF-8")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start].encode("unicode_escape").decode()
            raise self.error(
                f"half a surrogate pair ({half}) in {name}", "text that UTF-8 can hold"
            ) from None


def binary_label(value: object) -> int | None:
    """Return 0 or 1 from a number or a digit in a string; None for anything else.

    >>> [binary_label(value) for value in (1, " 0 ", True, 1.0, "entailment")]
    [1, 0, None, None, None]
    """
    if isinstance(value, str):
        return {"0": 0, "1": 1}.get(value.strip())
    return value if type(value) is int and value in (0, 1) else None


def shown(value: object) -> str:
    """Format a value for an error message, on one line and shortened.

    >>> shown("two\\nlines"), shown(None)
    ("'two\\\\nlines'", 'null')
    """
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV with a header, of JSON lines, or of a `.json` file that holds one array.

    Raises:
        DataError: the file is missing, of an unknown format, not UTF-8, or has a row that cannot be read.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"the ending {path.suffix!r}", ".csv, .jsonl or .json", path=path)
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _csv_rows(path: Path) -> Iterator[Row]:
    names: list[str] | None = None
    line = next_line = header_line = 1
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                line, next_line = next_line, reader.line_num + 1
                if not any(cells) and len(cells) < 2:
                    continue
                if names is None:
                    names, header_line = _column_names(path, line, cells), line
                    continue
                if len(cells) != len(names):
                    raise DataError(
                        f"{len(cells)} fields",
                        f"{len(names)} as in the header",
                        path=path,
                        line=line,
                        remedy="put a text that contains a comma in double quotes",
                    )
                fields = dict(zip(names, cells, strict=True))
                yield Row(path=path, line=line, header_line=header_line, fields=fields)
        except csv.Error as error:
            raise DataError(
                f"a CSV row that cannot be read: {error}",
                path=path,
                line=next_line,
                remedy='inside a quoted text, write a double quote twice: ""',
            ) from None


def _column_names(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"the column {shown(name)} twice", "each once", path=path, line=line)
    return names


def _json_rows(path: Path) -> Iterator[Row]:
    is_array = path.suffix.lower() == ".json" and _starts_with_bracket(path)
    for line, value in _array_elements(path) if is_array else _json_lines(path):
        if not isinstance(value, dict):
            raise DataError(shown(value), "a JSON object", path=path, line=line)
        yield Row(path=path, line=line, header_line=line, fields=value)


def _starts_with_bracket(path: Path) -> bool:
    with _open_text(path, newline="\n") as file:
        return next((text.lstrip().startswith("[") for text in file if text.strip()), False)


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    # Lines end at "\n" only: U+2028 and similar characters may appear inside a JSON string.
    with _open_text(path, newline="\n") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, _parse_json(text.rstrip(), path, line)


def _array_elements(path: Path) -> Iterator[tuple[int, object]]:
    with _open_text(path, newline="\n") as file:
        text = file.read()
    num_elements = len(_parse_json(text, path, 1))
    decoder, line, position = json.JSONDecoder(), 1, 0
    for _ in range(num_elements):
        gap = re.compile(r"[\s,]*").match(text, position or text.index("[") + 1)
        start = gap.end() if gap else position
        line += text.count("\n", position, start)
        value, position = decoder.raw_decode(text, start)
        yield line, value
        line += text.count("\n", start, position)


def _parse_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found, line = f"invalid JSON: {error.msg} at column {error.colno}", line + error.lineno - 1
    except ValueError as error:
        found = f"unusable JSON: {error}"
    except RecursionError:
        found = "JSON nested too deeply"
    raise DataError(found, "one JSON object per line", path=path, line=line)


def _open_text(path: Path, *, newline: str) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline=newline)
    except FileNotFoundError:
        raise DataError("no such file", path=path, remedy=_similar_names(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def _similar_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{folder} contains {listed or 'no files'}"


def _not_utf8(path: Path) -> DataError:
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            try:
                text.decode()
            except UnicodeDecodeError as error:
                found = f"the byte 0x{text[error.start]:02x}"
                return DataError(found, "UTF-8", path=path, line=line, remedy="save the file as UTF-8")
    return DataError("bytes that are not text", "UTF-8", path=path, remedy="save the file as UTF-8")
