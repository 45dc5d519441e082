"""Linear models on word n-grams: the accuracy that needs no understanding, as a floor for other systems.

`audit` cross-validates one on hypotheses only; `report --baselines` trains one on a run's training pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nlicot.words import words_of

NUM_FEATURES = 2**18
INVERSE_REGULARISATION = 3.0
"""scikit-learn's default of 1.0 over-regularises texts of 10 to 100 words, normalised to length 1."""


def hashed_ngrams(texts: Sequence[str]) -> Any:
    """Count the words and bigrams of each text in hashed features [N, NUM_FEATURES], rows of length 1.

    Hashing learns nothing from the texts, so no part of the data sees the words of another.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        ngram_range=(1, 2),
        n_features=NUM_FEATURES,
        alternate_sign=False,
        tokenizer=words_of,
        token_pattern=None,
    ).transform(texts)


def logistic_regression() -> Any:
    """Return a logistic regression for `hashed_ngrams`."""
    from sklearn.linear_model import LogisticRegression

    # The dual is four times as fast if there are more features than texts.
    settings = {"solver": "liblinear", "dual": True, "tol": 0.01, "max_iter": 1000, "random_state": 0}
    return LogisticRegression(C=INVERSE_REGULARISATION, **settings)


def probabilities(
    train_texts: Sequence[str], train_labels: Sequence[int], texts: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Train on texts with both labels, and return the probability of label 1 for each other text."""
    model = logistic_regression().fit(hashed_ngrams(train_texts), np.asarray(train_labels))
    p_one: npt.NDArray[np.float64] = model.predict_proba(hashed_ngrams(texts))[:, 1]
    return p_one


def pair_words(premise: str, hypothesis: str) -> str:
    """Return a pair as one text: the words of each side, then those that only the hypothesis has.

    The last measure lexical overlap, a heuristic that works on many sets (McCoy et al. 2019, "Right for the
    Wrong Reasons").

    >>> pair_words("A dog runs.", "A cat runs.")
    'p_a p_dog p_runs h_a h_cat h_runs new new_cat'
    """
    of_premise, of_hypothesis = (words_of(text.casefold()) for text in (premise, hypothesis))
    seen = set(of_premise)
    words = [f"p_{word}" for word in of_premise] + [f"h_{word}" for word in of_hypothesis]
    for word in of_hypothesis:
        if word not in seen:
            words += ["new", f"new_{word}"]
    return " ".join(words)
