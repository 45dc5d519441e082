"""Data without a planted fault: every check looks, and nothing is found."""

from __future__ import annotations

from nlicot.audit.command import run_checks
from nlicot.audit.inputs import AuditData, SplitData
from nlicot.records import Example
from tests.audit.planted import clean


def test_nothing_is_found_in_clean_data() -> None:
    found = run_checks(clean())
    assert [finding.name for finding in found.findings] == []
    assert found.exit_code == 0


def test_every_check_has_a_section() -> None:
    assert [section.name for section in run_checks(clean()).sections] == [
        "counts",
        "duplicates",
        "prompt_examples",
        "hypotheses",
        "teacher",
        "lengths",
        "voice",
    ]


def test_a_single_unlabelled_pair_is_enough() -> None:
    pair = Example(id="a", premise="A dog.", hypothesis="A cat.")
    found = run_checks(AuditData(splits=[SplitData(name="test", examples=[pair])]))
    assert found.findings == ()
    assert [section.name for section in found.sections] == ["counts", "duplicates"]


def test_texts_without_a_word_are_not_near_duplicates_of_others() -> None:
    pairs = [
        Example(id="a", premise="!!!", hypothesis="...", label=1),
        Example(id="b", premise="A dog sleeps.", hypothesis="\U0001f436", label=0),
        Example(id="c", premise="A cat sleeps.", hypothesis="\u2028", label=0),
    ]
    assert run_checks(AuditData(splits=[SplitData(name="train", examples=pairs)])).findings == ()
