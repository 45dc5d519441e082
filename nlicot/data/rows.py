"""Read rows of CSV, JSON lines, Parquet and XML together with their line numbers.

This module knows file formats; `pairs` and `thoughts` interpret a row. Any error in a file's content is a
`DataError` with path and line.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import difflib
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar
from xml.parsers import expat

from nlicot.errors import DataError

logger = logging.getLogger(__name__)
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

    `header_line` is the line of the field names: the CSV's header, or the JSON object itself. The lines of a
    Parquet or Arrow file are its rows, counted from 1.
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
        """Return the id as a string, a JSON number as it is written (7, 7.0); None if there is none."""
        value = self.fields.get("id")
        if type(value) is int or (type(value) is float and value.is_integer()):
            return str(value)
        text = self.optional_text("id")
        return None if text is None else text.strip()

    def label(self, name: str) -> int:
        """Return the label 0 or 1 (see `binary_label`)."""
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

    def probability(self, name: str) -> float | None:
        """Return a number from 0 to 1, or one in a string; None if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            p = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            p = math.nan
        if not 0 <= p <= 1:
            raise self.error(f"{name} {shown(value)}", "a probability of entailment from 0 to 1")
        return p

    def whole_number(self, name: str) -> int:
        """Return the field as an integer, 0 or more; 0 if it is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or value == "":
            return 0
        # pandas and some servers write 4.0 for 4
        if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.0)?", value):
            return int(value.removesuffix(".0"))
        if type(value) not in (int, float) or not value >= 0 or value % 1:
            raise self.error(f"{name} {shown(value)}", "a whole number, 0 or more")
        return int(value)

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
    """Return 0 or 1 from a number, true or false, or one of these in a string; None for anything else.

    pandas writes 1.0 for a column of numbers that has a gap, and True for one of booleans.

    >>> [binary_label(value) for value in (1, " 0 ", True, "1.0", "False", 0.5, 2, "yes")]
    [1, 0, 1, 1, 0, None, None, None]
    """
    if isinstance(value, str):
        return _LABEL_TEXTS.get(value.strip().lower())
    return int(value) if isinstance(value, int | float) and value in (0, 1) else None


_LABEL_TEXTS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def shown(value: object) -> str:
    """Format a value for an error message, on one line and shortened.

    >>> shown("two\\nlines"), shown(None)
    ("'two\\\\nlines'", 'null')
    """
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_records(
    path: Path,
    record_from: Callable[[Row], T | None],
    *,
    each: str = "",
    delimiter: str | None = None,
    rows: Iterable[Row] | None = None,
) -> RecordList[T]:
    """Read each row of a file as a record, except those for which `record_from` returns None.

    With `each`, the name of a record, the file must have rows. `rows` are those of a table that is not a
    file; `path` is its name then.
    """
    records: list[T] = []
    lines: list[int] = []
    row: Row | None = None
    for row in read_rows(path, delimiter=delimiter) if rows is None else rows:
        if (record := record_from(row)) is not None:
            records.append(record)
            lines.append(row.line)
    if each and row is None:
        raise DataError("no rows", f"a row for each {each}", path=path)
    return RecordList(records, lines, path)


def read_rows(path: Path, *, delimiter: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file, in the format that its ending names (see `READERS`), with or without `.gz`.

    Args:
        path: the file.
        delimiter: between the columns of a CSV, instead of a comma (a tab for `.tsv` and `.txt`).
    """
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in READERS:
        raise DataError(f"the ending {ending!r}", f"{', '.join(READERS)} (or these with .gz)", path=path)
    try:
        with _decoding(path):
            if READERS[ending] is _csv_rows:
                has_quotes = ending == ".csv" or delimiter not in (None, "\t")
                yield from _csv_rows(path, delimiter or ("," if ending == ".csv" else "\t"), has_quotes)
            else:
                if delimiter:
                    logger.info("%s: has no delimiter, so --delimiter is not used", path)
                yield from READERS[ending](path)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError("not a gzip file, or one that is cut off", path=path) from None


def _csv_rows(path: Path, delimiter: str, has_quotes: bool) -> Iterator[Row]:
    """Yield the rows after a header; without quotes (GLUE's files), every character is part of a text."""
    header: list[str] = []
    names: list[str] = []
    line = next_line = header_line = 1
    spans: list[tuple[int, int]] = []
    with _open_text(path, newline="") as file:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for cells in reader:
                line, next_line = next_line, reader.line_num + 1
                if not any(cells) and len(cells) < 2:
                    continue
                if not names and re.fullmatch("sep=.", delimiter.join(cells), re.IGNORECASE):
                    continue  # a spreadsheet's line for other spreadsheets
                if not names:
                    header, names, header_line = cells, [cell.strip() for cell in cells], line
                    _refuse_repeats(names, path, line)
                    continue
                if len(cells) != len(names):
                    found, expected = f"{len(cells)} fields", f"{len(names)} as in the header"
                    remedy = other_delimiter(names) or (
                        f"put a text that contains a {_CHARACTERS.get(delimiter, delimiter)} in double quotes"
                        if has_quotes
                        else "a text cannot contain a tab or a line break here"
                    )
                    raise DataError(found, expected, path=path, line=line, remedy=remedy)
                if cells[-1] == header[-1] and [cells[0].lstrip("\ufeff"), *cells[1:]] == header:
                    joined = "were two files joined? Delete this line"
                    raise DataError("the header again", "a row", path=path, line=line, remedy=joined)
                if next_line - line > 1:
                    spans.append((line, next_line - 1))
                fields = dict(zip(names, cells, strict=True))
                yield Row(path=path, line=line, header_line=header_line, fields=fields)
        except csv.Error as error:
            advice = 'inside a quoted text, write a double quote twice: ""'
            problem = f"a CSV row that cannot be read: {error}"
            raise DataError(problem, path=path, line=next_line, remedy=advice) from None
    if spans:  # valid, but also what two stray quotes make of the rows between them
        others = f", and {len(spans) - 1} more over several lines" if len(spans) > 1 else ""
        logger.info("%s: a text runs over lines %d to %d%s", path, *spans[0], others)


def _refuse_repeats(names: Sequence[str], path: Path, line: int) -> None:
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"the column {shown(twice[0])} twice", "each once", path=path, line=line)


_CHARACTERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def other_delimiter(names: Sequence[str]) -> str:
    """Return advice if a header of one column shows that the file has another delimiter; else nothing.

    >>> other_delimiter(["premise;hypothesis"])
    'the delimiter seems to be a semicolon: read it with --delimiter ";"'
    """
    mark = next((mark for mark in ";\t|," if mark in names[0]), "") if len(names) == 1 else ""
    named = _CHARACTERS.get(mark, mark)
    flag = "tab" if mark == "\t" else f'"{mark}"'
    return f"the delimiter seems to be a {named}: read it with --delimiter {flag}" if mark else ""


def _json_rows(path: Path) -> Iterator[Row]:
    # Lines end at "\n" only: U+2028 and similar characters may appear inside a JSON string.
    with _open_text(path, newline="\n") as file:
        is_lines = path.name.removesuffix(".gz").lower().endswith(".jsonl")
        if not is_lines and (content := file.read()).lstrip().startswith("["):
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
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        found, line = f"invalid JSON: {error.msg} at column {error.colno}", line + error.lineno - 1
    except ValueError as error:
        is_long = "set_int_max_str_digits" in str(error)
        found = f"unusable JSON: {'a number of more than 4300 digits' if is_long else error}"
    except RecursionError:
        found = "JSON nested too deeply"
    raise DataError(found, "one JSON object per line", path=path, line=line)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # json would take the last one
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {shown(next(name for name in names if names.count(name) > 1))} twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _table_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet or Arrow file; class labels of `datasets` are read by their names.

    The names decide: 0 is `entailment` in most of these files.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    with _open_bytes(path) as file:
        try:
            if path.name.lower().endswith((".parquet", ".parquet.gz")):
                table = parquet.ParquetFile(file)
                schema, batches = table.schema_arrow, table.iter_batches()
            else:
                is_file = file.peek(6).startswith(b"ARROW1")
                table = (ipc.open_file if is_file else ipc.open_stream)(file).read_all()
                schema, batches = table.schema, table.to_batches()
            _refuse_repeats(schema.names, path, 1)  # a dict would have the last one
            names = _class_names(schema.metadata or {})
            number = 0
            for batch in batches:
                batch.validate(full=True)  # reading a damaged Arrow file would end the process by SIGSEGV
                for fields in batch.to_pylist():
                    number += 1
                    for column, classes in names.items():
                        if isinstance(value := fields.get(column), int) and 0 <= value < len(classes):
                            fields[column] = classes[value]
                    yield Row(path=path, line=number, header_line=1, fields=fields)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(f"cannot be read as Parquet or Arrow: {reason}", path=path) from None


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        of_dict = {name: each for name, each in features.items() if isinstance(each, dict)}  # others: lists
        return {name: each["names"] for name, each in of_dict.items() if each.get("_type") == "ClassLabel"}
    return {}


def _xml_rows(path: Path) -> Iterator[Row]:
    """Yield each `<pair id entailment|value task><t>..</t><h>..</h></pair>` of an RTE challenge's file."""
    columns = {"t": "premise", "h": "hypothesis", "value": "label", "entailment": "label"}
    rows: list[Row] = []
    texts: list[str] = []
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag in ("t", "h"):
            texts.clear()
        elif tag == "pair":
            fields = {columns.get(name, name): value for name, value in attributes.items()}
            line = parser.CurrentLineNumber
            rows.append(Row(path=path, line=line, header_line=line, fields=fields))

    def end(tag: str) -> None:
        if tag in ("t", "h") and rows:
            rows[-1].fields[columns[tag]] = "".join(texts).strip()

    def refuse(name: str, *_: object) -> None:  # entities can name other files, or grow without end
        found, line = f"a declaration of the entity {shown(name)}", parser.CurrentLineNumber
        raise DataError(found, "none", path=path, line=line, remedy="write its text instead")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = texts.append, refuse
    with _open_bytes(path) as file:
        try:
            parser.ParseFile(file)
        except expat.ExpatError as error:
            found = f"invalid XML: {expat.ErrorString(error.code)}"
            raise DataError(found, "<pair> elements", path=path, line=error.lineno) from None
        except (ValueError, LookupError) as error:  # of the encoding that the file declares
            raise DataError(f"cannot be read as XML: {error}; save it as UTF-8", path=path) from None
    yield from rows


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".tsv": _csv_rows,
    ".txt": _csv_rows,
    ".parquet": _table_rows,
    ".arrow": _table_rows,
    ".xml": _xml_rows,
}
"""The reader of each format, by the ending of its files."""


def _open_bytes(path: Path) -> io.BufferedReader | gzip.GzipFile:
    try:
        if path.name.endswith(".gz"):
            return gzip.open(path)
        file = path.open("rb")
        if file.peek(2)[:2] != b"\x1f\x8b":
            return file
        file.close()
        raise DataError(
            "a gzip file", "one whose name ends in .gz", path=path, remedy=f"name it {path.name}.gz"
        )
    except FileNotFoundError:
        raise DataError("no such file", path=path, remedy=_similar_names(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def _open_text(path: Path, *, newline: str) -> TextIO:
    file = _open_bytes(path)
    start = file.peek(2)[:2]
    if b"\0" in start or start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        file.close()
        raise DataError("UTF-16", "UTF-8", path=path, remedy="save the file as UTF-8")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _similar_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        made = "; `python -m nlicot split PAIRS.csv` makes one" if folder.name == "original_data" else ""
        return f"the folder {folder} does not exist either{made}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if near := difflib.get_close_matches(path.name, names, n=3):
        return f"did you mean {' or '.join(near)}?"
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{folder} contains {listed or 'no files'}"


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Refuse a file that is not UTF-8 by its first line that is not."""
    try:
        yield
    except UnicodeDecodeError:
        with _open_bytes(path) as file:
            content = file.read()  # of a damaged gzip file: raises another error
        try:
            content.decode()
        except UnicodeDecodeError as error:
            found, line = f"the byte 0x{content[error.start]:02x}", content.count(b"\n", 0, error.start) + 1
            raise DataError(found, "UTF-8", path=path, line=line, remedy="save the file as UTF-8") from None
        raise
