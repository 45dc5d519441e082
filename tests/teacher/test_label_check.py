from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from nlicot.data.pairs import LabelMap, read_examples
from nlicot.data.thoughts import TextFiles, read_joined, read_thoughts
from nlicot.records import Example, Thought
from nlicot.teacher.label_check import pairs_to_probe, probe

REAL = os.environ.get("NLICOT_REAL_DATA")
real_data = pytest.mark.skipif(REAL is None, reason="NLICOT_REAL_DATA is not set")


def thought(number: int, true: int | None, predicted: int, relation: str | None = None) -> Thought:
    return Thought(
        id=f"p{number}",
        premise="P",
        hypothesis="H",
        thought_process=f"Thought {number}.",
        predicted_label=predicted,
        true_label=true,
        relation=relation,
    )


def thoughts(zeros: tuple[int, int], ones: tuple[int, int]) -> list[Thought]:
    """Numbers of right and wrong ones of each label."""
    labels = [(0, 0)] * zeros[0] + [(0, 1)] * zeros[1] + [(1, 1)] * ones[0] + [(1, 0)] * ones[1]
    return [thought(number, true, predicted) for number, (true, predicted) in enumerate(labels)]


@pytest.mark.parametrize(
    ("zeros", "ones", "lopsided"),
    [
        pytest.param((50, 0), (10, 40), True, id="hardly any of label 1"),
        pytest.param((10, 40), (50, 0), True, id="hardly any of label 0"),
        pytest.param((47, 3), (46, 4), False, id="both found"),
        pytest.param((40, 10), (32, 18), False, id="a gap that chance could open"),
        pytest.param((15, 35), (14, 36), False, id="bad at both, but even"),
        pytest.param((40, 60), (0, 50), False, id="both below chance"),
        pytest.param((9, 0), (0, 9), False, id="too few to say"),
    ],
)
def test_a_teacher_is_lopsided_when_one_label_is_missed_beyond_chance(
    zeros: tuple[int, int], ones: tuple[int, int], lopsided: bool
) -> None:
    assert probe(thoughts(zeros, ones)).lopsided is lopsided


@pytest.mark.parametrize(
    ("zeros", "ones", "labels_reversed"),
    [
        pytest.param((0, 50), (0, 50), True, id="a perfect teacher"),
        pytest.param((15, 35), (14, 36), True, id="a weak one"),
        pytest.param((40, 60), (0, 50), True, id="lopsided too"),
        pytest.param((18, 32), (19, 31), False, id="19 of 50: up to 52 %"),
        pytest.param((50, 0), (0, 50), False, id="only label 0 is found"),
        pytest.param((25, 25), (24, 26), False, id="guesses"),
        pytest.param((0, 3), (0, 5), True, id="few, all wrong"),
        pytest.param((0, 3), (1, 4), False, id="few, one right"),
        pytest.param((0, 2), (0, 98), False, id="two of a label"),
        pytest.param((1, 8), (0, 91), False, id="nine of a label, one right"),
        pytest.param((0, 0), (0, 50), False, id="one label only"),
    ],
)
def test_labels_look_reversed_when_both_are_missed_beyond_chance(
    zeros: tuple[int, int], ones: tuple[int, int], labels_reversed: bool
) -> None:
    assert probe(thoughts(zeros, ones)).labels_reversed is labels_reversed


@pytest.mark.parametrize(
    ("zeros", "ones", "below_chance"),
    [
        ((40, 10), (1, 49), True),
        ((48, 2), (1, 49), False),
        ((50, 0), (10, 40), False),
        ((0, 0), (0, 9), False),
    ],
)
def test_a_lopsided_teacher_on_reversed_labels_is_below_chance(
    zeros: tuple[int, int], ones: tuple[int, int], below_chance: bool
) -> None:
    report = probe(thoughts(zeros, ones))
    assert report.below_chance is below_chance and not report.labels_reversed


def test_the_report_of_reversed_labels_shows_a_pair_of_each_and_the_map_that_fits() -> None:
    report = probe(thoughts((5, 45), (0, 50)))

    assert report.headline() == "teacher finds 0 % of label 1 and 10 % of label 0: labels look reversed"
    assert [missed.id for missed in report.missed] == ["p5", "p50"]
    assert str(report).splitlines()[3:5] == ["  two of the pairs:", "    p5: 'P' / 'H'"]
    assert report.exchange(None) == "with --label_map 0=1,1=0 in every command the teacher is right on 95.0 %"
    assert "--label_map e=1,n=0 in every" in report.exchange(LabelMap(e=0, n=1))


def test_the_report_counts_each_label_and_shows_pairs_that_were_missed() -> None:
    report = probe([*thoughts((50, 0), (10, 40)), thought(200, None, 1)])

    assert report.headline() == (
        "teacher finds 20 % of label 1 and 100 % of label 0: the label definitions do not fit this data"
    )
    assert report.accuracy == 0.6
    assert [(recall.label, recall.num_right, recall.num) for recall in report.recalls] == [
        (0, 50, 50),
        (1, 10, 50),
    ]
    assert [missed.id for missed in report.missed] == ["p60", "p61", "p62"]
    assert "Thought 60." in str(report)


def test_the_report_skips_a_label_without_pairs() -> None:
    text = str(probe(thoughts((9, 1), (0, 0))))
    assert "  label 0: 9 of 10 (" in text
    assert "  label 1:" not in text


def test_every_map_from_relations_is_measured_and_the_best_comes_first() -> None:
    rows = [("entailment", 1), ("neutral", 1), ("neutral", 1), ("contradiction", 0), ("neutral", 0)]
    found = probe([thought(n, true, 0, relation) for n, (relation, true) in enumerate(rows)]).maps

    assert len(found) == 6
    assert found[0].relation_map == {"entailment": 1, "neutral": 1, "contradiction": 0}
    assert found[0].accuracy == 0.8
    assert [mapped.accuracy for mapped in found] == sorted((m.accuracy for m in found), reverse=True)


def test_half_of_the_probed_pairs_has_each_label_in_the_order_of_the_file() -> None:
    pairs = [Example(id=str(n), premise="P", hypothesis="H", label=0 if n < 300 else 1) for n in range(600)]
    chosen = pairs_to_probe(pairs)
    assert [pair.id for pair in chosen] == [*map(str, range(50)), *map(str, range(300, 350))]


def test_if_one_label_is_rare_the_other_fills_the_probe() -> None:
    pairs = [Example(id=str(n), premise="P", hypothesis="H", label=int(n == 7)) for n in range(400)]
    chosen = pairs_to_probe(pairs)
    assert [pair.id for pair in chosen] == [*map(str, range(100))]
    unlabelled = [dataclasses.replace(pair, label=None) for pair in pairs]
    assert pairs_to_probe(unlabelled) == []


def replayed(name: str, *, only_probed: bool) -> list[Thought]:
    folder = Path(str(REAL)) / "comp34812"
    found = [one for split in ("train", "dev") for one in read_thoughts(folder / f"{name}_{split}.jsonl")]
    if not only_probed:
        return found
    chosen = {pair.id for pair in pairs_to_probe(read_examples(folder / "train.csv"))}
    return [one for one in found if one.id in chosen]


@real_data
@pytest.mark.parametrize("only_probed", [False, True])
def test_a_strong_teacher_with_the_wrong_definition_is_stopped(only_probed: bool) -> None:
    report = probe(replayed("thoughts", only_probed=only_probed))

    assert report.lopsided and not report.labels_reversed
    if not only_probed:
        assert report.headline() == (
            "teacher finds 19 % of label 1 and 99 % of label 0: the label definitions do not fit this data"
        )


@real_data
@pytest.mark.parametrize("only_probed", [False, True])
def test_the_same_teacher_with_the_right_definition_passes(only_probed: bool) -> None:
    report = probe(replayed("thoughts_defined", only_probed=only_probed))

    assert not report.lopsided and not report.labels_reversed
    assert report.maps[0].relation_map == {"entailment": 1, "neutral": 1, "contradiction": 0}
    if not only_probed:
        assert report.headline() == "teacher finds 94 % of label 1 and 94 % of label 0"


@real_data
def test_the_predecessors_own_thoughts_do_not_look_reversed() -> None:
    folder = Path(str(REAL)) / "original"
    files = TextFiles(thoughts=folder / "sample_thoughts.json")
    report = probe(read_joined(read_examples(folder / "sample.csv"), files).thoughts)

    assert report.accuracy == 0.67
    assert not report.labels_reversed
