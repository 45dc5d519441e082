"""The progress bar of a running stage, and the summary of a finished one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from nlicot.evaluation.metrics import (
    accuracy_by,
    classification_metrics,
    format_table,
    length_bins,
    metrics_to_dict,
)
from nlicot.teacher.engine.journal import Outcome
from nlicot.teacher.engine.pricing import Budget
from nlicot.teacher.engine.scheduler import RunReport, Tally

REDRAW_INTERVAL_S = 0.2


class ProgressBar:
    """A `tqdm` bar that follows a tally; it appears with the first `update`."""

    def __init__(self, total: int, title: str) -> None:
        self._total, self._title = total, title
        self._bar: Any = None

    def update(self, tally: Tally, budget: Budget) -> None:
        """Show the tally, a few times per second."""
        if self._bar is None:
            self._bar = tqdm(total=self._total, desc=self._title, unit="pair", mininterval=REDRAW_INTERVAL_S)
            return
        self._bar.set_postfix_str(describe(tally, budget), refresh=False)
        self._bar.update(tally.num_finished - self._bar.n)

    def close(self) -> None:
        """Leave the last tally on the screen."""
        if self._bar is not None:
            self._bar.close()


def describe(tally: Tally, budget: Budget) -> str:
    """Summarise a tally in a few words.

    >>> describe(Tally(num_judged=4, num_correct=3, prompt_tokens=1200), Budget(prices={}))
    'right 75 %, failed 0, tokens 1,200'
    """
    parts = [f"failed {tally.num_failed}", f"tokens {tally.prompt_tokens + tally.completion_tokens:,}"]
    if tally.num_judged:
        parts.insert(0, f"right {tally.num_correct / tally.num_judged:.0%}".replace("%", " %"))
    if budget.spent_usd:
        parts.append(f"cost ${budget.spent_usd:.4f}")
    return ", ".join(parts)


def summarise(stage: str, outcomes: Sequence[Outcome], report: RunReport) -> tuple[dict[str, Any], str]:
    """Summarise a finished run, for a JSON file and for the terminal."""
    rows = [row for outcome in outcomes if outcome.ok for row in outcome.rows]
    failures = Counter(str(outcome.rows[0]["kind"]) for outcome in outcomes if not outcome.ok)
    origins = [row.get("provenance", {}) for row in rows]
    tally, num_failed = report.tally, failures.total()
    content: dict[str, Any] = {
        "stage": stage,
        "num_records": len(rows),
        "num_failed": num_failed,
        "failures": dict(failures),
        "faults_on_the_way": dict(tally.faults),
        "by_model": dict(Counter(str(origin.get("model", "")) for origin in origins)),
        "num_repaired": sum(bool(origin.get("params", {}).get("repaired")) for origin in origins),
        "num_requests": tally.num_requests,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost_usd": round(report.spent_usd, 6) if report.cost_known else None,
        "duration_s": round(report.duration_s, 2),
    }
    cost = f"${report.spent_usd:.4f} in all" if report.cost_known else "of unknown price"
    kinds = ", ".join(f"{kind}: {num}" for kind, num in failures.most_common())
    parts = [
        f"{len(rows)} records, {num_failed} failed{f' ({kinds})' if kinds else ''}; "
        f"{tally.num_requests} requests, {tally.prompt_tokens:,} + {tally.completion_tokens:,} tokens, "
        f"{cost}, {report.duration_s:.1f} s"
    ]
    texts = [row for row in rows if "score" not in row]
    thoughts = [row for row in texts if "improved_thought_process" not in row]
    if judged := [row for row in thoughts if row.get("true_label") is not None]:
        parts.append(_teacher_metrics(judged, content))
    if texts:
        lengths = sorted(map(_num_words, texts))
        quartiles = [lengths[round(quarter / 4 * (len(lengths) - 1))] for quarter in range(5)]
        names = ("least", "first_quartile", "median", "third_quartile", "most")
        content["thought_words"] = dict(zip(names, quartiles, strict=True))
    if scored := [row for row in rows if "score" in row]:
        parts.append(_scores(scored, content))
    return content, "\n\n".join(parts)


def _num_words(row: dict[str, Any]) -> int:
    return len((row.get("improved_thought_process") or row["thought_process"]).split())


def _teacher_metrics(thoughts: list[dict[str, Any]], content: dict[str, Any]) -> str:
    true, predicted = ([row[name] for row in thoughts] for name in ("true_label", "predicted_label"))
    # With many thoughts, intervals need fewer resamples.
    metrics = classification_metrics(true, predicted, num_resamples=2000 if len(true) < 10_000 else 200)
    content["teacher"] = metrics_to_dict(metrics)
    correct = [truth == found for truth, found in zip(true, predicted, strict=True)]
    groups = accuracy_by(length_bins(list(map(_num_words, thoughts))), correct)
    by_length = {group.name: {"num": group.num, "accuracy": group.accuracy} for group in groups}
    content["accuracy_by_length"] = by_length
    lines = [format_table(metrics, "the teacher against the true labels"), "", "by length of the thought"]
    lines += [f"  {group.name:<16}{group.accuracy:>7.1%} of {group.num}" for group in groups]
    return "\n".join(lines)


def _scores(rows: list[dict[str, Any]], content: dict[str, Any]) -> str:
    rounds: dict[str, dict[str, int]] = {}
    scores = Counter((row["target"], row.get("round", 0), row["score"]) for row in rows)
    for (target, round_, score), num in sorted(scores.items()):
        rounds.setdefault(f"{target}, round {round_}", {})[str(score)] = num
    content["scores"] = rounds
    lines = [("scores", list(range(1, 6)))]
    lines += [(name, [counts.get(str(score), 0) for score in range(1, 6)]) for name, counts in rounds.items()]
    return "\n".join(f"{name:<24}" + "".join(f"{value:>7}" for value in values) for name, values in lines)
