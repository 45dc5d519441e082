"""What a finished stage comes to: the teacher's figures, lengths, failures, tokens, price and time."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nlicot.evaluation.metrics import (
    accuracy_by,
    classification_metrics,
    format_table,
    length_bins,
    metrics_to_dict,
)
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.session import RunReport

FEW_RESAMPLES_FROM = 10_000
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(slots=True)
class StageStatistics:
    """Collects a stage's outcomes one by one; a few bytes each."""

    num_records: int = 0
    true_labels: array[int] = field(default_factory=lambda: array("b"))
    predicted_labels: array[int] = field(default_factory=lambda: array("b"))
    lengths: array[int] = field(default_factory=lambda: array("L"))
    unlabelled_lengths: array[int] = field(default_factory=lambda: array("L"))
    scores: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    num_repaired: int = 0

    def add(self, final: Outcome) -> None:
        """Count one outcome."""
        if not final.ok:
            self.failures[str(final.rows[0]["kind"])] += 1
            return
        for row in final.rows:
            self._see_record(row)

    def _see_record(self, row: dict[str, Any]) -> None:
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
    """A stage's summary: `content` is what the JSON file holds, `text` what the terminal shows."""

    content: dict[str, Any]
    text: str


def summarise(stage: str, figures: StageStatistics, report: RunReport) -> Summary:
    """The summary of a finished run."""
    tally = report.tally
    content: dict[str, Any] = {
        "stage": stage,
        "num_records": figures.num_records,
        "num_failed": figures.failures.total(),
        "failures": dict(figures.failures),
        "faults_on_the_way": dict(tally.faults),
        "by_model": dict(figures.by_model),
        "num_repaired": figures.num_repaired,
        "num_requests": tally.num_requests,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost_usd": round(report.spent_usd, 6) if report.cost_known else None,
        "duration_s": round(report.duration_s, 2),
    }
    parts = [_one_line(figures, report)]
    if figures.true_labels:
        parts.append(_teachers_figures(figures, content))
    lengths = [*figures.lengths, *figures.unlabelled_lengths]
    if lengths:
        content["thought_words"] = _quartiles(lengths)
    if figures.scores:
        parts.append(_scores(figures, content))
    return Summary(content=content, text="\n\n".join(parts))


def _one_line(figures: StageStatistics, report: RunReport) -> str:
    tally = report.tally
    cost = f"${report.spent_usd:.4f} in all" if report.cost_known else "of unknown price"
    kinds = ", ".join(f"{kind}: {num}" for kind, num in figures.failures.most_common())
    failed = f"{figures.failures.total()} failed" + (f" ({kinds})" if kinds else "")
    return (
        f"{figures.num_records} records, {failed}; {tally.num_requests} requests, "
        f"{tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens, {cost}, {report.duration_s:.1f} s"
    )


def _teachers_figures(figures: StageStatistics, content: dict[str, Any]) -> str:
    true, predicted = list(figures.true_labels), list(figures.predicted_labels)
    num_resamples = 2000 if len(true) < FEW_RESAMPLES_FROM else 200
    metrics = classification_metrics(true, predicted, num_resamples=num_resamples)
    content["teacher"] = metrics_to_dict(metrics)
    right = [truth == found for truth, found in zip(true, predicted, strict=True)]
    groups = accuracy_by(length_bins(figures.lengths), right)
    content["accuracy_by_length"] = {
        group.name: {"num": group.num, "accuracy": group.accuracy} for group in groups
    }
    lines = [format_table(metrics, "the teacher against the true labels"), "", "by length of the thought"]
    lines += [f"  {group.name:<16}{group.accuracy:>7.1%} of {group.num}" for group in groups]
    return "\n".join(lines)


def _quartiles(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    last = len(ordered) - 1
    named = zip(("first_quartile", "median", "third_quartile"), QUARTILES, strict=True)
    return {
        "least": ordered[0],
        **{name: ordered[round(share * last)] for name, share in named},
        "most": ordered[-1],
    }


def _scores(figures: StageStatistics, content: dict[str, Any]) -> str:
    rounds: dict[str, dict[str, int]] = {}
    for (target, round_, score), num in sorted(figures.scores.items()):
        rounds.setdefault(f"{target}, round {round_}", {})[str(score)] = num
    content["scores"] = rounds
    lines = [f"{'scores':<24}" + "".join(f"{score:>7}" for score in range(1, 6))]
    for name, found in rounds.items():
        lines.append(f"{name:<24}" + "".join(f"{found.get(str(score), 0):>7}" for score in range(1, 6)))
    return "\n".join(lines)
