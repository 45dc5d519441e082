"""Read rows of CSV and JSON lines together with their line numbers.

This module knows file formats; `pairs` and `thoughts` interpret a row. Any error in a file's content is a
`DataError` with path and line.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from nlicot.errors import DataError

T = TypeVar("T")

# The csv module's default limit is 128 KiB per field; a whole document as a premise is unusual but valid.
csv.field_size_limit(16 * 2**20)


class RecordList(list[T]):
    """The records of one file, with its path and the 1-based line on which each starts."""

    def __init__(
        self, records: Iterable[T] = (), lines: Sequence[int] = (), path: Path | None = None
    ) -> None:
        super().__init__(records)
        self.lines, self.path = lines, path

    def line(self, index: int) -> int | None:
        """Return the line that a record was read from; None for records made in memory."""
        return self.lines[index] if len(self.lines) == len(self) else None

    def error(self, found: str, expected: str = "", *, index: int, remedy: str = "") -> DataError:
        """Build a `DataError` for a record's line."""
        return DataError(found, expected, path=self.path, line=self.line(index), remedy=remedy)

    def select(self, indices: Sequence[int]) -> RecordList[T]:
        """Return some of the records with their lines."""
        lines = [self.lines[index] for index in indices] if self.lines else ()
        return RecordList((self[index] for index in indices), lines, self.path)


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
        return self._required(name, self.optional_text(name), "text")

    def optional_text(self, name: str) -> str | None:
        """Return the raw field; None if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f"{name} {shown(value)}", "a string")
        if not value.strip():
            return None
        if "\0" in value:
            raise self.error(f"a NUL character in {name}", "text", remedy="save the file as UTF-8")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start].encode("unicode_escape").decode()
            found = f"half a surrogate pair ({half}) in {name}"
            raise self.error(found, "text that UTF-8 can hold") from None
        return value

    def identifier(self) -> str | None:
        """Return the id as a string (an integer is accepted too); None if there is none."""
        value = self.fields.get("id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = self.optional_text("id")
        return None if text is None else text.strip()

    def label(self, name: str) -> int:
        """Return the label 0 or 1, given as a number or as a digit in a string."""
        return self._required(name, self.optional_label(name), "0 or 1")

    def optional_label(self, name: str) -> int | None:
        """Like `label`; None if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        label = binary_label(value)
        if label is None:
            raise self.error(f"{name} {shown(value)}", "0 or 1")
        return label

    def whole_number(self, name: str) -> int:
        """Return the field as an integer, 0 or more; 0 if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or value == "":
            return 0
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

    def _required(self, name: str, value: T | None, expected: str) -> T:
        if value is not None:
            return value
        among = ", ".join(map(shown, self.fields)) or "no fields at all"
        raise self.error(f"an empty {name}" if name in self.fields else f"no {name} among {among}", expected)


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


def read_records(path: Path, record_from: Callable[[Row], T], *, each: str = "") -> RecordList[T]:
    """Read each row of a file as a record; with `each`, the name of a record, the file must have rows."""
    rows = [(record_from(row), row.line) for row in read_rows(path)]
    if each and not rows:
        raise DataError("no rows", f"a row for each {each}", path=path)
    return RecordList((record for record, _ in rows), [line for _, line in rows], path)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV with a header, of JSON lines, or of a `.json` file that holds one array."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"the ending {path.suffix!r}", ".csv, .jsonl or .json", path=path)
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _csv_rows(path: Path) -> Iterator[Row]:
    names: list[str] = []
    line = next_line = header_line = 1
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                line, next_line = next_line, reader.line_num + 1
                if not any(cells) and len(cells) < 2:
                    continue
                if not names:
                    names, header_line = [cell.strip() for cell in cells], line
                    if twice := [name for name in names if name and names.count(name) > 1]:
                        raise DataError(
                            f"the column {shown(twice[0])} twice", "each once", path=path, line=line
                        )
                    continue
                if len(cells) != len(names):
                    found, expected = f"{len(cells)} fields", f"{len(names)} as in the header"
                    remedy = "put a text that contains a comma in double quotes"
                    raise DataError(found, expected, path=path, line=line, remedy=remedy)
                fields = dict(zip(names, cells, strict=True))
                yield Row(path=path, line=line, header_line=header_line, fields=fields)
        except csv.Error as error:
            advice = 'inside a quoted text, write a double quote twice: ""'
            problem = f"a CSV row that cannot be read: {error}"
            raise DataError(problem, path=path, line=next_line, remedy=advice) from None


def _json_rows(path: Path) -> Iterator[Row]:
    # Lines end at "\n" only: U+2028 and similar characters may appear inside a JSON string.
    with _open_text(path, newline="\n") as file:
        if path.suffix.lower() == ".json" and (content := file.read()).lstrip().startswith("["):
            values = _array_elements(content, path)
        else:
            file.seek(0)
            texts = ((line, text.rstrip()) for line, text in enumerate(file, start=1) if text.strip())
            values = ((line, _parse_json(text, path, line)) for line, text in texts)
        for line, value in values:
            if not isinstance(value, dict):
                raise DataError(shown(value), "a JSON object", path=path, line=line)
            yield Row(path=path, line=line, header_line=line, fields=value)


def _array_elements(text: str, path: Path) -> Iterator[tuple[int, object]]:
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
    if near := difflib.get_close_matches(path.name, names, n=3):
        return f"did you mean {' or '.join(near)}?"
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{folder} contains {listed or 'no files'}"


def _not_utf8(path: Path) -> DataError:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        found, line = f"the byte 0x{content[error.start]:02x}", content.count(b"\n", 0, error.start) + 1
        return DataError(found, "UTF-8", path=path, line=line, remedy="save the file as UTF-8")
    raise AssertionError(path)
