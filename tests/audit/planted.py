"""Pairs and texts without faults, made of random words; tests plant one fault at a time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from nlicot.audit.command import run_checks
from nlicot.audit.findings import Audit, Finding, Section
from nlicot.audit.inputs import AuditData, SplitData, TargetText
from nlicot.audit.label_leakage import without_last_step
from nlicot.records import Example, Reflection, Thought

VOCABULARY = [
    f"{a}{b}{c}" for a in ("bal", "cor", "dim", "fen") for b in "aeiou" for c in ("n", "st", "rk", "ld")
]
CLEAN_ENDS = ("the kettle is still cold", "that leaves the door ajar", "and so the boat sails on")


def words(rng: random.Random, num: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(num))


def examples(num: int, seed: int, prefix: str) -> list[Example]:
    """Pairs whose label is independent of their words."""
    rng = random.Random(seed)
    return [
        Example(
            id=f"{prefix}{number}",
            premise=f"{words(rng, 14)}.",
            hypothesis=f"{words(rng, 8)}.",
            label=number % 2,
        )
        for number in range(num)
    ]


def thoughts(pairs: Sequence[Example], seed: int, p_right: float = 0.8) -> list[Thought]:
    """Thoughts that are sometimes wrong, of either label and any length."""
    rng = random.Random(seed)
    found = []
    for example in pairs:
        assert example.label is not None
        right = rng.random() < p_right
        found.append(
            Thought(
                id=example.id,
                premise=example.premise,
                hypothesis=example.hypothesis,
                thought_process=f"Step 1: {words(rng, 10)}. Step 2: {words(rng, rng.randint(8, 16))}. "
                f"Step 3: {rng.choice(CLEAN_ENDS)}.",
                predicted_label=example.label if right else 1 - example.label,
                true_label=example.label,
            )
        )
    return found


def reflections(wrong: Sequence[Thought], seed: int) -> list[Reflection]:
    rng = random.Random(seed)
    return [
        Reflection(
            id=thought.id,
            premise=thought.premise,
            hypothesis=thought.hypothesis,
            true_label=int(thought.true_label or 0),
            thought_process=thought.thought_process,
            error_analysis="Step 2 failed.",
            improved_thought_process=f"Step 1: {words(rng, 10)}. Step 2: {words(rng, 12)}. "
            f"Step 3: {rng.choice(CLEAN_ENDS)}.",
            reflected_label=int(thought.true_label or 0),
        )
        for thought in wrong
    ]


def split(name: str = "train", num: int = 240, seed: int = 1) -> SplitData:
    """A clean split with thoughts, reflections and targets."""
    pairs = examples(num, seed, "t" if name == "train" else name[0])
    own = thoughts(pairs, seed + 1)
    return with_targets(
        SplitData(
            name=name,
            examples=pairs,
            thoughts=own,
            reflections=reflections([thought for thought in own if not thought.correct], seed + 2),
        )
    )


def with_targets(data: SplitData) -> SplitData:
    """The targets of `reflected`: right thoughts, and the reflections."""
    example_of = {example.id: example for example in data.examples}
    targets = [
        TargetText(
            example=example_of[thought.id],
            text=thought.thought_process,
            label=thought.predicted_label,
            source="thought",
        )
        for thought in data.thoughts
        if thought.correct
    ]
    targets += [
        TargetText(
            example=example_of[each.id],
            text=each.improved_thought_process,
            label=each.reflected_label,
            source="reflection",
        )
        for each in data.reflections
    ]
    return dataclasses.replace(data, targets=targets)


def clean() -> AuditData:
    return AuditData(
        splits=[split("train"), split("dev", num=80, seed=50)], prompts={"a prompt": "Judge this."}
    )


def changed(data: AuditData, name: str, field: str, change: Callable[[int, object], object]) -> AuditData:
    """The data with the records of one split and field passed through `change(number, record)`."""
    splits = [
        with_targets(
            dataclasses.replace(
                each,
                **{field: [change(number, record) for number, record in enumerate(getattr(each, field))]},
            )
        )
        if each.name == name
        else each
        for each in data.splits
    ]
    return dataclasses.replace(data, splits=splits)


def named(found: Audit, name: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.name == name]


def only(data: AuditData, name: str) -> Finding:
    """The one finding of this name."""
    (finding,) = named(run_checks(data), name)
    return finding


def thought_of(record: object) -> Thought:
    assert isinstance(record, Thought)
    return record


def reworded(record: Thought, end: str) -> Thought:
    """The thought with another last step."""
    text = without_last_step(record.thought_process)
    return dataclasses.replace(record, thought_process=f"{text}Step 3: {end}")


def section_of(found: Audit, name: str) -> Section:
    """The one section of this name."""
    (section,) = [section for section in found.sections if section.name == name]
    return section


def lopsided(data: AuditData) -> AuditData:
    """A teacher that calls nearly everything 0."""

    def plant(number: int, record: object) -> Thought:
        return dataclasses.replace(thought_of(record), predicted_label=int(number % 10 == 1))

    return changed(data, "train", "thoughts", plant)
