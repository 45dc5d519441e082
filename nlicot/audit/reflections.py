"""Reflections that betray that they are some, or say nothing beyond their hypothesis.

A student shall write the improved thought as if it were its first. One that speaks of a true label, an
earlier attempt or an error teaches it to speak of things that it will never have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nlicot.audit.findings import Finding, Section, place, unique
from nlicot.audit.reading import AuditData
from nlicot.audit.wording import added_words, betrayals
from nlicot.records import Reflection
from nlicot.text_tables import Table, counted, percent

MANY = 0.05
FEWEST_ADDED = 4
"""A thought with fewer words of its own can hold no argument."""


def check_reflections(data: AuditData) -> Section | None:
    """Look at the improved thought of each reflection, which is what a student learns."""
    found = [(split.name, reflection) for split in data.splits for reflection in split.reflections]
    if not found:
        return None
    betraying: list[tuple[str, Reflection]] = []
    by_kind: Counter[str] = Counter()
    repeating: list[tuple[str, Reflection]] = []
    for split, reflection in found:
        text = reflection.improved_thought_process
        kinds = betrayals(text, f"{reflection.premise} {reflection.hypothesis}")
        if kinds:
            betraying.append((split, reflection))
            by_kind.update(kinds)
        if len(added_words(text, reflection.hypothesis)) < FEWEST_ADDED:
            repeating.append((split, reflection))
    rows = tuple((kind, str(num)) for kind, num in by_kind.most_common())
    return Section(
        name="reflections",
        title="Reflections",
        summary=f"{len(found)} reflections: {len(betraying)} give themselves away, "
        f"{len(repeating)} hardly say more than their hypothesis",
        findings=(*_betraying(betraying, by_kind, len(found)), *_repeating(repeating, len(found))),
        tables=(Table(title="they mention", header=("what", "reflections"), rows=rows),) if rows else (),
        figures={"num": len(found), "num_betraying": len(betraying), "num_repeating": len(repeating)},
    )


def _betraying(found: Sequence[tuple[str, Reflection]], by_kind: Counter[str], num: int) -> list[Finding]:
    if not found:
        return []
    share = len(found) / num
    told = ", ".join(f"{kind}: {count}" for kind, count in by_kind.most_common())
    return [
        Finding(
            name="reflection gives itself away",
            severity="error" if share >= MANY else "warning",
            summary=f"{len(found)} of {counted(num, 'reflection')} ({percent(share)}) mention what a first "
            f"thought cannot know ({told})",
            advice="ask for these anew (`reflect --ids ... --overwrite`), or have `score` mark them and set "
            "--data.builder.min_score",
            ids=_places(found),
            figures={"share": share, "by_kind": dict(by_kind)},
        )
    ]


def _repeating(found: Sequence[tuple[str, Reflection]], num: int) -> list[Finding]:
    if not found:
        return []
    share = len(found) / num
    return [
        Finding(
            name="reflection repeats the hypothesis",
            severity="error" if share >= MANY else "warning",
            summary=f"{len(found)} of {counted(num, 'reflection')} ({percent(share)}) have fewer than "
            f"{FEWEST_ADDED} words of meaning beyond their hypothesis",
            advice="ask for these anew: they assert the label and teach no step",
            ids=_places(found),
            figures={"share": share, "num": len(found)},
        )
    ]


def _places(found: Sequence[tuple[str, Reflection]]) -> tuple[str, ...]:
    return unique(place(split, reflection.id) for split, reflection in found)
