"""Where the teacher is right: by label, which speaks of the definitions, and by a thought's length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlicot.audit.findings import Finding, Section, place, unique
from nlicot.audit.reading import AuditData
from nlicot.evaluation.metrics import accuracy_by, length_bins
from nlicot.records import LABEL_NAMES, LABELS, Thought
from nlicot.teacher.stages.label_check import ProbeReport, probe
from nlicot.text_tables import Table, percent

LOW_ACCURACY = 0.7
FEWEST_THOUGHTS = 40
CHANCE_BELOW = 0.01
NOTICEABLE = 0.55
"""P(a wrong thought is longer than a right one); 0.5 is no difference."""


def check_teacher(data: AuditData) -> Section | None:
    """Cross true with predicted labels over all blind thoughts."""
    blind = _blind(data)
    if not blind:
        return None
    thoughts = [thought for _, thought in blind]
    report = probe(thoughts)
    cells = [
        [sum(t.true_label == true and t.predicted_label == said for t in thoughts) for said in LABELS]
        for true in LABELS
    ]
    rows = tuple(
        (f"{label} ({LABEL_NAMES[label]})", *map(str, cells[label]), percent(report.recalls[label].share))
        for label in LABELS
        if report.recalls[label].num
    )
    table = Table(title="teacher", header=("true label", "said 0", "said 1", "found"), rows=rows)
    return Section(
        name="teacher",
        title="The teacher",
        summary=f"{len(thoughts)} blind thoughts, {percent(report.accuracy)} right",
        findings=tuple(_definitions(blind, report)),
        tables=(table, *_relation_table(report)),
        figures={
            "accuracy": report.accuracy,
            "num": len(thoughts),
            "confusion": {str(true): dict(zip("01", cells[true], strict=True)) for true in LABELS},
            "maps": [{"map": each.relation_map, "accuracy": each.accuracy} for each in report.maps],
        },
    )


def _blind(data: AuditData) -> list[tuple[str, Thought]]:
    """First thoughts of pairs whose label is known, with their split."""
    return [
        (split.name, thought)
        for split in data.splits
        for thought in split.thoughts
        if thought.true_label is not None and thought.round == 0
    ]


def _relation_table(report: ProbeReport) -> list[Table]:
    rows = tuple(
        (",".join(f"{name}={label}" for name, label in each.relation_map.items()), percent(each.accuracy))
        for each in report.maps[:3]
    )
    return [Table(title="maps from relations to labels", header=("map", "right"), rows=rows)] if rows else []


def _definitions(blind: Sequence[tuple[str, Thought]], report: ProbeReport) -> list[Finding]:
    worse, better = sorted(report.recalls, key=lambda recall: recall.share)
    missed = unique(
        place(split, thought.id)
        for split, thought in blind
        if thought.true_label == worse.label and not thought.correct
    )
    figures = {f"found_of_label_{recall.label}": recall.share for recall in report.recalls}
    if report.lopsided:
        stricter = (
            "is stricter about label 1 than those who labelled: say that what is merely plausible counts "
            "too, if the pairs named here show it"
            if worse.label == 1
            else "is more lenient about label 1 than those who labelled: say what rules it out"
        )
        remap = ""
        if report.maps and report.maps[0].accuracy > report.accuracy:
            best = ",".join(f"{name}={label}" for name, label in report.maps[0].relation_map.items())
            remap = f"; or map its relations otherwise: --relation-map {best}"
        return [
            Finding(
                name="label definitions do not fit",
                severity="error",
                summary=f"the teacher finds {percent(better.share)} of label {better.label} and "
                f"{percent(worse.share)} of label {worse.label}: it {stricter.partition(':')[0]}",
                advice=f"{stricter.partition(': ')[2]} (`generate --definitions FILE --probe`){remap}",
                ids=missed,
                figures=figures,
            )
        ]
    if report.accuracy < LOW_ACCURACY and len(blind) >= FEWEST_THOUGHTS:
        wrong = unique(place(split, thought.id) for split, thought in blind if not thought.correct)
        return [
            Finding(
                name="weak teacher",
                severity="warning",
                summary=f"the teacher is right on {percent(report.accuracy)} only, of either label",
                advice="take a stronger model, or let `reflect` and `score` do more of the work",
                ids=wrong,
                figures={**figures, "accuracy": report.accuracy},
            )
        ]
    return []


def check_lengths(data: AuditData) -> Section | None:
    """Accuracy by a thought's length, and whether wrong thoughts are longer than chance would have it."""
    blind = _blind(data)
    num_words = [len(thought.thought_process.split()) for _, thought in blind]
    right = [thought.correct for _, thought in blind]
    if len(blind) < FEWEST_THOUGHTS or len(set(right)) < 2:
        return None
    from scipy.stats import mannwhitneyu

    lengths, is_right = np.array(num_words), np.array(right)
    test = mannwhitneyu(lengths[~is_right], lengths[is_right])
    longer = float(test.statistic) / (int((~is_right).sum()) * int(is_right.sum()))
    bins = length_bins(num_words)
    groups = accuracy_by(bins, right)
    table = Table(
        title="right thoughts by length",
        header=("length", "thoughts", "right", "95 %"),
        rows=tuple(
            (
                g.name,
                str(g.num),
                percent(g.accuracy),
                f"{percent(g.interval.low)} to {percent(g.interval.high)}",
            )
            for g in groups
        ),
    )
    findings = []
    if test.pvalue < CHANCE_BELOW and longer >= NOTICEABLE:
        last = groups[-1].name
        ids = unique(
            place(split, thought.id)
            for (split, thought), bin_, correct in zip(blind, bins, right, strict=True)
            if bin_ == last and not correct
        )
        findings.append(
            Finding(
                name="longer is wronger",
                severity="warning",
                summary=f"a wrong thought is longer than a right one in {percent(longer)} of cases; of the "
                f"longest quarter ({last}) {percent(groups[-1].accuracy)} are right, of the shortest "
                f"{percent(groups[0].accuracy)}",
                advice="ask for shorter thoughts, or leave long ones out (--data.builder.max_thought_words)",
                ids=ids,
                figures={"wrong_is_longer": longer, "p_value": float(test.pvalue)},
            )
        )
    return Section(
        name="lengths",
        title="Length and correctness",
        summary=f"a wrong thought is longer than a right one in {percent(longer)} of cases "
        f"(50 % is chance; p = {test.pvalue:.2g})",
        findings=tuple(findings),
        tables=(table,),
        figures={
            "wrong_is_longer": longer,
            "p_value": float(test.pvalue),
            "bins": [
                {"name": g.name, "num": g.num, "accuracy": g.accuracy}
                | {"low": g.interval.low, "high": g.interval.high}
                for g in groups
            ],
        },
    )
