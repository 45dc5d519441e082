"""The base class of all builders: the same selection for each of them, and the same report."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any, TypeAlias, TypeVar

from nlicot import completion
from nlicot.command_line import JudgeScore, PositiveInt, constraints_of
from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample

Text = TypeVar("Text", Thought, Reflection)
CountTokens: TypeAlias = Callable[[str], int]
_Scores: TypeAlias = dict[tuple[str, str, int, int], int]

CHOICES = {
    "prefer": ("first", "shortest"),
    "over_limit": ("drop", "cut"),
    "thought_part": ("all", "last_step"),
    "samples": ("one", "all"),
}
"""The options of every builder that are words, with their values."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """A pair's texts, and all scores by target, pair, sample and round."""

    thoughts: Sequence[Thought]
    reflections: Sequence[Reflection]
    score_of: _Scores

    def of_sample(self, number: int) -> _Texts:
        thoughts = [thought for thought in self.thoughts if thought.sample == number]
        reflections = [reflection for reflection in self.reflections if reflection.sample == number]
        return _Texts(thoughts, reflections, self.score_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The content of a completion; `thought_process` is None for a label only.

    `draft` is the label before the thought in a form that has one. It is learnt, or else only read.
    """

    thought_process: str | None
    label: int
    source: str
    draft: int | None = None
    learns_draft: bool = True

    @classmethod
    def of_thought(cls, thought: Thought) -> Target:
        """Return a thought with the label that it arrived at."""
        return cls(thought_process=thought.thought_process, label=thought.predicted_label, source="thought")

    @classmethod
    def of_label(cls, example: Example) -> Target | None:
        """Return a pair's label, or the one that its soft label is nearer to; None if it has neither."""
        if example.label is not None:
            return cls(thought_process=None, label=example.label, source="label")
        if example.p_entailment is None:
            return None
        from nlicot.evaluation.metrics import entails  # imports numpy

        return cls(thought_process=None, label=int(entails(example.p_entailment)), source="soft label")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Counts of a builder's output, and a hash of its content."""

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
        balance: drop examples of the more frequent label at random, until both are equally frequent.
        max_thought_words: maximum number of words of a thought.
        min_score: drop texts that a judge scored lower (a text without a score is kept).
        prefer: which of several suitable samples of a pair to use: `first` or `shortest`.
        seed: seed for `balance`, `shuffle_thoughts` and other random choices.
        max_thought_tokens: maximum number of the student's tokens; only `fit` can count them.
        over_limit: `drop` longer thoughts, or `cut` them to their first sentences, or words, that fit.
        thought_part: learn `all` of a thought, or its `last_step` only.
        samples: learn `one` of a pair's suitable samples, or `all`, another one in each epoch.
        shuffle_thoughts: give each pair another pair's thought, and keep its label: a control that shows
            whether the words of thoughts matter.
    """

    thinks = True
    """Whether completions may contain a thought."""

    def __init__(
        self,
        balance: bool = False,
        max_thought_words: PositiveInt | None = None,
        min_score: JudgeScore | None = None,
        prefer: str = "first",
        seed: int = 0,
        max_thought_tokens: PositiveInt | None = None,
        over_limit: str = "drop",
        thought_part: str = "all",
        samples: str = "one",
        shuffle_thoughts: bool = False,
    ) -> None:
        words = {"prefer": prefer, "over_limit": over_limit, "thought_part": thought_part, "samples": samples}
        for name, found in words.items():
            if found not in CHOICES[name]:
                raise ValueError(f"{name}: found {found!r}, expected {' or '.join(map(repr, CHOICES[name]))}")
        limits = {
            "max_thought_words": max_thought_words,
            "min_score": min_score,
            "max_thought_tokens": max_thought_tokens,
        }
        check_arguments(Builder.__init__, limits)
        self.balance = balance
        self.max_thought_words = max_thought_words
        self.min_score = min_score
        self.prefer = prefer
        self.seed = seed
        self.max_thought_tokens = max_thought_tokens
        self.over_limit = over_limit
        self.thought_part = thought_part
        self.samples = samples
        self.shuffle_thoughts = shuffle_thoughts

    def needed_texts(self, split: str) -> list[str]:
        """Return the kinds of texts that a split must have: thoughts, and scores of train for `min_score`.

        Without scores of dev, which cost money, all its texts count in the dev loss.
        """
        drops_by_score = self.thinks and self.min_score is not None and split == "train"
        return ["thoughts"] * self.thinks + ["scores"] * drops_by_score

    @abstractmethod
    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the thought and label of the example's completion, or None to leave the pair out.

        Called for each sample and round of the pair's texts, or once with None if it has no thought.
        """

    def target_without_text(self, example: Example) -> Target | None:
        """Return the target of a pair without a suitable text; None leaves it out."""
        return None

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """Return the training examples that a pair's target becomes, each with its completion's form."""
        return [(target, Form.LABEL_ONLY if target.thought_process is None else Form.THOUGHT_FIRST)]

    def build(
        self,
        examples: Sequence[Example],
        thoughts: Iterable[Thought] = (),
        reflections: Iterable[Reflection] = (),
        scores: Iterable[Score] = (),
        *,
        prompts: StudentPrompts | None = None,
        count_tokens: CountTokens | None = None,
    ) -> list[TrainingExample]:
        """Build the training examples of each pair that has a target, in the order of the pairs.

        Args:
            thoughts, reflections: joined to `examples`, so that their ids agree; regenerated texts included.
            scores: of several rounds the one with the highest score is used, the earlier one if scores are
                equal or missing.
            count_tokens: the number of tokens of a thought in a completion of the student.
        """
        prompts = prompts or StudentPrompts()
        thoughts_of, reflections_of = _by_pair(thoughts), _by_pair(reflections)
        score_of: _Scores = {(each.target, each.id, each.sample, each.round): each.score for each in scores}
        targets_of = []
        for example in examples:
            texts = _Texts(thoughts_of.get(example.id, ()), reflections_of.get(example.id, ()), score_of)
            targets_of.append(self._choose(example, texts, count_tokens))
        if self.shuffle_thoughts:
            targets_of = self._with_thoughts_of_others(targets_of)
        built = []
        for example, targets in zip(examples, targets_of, strict=True):
            # One example per row, with a variant for each sample that has another target.
            for rows in zip_longest(*map(self.rows, targets)):
                distinct = enumerate(rows if len(rows) == 1 else dict.fromkeys(filter(None, rows)))
                built.append([_rendered(example, target, form, n, prompts) for n, (target, form) in distinct])
        return [*chain.from_iterable(self._balanced(built) if self.balance else built)]

    def _with_thoughts_of_others(self, targets_of: Sequence[Sequence[Target]]) -> list[Sequence[Target]]:
        """Give the thoughts of each pair to the next one in a random circle of all pairs with thoughts."""
        circle = [index for index, targets in enumerate(targets_of) if targets and targets[0].thought_process]
        if len(circle) == 1:
            raise ConfigError("shuffle_thoughts: found one pair with a thought, expected two or more")
        random.Random(self.seed).shuffle(circle)
        exchanged = list(targets_of)
        for giver, taker in zip(circle, circle[1:] + circle[:1], strict=True):
            own = targets_of[taker][0]
            exchanged[taker] = [
                replace(own, thought_process=each.thought_process) for each in targets_of[giver]
            ]
        return exchanged

    def _balanced(self, built: Sequence[list[TrainingExample]]) -> list[list[TrainingExample]]:
        """Drop examples, with all their variants; the label of the first one counts."""
        by_label: dict[int, list[int]] = {0: [], 1: []}
        for index, variants in enumerate(built):
            by_label[variants[0].label].append(index)
        size = min(map(len, by_label.values()))
        rng = random.Random(self.seed)
        kept = [index for indices in by_label.values() for index in rng.sample(indices, size)]
        return [built[index] for index in sorted(kept)]

    def _choose(self, example: Example, texts: _Texts, count_tokens: CountTokens | None) -> Sequence[Target]:
        """Return the preferred target among the samples' best, or all; without thoughts there is sample 0."""
        # A reflection counts if its own sample has a thought, or if no sample has one.
        samples = sorted({thought.sample for thought in texts.thoughts}) or [0]
        best = (self._best_round(example, texts.of_sample(sample), count_tokens) for sample in samples)
        found = [target for target in best if target is not None]
        if not found and (target := self.target_without_text(example)):
            return [target]
        if self.prefer == "shortest":
            found.sort(key=lambda target: len(target.thought_process or ""))
        return found if self.samples == "all" else found[:1]

    def _best_round(self, example: Example, texts: _Texts, count_tokens: CountTokens | None) -> Target | None:
        """Return the acceptable target with the highest score among the rounds of one sample."""
        best, best_score = None, -1
        rounds = {each.round for each in texts.thoughts} | {each.round for each in texts.reflections}
        for number in sorted(rounds or {0}):
            thought, reflection = _in_round(texts.thoughts, number), _in_round(texts.reflections, number)
            target = self._within_limits(self.target(example, thought, reflection), count_tokens)
            if target is None:
                continue
            text = {"thought": thought, "reflection": reflection}.get(target.source)
            key = text and (target.source, text.id, text.sample, text.round)
            score = texts.score_of.get(key) if key else None
            if self.min_score is not None and score is not None and score < self.min_score:
                continue
            if (score or 0) > best_score:
                best, best_score = target, score or 0
        return best

    def _within_limits(self, target: Target | None, count_tokens: CountTokens | None) -> Target | None:
        """Return the target with the part of its thought that is learnt; None if it is too long."""
        if target is None or target.thought_process is None:
            return target
        thought = target.thought_process
        if self.thought_part == "last_step":
            thought = completion.last_step(thought)
        if not self._fits(thought, count_tokens):
            fits = partial(self._fits, count_tokens=count_tokens)
            shorter = completion.shortened(thought, fits) if self.over_limit == "cut" else None
            if shorter is None:
                return None
            thought = shorter
        return target if thought == target.thought_process else replace(target, thought_process=thought)

    def _fits(self, thought: str, count_tokens: CountTokens | None) -> bool:
        if self.max_thought_words is not None and len(thought.split()) > self.max_thought_words:
            return False
        if self.max_thought_tokens is None:
            return True
        if count_tokens is None:
            raise ConfigError(
                f"max_thought_tokens {self.max_thought_tokens}: cannot count tokens without the student's "
                "tokenizer, which only `fit` has; use max_thought_words elsewhere"
            )
        return count_tokens(thought) <= self.max_thought_tokens


def check_arguments(function: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """Check arguments, if they are given, by the constraints in a function's annotations."""
    for name, constraint in constraints_of(function):
        if arguments[name] is not None and not constraint.allows(arguments[name]):
            raise ValueError(f"{name}: found {arguments[name]}, expected {constraint.words}")


def _rendered(
    example: Example, target: Target, form: Form, variant: int, prompts: StudentPrompts
) -> TrainingExample:
    return TrainingExample(
        id=example.id,
        prompt=prompts.render(example.premise, example.hypothesis, form=form),
        completion=completion.render(target.thought_process, target.label, form, target.draft),
        label=target.label,
        source=target.source,
        variant=variant,
        # After a thought, the label follows from the thought.
        p_entailment=None if form.thinks_before_label else example.p_entailment,
        learns_draft=target.learns_draft,
    )


def _by_pair(texts: Iterable[Text]) -> Mapping[str, list[Text]]:
    found: dict[str, list[Text]] = defaultdict(list)
    for text in texts:
        found[text.id].append(text)
    return found


def _in_round(texts: Sequence[Text], number: int) -> Text | None:
    """Return the text that is current in a round: its own, or else the last earlier one."""
    earlier = [text for text in texts if text.round <= number]
    return max(reversed(earlier), key=lambda text: text.round, default=None)


def build_report(num_pairs: int, built: Sequence[TrainingExample]) -> BuildReport:
    """Count and hash what a builder made of `num_pairs` pairs."""
    digest = hashlib.sha256()
    for example in built:
        more = "" if example.p_entailment is None else f"\x1f{example.p_entailment}"
        more += "" if example.learns_draft else "\x1fdraft only read"
        digest.update(f"{example.id}\x1f{example.prompt}\x1f{example.completion}{more}\x1e".encode())
    return BuildReport(
        num_pairs=num_pairs,
        num_examples=len(built),
        num_without_target=num_pairs - len({example.id for example in built}),
        by_source=dict(Counter(example.source for example in built)),
        by_label={str(label): count for label, count in Counter(example.label for example in built).items()},
        sha256=digest.hexdigest(),
    )
