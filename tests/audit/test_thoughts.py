"""Thoughts and reflections with one planted fault at a time."""

from __future__ import annotations

import dataclasses

import pytest

from nlicot.audit.checks import run_checks
from nlicot.audit.thoughts import (
    added_words,
    early_verdict,
    last_step,
    reflection_phrases,
    verdict,
    without_last_step,
)
from nlicot.records import Reflection, Thought
from tests.audit.planted import changed, clean, named, only, reflection_of, reworded, thought_of


def test_a_thought_that_argues_for_the_other_label_is_found() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
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
        own = thought_of(record)
        ends = ("The hypothesis does not follow.", "So it follows.")
        return reworded(own, ends[1 - own.predicted_label if number % 8 == 0 else own.predicted_label])

    finding = only(changed(clean(), "train", "thoughts", plant), "thought against its own label")
    assert finding.severity == "error"
    assert finding.ids == tuple(f"train/t{number}" for number in range(0, 240, 8))


def test_fits_counts_as_a_verdict_if_it_has_one_label() -> None:
    data = clean()
    zero = next(n for n, each in enumerate(data.splits[0].thoughts) if each.predicted_label == 0)

    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
        is_planted = own.predicted_label == 1 or number == zero
        return reworded(own, "So the hypothesis fits.") if is_planted else own

    planted = changed(data, "train", "thoughts", plant)
    assert only(planted, "thought against its own label").ids == (f"train/t{zero}",)

    def both(number: int, record: object) -> Thought:
        return reworded(thought_of(record), "So the hypothesis fits.")

    assert named(run_checks(changed(data, "train", "thoughts", both)), "thought against its own label") == []


def test_unusual_definitions_may_reverse_the_meaning_of_a_verdict() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought_of(record)
        return reworded(own, "It does not follow, but it may be.") if own.predicted_label == 1 else own

    assert (
        named(run_checks(changed(clean(), "train", "thoughts", plant)), "thought against its own label") == []
    )


def test_an_early_verdict_is_found() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
        if number not in (5, 6):
            return own
        text = own.thought_process.replace("Step 2:", "Step 2: The hypothesis is false,")
        return dataclasses.replace(own, thought_process=text)

    finding = only(changed(clean(), "train", "thoughts", plant), "verdict before the last step")
    assert (finding.severity, finding.ids) == ("note", ("train/t5", "train/t6"))


def test_one_text_for_two_pairs_is_found() -> None:
    data = clean()
    stock = thought_of(data.splits[0].thoughts[0]).thought_process

    def plant(number: int, record: object) -> Thought:
        return (
            dataclasses.replace(thought_of(record), thought_process=stock)
            if number == 9
            else thought_of(record)
        )

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
def test_a_plain_verdict_is_read_from_the_last_step(end: str, said: str | None) -> None:
    assert verdict(f"Step 1: It follows. Step 2: It conflicts. Step 3: {end}") == said


def test_a_thought_without_steps_ends_in_its_last_sentence() -> None:
    assert last_step("A dog runs. It follows.") == "It follows."
    assert without_last_step("A dog runs. It follows.") == "A dog runs. "
    assert without_last_step("It follows.") == ""


def test_words_of_the_pair_itself_do_not_count_as_phrases() -> None:
    assert early_verdict("Step 1: She sees the label. Step 2: So.", pair="The label is red.") is None
    assert (
        reflection_phrases("Step 1: It was the second attempt after the first attempt.", pair="An attempt.")
        == []
    )


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
def test_a_reflection_that_gives_itself_away_is_found(sentence: str, kind: str) -> None:
    def plant(number: int, record: object) -> Reflection:
        own = reflection_of(record)
        if number != 2:
            return own
        text = own.improved_thought_process.replace("Step 2:", f"{sentence} Step 2:")
        return dataclasses.replace(own, improved_thought_process=text)

    data = changed(clean(), "train", "reflections", plant)
    finding = only(data, "reflection gives itself away")
    assert finding.ids == (f"train/{data.splits[0].reflections[2].id}",)
    assert finding.figures["by_kind"] == {kind: 1}


def test_a_reflection_that_only_repeats_its_hypothesis_is_found() -> None:
    def plant(number: int, record: object) -> Reflection:
        own = reflection_of(record)
        if number != 1:
            return own
        text = f"Step 1: The hypothesis says: {own.hypothesis} Step 2: So {own.hypothesis}"
        return dataclasses.replace(own, improved_thought_process=text)

    data = changed(clean(), "train", "reflections", plant)
    assert only(data, "reflection repeats the hypothesis").ids == (
        f"train/{data.splits[0].reflections[1].id}",
    )
    assert added_words("The dog barks", "A dog") == {"barks"}
