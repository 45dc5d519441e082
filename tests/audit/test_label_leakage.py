"""Labels that hypotheses, or the source and style of targets, give away."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest

from nlicot.audit.command import run_checks
from nlicot.audit.label_leakage import SMOOTHING, guess_labels, telling_words, without_last_step
from nlicot.records import Example, Thought
from tests.audit.planted import (
    changed,
    clean,
    lopsided,
    named,
    only,
    reflections,
    reworded,
    section_of,
    thought_of,
    with_targets,
    words,
)


def add_never(number: int, example: object) -> Example:
    """A hypothesis with "never" in every second one of label 0."""
    assert isinstance(example, Example)
    if example.label == 0 and number % 4 == 0:
        return dataclasses.replace(example, hypothesis=f"{example.hypothesis} never")
    return example


def test_a_word_that_goes_with_one_label_is_reported_with_its_pairs() -> None:
    data = changed(clean(), "train", "examples", add_never)
    finding = only(data, "telling words")
    assert finding.figures == {"label": 0, "words": ["never"]}
    assert finding.ids == tuple(f"train/t{number}" for number in range(0, 240, 4))


def test_a_hypothesis_leak_is_reported_with_the_pairs_that_need_no_premise() -> None:
    def leak(_: int, example: object) -> Example:
        assert isinstance(example, Example)
        word = "never" if example.label == 0 else "some"
        return dataclasses.replace(example, hypothesis=f"{word} {example.hypothesis}")

    finding = only(changed(clean(), "train", "examples", leak), "hypothesis gives the label away")
    assert finding.severity == "error"
    assert finding.figures["accuracy"] > 0.8 and finding.figures["majority"] == 0.5
    assert {id_.partition("/")[0] for id_ in finding.ids} == {"train"}
    assert len(finding.ids) > 200


def test_pmi_is_that_of_the_formula() -> None:
    pairs = [
        Example(id=str(n), premise="P", hypothesis="nobody came" if n < 20 else f"w{n}", label=int(n >= 40))
        for n in range(100)
    ]
    (word, other) = telling_words(pairs)
    assert {word.word, other.word} == {"came", "nobody"}
    assert (word.label, word.num, word.num_label) == (0, 20, 20)
    expected = math.log(((20 + SMOOTHING * 0.4) / (20 + SMOOTHING)) / 0.4)
    assert word.pmi == pytest.approx(expected)


def test_a_word_counts_once_in_a_pair() -> None:
    rng = random.Random(1)
    pairs = [
        Example(
            id=str(n),
            premise="P",
            hypothesis=f"{words(rng, 4)} {'no no no no' if n in (1, 3, 5) else ''}",
            label=n % 2,
        )
        for n in range(100)
    ]
    assert telling_words(pairs) == []  # three pairs, not twelve


def test_too_few_pairs_have_no_baseline() -> None:
    assert guess_labels(["a"] * 30, [0] * 15 + [1] * 15, list(range(30))) is None


def test_texts_of_one_group_are_never_in_two_folds() -> None:
    # Every group has a word of its own, and one label: with shared folds it would be guessed without fault.
    labels = [group % 2 for group in range(60) for _ in range(4)]
    groups = [group for group in range(60) for _ in range(4)]
    shuffled = np.random.default_rng(3).permutation(60)
    texts = [f"word{shuffled[group]}" for group in groups]
    apart = guess_labels(texts, labels, groups)
    together = guess_labels(texts, labels, list(range(240)))
    assert apart is not None and together is not None
    assert together.accuracy == 1.0
    assert apart.accuracy < 0.7


def test_the_same_data_give_the_same_audit() -> None:
    data = changed(clean(), "train", "examples", add_never)
    assert run_checks(data) == run_checks(data)
    assert named(run_checks(data), "telling words")[0].severity == "warning"


def test_a_source_that_gives_the_label_away_is_reported_with_its_table() -> None:
    data = lopsided(clean())
    train = data.splits[0]
    wrong = [each for each in train.thoughts if not each.correct]

    train = with_targets(dataclasses.replace(train, reflections=reflections(wrong, 9)))
    data = dataclasses.replace(data, splits=[train, data.splits[1]])
    finding = only(data, "source gives the label away")
    # All 120 zeros and 24 ones were found; the 96 others are reflections, all of label 1.
    assert finding.figures["by_source"] == {"reflection": [0, 96], "thought": [120, 24]}
    assert finding.figures["accuracy"] == (96 + 120) / 240
    assert finding.severity == "error"
    assert len(finding.ids) == 216


def test_a_style_that_gives_the_label_away_is_found_without_the_last_step() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought_of(record)
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


def test_a_thought_without_steps_ends_in_its_last_sentence() -> None:
    assert without_last_step("A dog runs. It follows.") == "A dog runs. "
    assert without_last_step("Step 1: A dog runs. It follows.") == "Step 1: A dog runs. "
    assert without_last_step("Step 1: It rains. Step 2: So it follows.") == "Step 1: It rains. "
    assert without_last_step("It follows.") == ""


def test_a_last_step_may_reveal_the_label() -> None:
    def plant(_: int, record: object) -> Thought:
        own = thought_of(record)
        return reworded(own, "So it follows." if own.predicted_label else "So it does not follow.")

    found = run_checks(changed(clean(), "train", "thoughts", plant))
    assert named(found, "voice gives the label away") == []
    assert section_of(found, "voice").figures["whole"]["accuracy"] > 0.7
