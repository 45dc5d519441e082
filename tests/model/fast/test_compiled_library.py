"""A library is compiled once, again for other arguments, and a compiler's complaint is one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nlicot.model.fast.compiled_library import compiled_library

COMPILER = shutil.which("cc") or ""
pytestmark = pytest.mark.skipif(not COMPILER, reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "number.c"
    path.write_text("int number(void) { return NUMBER; }\n", encoding="utf-8")
    return path


def commands(source: Path, number: int) -> Callable[[Path], list[list[str]]]:
    return lambda library: [["-shared", "-fPIC", f"-DNUMBER={number}", str(source), "-o", str(library)]]


def test_a_library_is_compiled_once_for_the_same_arguments(source: Path) -> None:
    for number in (3, 3, 4):
        library = compiled_library("number", source, commands(source, number), compiler=COMPILER)
        assert library.number() == number
    assert len(list((source.parent / "cache" / "kernels").glob("number-*"))) == 2


def test_a_complaint_of_the_compiler_is_one_line(source: Path) -> None:
    source.write_text("int number(void) { return }\n", encoding="utf-8")
    with pytest.raises(OSError, match=r"number\.c:1:.*error") as refused:
        compiled_library("number", source, commands(source, 3), compiler=COMPILER)
    assert "\n" not in str(refused.value)
    assert not list((source.parent / "cache" / "kernels").glob("number-*"))


def test_a_missing_compiler_is_an_os_error(source: Path) -> None:
    with pytest.raises(OSError, match="no-such-compiler"):
        compiled_library("number", source, commands(source, 3), compiler="no-such-compiler")
