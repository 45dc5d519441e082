"""What every builder shares: one target per pair, the same selection, the same report.

A builder stands between the teacher's records and the encoded examples. A subclass says one thing,
`target`: which thought and label, if any, a pair's completion carries.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from nlicot import completion
from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample

Text = TypeVar("Text", Thought, Reflection)
_Sample: TypeAlias = tuple[list[Thought], list[Reflection]]
"""The texts of one sample of a pair, all rounds of them."""
_Marks: TypeAlias = dict[tuple[str, str, int, int], int]
"""Scores by target, pair, sample and round."""


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
        max_thought_tokens: likewise, in tokens of the student, which `fit` knows.
        min_score: leave out texts that a judge scored lower (a text without a score stays).
        prefer: which of several fitting samples of a pair to take: `first` or `shortest`.
        seed: of the balancing choice.

    Attributes:
        count_tokens: the student's tokens of a thought in a completion; set by what knows the student.
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
        max_thought_tokens: int | None = None,
    ) -> None:
        if prefer not in ("first", "shortest"):
            raise ValueError(f"prefer: found {prefer!r}, expected 'first' or 'shortest'")
        self.balance = balance
        self.max_thought_words = max_thought_words
        self.min_score = min_score
        self.prefer = prefer
        self.seed = seed
        self.max_thought_tokens = max_thought_tokens
        self.count_tokens: Callable[[str], int] | None = None

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """The training examples that a pair's target becomes, each with the form of its completion."""
        return [(target, Form.LABEL_ONLY if target.thought_process is None else Form.THOUGHT_FIRST)]

    @abstractmethod
    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """What the completion of `example` says, or None to leave the pair out.

        Called once for each of the pair's samples and each round of its texts, or once with None where it
        has no thought.
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
        """The training examples of each pair that has a target, in the pairs' order.

        Args:
            thoughts: those joined to `examples` by `storage`, so that their ids agree; of each sample the
                first one, and those written anew in later rounds.
            reflections: likewise.
            scores: marks for some of them. Of several rounds the best marked one is taken, the earlier of
                two that are equal or unmarked.
            prompts: what words the prompts.
        """
        built = self.build_all(examples, thoughts, reflections, scores, prompts=prompts)
        if not self.balance:
            return built
        return [built[index] for index in self.balanced([example.label for example in built])]

    def build_all(
        self,
        examples: Sequence[Example],
        thoughts: Iterable[Thought] = (),
        reflections: Iterable[Reflection] = (),
        scores: Iterable[Score] = (),
        *,
        prompts: StudentPrompts | None = None,
    ) -> list[TrainingExample]:
        """What `build` chooses from: each pair on its own, so that chunks can be built in turn."""
        prompts = prompts or StudentPrompts()
        texts: dict[str, dict[int, _Sample]] = {}
        for thought in thoughts:
            texts.setdefault(thought.id, {}).setdefault(thought.sample, ([], []))[0].append(thought)
        for reflection in reflections:
            texts.setdefault(reflection.id, {}).setdefault(reflection.sample, ([], []))[1].append(reflection)
        marks: _Marks = {(score.target, score.id, score.sample, score.round): score.score for score in scores}

        built = []
        for example in examples:
            target = self._choose(example, texts.get(example.id, {}), marks)
            if target is None:
                continue
            for row, form in self.rows(target):
                built.append(
                    TrainingExample(
                        id=example.id,
                        prompt=prompts.render(example.premise, example.hypothesis, form=form),
                        completion=completion.render(row.thought_process, row.label, form),
                        label=row.label,
                        source=row.source,
                    )
                )
        return built

    def balanced(self, labels: Sequence[int]) -> list[int]:
        """Which of all built examples `balance` keeps, given their labels: positions in order."""
        by_label: dict[int, array[int]] = {0: array("L"), 1: array("L")}
        for index, label in enumerate(labels):
            by_label[label].append(index)
        size = min(len(indices) for indices in by_label.values())
        choice = random.Random(self.seed)
        kept = array("L")
        for indices in by_label.values():
            kept.extend(indices[at] for at in choice.sample(range(len(indices)), size))
        return sorted(kept)

    def _choose(self, example: Example, samples: dict[int, _Sample], marks: _Marks) -> Target | None:
        """The preferred one of the samples' best targets; a pair without thoughts has one sample, 0."""
        # A reflection counts where its own sample has a thought, or none of the samples has.
        numbers = sorted(number for number, (thoughts, _) in samples.items() if thoughts) or [0]
        found = (self._best_round(example, samples.get(number, ([], [])), marks) for number in numbers)
        candidates = [target for target in found if target is not None]
        if self.prefer == "shortest":
            candidates.sort(key=lambda target: len(target.thought_process or ""))
        return candidates[0] if candidates else None

    def _best_round(self, example: Example, sample: _Sample, marks: _Marks) -> Target | None:
        """The target of the round with the highest mark, of those that may be taken."""
        thoughts, reflections = sample
        rounds = {thought.round for thought in thoughts} | {reflection.round for reflection in reflections}
        best, best_mark = None, -1
        for number in sorted(rounds) or [0]:
            thought, reflection = _as_of(thoughts, number), _as_of(reflections, number)
            target = self.target(example, thought, reflection)
            if target is None or self._too_long(target):
                continue
            text = {"thought": thought, "reflection": reflection}.get(target.source)
            key = None if text is None else (target.source, text.id, text.sample, text.round)
            mark = None if key is None else marks.get(key)
            if self.min_score is not None and mark is not None and mark < self.min_score:
                continue
            if (mark or 0) > best_mark:
                best, best_mark = target, mark or 0
        return best

    def _too_long(self, target: Target) -> bool:
        thought = target.thought_process
        if thought is None:
            return False
        if self.max_thought_words is not None and len(thought.split()) > self.max_thought_words:
            return True
        if self.max_thought_tokens is None:
            return False
        if self.count_tokens is None:
            raise ConfigError(
                f"max_thought_tokens {self.max_thought_tokens}: found no student to count by, "
                "expected `fit`; elsewhere use max_thought_words"
            )
        return self.count_tokens(thought) > self.max_thought_tokens


def _as_of(texts: Sequence[Text], number: int) -> Text | None:
    """The text that stood after a round: its own, else the last one before it."""
    standing: Text | None = None
    for text in texts:
        if text.round <= number and (standing is None or text.round >= standing.round):
            standing = text
    return standing


class ReportTally:
    """Counts built examples one by one, and hashes their content in the order given."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._sources: Counter[str] = Counter()
        self._labels: Counter[int] = Counter()

    def watch(self, built: Iterable[TrainingExample]) -> Iterator[TrainingExample]:
        """The same examples, counted as they pass."""
        for example in built:
            content = f"{example.id}\x1f{example.prompt}\x1f{example.completion}\x1e"
            self._digest.update(content.encode())
            self._sources[example.source] += 1
            self._labels[example.label] += 1
            yield example

    def report(self, num_pairs: int, num_used: int | None = None) -> BuildReport:
        """What was counted so far.

        Args:
            num_used: the different pairs among the examples, where that is not all of them.
        """
        num_examples = self._labels.total()
        return BuildReport(
            num_pairs=num_pairs,
            num_examples=num_examples,
            num_without_target=num_pairs - (num_examples if num_used is None else num_used),
            by_source=dict(self._sources),
            by_label={str(label): count for label, count in self._labels.items()},
            sha256=self._digest.hexdigest(),
        )


def build_report(num_pairs: int, built: Sequence[TrainingExample]) -> BuildReport:
    """Counts and a content hash of what a builder made of `num_pairs` pairs."""
    tally = ReportTally()
    num_used = len({example.id for example in tally.watch(built)})
    return tally.report(num_pairs, num_used)
