"""Joining texts to their pairs, and splits that share no pair."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from nlicot.data import thoughts as joining
from nlicot.data.pairs import check_disjoint, read_examples
from nlicot.data.rows import RecordList
from nlicot.data.thoughts import (
    join_reflections,
    join_scores,
    join_thoughts,
    read_reflections,
    read_thoughts,
    text_sha256,
)
from nlicot.errors import DataError
from nlicot.records import Example, Provenance, Reflection, Score, Thought

PATH = Path("thoughts.jsonl")
Record = TypeVar("Record")
PAIRS = [
    Example(id="a", premise="P", hypothesis="H", label=1),
    Example(id="b", premise="Q", hypothesis="H", label=0),
]


def thought(id: str, premise: str = "P", predicted_label: int = 0, **fields: object) -> Thought:
    record = Thought(
        id=id, premise=premise, hypothesis="H", thought_process="T", predicted_label=predicted_label
    )
    return dataclasses.replace(record, **fields)  # type: ignore[arg-type]


def reflection(id: str, premise: str = "P", reflected_label: int = 1, **fields: object) -> Reflection:
    record = Reflection(
        id=id,
        premise=premise,
        hypothesis="H",
        true_label=1,
        thought_process="T",
        error_analysis="E",
        improved_thought_process="I",
        reflected_label=reflected_label,
    )
    return dataclasses.replace(record, **fields)  # type: ignore[arg-type]


def in_file(records: Sequence[Record], path: Path = PATH) -> RecordList[Record]:
    """Records of a file; without lines unless they have them already."""
    return RecordList(records, getattr(records, "lines", ()), path)


def on_lines(*records: Thought) -> RecordList[Thought]:
    """Records with one line each, from line 1."""
    return RecordList(records, range(1, len(records) + 1))


def complaint(examples: Sequence[Example], thoughts: Sequence[Thought]) -> str:
    with pytest.raises(DataError) as raised:
        join_thoughts(examples, in_file(thoughts))
    return str(raised.value)


def test_a_thought_joins_by_id_and_takes_the_pairs_label() -> None:
    (joined,) = join_thoughts(PAIRS, in_file([thought("b", "Q", true_label=None)]))
    assert (joined.id, joined.true_label, joined.correct) == ("b", 0, True)


def test_a_thought_whose_id_is_unknown_joins_by_text() -> None:
    joined = join_thoughts(PAIRS, in_file(on_lines(thought("1", "Q"), thought("0"))))
    assert [(record.id, record.true_label) for record in joined] == [("b", 0), ("a", 1)]
    assert list(joined.lines) == [1, 2]


def test_a_thought_whose_id_belongs_to_another_text_joins_by_text() -> None:
    (joined,) = join_thoughts(PAIRS, in_file([thought("a", "Q")]))
    assert (joined.id, joined.true_label) == ("b", 0)


def test_a_repeated_text_is_joined_to_its_first_pair() -> None:
    pairs = [dataclasses.replace(PAIRS[0], id=id) for id in ("pair-x", "pair-x-2")]
    (by_text,) = join_thoughts(pairs, in_file([thought("17")]))
    (by_id,) = join_thoughts(pairs, in_file([thought("pair-x-2")]))
    assert (by_text.id, by_id.id) == ("pair-x", "pair-x-2")


def test_texts_must_match_exactly() -> None:
    assert complaint(PAIRS, on_lines(thought("z", "P "))) == (
        "thoughts.jsonl:1: thought of pair 'z' matches no pair: no pair has that id or these texts "
        "(pass the pairs file that these thoughts were generated from)"
    )


def test_a_thought_whose_pair_has_another_text_is_an_error_that_says_so() -> None:
    assert complaint(PAIRS, on_lines(thought("a"), thought("b", "R"))) == (
        "thoughts.jsonl:2: thought of pair 'b' matches no pair: the pair with that id has other texts, "
        "and no pair has these (pass the pairs file that these thoughts were generated from)"
    )


def test_two_thoughts_that_differ_under_one_sample_number_are_an_error() -> None:
    first, second = thought("a"), thought("0", thought_process="other")
    assert complaint(PAIRS, on_lines(first, thought("b", "Q"), second)) == (
        "thoughts.jsonl:3: found a different thought for pair 'a', sample 0, after that on line 1, "
        "expected one per sample number "
        "(number several for one pair with the field sample, or delete one)"
    )
    assert complaint(PAIRS, [first, second]).startswith(
        "thoughts.jsonl: found a different thought for pair 'a', sample 0, expected"
    )


def test_several_samples_of_one_pair_are_kept() -> None:
    thoughts = [thought("a", sample=0), thought("a", sample=1, thought_process="other")]
    assert [record.sample for record in join_thoughts(PAIRS, in_file(thoughts))] == [0, 1]


def test_several_rounds_of_one_sample_are_kept() -> None:
    thoughts = [thought("a"), thought("a", round=1, thought_process="other")]
    assert [record.round for record in join_thoughts(PAIRS, in_file(thoughts))] == [0, 1]
    twice = [*thoughts, thought("a", round=1, thought_process="yet another")]
    assert "found a different thought for pair 'a', sample 0, round 1, expected" in complaint(PAIRS, twice)


def test_a_reflection_of_any_round_is_one_on_the_first_thought() -> None:
    thoughts = join_thoughts(PAIRS, in_file([thought("a"), thought("a", predicted_label=1, round=1)]))
    records = [reflection("a"), reflection("a", round=1)]
    assert join_reflections(PAIRS, thoughts, in_file(records)) == records


def test_scores_join_by_id_and_repetitions_are_dropped() -> None:
    scores = [Score(id="b", score=2), Score(id="a", score=3), Score(id="a", round=1, score=4)]
    assert join_scores(PAIRS, in_file([*scores, scores[0]])) == scores


def test_a_score_that_matches_no_pair_is_an_error() -> None:
    scores = RecordList([Score(id="a", score=3), Score(id="z", score=3)], [1, 4])
    with pytest.raises(DataError) as raised:
        join_scores(PAIRS, in_file(scores))
    assert str(raised.value) == (
        "thoughts.jsonl:4: score of pair 'z' matches no pair: no pair has that id "
        "(pass the pairs file that these texts were generated from)"
    )


def test_a_score_of_a_text_that_was_replaced_is_an_error() -> None:
    texts = {("thought", "a", 0, 0): "A new thought.", ("thought", "b", 0, 0): "It  stayed. "}
    stayed = Score(id="b", score=3, text_sha256=text_sha256("It stayed."))
    assert join_scores(PAIRS, in_file([stayed]), texts) == [stayed]
    scores = RecordList([stayed, Score(id="a", score=3, text_sha256=text_sha256("The old one."))], [1, 4])
    with pytest.raises(DataError) as raised:
        join_scores(PAIRS, in_file(scores), texts)
    assert str(raised.value) == (
        "thoughts.jsonl:4: found a score of another thought of pair 'a' than there is now, expected scores "
        "of these texts (python -m nlicot score --overwrite, or move the file of scores away)"
    )


def test_two_scores_of_one_text_that_differ_are_an_error() -> None:
    scores = RecordList([Score(id="a", round=1, score=3), Score(id="a", round=1, score=4)], [1, 2])
    with pytest.raises(DataError) as raised:
        join_scores(PAIRS, in_file(scores))
    assert str(raised.value) == (
        "thoughts.jsonl:2: found score 4 for the thought of pair 'a', sample 0, round 1, after score 3, "
        "expected one score per text (delete one)"
    )


def test_identical_repetitions_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    later = thought("a", provenance=Provenance(created_at="2025-01-01"))
    thoughts = on_lines(thought("a"), later, thought("b", "Q"), thought("7"))
    with caplog.at_level(logging.INFO, logger=joining.__name__):
        joined = join_thoughts(PAIRS, in_file(thoughts))
    assert ([record.id for record in joined], list(joined.lines)) == (["a", "b"], [1, 3])
    assert caplog.messages == ["thoughts.jsonl: dropped 2 identical repetitions"]


def test_a_true_label_unlike_the_pairs_is_replaced_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    thoughts = [thought("a", true_label=0), thought("b", "Q", true_label=0)]
    assert [record.true_label for record in join_thoughts(PAIRS, in_file(thoughts))] == [1, 0]
    assert caplog.messages == ["thoughts.jsonl: 1 true labels differ from their pairs'; took the pairs'"]


def test_reflections_join_as_thoughts_do() -> None:
    thoughts = join_thoughts(PAIRS, in_file([thought("a")]))
    joined = join_reflections(PAIRS, thoughts, in_file([reflection("0")]))
    assert joined == [reflection("a")]
    with pytest.raises(
        DataError, match=r"^r\.jsonl: reflection of pair 'z' matches no pair: no pair has that id"
    ):
        join_reflections(PAIRS, thoughts, in_file([reflection("z", "R")], Path("r.jsonl")))


def test_a_reflection_that_misses_the_true_label_is_skipped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = RecordList([reflection("a", reflected_label=0), reflection("b", "Q", 0, true_label=0)], [1, 2])
    joined = join_reflections(PAIRS, [], in_file(records))
    assert [record.id for record in joined] == ["b"]
    assert joined.lines == [2]
    assert caplog.messages == ["thoughts.jsonl: skipped 1 reflections that miss the true label"]


def test_the_pairs_label_decides_whether_a_reflection_is_right() -> None:
    joined = join_reflections(PAIRS, [], in_file([reflection("b", "Q", reflected_label=1)]))
    assert joined == []


def test_a_reflection_of_an_unlabelled_pair_keeps_its_own_label() -> None:
    unlabelled = [dataclasses.replace(pair, label=None) for pair in PAIRS]
    joined = join_reflections(unlabelled, [], in_file([reflection("0")]))
    assert joined == [reflection("a")]


def test_a_reflection_on_a_correct_thought_is_an_error() -> None:
    thoughts = join_thoughts(PAIRS, in_file([thought("a", predicted_label=1), thought("b", "Q", 1)]))
    records = RecordList([reflection("b", "Q", 0), reflection("0")], [1, 3])
    with pytest.raises(DataError) as raised:
        join_reflections(PAIRS, thoughts, in_file(records))
    assert str(raised.value) == (
        "thoughts.jsonl:3: found a reflection on a correct thought (pair 'a'), "
        "expected reflections on wrong thoughts only "
        "(pass the thoughts that these reflections were generated from)"
    )


def test_a_reflection_belongs_to_the_thought_of_its_own_sample(caplog: pytest.LogCaptureFixture) -> None:
    thoughts = join_thoughts(
        PAIRS, in_file([thought("a", sample=0, predicted_label=1), thought("a", sample=1)])
    )
    records = [reflection("a", sample=1), reflection("a", sample=2)]
    with caplog.at_level(logging.INFO, logger=joining.__name__):
        joined = join_reflections(PAIRS, thoughts, in_file(records))
    assert joined == records
    assert caplog.messages == ["thoughts.jsonl: 1 reflections have no thought in the file of thoughts"]


def test_reflections_without_thoughts_are_not_checked_against_them() -> None:
    assert join_reflections(PAIRS, [], in_file([reflection("a")])) == [reflection("a")]


def test_a_pair_in_train_and_in_another_split_is_an_error() -> None:
    dev = [
        Example(id="c", premise="P", hypothesis="I"),
        Example(id="d", premise="Q", hypothesis="H"),
        Example(id="e", premise="P", hypothesis="H"),
    ]
    splits = {"train": (Path("train.csv"), PAIRS), "dev": (Path("dev.csv"), RecordList(dev, [2, 3, 4]))}
    with pytest.raises(DataError) as raised:
        check_disjoint(splits)
    assert str(raised.value) == (
        "dev.csv:3: found pair 'd' of dev in train too (there 'b'), and 1 more, "
        "expected splits that share no pair "
        "(remove it from one of them, or allow it: --data.allow_overlap true)"
    )


def test_shared_pairs_can_be_allowed_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": (Path("train.csv"), PAIRS), "test": (Path("test.csv"), PAIRS[:1])}
    with caplog.at_level(logging.INFO, logger=check_disjoint.__module__):
        check_disjoint(splits, allow=True)
    assert caplog.messages == [
        "test.csv: 1 pairs of test are in train too, as allowed",
        "test.csv: 1 pairs of test have a premise of train",
    ]


def test_a_shared_premise_is_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    dev = [Example(id="c", premise="P", hypothesis="I"), Example(id="d", premise="R", hypothesis="H")]
    with caplog.at_level(logging.INFO, logger=check_disjoint.__module__):
        check_disjoint({"dev": (Path("dev.csv"), dev), "train": (Path("train.csv"), PAIRS)})
    assert caplog.messages == ["dev.csv: 1 pairs of dev have a premise of train"]


def test_without_train_nothing_is_checked() -> None:
    check_disjoint({"dev": (Path("dev.csv"), PAIRS), "test": (Path("test.csv"), PAIRS)})


def test_the_predecessors_files_join_by_text(real_data: Path) -> None:
    folder = real_data / "original"
    examples = read_examples(folder / "sample.csv")
    path = folder / "sample_thoughts.json"
    thoughts = join_thoughts(examples, read_thoughts(path))
    assert (len(thoughts), sum(record.correct for record in thoughts)) == (100, 67)
    assert {record.id for record in thoughts} == {example.id for example in examples}
    path = folder / "sample_reflections.json"
    for given in (thoughts, []):
        joined = join_reflections(examples, given, read_reflections(path))
        assert len(joined) == 32


@pytest.mark.parametrize(
    "split, kind, num_right, num_reflections",
    [
        ("train", "", 1200 - 511, 511),
        ("dev", "", 150 - 55, 55),
        ("train", "defined_", 1200 - 73, 73),
        ("dev", "defined_", 150 - 5, 5),
    ],
)
def test_the_shared_tasks_reflections_join_their_thoughts(
    real_data: Path, split: str, kind: str, num_right: int, num_reflections: int
) -> None:
    folder = real_data / "comp34812"
    examples = read_examples(folder / f"{split}.csv")
    path = folder / f"thoughts_{kind}{split}.jsonl"
    thoughts = join_thoughts(examples, read_thoughts(path))
    assert sum(record.correct for record in thoughts) == num_right
    path = folder / f"reflections_{kind}{split}.jsonl"
    joined = join_reflections(examples, thoughts, read_reflections(path))
    assert len(joined) == num_reflections


def test_reflections_on_another_run_of_thoughts_are_an_error(real_data: Path) -> None:
    folder = real_data / "comp34812"
    examples = read_examples(folder / "dev.csv")
    path = folder / "thoughts_defined_dev.jsonl"
    thoughts = join_thoughts(examples, read_thoughts(path))
    path = folder / "reflections_dev.jsonl"
    with pytest.raises(DataError, match=r"reflections_dev\.jsonl:1: found a reflection on a correct thought"):
        join_reflections(examples, thoughts, read_reflections(path))


def test_the_shared_tasks_splits_share_no_pair(real_data: Path) -> None:
    paths = {split: real_data / "comp34812" / f"{split}.csv" for split in ("train", "dev", "test")}
    check_disjoint({split: (path, read_examples(path)) for split, path in paths.items()})
