"""Soft labels: a probability of entailment for each pair, to learn instead of a label.

They are a column of the pairs, or the predictions of other models, so that an ensemble can teach one adapter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlicot.data.pairs import ALIASES
from nlicot.data.rows import RecordList, Row, read_records, shown
from nlicot.records import Example
from nlicot.text_tables import printable

SOFT_LABELS = "soft_labels"
"""Key in `fit.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabel:
    """A probability of entailment of the pairs with this id, these texts, or both."""

    id: str | None
    texts: tuple[str, str] | None
    p_entailment: float


def read_soft_labels(path: Path) -> RecordList[SoftLabel]:
    """Read a file of predictions, of `predict` or of another program; other fields are ignored."""
    return read_records(path, _soft_label_from, each="pair")


def _soft_label_from(row: Row) -> SoftLabel:
    p_entailment = row.probability("p_entailment")
    if p_entailment is None:
        found = f"no p_entailment among {', '.join(map(shown, row.fields))}"
        remedy = "`predict` writes it to the .jsonl next to its .csv"
        raise row.error(found, "one for each pair", remedy=remedy)
    premise, hypothesis = _text(row, "premise"), _text(row, "hypothesis")
    texts = (premise, hypothesis) if premise and hypothesis else None
    id_ = row.identifier() if texts else row.identifier() or row.text("id")
    return SoftLabel(id=id_, texts=texts, p_entailment=p_entailment)


def _text(row: Row, column: str) -> str | None:
    """Return a text whose column has the name, or one of the aliases, that files of pairs may have."""
    names = {name.lower(): name for name in row.fields}
    found = next((names[alias] for alias in (column, *ALIASES[column]) if alias in names), None)
    return row.optional_text(found) if found else None


def join_soft_labels(
    splits: Mapping[str, Sequence[Example]], soft_labels: RecordList[SoftLabel]
) -> dict[str, dict[str, float]]:
    """Return the probability of each pair that has one, by split and id.

    A soft label belongs to the pairs with its id and texts, else to all pairs with its texts; one without
    texts, to the pairs with its id.
    """
    pairs = [(split, example) for split, examples in splits.items() for example in examples]
    with_id, with_texts = defaultdict(list), defaultdict(list)
    for split, example in pairs:
        with_id[example.id].append((split, example))
        with_texts[example.premise, example.hypothesis].append((split, example))
    found: dict[str, dict[str, float]] = {split: {} for split in splits}
    for index, each in enumerate(soft_labels):
        same = with_id.get(each.id or "", [])
        if each.texts is not None:
            both = [pair for pair in same if (pair[1].premise, pair[1].hypothesis) == each.texts]
            same = both or with_texts.get(each.texts, [])
        elif len({(example.premise, example.hypothesis) for _, example in same}) > 1:
            found_id = f"the id {shown(each.id)}, which different pairs have, without their texts"
            remedy = "add the columns premise and hypothesis; `predict` writes them"
            raise soft_labels.error(found_id, "texts that tell them apart", index=index, remedy=remedy)
        if not same:
            problem = f"the soft label of {shown(each.id or each.texts)} matches no training pair"
            remedy = "give its pair, too: --data.train_pairs or --data.unlabelled_pairs"
            raise soft_labels.error(problem, index=index, remedy=remedy)
        for split, example in same:
            earlier = found[split].setdefault(example.id, each.p_entailment)
            if earlier != each.p_entailment:
                again = f"p_entailment {each.p_entailment} of pair {shown(example.id)}, after {earlier}"
                raise soft_labels.error(again, "one for each pair", index=index)
    return found


def with_soft_labels(
    examples: RecordList[Example], given: Mapping[str, float], temperature: float
) -> RecordList[Example]:
    """Return the pairs with their soft labels at a temperature: those given for their ids, else their own."""
    found = []
    for example in examples:
        p = given.get(example.id, example.p_entailment)
        found.append(example if p is None else replace(example, p_entailment=at_temperature(p, temperature)))
    return RecordList(found, examples.lines, examples.path)


def as_unlabelled(examples: RecordList[Example]) -> RecordList[Example]:
    """Return pairs with their soft labels only, which all must have; their ids get a prefix.

    Ids are often row numbers, and so those of training pairs, too.
    """
    for index, example in enumerate(examples):
        if example.p_entailment is None:
            found, expected = f"no soft label of pair {shown(example.id)}", "one for each unlabelled pair"
            remedy = "predict these pairs, and give the .jsonl instead, or as --data.soft_labels"
            raise examples.error(found, expected, index=index, remedy=remedy)
    unlabelled = (replace(each, id=f"unlabelled-{each.id}", label=None) for each in examples)
    return RecordList(unlabelled, examples.lines, examples.path)


def at_temperature(p: float, temperature: float) -> float:
    """Return sigmoid(logit(p) / temperature), which is 0 or 1 if p is (Hinton et al. 2015, arXiv:1503.02531).

    >>> at_temperature(0.8, 0.5)
    0.9411764705882353
    >>> [at_temperature(p, 0.01) for p in (0, 0.5, 1)]
    [0.0, 0.5, 1.0]
    """
    if temperature == 1:
        return p
    odds: float = (min(p, 1 - p) / max(p, 1 - p)) ** (1 / temperature)
    less_likely = odds / (1 + odds)
    return less_likely if p < 0.5 else 1 - less_likely


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabelSummary:
    """The soft labels of a run, as `fit.json` records them.

    Of `num_pairs` training pairs with soft labels, `num_unlabelled` have no other label and `num_in_test` are
    pairs of the test split. `files` are the SHA-256 of each file by its path.
    """

    files: Mapping[str, str]
    num_pairs: int
    num_unlabelled: int
    num_in_test: int
    temperature: float

    @classmethod
    def in_summary(cls, summary: Mapping[str, Any]) -> SoftLabelSummary | None:
        """Return the record in a run's `fit.json`; None if the run learnt from labels only."""
        try:
            return cls(**summary[SOFT_LABELS])
        except (KeyError, TypeError):
            return None

    def __str__(self) -> str:
        files = ", ".join(f"{path} (sha256 {sha256[:12]})" for path, sha256 in self.files.items())
        text = (
            f"soft labels of {self.num_pairs} pairs, {self.num_unlabelled} of them unlabelled, "
            f"at temperature {self.temperature:g}, from {files}"
        )
        if self.num_in_test:
            text += f"; TRANSDUCTIVE: {self.num_in_test} are pairs of the test split"
        return printable(text)
