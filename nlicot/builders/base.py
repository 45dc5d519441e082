"""What every builder shares: one target per pair, the same selection, the same report.

A builder stands between the teacher's records and the encoded examples. A subclass says one thing,
`target`: which thought and label, if any, a pair's completion carries.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nlicot import completion
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a completion shall say; `thought_process` is None for a label alone."""

    thought_process: str | None
    label: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a builder made of its input, as `fit` logs it."""

    num_pairs: int
    num_examples: int
    num_without_target: int
    by_source: dict[str, int]
    by_label: dict[str, int]
    sha256: str

    def __str__(self) -> str:
        labels = ", ".join(f"label {label}: {count}" for label, count in sorted(self.by_label.items()))
        sources = ", ".join(f"{source}: {count}" for source, count in sorted(self.by_source.items()))
        return (
            f"{self.num_examples} examples from {self.num_pairs} pairs ({sources}; {labels}; "
            f"{self.num_without_target} pairs left out; content {self.sha256[:12]})"
        )


class Builder(ABC):
    """Turns pairs, thoughts and reflections into training examples.

    Args:
        balance: leave out examples of the commoner label, by `seed`, until both are equally many.
        max_thought_words: leave out thoughts longer than this.
        min_score: leave out texts that a judge scored lower (a text without a score stays).
        prefer: which of several fitting samples of a pair to take: `first` or `shortest`.
        seed: of the balancing choice.
    """

    thinks = True
    """Whether the completions hold a thought; prediction thinks where training did."""

    def __init__(
        self,
        balance: bool = False,
        max_thought_words: int | None = None,
        min_score: int | None = None,
        prefer: str = "first",
        seed: int = 0,
    ) -> None:
        if prefer not in ("first", "shortest"):
            raise ValueError(f"prefer: found {prefer!r}, expected 'first' or 'shortest'")
        self.balance = balance
        self.max_thought_words = max_thought_words
        self.min_score = min_score
        self.prefer = prefer
        self.seed = seed

    @abstractmethod
    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """What the completion of `example` says, or None to leave the pair out.

        Called once for each of the pair's samples, or once with None where it has no thought.
        """

    def build(
        self,
        examples: Sequence[Example],
        thoughts: Iterable[Thought] = (),
        reflections: Iterable[Reflection] = (),
        scores: Iterable[Score] = (),
        *,
        prompts: StudentPrompts | None = None,
    ) -> list[TrainingExample]:
        """At most one training example for each pair, in the pairs' order.

        Thoughts and reflections are those joined to `examples` by `storage`: their ids agree.
        """
        prompts = prompts or StudentPrompts()
        samples: dict[str, list[Thought]] = defaultdict(list)
        for thought in thoughts:
            samples[thought.id].append(thought)
        reflected = {(reflection.id, reflection.sample): reflection for reflection in reflections}
        marks: dict[tuple[str, str, int], int] = {
            (score.target, score.id, score.sample): score.score for score in scores
        }

        built = []
        for example in examples:
            target = self._choose(example, samples.get(example.id, []), reflected, marks)
            if target is not None:
                built.append(
                    TrainingExample(
                        id=example.id,
                        prompt=prompts.render(
                            example.premise,
                            example.hypothesis,
                            thinking=target.thought_process is not None,
                        ),
                        completion=completion.render(target.thought_process, target.label),
                        label=target.label,
                        source=target.source,
                    )
                )
        return self._balanced(built) if self.balance else built

    def _choose(
        self,
        example: Example,
        thoughts: Sequence[Thought],
        reflected: dict[tuple[str, int], Reflection],
        marks: dict[tuple[str, str, int], int],
    ) -> Target | None:
        candidates = []
        ordered: list[Thought | None] = [*sorted(thoughts, key=lambda thought: thought.sample)]
        for thought in ordered or [None]:
            sample = thought.sample if thought else 0
            target = self.target(example, thought, reflected.get((example.id, sample)))
            if target is None or self._too_long(target):
                continue
            mark = marks.get((target.source, example.id, sample))
            if self.min_score is None or mark is None or mark >= self.min_score:
                candidates.append(target)
        if self.prefer == "shortest":
            candidates.sort(key=lambda target: len(target.thought_process or ""))
        return candidates[0] if candidates else None

    def _too_long(self, target: Target) -> bool:
        if self.max_thought_words is None or target.thought_process is None:
            return False
        return len(target.thought_process.split()) > self.max_thought_words

    def _balanced(self, built: list[TrainingExample]) -> list[TrainingExample]:
        by_label: dict[int, list[int]] = {0: [], 1: []}
        for index, example in enumerate(built):
            by_label[example.label].append(index)
        size = min(len(indices) for indices in by_label.values())
        chosen = random.Random(self.seed)
        kept = {index for label in (0, 1) for index in chosen.sample(by_label[label], size)}
        return [example for index, example in enumerate(built) if index in kept]


def build_report(num_pairs: int, built: Sequence[TrainingExample]) -> BuildReport:
    """Counts and a content hash of what a builder made of `num_pairs` pairs."""
    digest = hashlib.sha256()
    for example in built:
        digest.update(f"{example.id}\x1f{example.prompt}\x1f{example.completion}\x1e".encode())
    return BuildReport(
        num_pairs=num_pairs,
        num_examples=len(built),
        num_without_target=num_pairs - len({example.id for example in built}),
        by_source=dict(Counter(example.source for example in built)),
        by_label={str(label): count for label, count in Counter(example.label for example in built).items()},
        sha256=digest.hexdigest(),
    )
