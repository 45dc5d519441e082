"""The probe: whether the teacher's first answers fit the labels, before the other 39,900 are paid for.

A label is what a data set's authors meant by it, and a teacher that is told something else is wrong in one
direction: nearly all of one label, hardly any of the other. No model or budget mends that; other words do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nlicot.evaluation.bootstrap import Interval, wilson_interval
from nlicot.records import LABELS, Example, Thought
from nlicot.teacher.stages.prompts import RELATIONS

NUM_PROBED = 100
FEWEST_OF_A_LABEL = 10
LOPSIDED_BY = 0.25
"""A gap between the labels' recalls that a careless teacher alone does not open."""
ENOUGH_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How many of a label's pairs the teacher found, with Wilson's 95 % interval."""

    label: int
    num_right: int
    num: int

    @property
    def share(self) -> float:
        """Right ones among all; 0 without any."""
        return self.num_right / self.num if self.num else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the share."""
        return wilson_interval(self.num_right, self.num)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRelations:
    """A map from relations to labels, and the accuracy that it would give."""

    relation_map: dict[str, int]
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the first answers say.

    `maps` are all maps from relations to labels, the best first; empty unless the teacher named relations.
    `missed` are some of the wrong thoughts about the label that is found more seldom.
    """

    recalls: tuple[Recall, ...]
    accuracy: float
    maps: tuple[MappedRelations, ...]
    missed: tuple[Thought, ...]

    @property
    def lopsided(self) -> bool:
        """One label is found much more often than the other, and not by chance of few pairs."""
        if any(recall.num < FEWEST_OF_A_LABEL for recall in self.recalls):
            return False
        worse, better = sorted(self.recalls, key=lambda recall: recall.share)
        apart = worse.interval.high < better.interval.low
        return apart and better.share - worse.share >= LOPSIDED_BY

    def headline(self) -> str:
        """The finding in one line."""
        found = " and ".join(
            f"{recall.share:.0%} of label {recall.label}" for recall in reversed(self.recalls)
        )
        found = found.replace("%", " %")
        if not self.lopsided:
            return f"teacher finds {found}"
        return f"teacher finds {found}: the label definitions do not fit this data"

    def __str__(self) -> str:
        lines = [self.headline()]
        for recall in self.recalls:
            low, high = recall.interval.low, recall.interval.high
            lines.append(
                f"  label {recall.label}: {recall.num_right} of {recall.num} ({low:.0%} to {high:.0%})"
            )
        if self.maps:
            lines.append("  which label each relation should mean, by the true labels:")
            lines += [f"    {_spelt(found.relation_map)}  {found.accuracy:.1%}" for found in self.maps]
        if self.lopsided and self.missed:
            label = self.missed[0].true_label
            lines.append(f"  pairs of label {label} that it calls {1 - int(label or 0)}:")
            for thought in self.missed:
                lines.append(f"    {thought.id}: {thought.premise!r} / {thought.hypothesis!r}")
                lines.append(f"      {thought.thought_process}")
        return "\n".join(lines)


def probe(thoughts: Iterable[Thought]) -> ProbeReport:
    """Compare blind thoughts with their pairs' true labels; those without a true label are passed over."""
    labelled = [thought for thought in thoughts if thought.true_label is not None]
    recalls = tuple(
        Recall(
            label=label,
            num_right=sum(thought.correct for thought in labelled if thought.true_label == label),
            num=sum(thought.true_label == label for thought in labelled),
        )
        for label in LABELS
    )
    worse = min(recalls, key=lambda recall: recall.share).label
    wrong = [thought for thought in labelled if thought.true_label == worse and not thought.correct]
    return ProbeReport(
        recalls=recalls,
        accuracy=sum(thought.correct for thought in labelled) / max(1, len(labelled)),
        maps=tuple(_maps(labelled)),
        missed=tuple(wrong[:ENOUGH_SHOWN]),
    )


def _maps(labelled: Sequence[Thought]) -> list[MappedRelations]:
    related = [thought for thought in labelled if thought.relation in RELATIONS]
    if not related:
        return []
    found = []
    for labels in itertools.product(LABELS, repeat=len(RELATIONS)):
        if len(set(labels)) == 1:
            continue
        relation_map = dict(zip(RELATIONS, labels, strict=True))
        right = sum(relation_map[str(thought.relation)] == thought.true_label for thought in related)
        found.append(MappedRelations(relation_map=relation_map, accuracy=right / len(related)))
    return sorted(found, key=lambda mapped: -mapped.accuracy)


def _spelt(relation_map: dict[str, int]) -> str:
    return ",".join(f"{relation}={label}" for relation, label in relation_map.items())


def pairs_to_probe(examples: Iterable[Example], num: int = NUM_PROBED) -> list[Example]:
    """The first labelled pairs, half of each label as far as there are; in their order.

    Files sorted by label are common, and the first hundred rows of one would say nothing of the other.
    """
    first: dict[int, list[tuple[int, Example]]] = {label: [] for label in LABELS}
    for position, example in enumerate(examples):
        if example.label is not None and len(first[example.label]) < num:
            first[example.label].append((position, example))
        if all(len(found) >= num // 2 for found in first.values()):
            break
    fewer, more = sorted(first.values(), key=len)
    chosen = fewer[: num // 2]
    chosen += more[: num - len(chosen)]
    return [example for _, example in sorted(chosen, key=lambda found: found[0])]
