"""The teacher's accuracy by label and by length, with one planted fault at a time."""

from __future__ import annotations

import dataclasses

from nlicot.audit.command import run_checks
from nlicot.audit.inputs import AuditData
from nlicot.data.pairs import LabelMap
from nlicot.records import Thought
from tests.audit.planted import changed, clean, lopsided, only, section_of, thought_of


def test_a_teacher_that_misses_one_label_points_at_the_definitions() -> None:
    data = lopsided(clean())
    finding = only(data, "label definitions do not fit")
    assert finding.severity == "error"
    assert "stricter about label 1" in finding.summary
    train = [id_ for id_ in finding.ids if id_.startswith("train/")]
    assert train == [f"train/t{n}" for n in range(240) if n % 2 == 1 and n % 10 != 1]


def with_labels_exchanged(data: AuditData, *names: str) -> AuditData:
    def plant(_: int, record: object) -> Thought:
        own = thought_of(record)
        return dataclasses.replace(own, true_label=1 - int(own.true_label or 0))

    for name in names:
        data = changed(data, name, "thoughts", plant)
    return data


def test_a_teacher_below_chance_on_both_labels_points_at_the_label_map() -> None:
    data = with_labels_exchanged(clean(), "train", "dev")
    finding = only(dataclasses.replace(data, label_map=LabelMap(yes=0, no=1)), "labels look reversed")
    num_right = sum(thought.correct for split in data.splits for thought in split.thoughts)
    assert finding.severity == "error"
    assert finding.advice == (
        "read the pairs in the table above; with --label_map yes=1,no=0 in every command the teacher is "
        f"right on {100 * (1 - num_right / 320):.1f} %"
    )
    assert len(finding.ids) == 320 - num_right
    (table,) = [each for each in section_of(run_checks(data), "teacher").tables if "reversed" in each.title]
    assert [row[1:3] for row in table.rows] == [
        ("1 (entailment)", "0 (no entailment)"),
        ("0 (no entailment)", "1 (entailment)"),
    ]
    names = {each.name for each in run_checks(data).findings}
    assert not names & {"weak teacher", "label definitions do not fit"}


def test_reversed_labels_under_other_definitions_are_reported_too() -> None:
    data = with_labels_exchanged(lopsided(clean()), "train")
    finding = only(dataclasses.replace(data, splits=data.splits[:1]), "label definitions do not fit")
    assert finding.advice.endswith(
        "labels may be reversed too: with --label_map 0=1,1=0 in every command the teacher is right on 60.0 %"
    )


def test_labels_that_are_reversed_in_one_split_only_are_to_be_changed_there() -> None:
    finding = only(with_labels_exchanged(clean(), "dev"), "labels look reversed")
    assert finding.summary.startswith("in dev the teacher finds ")
    assert finding.advice == (
        "read the pairs in the table above; exchange 0 and 1 in the labels of dev: other splits' labels fit"
    )
    assert {id_.partition("/")[0] for id_ in finding.ids} == {"dev"}


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
