"""Check the teacher: whether it misses one label or both, and whether its longer thoughts are worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nlicot.audit.findings import Finding, Section, full_id, percent_range, unique
from nlicot.audit.inputs import AuditData, SplitData
from nlicot.data.pairs import LabelMap
from nlicot.data.rows import shown
from nlicot.evaluation.metrics import accuracy_by, format_recalls, groups_to_dicts, length_bins
from nlicot.records import LABEL_NAMES, LABELS, Thought
from nlicot.teacher.label_check import ProbeReport, probe
from nlicot.text_tables import Table, listed, percent

LOW_ACCURACY = 0.7
MIN_THOUGHTS = 40
MAX_P_VALUE = 0.01
MIN_EFFECT = 0.55  # P(a wrong thought is longer than a right one); 0.5 means no difference


def _blind(splits: Iterable[SplitData]) -> list[tuple[str, Thought]]:
    """First thoughts of pairs whose label is known, with their full ids."""
    return [
        (full_id(split.name, thought.id), thought)
        for split in splits
        for thought in split.thoughts
        if thought.true_label is not None and thought.round == 0
    ]


def _probe(blind: Sequence[tuple[str, Thought]]) -> ProbeReport:
    return probe(thought for _, thought in blind)


def check_teacher(data: AuditData) -> Section | None:
    """Cross true with predicted labels over all blind thoughts."""
    blind = _blind(data.splits)
    if not blind:
        return None
    report = _probe(blind)
    num_of = Counter((thought.true_label, thought.predicted_label) for _, thought in blind)
    rows = [
        (
            f"{label} ({LABEL_NAMES[label]})",
            *(str(num_of[label, said]) for said in LABELS),
            percent(report.recalls[label].proportion),
        )
        for label in LABELS
        if report.recalls[label].num
    ]
    tables = [Table(title="teacher", header=("true label", "said 0", "said 1", "found"), rows=rows)]
    if report.maps:
        best_maps = [(str(each), percent(each.accuracy)) for each in report.maps[:3]]
        tables.append(Table(title="maps from relations to labels", header=("map", "right"), rows=best_maps))
    # By split: the labels of each may come from another source.
    suspect = [split for split in data.splits if _probe(_blind([split])).labels_reversed]
    others = _blind(split for split in data.splits if split not in suspect)
    findings = list(_teacher_findings(others, _probe(others), data.label_map))
    if suspect:
        findings.append(_reversed_labels(suspect, data.label_map, only_some=bool(others)))
        tables.append(_mistakes_of_each_label(_blind(suspect)))
    return Section(
        name="teacher",
        title="The teacher",
        summary=f"{len(blind)} blind thoughts, {percent(report.accuracy)} right",
        findings=tuple(findings),
        tables=tuple(tables),
        figures={
            "accuracy": report.accuracy,
            "num": len(blind),
            "confusion": {str(true): {str(said): num_of[true, said] for said in LABELS} for true in LABELS},
            "maps": [{"map": each.relation_map, "accuracy": each.accuracy} for each in report.maps],
        },
    )


def _reversed_labels(splits: Sequence[SplitData], label_map: LabelMap | None, *, only_some: bool) -> Finding:
    blind, names = _blind(splits), listed([split.name for split in splits])
    report = _probe(blind)
    change = report.exchange(label_map)
    if only_some:
        change = f"exchange 0 and 1 in the labels of {names}: other splits' labels fit"
    return Finding(
        name="labels look reversed",
        severity="error",
        summary=f"in {names} the teacher finds {format_recalls(report.recalls)}, fewer than by guessing",
        advice=f"read the pairs in the table above; {change}",
        ids=unique(id_ for id_, thought in blind if not thought.correct),
        figures=_recall_figures(report),
    )


def _mistakes_of_each_label(blind: Sequence[tuple[str, Thought]]) -> Table:
    rows = []
    for label in LABELS:
        id_, pair = next(each for each in blind if each[1].true_label == label != each[1].predicted_label)
        labels = (f"{each} ({LABEL_NAMES[each]})" for each in (1 - label, label))
        rows.append((id_, *labels, f"{shown(pair.premise)} / {shown(pair.hypothesis)}"))
    return Table(title="labels look reversed", header=("pair", "teacher", "file", "texts"), rows=rows)


def _recall_figures(report: ProbeReport) -> dict[str, float]:
    return {f"found_of_label_{recall.label}": recall.proportion for recall in report.recalls if recall.num}


def _teacher_findings(
    blind: Sequence[tuple[str, Thought]], report: ProbeReport, label_map: LabelMap | None
) -> Iterator[Finding]:
    worse, better = sorted(report.recalls, key=lambda recall: recall.proportion)
    wrong = [(id_, thought) for id_, thought in blind if not thought.correct]
    figures = _recall_figures(report)
    if report.lopsided:
        bias, advice = "more lenient", "state what rules it out"
        if worse.label == 1:
            bias = "stricter"
            advice = "state that what is merely plausible counts too, if the pairs named here show it"
        remap = ""
        if report.maps and report.maps[0].accuracy > report.accuracy:
            remap = f"; or map relations differently: --prompt_type relation --relation_map {report.maps[0]}"
        if report.below_chance:
            remap = f"; labels may be reversed too: {report.exchange(label_map)}"
        yield Finding(
            name="label definitions do not fit",
            severity="error",
            summary=f"the teacher finds {percent(better.proportion)} of label {better.label} and "
            f"{percent(worse.proportion)} of label {worse.label}: it is {bias} about label 1 than the "
            "annotators were",
            advice=f"{advice} (`generate --definitions FILE --probe`){remap}",
            ids=unique(id_ for id_, thought in wrong if thought.true_label == worse.label),
            figures=figures,
        )
    elif report.accuracy < LOW_ACCURACY and len(blind) >= MIN_THOUGHTS:
        yield Finding(
            name="weak teacher",
            severity="warning",
            summary=f"the teacher is right on only {percent(report.accuracy)}, for both labels",
            advice="use a stronger model, or let `reflect` and `score` do more of the work",
            ids=unique(id_ for id_, _ in wrong),
            figures={**figures, "accuracy": report.accuracy},
        )


def check_lengths(data: AuditData) -> Section | None:
    """Compute accuracy by length of the thought; test if wrong thoughts are longer than right ones."""
    blind = _blind(data.splits)
    num_words = np.array([len(thought.thought_process.split()) for _, thought in blind])
    right = np.array([thought.correct for _, thought in blind], dtype=bool)
    if len(blind) < MIN_THOUGHTS or right.all() or not right.any():
        return None
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(num_words[~right], num_words[right])
    figures = {
        "wrong_is_longer": float(test.statistic) / (int((~right).sum()) * int(right.sum())),
        "p_value": float(test.pvalue),
    }
    longer = percent(figures["wrong_is_longer"])
    bins = length_bins(num_words.tolist())
    groups = accuracy_by(bins, right.tolist())
    rows = [
        (each.name, str(each.num), percent(each.accuracy), percent_range(each.interval)) for each in groups
    ]
    header = ("length", "thoughts", "right", "95 %")
    table = Table(title="right thoughts by length", header=header, rows=rows)
    finding = Finding(
        name="longer is wronger",
        severity="warning",
        summary=f"a wrong thought is longer than a right one in {longer} of cases; of the longest quarter "
        f"({groups[-1].name}) {percent(groups[-1].accuracy)} are right, of the shortest "
        f"{percent(groups[0].accuracy)}",
        advice="ask for shorter thoughts, or leave long ones out (--data.builder.max_thought_words)",
        ids=unique(
            id_
            for (id_, thought), name in zip(blind, bins, strict=True)
            if name == groups[-1].name and not thought.correct
        ),
        figures=figures,
    )
    is_clear = figures["p_value"] < MAX_P_VALUE and figures["wrong_is_longer"] >= MIN_EFFECT
    return Section(
        name="lengths",
        title="Length and correctness",
        summary=f"a wrong thought is longer than a right one in {longer} of cases "
        f"(50 % is chance; p = {test.pvalue:.2g})",
        findings=(finding,) if is_clear else (),
        tables=(table,),
        figures={**figures, "bins": groups_to_dicts(groups)},
    )
