"""The summary of a finished stage: the teacher's metrics, lengths, scores, failures, tokens, cost, time."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nlicot.evaluation.metrics import accuracy_by, classification_metrics, length_bins
from nlicot.evaluation.metrics_file import format_table, metrics_to_dict
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.session import RunReport

LARGE_SPLIT = 10_000
"""From this many thoughts on, intervals use 200 resamples instead of 2000."""


@dataclass(slots=True)
class StageStatistics:
    """Collects a stage's outcomes one by one, a few bytes each."""

    num_records: int = 0
    true_labels: array[int] = field(default_factory=lambda: array("b"))
    predicted_labels: array[int] = field(default_factory=lambda: array("b"))
    lengths: array[int] = field(default_factory=lambda: array("L"))
    unlabelled_lengths: array[int] = field(default_factory=lambda: array("L"))
    scores: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    num_repaired: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.ok:
            for row in outcome.rows:
                self._add_record(row)
        else:
            self.failures[str(outcome.rows[0]["kind"])] += 1

    def _add_record(self, row: dict[str, Any]) -> None:
        self.num_records += 1
        provenance = row.get("provenance", {})
        self.by_model[str(provenance.get("model", ""))] += 1
        self.num_repaired += bool(provenance.get("params", {}).get("repaired"))
        if "score" in row:
            self.scores[row["target"], row.get("round", 0), row["score"]] += 1
            return
        text = row.get("improved_thought_process") or row["thought_process"]
        num_words = len(text.split())
        if "improved_thought_process" not in row and row.get("true_label") is not None:
            self.true_labels.append(row["true_label"])
            self.predicted_labels.append(row["predicted_label"])
            self.lengths.append(num_words)
        else:
            self.unlabelled_lengths.append(num_words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`content` goes into the JSON file, `text` to the terminal."""

    content: dict[str, Any]
    text: str


def summarise(stage: str, statistics: StageStatistics, report: RunReport) -> Summary:
    """Summarise a finished run."""
    tally = report.tally
    content: dict[str, Any] = {
        "stage": stage,
        "num_records": statistics.num_records,
        "num_failed": statistics.failures.total(),
        "failures": dict(statistics.failures),
        "faults_on_the_way": dict(tally.faults),
        "by_model": dict(statistics.by_model),
        "num_repaired": statistics.num_repaired,
        "num_requests": tally.num_requests,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost_usd": round(report.spent_usd, 6) if report.cost_known else None,
        "duration_s": round(report.duration_s, 2),
    }
    parts = [_one_line(statistics, report)]
    if statistics.true_labels:
        parts.append(_teacher_metrics(statistics, content))
    lengths = sorted([*statistics.lengths, *statistics.unlabelled_lengths])
    if lengths:
        quartiles = [lengths[round(quarter / 4 * (len(lengths) - 1))] for quarter in range(5)]
        names = ("least", "first_quartile", "median", "third_quartile", "most")
        content["thought_words"] = dict(zip(names, quartiles, strict=True))
    if statistics.scores:
        parts.append(_scores(statistics, content))
    return Summary(content=content, text="\n\n".join(parts))


def _one_line(statistics: StageStatistics, report: RunReport) -> str:
    tally, num_failed = report.tally, statistics.failures.total()
    cost = f"${report.spent_usd:.4f} in all" if report.cost_known else "of unknown price"
    kinds = ", ".join(f"{kind}: {num}" for kind, num in statistics.failures.most_common())
    return (
        f"{statistics.num_records} records, {num_failed} failed{f' ({kinds})' if kinds else ''}; "
        f"{tally.num_requests} requests, {tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens, "
        f"{cost}, {report.duration_s:.1f} s"
    )


def _teacher_metrics(statistics: StageStatistics, content: dict[str, Any]) -> str:
    true, predicted = list(statistics.true_labels), list(statistics.predicted_labels)
    num_resamples = 2000 if len(true) < LARGE_SPLIT else 200
    metrics = classification_metrics(true, predicted, num_resamples=num_resamples)
    content["teacher"] = metrics_to_dict(metrics)
    correct = [truth == found for truth, found in zip(true, predicted, strict=True)]
    groups = accuracy_by(length_bins(statistics.lengths), correct)
    content["accuracy_by_length"] = {
        group.name: {"num": group.num, "accuracy": group.accuracy} for group in groups
    }
    lines = [format_table(metrics, "the teacher against the true labels"), "", "by length of the thought"]
    lines += [f"  {group.name:<16}{group.accuracy:>7.1%} of {group.num}" for group in groups]
    return "\n".join(lines)


def _scores(statistics: StageStatistics, content: dict[str, Any]) -> str:
    rounds: dict[str, dict[str, int]] = {}
    for (target, round_, score), num in sorted(statistics.scores.items()):
        rounds.setdefault(f"{target}, round {round_}", {})[str(score)] = num
    content["scores"] = rounds
    lines = [f"{'scores':<24}" + "".join(f"{score:>7}" for score in range(1, 6))]
    for name, counts in rounds.items():
        lines.append(f"{name:<24}" + "".join(f"{counts.get(str(score), 0):>7}" for score in range(1, 6)))
    return "\n".join(lines)
