"""The project's text is plain English, with few words of the old dialect; the check finds them."""

from __future__ import annotations

import pytest

from tests.language.check import (
    LIMIT,
    OPENINGS_LIMIT,
    all_texts,
    bad_openings,
    count_words,
    hits_in,
    texts_of,
)


def rules(path: str, content: str) -> list[tuple[int, str]]:
    return [(hit.line, hit.rule) for text in texts_of(path, content) for hit in hits_in(text)]


def test_the_project_keeps_to_the_limit() -> None:
    texts = all_texts()
    hits = [hit for text in texts for hit in hits_in(text)]
    rate = 1000 * len(hits) / count_words(texts)
    assert rate <= LIMIT, "\n".join(map(str, hits))


def test_docstrings_name_the_thing() -> None:
    openings = bad_openings(all_texts())
    assert len(openings) <= OPENINGS_LIMIT, "\n".join(map(str, openings))


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("a.md", "The label\nalone is read.\n", [(2, "alone (for only)")]),
        ("a.md", "```sh\nrun alone\n```\nIt says `told`.\n", []),
        ("a.md", "It is used. Where it fails, stop.\n", [(1, "where (for if)")]),
        ("a.md", "There is no file, and it is no longer needed.\n", []),
        ("a.yaml", "key: lies  # a value\n# it lies here\n", [(2, "lie (for be)")]),
        ("a.py", '"""It stands here."""\n', [(1, "stand (for be)")]),
        ("a.py", '"""A name stands for a value."""\n', []),
        ("a.py", 'x = f"{y} must be made anew"\n', [(1, "anew")]),
        ("a.py", "# kept so\n# many times\nx = 1\n", [(1, "so many")]),
        ("tests/a.py", 'PREMISE = "Nobody shall pass alone."\n', []),
        ("tests/a.py", "def test_it_is_told() -> None: ...\n", [(1, "tell (for report)")]),
    ],
)
def test_hits_are_found_in_prose_only(path: str, content: str, expected: list[tuple[int, str]]) -> None:
    assert rules(path, content) == expected


def test_only_a_docstring_may_not_open_with_what() -> None:
    content = (
        '"""Whether it is so."""\n\n# What follows is fine\n\n\ndef run() -> None:\n    """What it does."""\n'
    )
    assert [hit.line for hit in bad_openings(list(texts_of("a.py", content)))] == [1, 7]
