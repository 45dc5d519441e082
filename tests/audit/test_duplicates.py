from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from nlicot.audit.command import run_checks
from nlicot.audit.counts import check_counts
from nlicot.audit.duplicates import THRESHOLD, pair_groups, similarity
from nlicot.audit.inputs import AuditData, SplitData, normalised
from nlicot.records import Example, Thought
from tests.audit.planted import changed, clean, named, only, section_of, thought_of, words


def with_more(data: AuditData, name: str, *more: Example) -> AuditData:
    splits = [
        dataclasses.replace(each, examples=[*each.examples, *more]) if each.name == name else each
        for each in data.splits
    ]
    return dataclasses.replace(data, splits=splits)


def test_the_same_pair_in_two_splits_is_an_error_whatever_its_case() -> None:
    data = clean()
    twin = data.splits[0].examples[7]
    planted = Example(
        id="planted", premise=twin.premise.upper(), hypothesis=twin.hypothesis.replace(".", " !"), label=1
    )
    finding = only(with_more(data, "dev", planted), "pair in two splits")
    assert finding.severity == "error"
    assert finding.ids == ("train/t7", "dev/planted")
    assert finding.figures["num"] == 1


def test_a_nearly_same_pair_in_two_splits_is_found() -> None:
    rng = random.Random(3)
    long = words(rng, 30)
    train = Example(id="p", premise=long, hypothesis=f"{words(rng, 25)} now", label=1)
    changed = Example(
        id="q", premise=f"{long} indeed", hypothesis=train.hypothesis.replace(" now", " then"), label=1
    )
    data = with_more(with_more(clean(), "train", train), "dev", changed)
    finding = only(data, "near duplicate in two splits")
    assert finding.ids == ("train/p", "dev/q")
    assert finding.severity == "error"  # 1 of 81 pairs of dev
    assert named(run_checks(data), "pair in two splits") == []


def test_one_pair_with_two_labels_is_reported_with_both_ids() -> None:
    data = clean()
    first = data.splits[0].examples[4]
    planted = dataclasses.replace(first, id="planted", label=1 - int(first.label or 0))
    data = with_more(data, "train", planted)
    assert only(data, "same pair, two labels").ids == ("train/t4", "train/planted")
    assert named(run_checks(data), "repeated pairs") == []


def test_a_repeated_pair_is_reported_with_the_first_one() -> None:
    data = clean()
    planted = dataclasses.replace(data.splits[0].examples[4], id="planted")
    finding = only(with_more(data, "train", planted), "repeated pairs")
    assert finding.ids == ("train/t4", "train/planted")
    assert finding.severity == "note"  # 1 of 241


def test_a_shared_premise_is_reported_separately() -> None:
    data = clean()
    planted = Example(
        id="planted", premise=data.splits[0].examples[3].premise, hypothesis="A whale sings.", label=0
    )
    data = with_more(data, "dev", planted)
    assert only(data, "premise in two splits").ids == ("dev/planted",)
    assert named(run_checks(data), "pair in two splits") == []


def test_hypotheses_of_one_premise_are_not_duplicates() -> None:
    premise = words(random.Random(5), 40)
    pairs = [
        Example(id=str(n), premise=premise, hypothesis=hypothesis, label=n % 2)
        for n, hypothesis in enumerate(["A dog sleeps here.", "A dog is awake.", "Nobody is here."])
    ]
    assert run_checks(AuditData(splits=[SplitData(name="train", examples=pairs)])).findings == ()


def test_near_duplicates_of_other_labels_are_contrasts_not_faults() -> None:
    premise, long = (words(random.Random(seed), 40) for seed in (6, 7))
    pairs = [
        Example(id="a", premise=premise, hypothesis=f"{long} open", label=1),
        Example(id="b", premise=premise, hypothesis=f"{long} shut", label=0),
    ]
    found = run_checks(AuditData(splits=[SplitData(name="train", examples=pairs)]))
    assert found.findings == ()
    assert section_of(found, "duplicates").figures["num_groups"] == 1


def brute_force(texts: list[str]) -> list[list[int]]:
    """Each text joins the first group whose first text has a Jaccard index of THRESHOLD or more with it."""
    sets = []
    for text in texts:
        edged = ["<", *text.split(), ">"]
        sets.append(set(itertools.pairwise(edged)))
    groups: list[list[int]] = []
    for index, own in enumerate(sets):
        for group in groups:
            first = sets[group[0]]
            if len(own & first) / len(own | first) >= THRESHOLD:
                group.append(index)
                break
        else:
            groups.append([index])
    return [group for group in groups if len(group) > 1]


def test_minhash_finds_what_comparing_all_pairs_finds() -> None:
    rng = random.Random(11)
    texts = []
    for _ in range(60):
        text = words(rng, 40).split()
        for num_changes in (0, 1, 2, 4, 8, 16):
            copy = list(text)
            for place in rng.sample(range(40), num_changes):
                copy[place] = f"other{rng.randint(0, 10**6)}"
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    groups = pair_groups([(text, text) for text in texts])
    assert groups == brute_force(texts)
    assert len(groups) >= 60
    assert pair_groups([("the same premise", text) for text in texts]) == groups


def test_one_thought_for_two_pairs_is_found() -> None:
    data = clean()
    stock = thought_of(data.splits[0].thoughts[0]).thought_process

    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
        return dataclasses.replace(own, thought_process=stock) if number == 9 else own

    finding = only(changed(data, "train", "thoughts", plant), "one thought for several pairs")
    assert (finding.severity, finding.ids) == ("warning", ("train/t0", "train/t9"))
    assert finding.figures == {"num": 2, "share": 2 / 320, "where": "train"}


def test_many_pairs_with_one_thought_are_an_error() -> None:
    def plant(number: int, record: object) -> Thought:
        own = thought_of(record)
        return dataclasses.replace(own, thought_process="So it is.") if number < 16 else own

    finding = only(changed(clean(), "train", "thoughts", plant), "one thought for several pairs")
    assert (finding.severity, len(finding.ids)) == ("error", 16)


def test_groups_hold_near_duplicates_of_their_first_pair_in_both_texts() -> None:
    rng = random.Random(13)
    premise, other, hypothesis = (words(rng, 30) for _ in range(3))
    premises = [premise, f"{premise} too", other, premise]
    hypotheses = [hypothesis, f"{hypothesis} now", hypothesis, "a whale sings"]
    assert pair_groups(list(zip(premises, hypotheses, strict=True))) == [[0, 1]]


@pytest.mark.parametrize(("a", "b", "expected"), [("x y", "x y", 1.0), ("x y", "x z", 0.2), ("", "", 1.0)])
def test_similarity_is_the_jaccard_index_of_bigrams_with_edges(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == expected


def test_a_text_without_letters_has_no_words() -> None:
    assert normalised("\U0001f436 !") == "\U0001f436 !"
    assert normalised("यह दिन है") != normalised("यह दान है")  # they differ in a vowel sign


def test_a_rare_label_is_reported_with_its_pairs() -> None:
    pairs = [
        Example(id=str(n), premise=words(random.Random(n), 9), hypothesis=words(random.Random(-n - 1), 6))
        for n in range(100)
    ]
    data = [dataclasses.replace(pair, label=int(n < 4)) for n, pair in enumerate(pairs)]
    (finding,) = check_counts(AuditData(splits=[SplitData(name="train", examples=data)])).findings
    assert (finding.name, finding.severity) == ("rare label", "error")
    assert finding.ids == ("train/0", "train/1", "train/2", "train/3")
    data = [dataclasses.replace(pair, label=int(n < 20)) for n, pair in enumerate(pairs)]
    (finding,) = check_counts(AuditData(splits=[SplitData(name="train", examples=data)])).findings
    assert (finding.severity, len(finding.ids)) == ("warning", 20)


def test_label_shares_that_differ_between_splits_are_found() -> None:
    data = clean()
    dev = [dataclasses.replace(pair, label=int(n < 55)) for n, pair in enumerate(data.splits[1].examples)]
    planted = [data.splits[0], dataclasses.replace(data.splits[1], examples=dev)]
    (finding,) = check_counts(AuditData(splits=planted)).findings
    assert finding.name == "label shares differ"
    assert finding.figures == {"train": 0.5, "dev": 55 / 80}


def test_a_pair_in_a_prompt_is_reported_with_the_prompt() -> None:
    data = clean()
    pair = data.splits[1].examples[5]
    shown = f"For example: Premise: {pair.premise.upper()} Hypothesis: a dog."
    finding = only(dataclasses.replace(data, prompts={"mine.yaml": shown}), "pair in a prompt")
    assert finding.severity == "error"
    assert finding.ids == ("dev/d5",)
    assert finding.figures["by_prompt"] == {"mine.yaml": ["dev/d5"]}
    nearly = " ".join(word for n, word in enumerate(shown.split()) if n != 8)
    finding = only(dataclasses.replace(data, prompts={"mine.yaml": nearly}), "pair in a prompt")
    assert finding.ids == ("dev/d5",)
