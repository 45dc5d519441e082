"""Whether the voice of a target gives its label away, before any argument is made.

A builder such as `reflected` takes right thoughts as they came and reflections on the wrong ones. Where a
teacher finds one label only, all thoughts are of that label and all reflections of the other, and a student
learns to tell the two kinds of text apart in place of the pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nlicot.audit.findings import Finding, Section, place
from nlicot.audit.minhash import normalised
from nlicot.audit.reading import AuditData, TargetText
from nlicot.audit.text_classifier import Guess, guess_labels
from nlicot.audit.wording import body
from nlicot.evaluation.metrics import wilson_interval
from nlicot.records import LABELS
from nlicot.text_tables import Table, percent

MUCH_GAIN, SOME_GAIN = 0.2, 0.1
MUCH_BY_VOICE = 0.3
"""Steps in front of the last one argue too, so some gain is honest: 0.22 on data without the fault."""
_WORD = re.compile(r"\w+")


def check_voice(data: AuditData) -> Section | None:
    """Cross source with label, and let linear models guess the label from the targets alone."""
    split = next((split for split in data.splits if split.targets), None)
    if split is None:
        return None
    targets = split.targets
    counts = {
        source: [sum(t.source == source and t.label == label for t in targets) for label in LABELS]
        for source in sorted({target.source for target in targets})
    }
    num_right = sum(max(each) for each in counts.values())
    majority = max(sum(each[label] for each in counts.values()) for label in LABELS) / len(targets)
    by_source = num_right / len(targets)
    voice = _guess(targets, [voice_of(target) for target in targets])
    steps = _guess(targets, [body(target.text) for target in targets])
    whole = _guess(targets, [target.text for target in targets])
    rows = [(source, str(zeros), str(ones)) for source, (zeros, ones) in counts.items()]
    told = [("the commoner label", percent(majority), "-")]
    told.append(
        ("its source alone (thought or reflection)", percent(by_source), _range_of(num_right, targets))
    )
    for what, guess in (
        ("its voice: no last step, the pair's own words blanked", voice),
        ("its text without the last step", steps),
        ("its whole text, last step included", whole),
    ):
        if guess is not None:
            interval = f"{percent(guess.interval.low)} to {percent(guess.interval.high)}"
            told.append((what, percent(guess.accuracy), interval))
    findings = _source_finding(split.name, targets, counts, by_source, majority)
    findings += _voice_finding(split.name, targets, voice)
    return Section(
        name="voice",
        title="Source, voice and label",
        summary=f"{len(targets)} targets of {split.name}: the source alone tells {percent(by_source)} of "
        f"labels" + (f", the voice {percent(voice.accuracy)}" if voice else ""),
        findings=tuple(findings),
        tables=(
            Table(title="targets", header=("source", "label 0", "label 1"), rows=tuple(rows)),
            Table(
                title="how well a target's label is told from", header=("", "right", "95 %"), rows=tuple(told)
            ),
        ),
        figures={
            "split": split.name,
            "by_source": {source: {"0": zeros, "1": ones} for source, (zeros, ones) in counts.items()},
            "majority": majority,
            "source_accuracy": by_source,
            "voice": voice.figures if voice else None,
            "steps": steps.figures if steps else None,
            "whole": whole.figures if whole else None,
        },
    )


def voice_of(target: TargetText) -> str:
    """What is left of a target without its last step and the words of its own pair.

    The last step argues for the label and shall tell it; the pair's words tell what it is about.
    """
    own = set(_WORD.findall(f"{target.example.premise} {target.example.hypothesis}".casefold()))
    words = _WORD.findall(body(target.text).casefold())
    return " ".join("_" if word in own else word for word in words)


def _guess(targets: Sequence[TargetText], texts: Sequence[str]) -> Guess | None:
    groups = [normalised(target.example.premise) for target in targets]
    return guess_labels(texts, [target.label for target in targets], groups)


def _range_of(num_right: int, targets: Sequence[TargetText]) -> str:
    interval = wilson_interval(num_right, len(targets))
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _source_finding(
    split: str,
    targets: Sequence[TargetText],
    counts: dict[str, list[int]],
    by_source: float,
    majority: float,
) -> list[Finding]:
    if len(counts) < 2 or by_source - majority < SOME_GAIN:
        return []
    usual = {source: max(LABELS, key=lambda label: each[label]) for source, each in counts.items()}
    ids = tuple(place(split, target.example.id) for target in targets if target.label == usual[target.source])
    table = "; ".join(
        f"{source}: {zeros} of label 0, {ones} of label 1" for source, (zeros, ones) in counts.items()
    )
    return [
        Finding(
            name="source gives the label away",
            severity="error" if by_source - majority >= MUCH_GAIN else "warning",
            summary=f"whether a target is a thought or a reflection tells {percent(by_source)} of labels "
            f"({table})",
            advice="say better what the labels mean and ask anew (`generate --definitions FILE --probe`), or "
            "have thoughts of both labels from one source; `label_only` is free of it",
            ids=ids,
            figures={"accuracy": by_source, "majority": majority, "by_source": counts},
        )
    ]


def _voice_finding(split: str, targets: Sequence[TargetText], voice: Guess | None) -> list[Finding]:
    if voice is None or voice.gain < MUCH_BY_VOICE:
        return []
    pairs = zip(targets, voice.right, strict=True)
    return [
        Finding(
            name="voice gives the label away",
            severity="warning",
            summary=f"a linear model tells {percent(voice.accuracy)} of labels from how the targets are "
            "worded, without their last step and their pairs' words",
            advice="read steps 1 and 2 of both labels side by side: what is worded alike whatever the pair "
            "(stock phrases, hedges) tells the student the label too early",
            ids=tuple(place(split, target.example.id) for target, right in pairs if right),
            figures=voice.figures,
        )
    ]
