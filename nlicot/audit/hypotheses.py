"""How much of the label the hypothesis gives away by itself: a baseline, and the words that tell.

A hypothesis-only model that does well says that writers of hypotheses left traces (Poliak et al. 2018,
"Hypothesis Only Baselines in Natural Language Inference"; Gururangan et al. 2018, "Annotation Artifacts in
Natural Language Inference Data", whose smoothed PMI is used here for the words).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from nlicot.audit.findings import Finding, Section, place
from nlicot.audit.minhash import normalised
from nlicot.audit.reading import AuditData
from nlicot.audit.text_classifier import Guess, guess_labels
from nlicot.records import LABEL_NAMES, LABELS, Example
from nlicot.text_tables import Table, listed, percent

MUCH_GAIN, SOME_GAIN = 0.25, 0.05
SMOOTHING = 10.0
"""Pairs of the usual label shares that are counted to each word beforehand, so that rare ones do not lead;
Gururangan et al. take 100 for data a hundred times as large."""
FEWEST_PAIRS = 10
LEAST_TELLING_SHARE = 0.75
CONFIDENCE = 0.95
MOST_WORDS = 10
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
    """Fit the baseline on all labelled pairs, folds apart by premise, and look for telling words."""
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
    places = [place(split, example.id) for split, example in labelled]
    findings = [*_leak(guess, places), *_words(words, labelled)]
    table = Table(
        title="words of hypotheses that go with one label",
        header=("word", "label", "pairs", "of that label", "PMI"),
        rows=tuple(
            (each.word, str(each.label), str(each.num), percent(each.num_label / each.num), f"{each.pmi:.2f}")
            for label in reversed(LABELS)
            for each in [word for word in words if word.label == label][:MOST_WORDS]
        ),
    )
    return Section(
        name="hypotheses",
        title="Hypothesis-only baseline",
        summary=f"a linear model that reads {len(examples)} hypotheses and no premise is right on "
        f"{percent(guess.accuracy)} ({percent(guess.interval.low)} to {percent(guess.interval.high)}), "
        f"the commoner label alone on {percent(guess.majority)}" + ("" if findings else ": no leak"),
        findings=tuple(findings),
        tables=(table,) if table.rows else (),
        figures={
            "baseline": guess.figures,
            "words": [
                {"word": each.word, "label": each.label, "num": each.num, "num_label": each.num_label}
                | {"pmi": each.pmi}
                for each in words
            ],
        },
    )


def _leak(guess: Guess, places: Sequence[str]) -> list[Finding]:
    if guess.interval.low <= guess.majority or guess.gain < SOME_GAIN:
        return []
    sure = [
        name
        for name, right, p_one in zip(places, guess.right, guess.p_one, strict=True)
        if right and max(p_one, 1 - p_one) >= SURE
    ]
    return [
        Finding(
            name="hypothesis gives the label away",
            severity="error" if guess.gain >= MUCH_GAIN else "warning",
            summary=f"without the premise {percent(guess.accuracy)} of labels are guessed, "
            f"{100 * guess.gain:.0f} points above the commoner label",
            advice="read any accuracy against this one; look at a run with `validate --probe-thoughts`, "
            "which blanks the premise, and at the pairs named here, which need none",
            ids=tuple(sure),
            figures={**guess.figures, "gain": guess.gain},
        )
    ]


def telling_words(examples: Sequence[Example]) -> list[TellingWord]:
    """Words whose pairs mostly have one label, beyond chance, by smoothed PMI, the most telling first.

    PMI(word, label) = log p(word, label) / (p(word) p(label)), in nats, a word's pairs being counted once
    each, with `SMOOTHING` more of the usual label shares. Beyond chance: a binomial test against the label's
    own share, corrected for the number of words (Gardner et al. 2021, "Competency Problems", section 4).
    """
    in_label: dict[int, Counter[str]] = {label: Counter() for label in LABELS}
    num_label: Counter[int] = Counter()
    for example in examples:
        if example.label is not None:
            num_label[example.label] += 1
            in_label[example.label].update(set(normalised(example.hypothesis).split()))
    num_pairs = num_label.total()
    totals = in_label[0] + in_label[1]
    candidates = [word for word, num in totals.items() if num >= FEWEST_PAIRS]
    if not candidates or 0 in (num_label[label] for label in LABELS):
        return []
    least_z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * len(candidates)))
    found = []
    for word in candidates:
        for label in LABELS:
            num, with_label = totals[word], in_label[label][word]
            base = num_label[label] / num_pairs
            z = (with_label - num * base) / math.sqrt(num * base * (1 - base))
            if z < least_z or with_label / num < LEAST_TELLING_SHARE:
                continue
            smoothed = (with_label + SMOOTHING * base) / (num + SMOOTHING)
            pmi = math.log(smoothed / base)
            found.append(TellingWord(word=word, label=label, num=num, num_label=with_label, pmi=pmi))
    return sorted(found, key=lambda each: (-each.pmi, each.word))


def _words(words: Sequence[TellingWord], labelled: Sequence[tuple[str, Example]]) -> list[Finding]:
    findings = []
    for label in LABELS:
        telling = {each.word for each in words if each.label == label}
        if not telling:
            continue
        ids = tuple(
            place(split, example.id)
            for split, example in labelled
            if example.label == label and telling & set(normalised(example.hypothesis).split())
        )
        best = [each.word for each in words if each.label == label]
        findings.append(
            Finding(
                name="telling words",
                severity="warning",
                summary=f"{len(telling)} words of hypotheses go with label {label} ({LABEL_NAMES[label]}): "
                f"{listed(best, MOST_WORDS)}",
                advice="expect a student to lean on them; pairs with such a word and the other label are the "
                "ones to collect, and to measure on apart",
                ids=ids,
                figures={"label": label, "words": best},
            )
        )
    return findings
