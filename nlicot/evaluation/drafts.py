"""How often a thought changes the draft of the label before it, and how often that is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSummary:
    """Counts of answers: those with a right draft, a wrong one and a right label, and the other way round."""

    num: int
    num_right: int
    num_corrected: int
    num_spoiled: int

    def __str__(self) -> str:
        num_changed = self.num_corrected + self.num_spoiled
        return (
            f"the label differs from the draft on {num_changed} of {self.num} pairs ({self.num_corrected} "
            f"corrected, {self.num_spoiled} spoiled); {self.num_right / self.num:.1%} of the drafts are right"
        )


def summarize_drafts(
    true_labels: Sequence[int | None], drafts: Sequence[int | None], labels: Sequence[int | None]
) -> DraftSummary | None:
    """Compare drafts with the labels after the thoughts; None if a pair has no draft.

    >>> print(summarize_drafts([1, 1, 0, 0], drafts=[0, 1, 0, 1], labels=[1, 1, 1, 1]))
    the label differs from the draft on 2 of 4 pairs (1 corrected, 1 spoiled); 50.0% of the drafts are right
    """
    if not drafts or None in drafts:
        return None
    right = [
        (draft == true, label == true) for true, draft, label in zip(true_labels, drafts, labels, strict=True)
    ]
    return DraftSummary(
        num=len(right),
        num_right=sum(before for before, _ in right),
        num_corrected=right.count((False, True)),
        num_spoiled=right.count((True, False)),
    )
