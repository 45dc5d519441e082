"""The bundled sample is as described in `data/README.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from nlicot import completion
from nlicot.builders.reflected import Reflected
from nlicot.config_files import CONFIGS, SAMPLE, read_settings
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import join_reflections, join_thoughts, read_reflections, read_thoughts
from nlicot.records import Example, Reflection, Thought

ROOT = DataRoot(SAMPLE)
PAIRS = {split: read_examples(ROOT.pairs(split)) for split in ("train", "dev", "test")}
PHENOMENA = {
    "coreference",
    "dates",
    "lexical",
    "modality",
    "negation",
    "numbers",
    "paraphrase",
    "quantifiers",
    "word_order",
    "world_knowledge",
}
splits = pytest.mark.parametrize("split", ["train", "dev", "test"])
taught_splits = pytest.mark.parametrize("split", ["train", "dev"])


def thoughts_of(split: str) -> Sequence[Thought]:
    path = ROOT.thoughts(split)
    return join_thoughts(PAIRS[split], read_thoughts(path))


def reflections_of(split: str) -> Sequence[Reflection]:
    path = ROOT.reflections(split)
    read = read_reflections(path)
    return join_reflections(PAIRS[split], thoughts_of(split), read)


@pytest.mark.parametrize(("split", "least"), [("train", 600), ("dev", 100), ("test", 100)])
def test_a_split_is_large_enough(split: str, least: int) -> None:
    assert len(PAIRS[split]) >= least


@splits
def test_the_labels_of_a_split_are_balanced(split: str) -> None:
    counts = Counter(pair.label for pair in PAIRS[split])
    assert counts == {0: len(PAIRS[split]) // 2, 1: len(PAIRS[split]) // 2}


@splits
def test_a_split_covers_the_ten_phenomena_with_both_labels(split: str) -> None:
    found = Counter((pair.phenomenon, pair.label) for pair in PAIRS[split])
    assert found.keys() == {(phenomenon, label) for phenomenon in PHENOMENA for label in (0, 1)}


@pytest.mark.parametrize(("one", "other"), [("train", "dev"), ("train", "test"), ("dev", "test")])
def test_no_premise_and_no_hypothesis_is_in_two_splits(one: str, other: str) -> None:
    assert {premise_key(pair) for pair in PAIRS[one]} & {premise_key(pair) for pair in PAIRS[other]} == set()
    hypotheses, others = ({pair.hypothesis.casefold() for pair in PAIRS[split]} for split in (one, other))
    assert hypotheses & others == set()


def test_the_overlay_trains_on_the_plain_pairs() -> None:
    limit = int(read_settings(CONFIGS / "overlays" / "sample.yaml")["data"]["limit_train"])
    plain = {pair.id for pair in PAIRS["train"] if int(pair.id.rpartition("-")[2]) >= 600}
    assert {pair.id for pair in PAIRS["train"][:limit]} == plain


def premise_key(pair: Example) -> str:
    return " ".join(pair.premise.casefold().split())


def test_ids_and_pairs_are_unique() -> None:
    pairs = [pair for split in PAIRS.values() for pair in split]
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(premise_key(pair), pair.hypothesis.casefold()) for pair in pairs}) == len(pairs)


@taught_splits
def test_every_train_and_dev_pair_has_one_thought(split: str) -> None:
    assert [thought.id for thought in thoughts_of(split)] == [pair.id for pair in PAIRS[split]]


@taught_splits
def test_about_a_quarter_of_the_thoughts_is_wrong_in_both_directions(split: str) -> None:
    thoughts = thoughts_of(split)
    wrong = Counter(thought.true_label for thought in thoughts if not thought.correct)
    assert 0.2 <= wrong.total() / len(thoughts) <= 0.3
    assert abs(wrong[0] - wrong[1]) <= 1


@taught_splits
def test_every_wrong_thought_and_no_other_has_a_reflection_with_the_true_label(split: str) -> None:
    wrong = {thought.id: thought for thought in thoughts_of(split) if not thought.correct}
    # As read: joining would skip those that miss the true label.
    reflections = read_reflections(ROOT.reflections(split))
    assert sorted(reflection.id for reflection in reflections) == sorted(wrong)
    for reflection in reflections:
        thought = wrong[reflection.id]
        assert reflection.true_label == reflection.reflected_label == thought.true_label
        assert (reflection.premise, reflection.hypothesis) == (thought.premise, thought.hypothesis)
        assert reflection.thought_process == thought.thought_process
        assert reflection.improved_thought_process != thought.thought_process


# ------------------------------------------------- nothing gives the label away


def cross_validated_accuracy(texts: Sequence[str], labels: Sequence[int], groups: Sequence[int]) -> float:
    """Return the accuracy of a linear model over words and word pairs, as the mean of 5 shuffles."""
    scores = []
    for seed in range(5):
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        scores.append(cross_val_score(model, texts, labels, groups=groups, cv=folds).mean())
    return float(np.mean(scores))


def groups_of(pairs: Sequence[Example]) -> list[int]:
    """Return a group number per pair; pairs that share a premise or hypothesis are in one group."""
    leader: dict[str, str] = {}

    def find(text: str) -> str:
        while leader.setdefault(text, text) != text:
            text = leader[text]
        return text

    for pair in pairs:
        leader[find(f"P {pair.premise}")] = find(f"H {pair.hypothesis}")
    number_of: dict[str, int] = {}
    return [number_of.setdefault(find(f"P {pair.premise}"), len(number_of)) for pair in pairs]


def labelled(pairs: Sequence[Example]) -> list[int]:
    return [pair.label for pair in pairs if pair.label is not None]


def test_the_linear_model_finds_a_planted_label() -> None:
    pairs = PAIRS["train"]
    texts = [f"{pair.hypothesis} {'surely' if pair.label else 'hardly'}" for pair in pairs]
    assert cross_validated_accuracy(texts, labelled(pairs), groups_of(pairs)) > 0.9


def test_the_hypothesis_does_not_give_the_label_away() -> None:
    pairs = [pair for split in PAIRS.values() for pair in split]
    accuracy = cross_validated_accuracy(
        [pair.hypothesis for pair in pairs], labelled(pairs), groups_of(pairs)
    )
    assert abs(accuracy - 0.5) <= 0.08


def test_the_voice_of_the_target_texts_does_not_give_the_label_away() -> None:
    pairs = [*PAIRS["train"], *PAIRS["dev"]]
    texts = []
    for split in ("train", "dev"):
        for example in Reflected().build(PAIRS[split], thoughts_of(split), reflections_of(split)):
            parsed = completion.parse(example.completion)
            assert parsed is not None
            assert parsed.thought_process is not None
            texts.append(parsed.thought_process)
    assert len(texts) == len(pairs)
    assert abs(cross_validated_accuracy(texts, labelled(pairs), groups_of(pairs)) - 0.5) <= 0.08
