"""The rows of `report --baselines`: what answers the pairs without understanding them.

Each learns from the training pairs of the first run: the majority label, a linear model that reads hypotheses
only (Poliak et al. 2018), and one that reads the words of both texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nlicot.data.pairs import PairFormat, read_examples
from nlicot.errors import ConfigError, DataError
from nlicot.evaluation.linear_baseline import pair_words, probabilities
from nlicot.records import LABELS, Example
from nlicot.report.read_runs import Run, answering
from nlicot.run.config import fitted_settings
from nlicot.run.data import RunData

MAJORITY = "majority label"
TEXTS_READ: dict[str, Callable[[str, str], str]] = {
    "hypothesis only": lambda premise, hypothesis: hypothesis,
    "pair n-grams": pair_words,
}
"""Names of the linear models, and the text that each reads of a pair."""
BASELINES = (MAJORITY, *TEXTS_READ)


def baselines(run: Run, train_path: Path | None, pair_format: PairFormat) -> list[Run]:
    """Return the baselines as runs with answers to a run's pairs.

    Args:
        train_path: the pairs to learn from; None for those that the run was fitted on.
        pair_format: how to read them if there is no run whose settings say so.
    """
    pairs = [(answer.premise or "", answer.hypothesis or "") for answer in run.answers]
    if not all(premise and hypothesis for premise, hypothesis in pairs):
        raise DataError("no texts", "premise and hypothesis of each pair", path=run.predictions_path)
    train = _labelled(run, train_path, pair_format)
    labels = [int(example.label or 0) for example in train]
    found = [answering(MAJORITY, run, [sum(labels) / len(labels)] * len(pairs))]
    for name, text_of in TEXTS_READ.items():
        train_texts = [text_of(example.premise, example.hypothesis) for example in train]
        p = probabilities(train_texts, labels, [text_of(*pair) for pair in pairs])
        found.append(answering(name, run, p.tolist()))
    return found


def _labelled(run: Run, train_path: Path | None, pair_format: PairFormat) -> list[Example]:
    """Read the training pairs that have a label; they must have both."""
    if run.split == "train":
        raise ConfigError("--baselines: found the split train, expected one that they do not learn from")
    examples: Sequence[Example]
    if run.folder is not None and run.config:
        data = RunData(fitted_settings(run.folder))
        examples = read_examples(train_path, data.pair_format) if train_path else data.read_pairs("train")
        train_path = train_path or data.path("train", "pairs")
    elif train_path is not None:
        examples = read_examples(train_path, pair_format)
    else:
        raise ConfigError(
            f"--baselines: found no config.yaml that belongs to {run.predictions_path}, expected a run's "
            "folder first, or --train_pairs FILE"
        )
    labelled = [example for example in examples if example.label is not None]
    if {example.label for example in labelled} != set(LABELS):
        raise DataError("pairs of one label or none", "pairs of both", path=train_path)
    return labelled
