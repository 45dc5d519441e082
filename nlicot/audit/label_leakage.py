"""Check how much of the label one text reveals: the hypothesis without its premise, or a target's style.

A hypothesis-only model that does well shows that the writers of hypotheses left traces (Poliak et al. 2018,
"Hypothesis Only Baselines in Natural Language Inference"; Gururangan et al. 2018, "Annotation Artifacts in
Natural Language Inference Data", whose smoothed PMI is used here for the words).

A builder such as `reflected` takes right thoughts unchanged and reflections on the wrong ones. If a teacher
recognises only one label, all thoughts have that label and all reflections the other, and a student learns
to distinguish the two kinds of text instead of the pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from nlicot import completion
from nlicot.audit.findings import Finding, Section, full_id, percent_range
from nlicot.audit.inputs import AuditData, TargetText, normalised
from nlicot.evaluation.linear_baseline import hashed_ngrams, logistic_regression
from nlicot.evaluation.metrics import Interval, wilson_interval
from nlicot.records import LABEL_NAMES, LABELS, Example
from nlicot.text_tables import Table, listed, percent
from nlicot.words import words_of

NUM_FOLDS = 5
MIN_OF_EACH_LABEL = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Cross-validated predictions from texts; `p_one` is the probability of label 1 for each text."""

    accuracy: float
    interval: Interval
    majority: float
    right: npt.NDArray[np.bool_]
    p_one: npt.NDArray[np.float64]

    @property
    def gain(self) -> float:
        """Accuracy above that of always predicting the majority label, from 0 to 1."""
        return self.accuracy - self.majority

    @property
    def figures(self) -> dict[str, float]:
        """The figures for JSON."""
        figures = {"accuracy": self.accuracy, "majority": self.majority, "num": len(self.right)}
        return figures | asdict(self.interval)


def guess_labels(texts: Sequence[str], labels: Sequence[int], groups: Sequence[Hashable]) -> Guess | None:
    """Predict labels by logistic regression on word n-grams; None if a label is too rare for it.

    Texts of one of the `groups`, of one premise for instance, stay in one fold.
    """
    true = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(true, minlength=2)
    if counts.min() < MIN_OF_EACH_LABEL:
        return None
    number_of = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    fold_of = np.random.default_rng(0).permutation(len(number_of)) % NUM_FOLDS
    folds = fold_of[[number_of[group] for group in groups]]
    if any(len(np.unique(true[folds != fold])) < 2 for fold in range(NUM_FOLDS)):
        return None
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    model, features = logistic_regression(), hashed_ngrams(texts)
    p_one = cross_val_predict(model, features, true, cv=PredefinedSplit(folds), method="predict_proba")[:, 1]
    right = (p_one > 0.5) == (true == 1)
    return Guess(
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), len(true)),
        majority=float(counts.max() / len(true)),
        right=right,
        p_one=p_one,
    )


LARGE_GAIN, SMALL_GAIN = 0.25, 0.05
SMOOTHING = 10.0
"""Number of pairs of the usual label distribution added to each word, so that rare words do not lead;
Gururangan et al. use 100 for data a hundred times as large."""
MIN_PAIRS = 10
MIN_PROPORTION = 0.75
CONFIDENCE = 0.95
MAX_SHOWN_WORDS = 10
SURE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingWord:
    """A word of hypotheses whose pairs mostly have one label: `num_label` of `num`."""

    word: str
    label: int
    num: int
    num_label: int
    pmi: float


def check_hypotheses(data: AuditData) -> Section | None:
    """Fit a baseline without premises on all labelled pairs, and look for telling words."""
    labelled = [(split.name, example) for split in data.splits for example in split.labelled]
    examples = [example for _, example in labelled]
    guess = guess_labels(
        [example.hypothesis for example in examples],
        [int(example.label or 0) for example in examples],
        [normalised(example.premise) for example in examples],
    )
    if guess is None:
        return None
    words = telling_words(examples)
    of_label = {label: [each for each in words if each.label == label] for label in LABELS}
    findings = [*_hypothesis_leak(guess, labelled)]
    for label, telling in of_label.items():
        if telling:
            findings.append(_words_finding(label, [each.word for each in telling], labelled))
    rows = [
        (each.word, str(each.label), str(each.num), percent(each.num_label / each.num), f"{each.pmi:.2f}")
        for label in reversed(LABELS)
        for each in of_label[label][:MAX_SHOWN_WORDS]
    ]
    table = Table(
        title="words of hypotheses that go with one label",
        header=("word", "label", "pairs", "of that label", "PMI"),
        rows=rows,
    )
    return Section(
        name="hypotheses",
        title="Hypothesis-only baseline",
        summary=f"a linear model that reads {len(examples)} hypotheses without premises is right on "
        f"{percent(guess.accuracy)} ({percent_range(guess.interval)}), "
        f"the majority label on {percent(guess.majority)}" + ("" if findings else ": no leak"),
        findings=tuple(findings),
        tables=(table,) if rows else (),
        figures={"baseline": guess.figures, "words": [asdict(each) for each in words]},
    )


def _hypothesis_leak(guess: Guess, labelled: Sequence[tuple[str, Example]]) -> Iterator[Finding]:
    if guess.interval.low <= guess.majority or guess.gain < SMALL_GAIN:
        return
    sure = np.flatnonzero(guess.right & (np.maximum(guess.p_one, 1 - guess.p_one) >= SURE))
    yield Finding(
        name="hypothesis gives the label away",
        severity="error" if guess.gain >= LARGE_GAIN else "warning",
        summary=f"without the premise {percent(guess.accuracy)} of labels are guessed, "
        f"{100 * guess.gain:.0f} points above the majority label",
        advice="compare any accuracy with this one; look at a run with `validate --probe_thoughts`, "
        "which blanks the premise, and at the pairs named here, which need none",
        ids=tuple(full_id(labelled[index][0], labelled[index][1].id) for index in sure),
        figures={**guess.figures, "gain": guess.gain},
    )


def telling_words(examples: Sequence[Example]) -> list[TellingWord]:
    """Return the words whose pairs mostly have one label, more than by chance, by smoothed PMI.

    PMI(word, label) = log p(word, label) / (p(word) p(label)), in nats; a word counts once in a pair, and
    `SMOOTHING` pairs of the usual label distribution are added. More than by chance: a binomial test against
    the label's proportion, corrected for the number of words (Gardner et al. 2021, "Competency Problems",
    section 4).
    """
    in_label: dict[int, Counter[str]] = {label: Counter() for label in LABELS}
    num_label: Counter[int] = Counter()
    for example in examples:
        if example.label is not None:
            num_label[example.label] += 1
            in_label[example.label].update(set(normalised(example.hypothesis).split()))
    totals = in_label[0] + in_label[1]
    candidates = [word for word, num in totals.items() if num >= MIN_PAIRS]
    if not candidates or len(num_label) < len(LABELS):
        return []
    min_z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * len(candidates)))
    found = []
    for word in candidates:
        for label in LABELS:
            num, with_label = totals[word], in_label[label][word]
            base = num_label[label] / num_label.total()
            z = (with_label - num * base) / math.sqrt(num * base * (1 - base))
            if z >= min_z and with_label / num >= MIN_PROPORTION:
                pmi = math.log((with_label + SMOOTHING * base) / (num + SMOOTHING) / base)
                found.append(TellingWord(word=word, label=label, num=num, num_label=with_label, pmi=pmi))
    return sorted(found, key=lambda each: (-each.pmi, each.word))


def _words_finding(label: int, telling: Sequence[str], labelled: Sequence[tuple[str, Example]]) -> Finding:
    return Finding(
        name="telling words",
        severity="warning",
        summary=f"{len(telling)} words of hypotheses go with label {label} ({LABEL_NAMES[label]}): "
        f"{listed(telling, MAX_SHOWN_WORDS)}",
        advice="expect a student to rely on them; collect pairs with such a word and the other label, "
        "and measure on those separately",
        ids=tuple(
            full_id(split, example.id)
            for split, example in labelled
            if example.label == label and not set(telling).isdisjoint(normalised(example.hypothesis).split())
        ),
        figures={"label": label, "words": telling},
    )


# ---------------------------------------------------------------- the source and style of targets

LARGE_SOURCE_GAIN, SMALL_SOURCE_GAIN = 0.2, 0.1
MIN_STYLE_GAIN = 0.3
"""Steps before the last one argue too, so some gain is legitimate: 0.22 on data without the fault."""


def without_last_step(thought: str) -> str:
    """Return a thought up to its last step, or its last sentence if it has fewer than two steps."""
    starts = [match.start() for match in completion.STEP.finditer(thought)]
    sentences = completion.sentences(thought)
    if len(starts) < 2 and len(sentences) > 1:
        return "".join(sentences[:-1])
    return thought[: starts[-1]] if starts else ""


def style_of(target: TargetText) -> str:
    """Remove the last step, which is supposed to reveal the label, and the pair's own words (the topic)."""
    own = set(words_of(f"{target.example.premise} {target.example.hypothesis}".casefold()))
    words = words_of(without_last_step(target.text).casefold())
    return " ".join("_" if word in own else word for word in words)


PARTS_OF_TARGETS = (
    ("voice", "its style: no last step, the pair's own words blanked", style_of),
    ("steps", "its text without the last step", lambda target: without_last_step(target.text)),
    ("whole", "its whole text, last step included", lambda target: target.text),
)
"""Name in JSON, title, and the text from which a linear model guesses the label."""


def check_voice(data: AuditData) -> Section | None:
    """Cross a target's source with its label, and let linear models guess the label from the target only."""
    split = next((split for split in data.splits if split.targets), None)
    if split is None:
        return None
    targets = split.targets
    labels = [target.label for target in targets]
    groups = [normalised(target.example.premise) for target in targets]
    num_of = Counter((target.source, target.label) for target in targets)
    counts = {
        source: [num_of[source, label] for label in LABELS] for source in sorted({s for s, _ in num_of})
    }
    num_right = sum(map(max, counts.values()))
    by_source, majority = num_right / len(targets), max(Counter(labels).values()) / len(targets)
    source_range = percent_range(wilson_interval(num_right, len(targets)))
    accuracies = [
        ("the majority label", percent(majority), "-"),
        ("its source (thought or reflection)", percent(by_source), source_range),
    ]
    figures: dict[str, Any] = {
        "split": split.name,
        "by_source": {source: {"0": zeros, "1": ones} for source, (zeros, ones) in counts.items()},
        "majority": majority,
        "source_accuracy": by_source,
    }
    guesses = {}
    for name, title, text_of in PARTS_OF_TARGETS:
        guess = guesses[name] = guess_labels([text_of(target) for target in targets], labels, groups)
        figures[name] = guess.figures if guess else None
        if guess:
            accuracies.append((title, percent(guess.accuracy), percent_range(guess.interval)))
    style = guesses["voice"]
    rows = [(source, str(zeros), str(ones)) for source, (zeros, ones) in counts.items()]
    header = ("", "right", "95 %")
    return Section(
        name="voice",
        title="Source, style and label",
        summary=f"{len(targets)} targets of {split.name}: the source predicts {percent(by_source)} of labels"
        + (f", the style {percent(style.accuracy)}" if style else ""),
        findings=(
            *_source_finding(split.name, targets, counts, by_source, majority),
            *_style_finding(split.name, targets, style),
        ),
        tables=(
            Table(title="targets", header=("source", "label 0", "label 1"), rows=rows),
            Table(title="how well a target's label is predicted from", header=header, rows=accuracies),
        ),
        figures=figures,
    )


def _source_finding(
    split: str, targets: Sequence[TargetText], counts: dict[str, list[int]], by_source: float, majority: float
) -> Iterator[Finding]:
    if len(counts) < 2 or by_source - majority < SMALL_SOURCE_GAIN:
        return
    usual = {source: max(LABELS, key=lambda label: each[label]) for source, each in counts.items()}
    ids = (full_id(split, target.example.id) for target in targets if target.label == usual[target.source])
    table = "; ".join(f"{source}: {a} of label 0, {b} of label 1" for source, (a, b) in counts.items())
    yield Finding(
        name="source gives the label away",
        severity="error" if by_source - majority >= LARGE_SOURCE_GAIN else "warning",
        summary=f"the source of a target (thought or reflection) predicts {percent(by_source)} of labels "
        f"({table})",
        advice="describe better what the labels mean and generate again "
        "(`generate --definitions FILE --probe`), or use thoughts of both labels from one source; "
        "`label_only` is free of it",
        ids=tuple(ids),
        figures={"accuracy": by_source, "majority": majority, "by_source": counts},
    )


def _style_finding(split: str, targets: Sequence[TargetText], style: Guess | None) -> Iterator[Finding]:
    if style is None or style.gain < MIN_STYLE_GAIN:
        return
    yield Finding(
        name="voice gives the label away",
        severity="warning",
        summary=f"a linear model predicts {percent(style.accuracy)} of labels from the wording of the "
        "targets, without their last step and their pairs' words",
        advice="read steps 1 and 2 of both labels side by side: wording that does not depend on the pair "
        "(stock phrases, hedges) reveals the label too early",
        ids=tuple(full_id(split, targets[index].example.id) for index in np.flatnonzero(style.right)),
        figures=style.figures,
    )
