"""How well a linear model tells labels from texts alone, on texts that it was not fitted on.

Logistic regression on hashed word n-grams (words and pairs of them), cross-validated in folds that keep
each group, a premise say, on one side. Hashing learns nothing from the data, so no fold sees another's words.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nlicot.evaluation.metrics import Interval, wilson_interval

NUM_FOLDS = 5
FEWEST_OF_A_LABEL = 20
NUM_FEATURES = 2**18
INVERSE_REGULARISATION = 3.0
"""Texts of 10 to 100 words, normalised to length 1, leave scikit-learn's own 1.0 somewhat too stiff."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """How a model that reads only these texts fares: `p_one` is its probability of label 1 for each text."""

    accuracy: float
    interval: Interval
    majority: float
    right: npt.NDArray[np.bool_]
    p_one: npt.NDArray[np.float64]

    @property
    def gain(self) -> float:
        """How far above the commoner label's share the accuracy is, in shares of 1."""
        return self.accuracy - self.majority

    @property
    def figures(self) -> dict[str, float]:
        """What JSON readers want of it."""
        return {
            "accuracy": self.accuracy,
            "low": self.interval.low,
            "high": self.interval.high,
            "majority": self.majority,
            "num": len(self.right),
        }


def guess_labels(texts: Sequence[str], labels: Sequence[int], groups: Sequence[Hashable]) -> Guess | None:
    """Cross-validated guesses of 0 or 1 from text; None where a label is too rare to say anything.

    Args:
        groups: texts of one group stay in one fold.
    """
    true = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(true, minlength=2)
    if counts.min() < FEWEST_OF_A_LABEL:
        return None
    folds = _folds(groups)
    if any(len(np.unique(true[folds != fold])) < 2 for fold in range(NUM_FOLDS)):
        return None
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    features = HashingVectorizer(
        ngram_range=(1, 2), n_features=NUM_FEATURES, alternate_sign=False, token_pattern=r"(?u)\b\w+\b"
    ).transform(texts)
    p_one = np.zeros(len(true))
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        if held_out.any():
            # The dual is four times as fast on texts, which have more features than there are texts.
            model = LogisticRegression(
                C=INVERSE_REGULARISATION,
                solver="liblinear",
                dual=True,
                tol=0.01,
                max_iter=1000,
                random_state=0,
            )
            model.fit(features[~held_out], true[~held_out])
            p_one[held_out] = model.predict_proba(features[held_out])[:, 1]
    right = (p_one > 0.5) == (true == 1)
    return Guess(
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), len(true)),
        majority=float(counts.max() / len(true)),
        right=right,
        p_one=p_one,
    )


def _folds(groups: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """A fold for each item, by its group, groups being dealt out in an order that is always the same."""
    number_of: dict[Hashable, int] = {}
    numbers = np.array([number_of.setdefault(group, len(number_of)) for group in groups], dtype=np.int64)
    dealt = np.random.default_rng(0).permutation(len(number_of)) % NUM_FOLDS
    return dealt[numbers]
