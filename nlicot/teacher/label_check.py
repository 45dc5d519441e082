"""The probe: compare the teacher's first answers with the labels before paying for the other 39,900."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nlicot.evaluation.metrics import wilson_interval
from nlicot.records import LABELS, Example, Thought
from nlicot.teacher.prompt import RELATIONS

NUM_PROBED = 100
MIN_PAIRS_OF_A_LABEL = 10
MIN_RECALL_GAP = 0.25  # mere carelessness would not explain it
NUM_EXAMPLES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How many of a label's pairs the teacher got right."""

    label: int
    num_right: int
    num: int

    @property
    def proportion(self) -> float:
        """The recall; 0 without any pair."""
        return self.num_right / self.num if self.num else 0.0


class MappedRelations(NamedTuple):
    """A map from relations to labels, and the accuracy that it would give."""

    relation_map: dict[str, int]
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """The first answers against the true labels.

    `maps` are all maps from relations to labels, the best first; empty unless the teacher named relations.
    `missed` are some of the wrong thoughts about the label with the lower recall.
    """

    recalls: tuple[Recall, ...]
    accuracy: float
    maps: tuple[MappedRelations, ...]
    missed: tuple[Thought, ...]

    @property
    def lopsided(self) -> bool:
        """One label's recall is much lower than the other's, and too few pairs do not explain it."""
        if any(recall.num < MIN_PAIRS_OF_A_LABEL for recall in self.recalls):
            return False
        worse, better = sorted(self.recalls, key=lambda recall: recall.proportion)
        gap = better.proportion - worse.proportion
        highest = wilson_interval(worse.num_right, worse.num).high
        lowest = wilson_interval(better.num_right, better.num).low
        return highest < lowest and gap >= MIN_RECALL_GAP

    def headline(self) -> str:
        """Return the finding in one line."""
        zero, one = (f"{100 * recall.proportion:.0f} % of label {recall.label}" for recall in self.recalls)
        consequence = ": the label definitions do not fit this data" if self.lopsided else ""
        return f"teacher finds {one} and {zero}{consequence}"

    def __str__(self) -> str:
        lines = [self.headline()]
        for recall in (recall for recall in self.recalls if recall.num):
            interval = wilson_interval(recall.num_right, recall.num)
            counts = f"{recall.num_right} of {recall.num}"
            lines.append(f"  label {recall.label}: {counts} ({interval.low:.0%} to {interval.high:.0%})")
        if self.maps:
            lines.append("  accuracy of each map from relations to labels:")
        for mapped in self.maps:
            labels = ",".join(f"{relation}={label}" for relation, label in mapped.relation_map.items())
            lines.append(f"    {labels}  {mapped.accuracy:.1%}")
        if self.lopsided and self.missed:
            label = self.missed[0].true_label
            lines.append(f"  pairs of label {label} that it labels {1 - int(label or 0)}:")
            for thought in self.missed:
                lines.append(f"    {thought.id}: {thought.premise!r} / {thought.hypothesis!r}")
                lines.append(f"      {thought.thought_process}")
        return "\n".join(lines)


def probe(thoughts: Iterable[Thought]) -> ProbeReport:
    """Compare blind thoughts with their pairs' true labels; skip those without one."""
    labelled = [thought for thought in thoughts if thought.true_label is not None]
    recalls = []
    for label in LABELS:
        right = [thought.correct for thought in labelled if thought.true_label == label]
        recalls.append(Recall(label=label, num_right=sum(right), num=len(right)))
    worse = min(recalls, key=lambda recall: recall.proportion).label
    wrong = [thought for thought in labelled if thought.true_label == worse and not thought.correct]
    named = [(thought.relation, thought.true_label) for thought in labelled if thought.relation in RELATIONS]
    maps = []
    for labels in itertools.product(LABELS, repeat=len(RELATIONS)):
        if named and len(set(labels)) > 1:
            relation_map = dict(zip(RELATIONS, labels, strict=True))
            num_right = sum(relation_map[str(relation)] == label for relation, label in named)
            maps.append(MappedRelations(relation_map=relation_map, accuracy=num_right / len(named)))
    return ProbeReport(
        recalls=tuple(recalls),
        accuracy=sum(thought.correct for thought in labelled) / max(1, len(labelled)),
        maps=tuple(sorted(maps, key=lambda mapped: -mapped.accuracy)),
        missed=tuple(wrong[:NUM_EXAMPLES_SHOWN]),
    )


def pairs_to_probe(examples: Sequence[Example]) -> list[Example]:
    """Choose the first 100 labelled pairs, half of each label if there are enough: files may be sorted."""
    rows = [[row for row, example in enumerate(examples) if example.label == label] for label in LABELS]
    fewer, more = sorted(rows, key=len)
    chosen = fewer[: NUM_PROBED // 2]
    chosen += more[: NUM_PROBED - len(chosen)]
    return [examples[row] for row in sorted(chosen)]
