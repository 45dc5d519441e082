from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nlicot.data import rows
from nlicot.data.rows import RecordList, Row, read_rows, shown
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
    root = nowhere / "original_data"
    assert complaint(root / "train.csv").endswith("either; `python -m nlicot split PAIRS.csv` makes one)")


def test_a_folder_and_an_unknown_ending_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    assert complaint(tmp_path / "a.csv") == "cannot be read: Is a directory"
    assert complaint(tmp_path / "a.xlsx") == (
        "found the ending '.xlsx', expected .csv, .jsonl, .json, .tsv, .txt, .parquet, .arrow, .xml "
        "(or these with .gz)"
    )


def test_a_list_of_records_knows_its_lines_and_one_made_in_memory_does_not() -> None:
    records = RecordList(["a", "b"], [2, 5])
    assert records == ["a", "b"]
    assert (records.line(1), RecordList(["a", "b"]).line(1)) == (5, None)
    records.append("c")
    assert records.line(1) is None


def test_long_values_are_shown_short() -> None:
    assert shown("x" * 100) == "'" + "x" * 58 + "…"


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    content = 'a\tb\n"x, y\t"z"\n\n1\t2\r\n'
    expected = [(2, {"a": '"x, y', "b": '"z"'}), (4, {"a": "1", "b": "2"})]
    assert rows_of(written(tmp_path, "a.tsv", content)) == expected
    assert rows_of(written(tmp_path, "a.txt", content)) == expected
    assert complaint(written(tmp_path, "a.tsv", "a\tb\n1\n")) == (
        "2: found 1 fields, expected 2 as in the header (a text cannot contain a tab or a line break here)"
    )


@pytest.mark.parametrize(
    "name, content",
    [("a.csv", b'a,b\n"x",1\n'), ("a.tsv", b"a\tb\nx\t1\n"), ("a.jsonl", b'{"a": "x", "b": "1"}\n')],
)
def test_compressed_files_are_read_as_plain_ones(tmp_path: Path, name: str, content: bytes) -> None:
    plain = written(tmp_path, name, content)
    compressed = written(tmp_path, f"{name}.gz", gzip.compress(content))
    assert rows_of(compressed) == rows_of(plain)
    assert [fields for _, fields in rows_of(plain)] == [{"a": "x", "b": "1"}]
    cut_off = written(tmp_path, f"cut-{name}.gz", gzip.compress(content)[:-9])
    assert complaint(cut_off) == "not a gzip file, or one that is cut off"
    broken = written(tmp_path, f"broken-{name}.gz", gzip.compress(content + b"\xff\n"))
    assert complaint(broken).endswith("found the byte 0xff, expected UTF-8 (save the file as UTF-8)")


def test_parquet_and_arrow_rows_are_numbered_and_class_labels_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["entailment", "not_entailment"])
    made = datasets.Dataset.from_dict({"a": ["x", None, "z"], "n": [7, 8, 9], "label": [0, 1, -1]})
    made = made.cast_column("label", labels)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    (saved,) = (tmp_path / "saved").glob("*.arrow")
    table = made.data.table
    import pyarrow

    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    expected = [
        (1, {"a": "x", "n": 7, "label": "entailment"}),
        (2, {"a": None, "n": 8, "label": "not_entailment"}),
        (3, {"a": "z", "n": 9, "label": -1}),
    ]
    for path in (tmp_path / "a.parquet", saved, tmp_path / "file.arrow"):
        assert rows_of(path) == expected


def test_a_column_of_lists_leaves_the_names_of_the_classes(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    features = {
        "label": {"_type": "ClassLabel", "names": ["entailment", "not_entailment"]},
        "annotators": [{"dtype": "string", "_type": "Value"}],
    }
    table = pyarrow.table({"label": [0, 1], "annotators": [["a"], []]})
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(about), tmp_path / "a.parquet")
    assert [fields["label"] for _, fields in rows_of(tmp_path / "a.parquet")] == [
        "entailment",
        "not_entailment",
    ]


@pytest.mark.parametrize("encoding", ["Shift_JIS", "none-such"])
def test_xml_in_an_encoding_that_cannot_be_read_is_refused(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "a.xml", f'<?xml version="1.0" encoding="{encoding}"?>\n<a/>')
    assert complaint(path).startswith("cannot be read as XML: ")
    assert complaint(path).endswith("; save it as UTF-8")


def test_parquet_without_class_labels_keeps_its_numbers(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"label": [1.0, None]}), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [(1, {"label": 1.0}), (2, {"label": None})]
    twice = pyarrow.table([pyarrow.array([1]), pyarrow.array([0])], names=["label", "label"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    assert complaint(tmp_path / "b.parquet") == "1: found the column 'label' twice, expected each once"


def test_pairs_of_xml_are_rows(tmp_path: Path) -> None:
    head = '<?xml version="1.0"?>\n<!DOCTYPE entailment-corpus SYSTEM "rte.dtd">\n<entailment-corpus>\n'
    pair = '<pair id="1" value="TRUE" task="IR">\n  <t> A &amp; <b>B</b> </t><h>C</h>\n</pair>\n'
    path = written(tmp_path, "a.xml", f"{head}{pair}</entailment-corpus>")
    fields = {"id": "1", "label": "TRUE", "task": "IR", "premise": "A & B", "hypothesis": "C"}
    assert rows_of(path) == [(4, fields)]


@pytest.mark.parametrize(
    "declaration", ['<!ENTITY a "b">', '<!ENTITY a SYSTEM "file:///etc/hostname">', '<!ENTITY % a "b">']
)
def test_xml_with_entities_of_its_own_is_refused(tmp_path: Path, declaration: str) -> None:
    path = written(tmp_path, "a.xml", f"<!DOCTYPE a [\n{declaration}]>\n<a><pair><t>&a;</t></pair></a>")
    assert (
        complaint(path) == "2: found a declaration of the entity 'a', expected none (write its text instead)"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_utf16_is_refused_by_its_name(tmp_path: Path, name: str, encoding: str) -> None:
    path = written(tmp_path, name, '{"a": 1}'.encode(encoding))
    assert complaint(path) == "found UTF-16, expected UTF-8 (save the file as UTF-8)"


def test_a_repeated_header_is_an_error_with_its_line(tmp_path: Path) -> None:
    message = "4: found the header again, expected a row (were two files joined? Delete this line)"
    for second in ("a, b", "\ufeffa, b"):
        path = written(tmp_path, "a.csv", f'a, b\n1,"2\n3"\n{second}\n4,5\n')
        assert complaint(path) == message
    assert rows_of(written(tmp_path, "a.csv", "a,b\na,c\nc,b\n")) == [
        (2, {"a": "a", "b": "c"}),
        (3, {"a": "c", "b": "b"}),
    ]


@pytest.mark.parametrize("more, rest", [("", ""), ('"x\ny",0\n', ", and 1 more over several lines")])
def test_texts_over_several_lines_are_read_to_the_letter_and_logged_once(
    tmp_path: Path, more: str, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "a.csv", f'a,b\n1,1\n"He left.,1\nShe came.,0\nShe said",0\n2,0\n{more}')
    with caplog.at_level(logging.INFO, logger=rows.__name__):
        assert rows_of(path)[1] == (3, {"a": "He left.,1\nShe came.,0\nShe said", "b": "0"})
    assert caplog.messages == [f"{path}: a text runs over lines 3 to 5{rest}"]


def test_a_json_field_that_appears_twice_is_an_error(tmp_path: Path) -> None:
    message = "found unusable JSON: the field 'label' twice, expected one JSON object per line"
    assert (
        complaint(written(tmp_path, "a.jsonl", '{"label": 1}\n{"label": 1, "a": 2, "label": 0}\n'))
        == f"2: {message}"
    )
    assert complaint(written(tmp_path, "a.json", '[{"label": 1, "label": 0}]')) == f"1: {message}"


@pytest.mark.parametrize("value, number", [(4, 4), (4.0, 4), ("4", 4), ("4.0", 4), ("", 0), (None, 0)])
def test_whole_numbers_may_be_written_as_floats(tmp_path: Path, value: object, number: int) -> None:
    row = Row(path=tmp_path, line=1, header_line=1, fields={"score": value})
    assert row.whole_number("score") == number


@pytest.mark.parametrize("value", [4.5, "4.5", -1, "-1", True, "four", float("nan"), float("inf"), [4]])
def test_other_values_are_not_whole_numbers(tmp_path: Path, value: object) -> None:
    row = Row(path=tmp_path, line=1, header_line=1, fields={"score": value})
    with pytest.raises(DataError, match="expected a whole number, 0 or more"):
        row.whole_number("score")


@pytest.mark.parametrize("start, delimiter", [("sep=;", None), ("\ufeffSEP=,", None), ("sep=;", ";")])
def test_a_spreadsheets_line_about_its_separator_is_skipped(
    tmp_path: Path, start: str, delimiter: str | None
) -> None:
    mark = delimiter or ","
    path = written(tmp_path, "a.csv", f"{start}\na{mark}b\n1{mark}2\nsep=x{mark}3\n")
    found = [(row.line, row.header_line, row.fields) for row in read_rows(path, delimiter=delimiter)]
    assert found == [(3, 2, {"a": "1", "b": "2"}), (4, 2, {"a": "sep=x", "b": "3"})]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.xml"])
def test_a_gzip_file_of_another_name_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert complaint(path) == f"found a gzip file, expected one whose name ends in .gz (name it {name}.gz)"


def test_a_number_too_long_for_python_is_an_error(tmp_path: Path) -> None:
    assert complaint(written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}\n")) == (
        "2: found unusable JSON: a number of more than 4300 digits, expected one JSON object per line"
    )


def test_a_delimiter_for_a_format_without_one_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n')
    with caplog.at_level(logging.INFO, logger=rows.__name__):
        assert [row.fields for row in read_rows(path, delimiter=";")] == [{"a": 1}]
    assert caplog.messages == [f"{path}: has no delimiter, so --delimiter is not used"]
