"""The teacher's accuracy by label and by length, with one planted fault at a time."""

from __future__ import annotations

import dataclasses

from nlicot.audit.command import run_checks
from nlicot.records import Thought
from tests.audit.planted import changed, clean, lopsided, only, section_of, thought_of


def test_a_teacher_that_misses_one_label_points_at_the_definitions() -> None:
    data = lopsided(clean())
    finding = only(data, "label definitions do not fit")
    assert finding.severity == "error"
    assert "stricter about label 1" in finding.summary
    train = [id_ for id_ in finding.ids if id_.startswith("train/")]
    assert train == [f"train/t{n}" for n in range(240) if n % 2 == 1 and n % 10 != 1]


def test_a_teacher_weak_on_both_labels_is_a_weak_teacher() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
        said = int(own.true_label or 0) if number % 10 < 6 else 1 - int(own.true_label or 0)
        return dataclasses.replace(own, predicted_label=said)

    data = changed(clean(), "train", "thoughts", plant)
    data = dataclasses.replace(data, splits=[data.splits[0]])
    finding = only(data, "weak teacher")
    assert finding.figures["accuracy"] == 0.6
    assert finding.ids == tuple(f"train/t{n}" for n in range(240) if n % 10 >= 6)


def test_longer_thoughts_that_are_wronger_are_reported_with_those_of_the_longest_quarter() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought_of(record)
        if own.correct:
            return own
        long = own.thought_process.replace("Step 2:", f"Step 2: {'on and ' * 30}")
        return dataclasses.replace(own, thought_process=long)

    data = changed(clean(), "train", "thoughts", plant)
    finding = only(data, "longer is wronger")
    wrong = {f"train/{each.id}" for each in data.splits[0].thoughts if not each.correct}
    assert {id_ for id_ in finding.ids if id_.startswith("train/")} == wrong
    bins = section_of(run_checks(data), "lengths").figures["bins"]
    assert sum(each["num"] for each in bins) == 320
