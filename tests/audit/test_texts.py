"""Thoughts, reflections, the teacher and the voice of targets, with one fault planted at a time."""

from __future__ import annotations

import dataclasses

import pytest

from nlicot.audit import AuditData, audit
from nlicot.audit.wording import added_words, betrayals, body, early_verdict, last_step, verdict
from nlicot.evaluation.metrics import GroupAccuracy, Interval
from nlicot.records import Reflection, Thought
from nlicot.report.breakdowns import Breakdown
from nlicot.report.plots import draw_breakdown
from tests.audit.planted import changed, clean, named, only


def thought(record: object) -> Thought:
    assert isinstance(record, Thought)
    return record


def reflection(record: object) -> Reflection:
    assert isinstance(record, Reflection)
    return record


def reworded(record: Thought, end: str) -> Thought:
    text = record.thought_process
    return dataclasses.replace(record, thought_process=f"{body(text)}Step 3: {end}")


# ---------------------------------------------------------------- thoughts


def test_a_thought_that_argues_for_the_other_label_is_told() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought(record)
        if number in (3, 8):
            ends = ("The hypothesis is contradicted.", "So it follows from the premise.")
            return reworded(own, ends[1 - own.predicted_label])
        ends = ("So it does not follow.", "So it clearly follows.")
        return reworded(own, ends[own.predicted_label]) if number < 60 else own

    data = changed(clean(), "train", "thoughts", plant)
    finding = only(data, "thought against its own label")
    assert (finding.severity, finding.ids) == ("warning", ("train/t3", "train/t8"))


def test_many_contradictions_are_an_error() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought(record)
        ends = ("The hypothesis does not follow.", "So it follows.")
        return reworded(own, ends[1 - own.predicted_label if number % 8 == 0 else own.predicted_label])

    finding = only(changed(clean(), "train", "thoughts", plant), "thought against its own label")
    assert finding.severity == "error"
    assert finding.ids == tuple(f"train/t{number}" for number in range(0, 240, 8))


def test_what_fits_counts_as_a_verdict_where_it_has_one_label() -> None:
    data = clean()
    zero = next(n for n, each in enumerate(data.splits[0].thoughts) if each.predicted_label == 0)

    def plant(number: int, record: object) -> Thought:
        own = thought(record)
        is_planted = own.predicted_label == 1 or number == zero
        return reworded(own, "So the hypothesis fits.") if is_planted else own

    planted = changed(data, "train", "thoughts", plant)
    assert only(planted, "thought against its own label").ids == (f"train/t{zero}",)

    def both(number: int, record: object) -> Thought:
        return reworded(thought(record), "So the hypothesis fits.")

    assert named(audit(changed(data, "train", "thoughts", both)), "thought against its own label") == []


def test_definitions_of_their_own_may_turn_a_verdict_round() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought(record)
        return reworded(own, "It does not follow, but it may be.") if own.predicted_label == 1 else own

    assert named(audit(changed(clean(), "train", "thoughts", plant)), "thought against its own label") == []


def test_an_early_verdict_is_told() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought(record)
        if number not in (5, 6):
            return own
        text = own.thought_process.replace("Step 2:", "Step 2: The hypothesis is false,")
        return dataclasses.replace(own, thought_process=text)

    finding = only(changed(clean(), "train", "thoughts", plant), "verdict before the last step")
    assert (finding.severity, finding.ids) == ("note", ("train/t5", "train/t6"))


def test_one_text_for_two_pairs_is_told() -> None:
    data = clean()
    stock = thought(data.splits[0].thoughts[0]).thought_process

    def plant(number: int, record: object) -> Thought:
        return dataclasses.replace(thought(record), thought_process=stock) if number == 9 else thought(record)

    assert only(changed(data, "train", "thoughts", plant), "one thought for several pairs").ids == (
        "train/t0",
        "train/t9",
    )


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("So the hypothesis follows.", "follows"),
        ("It cannot be inferred.", "does not follow"),
        ("Neither point is supported by the text.", "does not follow"),
        ("The generalisation goes too far to be inferred.", "does not follow"),
        ("The two do not conflict.", "fits"),
        ("The hypothesis is not in conflict and loosely fits.", "fits"),
        ("Such rules would explain it and contradict nothing.", "fits"),
        ("The claim of doing nothing conflicts with the premise.", "conflicts"),
        ("Supplying and not supplying information conflict here.", "conflicts"),
        ("A leak and no leak cannot both be true, so they conflict.", "conflicts"),
        ("They cannot both be true.", "does not follow"),
        ("So the answer is 1.", "says label 1"),
        ('"predicted_label": 0', "says label 0"),
        ("So it is not shown that he said 'it follows'.", None),
        ("The kettle is still cold.", None),
    ],
)
def test_a_verdict_is_read_from_the_last_step_where_it_is_plain(end: str, said: str | None) -> None:
    assert verdict(f"Step 1: It follows. Step 2: It conflicts. Step 3: {end}") == said


def test_a_thought_without_steps_ends_in_its_last_sentence() -> None:
    assert last_step("A dog runs. It follows.") == "It follows."
    assert body("A dog runs. It follows.") == "A dog runs. "
    assert body("It follows.") == ""


def test_the_pairs_own_words_betray_nothing() -> None:
    assert early_verdict("Step 1: She sees the label. Step 2: So.", own="The label is red.") is None
    assert betrayals("Step 1: It was the second attempt after the first attempt.", own="An attempt.") == []


# ------------------------------------------------------------- reflections


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("The true label says otherwise.", "a label that was given"),
        ("This is the label 1 case.", "a label that was given"),
        ("The initial thought missed it.", "an earlier attempt"),
        ("On reflection it holds.", "an earlier attempt"),
        ("That was wrongly read.", "an error"),
        ("The error lies in step 2.", "an error"),
    ],
)
def test_a_reflection_that_gives_itself_away_is_told(sentence: str, kind: str) -> None:
    def plant(number: int, record: object) -> Reflection:
        own = reflection(record)
        if number != 2:
            return own
        text = own.improved_thought_process.replace("Step 2:", f"{sentence} Step 2:")
        return dataclasses.replace(own, improved_thought_process=text)

    data = changed(clean(), "train", "reflections", plant)
    finding = only(data, "reflection gives itself away")
    assert finding.ids == (f"train/{data.splits[0].reflections[2].id}",)
    assert finding.figures["by_kind"] == {kind: 1}


def test_a_reflection_that_only_repeats_its_hypothesis_is_told() -> None:
    def plant(number: int, record: object) -> Reflection:
        own = reflection(record)
        if number != 1:
            return own
        text = f"Step 1: The hypothesis says: {own.hypothesis} Step 2: So {own.hypothesis}"
        return dataclasses.replace(own, improved_thought_process=text)

    data = changed(clean(), "train", "reflections", plant)
    assert only(data, "reflection repeats the hypothesis").ids == (
        f"train/{data.splits[0].reflections[1].id}",
    )
    assert added_words("The dog barks", "A dog") == {"barks"}


# ----------------------------------------------------------------- teacher


def lopsided(data: AuditData) -> AuditData:
    """A teacher that calls nearly everything 0."""

    def plant(number: int, record: object) -> Thought:
        return dataclasses.replace(thought(record), predicted_label=int(number % 10 == 1))

    return changed(data, "train", "thoughts", plant)


def test_a_teacher_that_misses_one_label_speaks_of_the_definitions() -> None:
    data = lopsided(clean())
    finding = only(data, "label definitions do not fit")
    assert finding.severity == "error"
    assert "stricter about label 1" in finding.summary
    train = [id_ for id_ in finding.ids if id_.startswith("train/")]
    assert train == [f"train/t{n}" for n in range(240) if n % 2 == 1 and n % 10 != 1]


def test_a_teacher_weak_on_both_labels_is_told_apart() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought(record)
        said = int(own.true_label or 0) if number % 10 < 6 else 1 - int(own.true_label or 0)
        return dataclasses.replace(own, predicted_label=said)

    data = changed(clean(), "train", "thoughts", plant)
    data = dataclasses.replace(data, splits=[data.splits[0]])
    finding = only(data, "weak teacher")
    assert finding.figures["accuracy"] == 0.6
    assert finding.ids == tuple(f"train/t{n}" for n in range(240) if n % 10 >= 6)


def test_longer_thoughts_that_are_wronger_are_told_with_those_of_the_longest_quarter() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought(record)
        if own.correct:
            return own
        long = own.thought_process.replace("Step 2:", f"Step 2: {'on and ' * 30}")
        return dataclasses.replace(own, thought_process=long)

    data = changed(clean(), "train", "thoughts", plant)
    finding = only(data, "longer is wronger")
    wrong = {f"train/{each.id}" for each in data.splits[0].thoughts if not each.correct}
    assert {id_ for id_ in finding.ids if id_.startswith("train/")} == wrong
    section = audit(data).section("lengths")
    assert section is not None
    bins = section.figures["bins"]
    assert sum(each["num"] for each in bins) == 320
    groups = [
        GroupAccuracy(
            name=each["name"],
            num=each["num"],
            accuracy=each["accuracy"],
            interval=Interval(low=each["low"], high=each["high"]),
        )
        for each in bins
    ]
    svg = draw_breakdown(Breakdown(title="Teacher", note="", by_run={"teacher": groups}), {"teacher": 1})
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    for each in bins:
        assert each["name"] in svg


# ------------------------------------------------------------------- voice


def test_a_source_that_gives_the_label_away_is_told_with_its_table() -> None:
    data = lopsided(clean())
    train = data.splits[0]
    wrong = [each for each in train.thoughts if not each.correct]
    from tests.audit.planted import reflections, with_targets

    train = with_targets(dataclasses.replace(train, reflections=reflections(wrong, 9)))
    data = dataclasses.replace(data, splits=[train, data.splits[1]])
    finding = only(data, "source gives the label away")
    # All 120 zeros and 24 ones were found; the 96 others are reflections, all of label 1.
    assert finding.figures["by_source"] == {"reflection": [0, 96], "thought": [120, 24]}
    assert finding.figures["accuracy"] == (96 + 120) / 240
    assert finding.severity == "error"
    assert len(finding.ids) == 216


def test_a_voice_that_gives_the_label_away_is_told_though_its_last_step_is_left_out() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought(record)
        voice = "Let us see whether" if own.predicted_label else "It is plain that"
        return dataclasses.replace(
            own, thought_process=own.thought_process.replace("Step 1:", f"Step 1: {voice}")
        )

    data = changed(clean(), "train", "thoughts", plant)
    train = dataclasses.replace(
        data.splits[0], targets=[each for each in data.splits[0].targets if each.source == "thought"]
    )
    data = dataclasses.replace(data, splits=[train, data.splits[1]])
    finding = only(data, "voice gives the label away")
    assert finding.figures["accuracy"] == 1.0
    assert len(finding.ids) == len(train.targets)


def test_a_last_step_that_tells_the_label_is_no_fault() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought(record)
        return reworded(own, "So it follows." if own.predicted_label else "So it does not follow.")

    found = audit(changed(clean(), "train", "thoughts", plant))
    assert named(found, "voice gives the label away") == []
    section = found.section("voice")
    assert section is not None and section.figures["whole"]["accuracy"] > 0.7
