from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlicot.data.rows import RecordList, read_rows, shown
from nlicot.errors import DataError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return [(row.line, row.fields) for row in read_rows(path)]


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        list(read_rows(path))
    return str(raised.value).removeprefix(f"{path}:").strip()


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_csv_reads_the_same_with_any_line_ending_and_byte_order_mark(
    tmp_path: Path, start: bytes, end: bytes
) -> None:
    path = written(tmp_path, "a.csv", start + end.join([b"a,b", b'"x, y",\xc3\xa9', b"", b"z,", b""]))
    assert rows_of(path) == [(2, {"a": "x, y", "b": "é"}), (4, {"a": "z", "b": ""})]


def test_a_csv_rows_line_is_the_physical_line_on_which_it_starts(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'a,b\n"one\ntwo\nthree",x\n\nlast,y\n')
    assert rows_of(path) == [(2, {"a": "one\ntwo\nthree", "b": "x"}), (6, {"a": "last", "b": "y"})]


@pytest.mark.parametrize("cells, count", [("x,y,z", 3), ("x", 1)], ids=["too many", "too few"])
def test_a_ragged_csv_row_is_an_error_with_its_line(tmp_path: Path, cells: str, count: int) -> None:
    path = written(tmp_path, "a.csv", f'a,b\n"1\n2",x\n{cells}\n')
    assert complaint(path) == (
        f"4: found {count} fields, expected 2 as in the header "
        "(put a text that contains a comma in double quotes)"
    )


@pytest.mark.parametrize(
    "rows, line, what",
    [
        ('x,"never closed\ny,z\n', 3, "unexpected end of data"),
        ('x,"one" two\n', 3, "',' expected after '\"'"),
        ("x," + "y" * (16 * 2**20 + 1) + "\n", 3, "field larger than field limit (16777216)"),
    ],
    ids=["unterminated quote", "text after a quote", "huge field"],
)
def test_a_csv_row_that_cannot_be_read_is_named_by_its_first_line(
    tmp_path: Path, rows: str, line: int, what: str
) -> None:
    path = written(tmp_path, "a.csv", "a,b\n1,2\n" + rows)
    assert complaint(path) == (
        f"{line}: a CSV row that cannot be read: {what} "
        '(inside a quoted text, write a double quote twice: "")'
    )


def test_a_csv_field_may_be_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "a\n" + "y" * 200_000 + "\n")
    assert rows_of(path) == [(2, {"a": "y" * 200_000})]


def test_a_repeated_column_is_an_error(tmp_path: Path) -> None:
    assert complaint(written(tmp_path, "a.csv", "\na, b,a\n1,2,3\n")) == (
        "2: found the column 'a' twice, expected each once"
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_an_error_with_their_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, b'{"a": 1}\n{"a": 2}\n{"a": "caf\xe9"}\n')
    assert complaint(path) == "3: found the byte 0xe9, expected UTF-8 (save the file as UTF-8)"


def test_json_lines_skip_blank_lines_and_keep_line_separators_inside_strings(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '\ufeff{"a": "x\u2028y"}\r\n\r\n  \n{"a": 2}\n\n')
    assert rows_of(path) == [(1, {"a": "x\u2028y"}), (4, {"a": 2})]


def test_a_json_file_may_hold_json_lines_or_one_array(tmp_path: Path) -> None:
    lines = written(tmp_path, "lines.json", '{"a": 1}\n\n{"a": 2}\n')
    array = written(tmp_path, "array.json", '\n[\n  {"a": 1,\n   "b": [{}]},\n\n  {"a": 2}, {"a": 3}\n]\n')
    assert rows_of(lines) == [(1, {"a": 1}), (3, {"a": 2})]
    assert rows_of(array) == [(3, {"a": 1, "b": [{}]}), (6, {"a": 2}), (6, {"a": 3})]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1}\n{"a": \n', "2: found invalid JSON: Expecting value at column 6, "
                              "expected one JSON object per line"),
        ("{'a': 1}\n", "1: found invalid JSON: Expecting property name enclosed in double quotes at "
                       "column 2, expected one JSON object per line"),
        ('{"a": 1}\n\n[1, 2]\n', "3: found [1, 2], expected a JSON object"),
        ("null\n", "1: found null, expected a JSON object"),
        ("[" * 100_000, "1: found JSON nested too deeply, expected one JSON object per line"),
    ],
    ids=["cut off", "single quotes", "a list", "null", "too deep"],
)  # fmt: skip
def test_a_line_that_is_not_a_json_object_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(written(tmp_path, "a.jsonl", text)) == message


def test_a_broken_array_is_an_error_on_the_broken_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[\n {"a": 1},\n {"a" 2}\n]')
    assert complaint(path) == (
        "3: found invalid JSON: Expecting ':' delimiter at column 7, expected one JSON object per line"
    )


def test_a_missing_file_suggests_similar_names(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv"):
        written(tmp_path, name, "")
    assert complaint(tmp_path / "trian.csv") == "no such file (did you mean train.csv?)"
    assert complaint(tmp_path / "pairs.jsonl") == (f"no such file ({tmp_path} contains dev.csv, train.csv)")
    nowhere = tmp_path / "nowhere"
    assert complaint(nowhere / "a.csv") == f"no such file (the folder {nowhere} does not exist either)"


def test_a_folder_and_an_unknown_ending_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    assert complaint(tmp_path / "a.csv") == "cannot be read: Is a directory"
    assert complaint(tmp_path / "a.xlsx") == "found the ending '.xlsx', expected .csv, .jsonl or .json"


def test_a_list_of_records_knows_its_lines_and_one_made_in_memory_does_not() -> None:
    records = RecordList(["a", "b"], [2, 5])
    assert records == ["a", "b"]
    assert (records.line(1), RecordList(["a", "b"]).line(1)) == (5, None)
    records.append("c")
    assert records.line(1) is None


def test_long_values_are_shown_short() -> None:
    assert shown("x" * 100) == "'" + "x" * 58 + "…"
