"""Thoughts that contradict their own label, give it away too early, or are the same for several pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from nlicot.audit.findings import Finding, Section, place, unique
from nlicot.audit.minhash import normalised
from nlicot.audit.reading import AuditData
from nlicot.audit.wording import FITS, USUAL_LABEL, early_verdict, verdict
from nlicot.records import LABELS, Thought
from nlicot.text_tables import Table, counted, percent

MANY_CONTRADICT = 0.05
MANY_EARLY = 0.2
ENOUGH, NEARLY_ALL = 20, 0.95


def check_thoughts(data: AuditData) -> Section | None:
    """Hold each thought's last words against its label, and look for verdicts before the last step."""
    thoughts = [(split.name, thought) for split in data.splits for thought in split.thoughts]
    if not thoughts:
        return None
    verdicts = [verdict(thought.thought_process) for _, thought in thoughts]
    labels = [thought.predicted_label for _, thought in thoughts]
    means = meanings(verdicts, labels)
    against = [
        (split, thought)
        for (split, thought), said in zip(thoughts, verdicts, strict=True)
        if said is not None and means.get(said, thought.predicted_label) != thought.predicted_label
    ]
    early = [
        (split, thought)
        for split, thought in thoughts
        if early_verdict(thought.thought_process, f"{thought.premise} {thought.hypothesis}")
    ]
    counts = Counter(zip(verdicts, labels, strict=True))
    rows = [
        (said, *(str(counts[said, label]) for label in LABELS))
        for said in sorted({said for said in verdicts if said is not None})
    ]
    rows.append(("(no plain verdict)", *(str(counts[None, label]) for label in LABELS)))
    num = len(thoughts)
    return Section(
        name="thoughts",
        title="Thoughts",
        summary=f"{num} thoughts: {num - counts[None, 0] - counts[None, 1]} end in a plain verdict, "
        f"{len(against)} against their own label; {len(early)} give a verdict before their last step",
        findings=(*_contradictions(against, num), *_early(early, num), *_repeated(thoughts)),
        tables=(
            Table(
                title="how thoughts end, by the label that they give",
                header=("the last step says", "label 0", "label 1"),
                rows=tuple(rows),
            ),
        ),
        figures={
            "num": num,
            "num_contradicting": len(against),
            "num_early": len(early),
            "verdicts": {said or "none": {} for said in verdicts}
            | {
                said or "none": {str(label): counts[said, label] for label in LABELS}
                for said in set(verdicts)
            },
        },
    )


def meanings(verdicts: Sequence[str | None], labels: Sequence[int]) -> Mapping[str, int]:
    """The label that each verdict stands for in these data; those that stand for none are left out.

    Where the labels have meanings of their own, most thoughts that end in "does not follow" may rightly be of
    label 1, and then that says nothing. That something "fits" counts as a verdict only where nearly all
    thoughts that say so have one label.
    """
    counts = Counter(zip(verdicts, labels, strict=True))
    found = {
        said: usual
        for said, usual in USUAL_LABEL.items()
        if counts[said, usual] >= counts[said, 1 - usual] or counts[said, 1 - usual] < ENOUGH
    }
    num = sum(counts[FITS, label] for label in LABELS)
    likelier = max(LABELS, key=lambda label: counts[FITS, label])
    if num >= ENOUGH and counts[FITS, likelier] >= NEARLY_ALL * num:
        found[FITS] = likelier
    return found


def _contradictions(against: Sequence[tuple[str, Thought]], num: int) -> list[Finding]:
    if not against:
        return []
    share = len(against) / num
    return [
        Finding(
            name="thought against its own label",
            severity="error" if share >= MANY_CONTRADICT else "warning",
            summary=f"{len(against)} of {counted(num, 'thought')} ({percent(share)}) argue for one label and "
            "give the other",
            advice="read them; ask for these pairs anew (`generate --ids ... --overwrite`), or have `score` "
            "mark them and set --data.builder.min_score",
            ids=_places(against),
            figures={"share": share, "num": len(against)},
        )
    ]


def _early(early: Sequence[tuple[str, Thought]], num: int) -> list[Finding]:
    if not early:
        return []
    share = len(early) / num
    return [
        Finding(
            name="verdict before the last step",
            severity="warning" if share >= MANY_EARLY else "note",
            summary=f"{len(early)} of {counted(num, 'thought')} ({percent(share)}) use a word for a label "
            "before their last step",
            advice="a thought that begins with its verdict only argues for it: ask for steps that leave it "
            "open, as the prompt that ships does",
            ids=_places(early),
            figures={"share": share, "num": len(early)},
        )
    ]


def _repeated(thoughts: Sequence[tuple[str, Thought]]) -> list[Finding]:
    """One text for pairs of different words: the teacher did not read."""
    pairs_of: dict[str, dict[tuple[str, str], list[tuple[str, Thought]]]] = {}
    for split, thought in thoughts:
        pair = (normalised(thought.premise), normalised(thought.hypothesis))
        same = pairs_of.setdefault(normalised(thought.thought_process), {})
        same.setdefault(pair, []).append((split, thought))
    shared = [
        each for found in pairs_of.values() if len(found) > 1 for same in found.values() for each in same
    ]
    if not shared:
        return []
    return [
        Finding(
            name="one thought for several pairs",
            severity="error" if len(shared) >= MANY_CONTRADICT * len(thoughts) else "warning",
            summary=f"{len(shared)} thoughts stand word for word with another pair too",
            advice="ask for these pairs anew: such a text was written without reading",
            ids=_places(shared),
            figures={"num": len(shared)},
        )
    ]


def _places(found: Sequence[tuple[str, Thought]]) -> tuple[str, ...]:
    return unique(place(split, thought.id) for split, thought in found)
