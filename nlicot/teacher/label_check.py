"""The probe: compare the teacher's first answers with the labels before paying for the other 39,900."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nlicot.data.pairs import LabelMap
from nlicot.evaluation.metrics import (
    MIN_PAIRS_OF_A_LABEL,
    Recall,
    format_mistakes,
    format_recalls,
    label_recalls,
    look_reversed,
)
from nlicot.records import LABELS, Example, Thought
from nlicot.teacher.prompt import RELATIONS
from nlicot.text_tables import percent

NUM_PROBED = 100
MIN_RECALL_GAP = 0.25  # mere carelessness would not explain it
NUM_EXAMPLES_SHOWN = 3


class MappedRelations(NamedTuple):
    """A map from relations to labels, and the accuracy that it would give."""

    relation_map: dict[str, int]
    accuracy: float

    def __str__(self) -> str:
        return ",".join(f"{relation}={label}" for relation, label in self.relation_map.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """The first answers against the true labels.

    `maps` are all maps from relations to labels, the best first; empty unless the teacher named relations.
    `relations_exchanged` is true if that in use has entailment as 0. `missed` are some of the wrong thoughts
    about the label with the lower recall or, if labels look reversed, one about each label.
    """

    recalls: tuple[Recall, ...]
    accuracy: float
    maps: tuple[MappedRelations, ...]
    relations_exchanged: bool
    missed: tuple[Thought, ...]

    @property
    def labels_reversed(self) -> bool:
        """Both labels' recalls are below chance, and too few pairs do not explain it."""
        return look_reversed(self.recalls)

    @property
    def lopsided(self) -> bool:
        """One label's recall is much lower than the other's, and too few pairs do not explain it."""
        if self.labels_reversed or any(recall.num < MIN_PAIRS_OF_A_LABEL for recall in self.recalls):
            return False
        worse, better = sorted(self.recalls, key=lambda recall: recall.proportion)
        gap = better.proportion - worse.proportion
        return worse.interval.high < better.interval.low and gap >= MIN_RECALL_GAP

    @property
    def below_chance(self) -> bool:
        """Guesses of the same bias would be right more often, whatever the labels' definitions."""
        return (
            all(recall.num for recall in self.recalls)
            and sum(each.interval.high for each in self.recalls) < 1
        )

    def headline(self) -> str:
        """Return the finding in one line."""
        consequence = ": the label definitions do not fit this data" if self.lopsided else ""
        if self.labels_reversed:
            consequence = ": labels look reversed"
        return f"teacher finds {format_recalls(self.recalls)}{consequence}"

    def exchange(self, label_map: LabelMap | None) -> str:
        """Return the flag that exchanges the labels of `label_map`, and the accuracy with it."""
        flag, accuracy = f"--label_map {LabelMap.exchanged(label_map)} in every command", 1 - self.accuracy
        if self.relations_exchanged:
            flag = f"generate --prompt_type relation --relation_map {self.maps[0]}"
            accuracy = self.maps[0].accuracy
        return f"with {flag} the teacher is right on {percent(accuracy)}"

    def __str__(self) -> str:
        lines = [self.headline()]
        for recall in (recall for recall in self.recalls if recall.num):
            counts, interval = f"{recall.num_right} of {recall.num}", recall.interval
            lines.append(f"  label {recall.label}: {counts} ({interval.low:.0%} to {interval.high:.0%})")
        if self.maps:
            lines.append("  accuracy of each map from relations to labels:")
        lines += [f"    {mapped}  {mapped.accuracy:.1%}" for mapped in self.maps]
        if self.labels_reversed:
            lines.append("  two of the pairs:")
            lines += format_mistakes(((each, int(each.true_label or 0)) for each in self.missed), "teacher")
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
    recalls = label_recalls((thought.true_label, thought.predicted_label) for thought in labelled)
    wrong = {
        label: [each for each in labelled if (each.true_label, each.correct) == (label, False)]
        for label in LABELS
    }
    missed = wrong[min(recalls, key=lambda recall: recall.proportion).label][:NUM_EXAMPLES_SHOWN]
    if look_reversed(recalls):
        missed = [wrong[label][0] for label in LABELS]
    entailed = [thought.predicted_label for thought in labelled if thought.relation == "entailment"]
    named = [(thought.relation, thought.true_label) for thought in labelled if thought.relation in RELATIONS]
    maps = []
    for labels in itertools.product(LABELS, repeat=len(RELATIONS)):
        if named and len(set(labels)) > 1:
            relation_map = dict(zip(RELATIONS, labels, strict=True))
            num_right = sum(relation_map[str(relation)] == label for relation, label in named)
            maps.append(MappedRelations(relation_map=relation_map, accuracy=num_right / len(named)))
    return ProbeReport(
        recalls=recalls,
        accuracy=sum(thought.correct for thought in labelled) / max(1, len(labelled)),
        maps=tuple(sorted(maps, key=lambda mapped: -mapped.accuracy)),
        relations_exchanged=sum(entailed) < len(entailed) / 2,
        missed=tuple(missed),
    )


def pairs_to_probe(examples: Sequence[Example]) -> list[Example]:
    """Choose the first 100 labelled pairs, half of each label if there are enough: files may be sorted."""
    rows = [[row for row, example in enumerate(examples) if example.label == label] for label in LABELS]
    fewer, more = sorted(rows, key=len)
    chosen = fewer[: NUM_PROBED // 2]
    chosen += more[: NUM_PROBED - len(chosen)]
    return [examples[row] for row in sorted(chosen)]
