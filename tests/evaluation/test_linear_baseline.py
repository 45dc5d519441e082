"""The linear models that audits and reports share."""

from __future__ import annotations

import numpy as np
import pytest

from nlicot.evaluation.linear_baseline import hashed_ngrams, pair_words, probabilities

COLOURS = [
    f"the {noun} is {colour}" for noun in ("cat", "dog", "house", "car", "sea") for colour in ("red", "blue")
]


def test_a_word_that_goes_with_a_label_decides() -> None:
    labels = [int(text.endswith("red")) for text in COLOURS]
    p = probabilities(COLOURS, labels, ["a boat is red", "a boat is blue", "a boat is green"])
    assert p[0] > 0.6 and p[1] < 0.4
    assert p[2] == pytest.approx(0.5, abs=0.1)


def test_features_do_not_depend_on_the_other_texts() -> None:
    together, single = hashed_ngrams(COLOURS), hashed_ngrams(COLOURS[:1])
    assert np.array_equal(together[:1].toarray(), single.toarray())


def test_words_that_only_the_hypothesis_has_decide() -> None:
    """Labels follow from what the hypothesis adds, which neither side shows on its own."""
    pairs = [(f"the {a} and the {b}", f"the {c}") for a in "abcd" for b in "efgh" for c in "abcdefgh"]
    labels = [int(hypothesis[-1] in premise.split()) for premise, hypothesis in pairs]
    texts = [pair_words(*pair) for pair in pairs]
    p = probabilities(texts, labels, texts)
    assert [int(each > 0.5) for each in p] == labels
    only = [hypothesis for _, hypothesis in pairs]
    assert np.ptp(probabilities(only, labels, only)) < 0.1
