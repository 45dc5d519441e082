"""Preference data for TRL's `DPOTrainer`: a right thought and a wrong one of one pair.

    preference         {"prompt": "[INST] prompt[/INST]", "chosen": " completion", "rejected": " completion"}

Each row also has `id`, `label`, `source` and `rejected_source`. This is TRL's standard format, texts and not
messages: the trainer applies no template, and appends EOS to both completions. The builder selects the chosen
thought as for instruction data; the rejected one is the student's own if `--predictions` has one, else the
teacher's.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nlicot import completion
from nlicot.data.rows import Row, read_records
from nlicot.data.thoughts import JoinedTexts, join_thoughts
from nlicot.prepare.formats import Markers
from nlicot.records import Example, Thought, TrainingExample

logger = logging.getLogger(__name__)

PREFERENCE = "preference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A pair's prompt with two completions; `label` is the true one, which only the chosen reaches."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    label: int
    source: str
    rejected_source: str

    def to_row(self, markers: Markers) -> dict[str, Any]:
        """Render the preference with a model's markers.

        >>> texts = {"prompt": "P", "chosen": "C", "rejected": "R"}
        >>> pair = Preference(id="a", label=1, source="thought", rejected_source="thought", **texts)
        >>> row = pair.to_row(Markers(opening="[INST] ", closing="[/INST]", gap=" "))
        >>> row["prompt"], row["chosen"], row["rejected"]
        ('[INST] P[/INST]', ' C', ' R')
        """
        return {
            "prompt": f"{markers.opening}{self.prompt}{markers.closing}",
            "chosen": f"{markers.gap}{self.chosen}",
            "rejected": f"{markers.gap}{self.rejected}",
            "id": self.id,
            "label": self.label,
            "source": self.source,
            "rejected_source": self.rejected_source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Preferences, and the numbers of pairs that have none for lack of a right or of a wrong thought."""

    records: Sequence[Preference]
    num_pairs: int
    num_without_right: int
    num_without_wrong: int

    def __str__(self) -> str:
        def counted(name: str, values: Iterable[object]) -> str:
            return ", ".join(f"{name} {value}: {num}" for value, num in sorted(Counter(values).items()))

        digest = hashlib.sha256()
        for each in self.records:
            digest.update(f"{each.id}\x1f{each.prompt}\x1f{each.chosen}\x1f{each.rejected}\x1e".encode())
        parts = [
            counted("chosen", (each.source for each in self.records)),
            counted("rejected", (each.rejected_source for each in self.records)),
            counted("label", (each.label for each in self.records)),
            f"{self.num_without_wrong} pairs have no wrong thought, {self.num_without_right} no right one",
            f"content {digest.hexdigest()[:12]}",
        ]
        return f"{len(self.records)} preferences from {self.num_pairs} pairs ({'; '.join(parts)})"


def build_preferences(
    built: Iterable[TrainingExample], texts: JoinedTexts, predicted: Sequence[Thought]
) -> Preferences:
    """Pair each training example that thinks and has the true label with a wrong thought of its pair.

    Args:
        built: the builder's choice among the texts of all pairs.
        texts: the pairs, and the teacher's texts.
        predicted: the student's thoughts.
    """
    label_of = {example.id: example.label for example in texts.examples}
    wrong_of = _first_wrong_thoughts(texts, predicted)
    records, has_right = [], set()
    for example in built:
        parsed = completion.parse(example.completion)
        if parsed is None or parsed.thought_process is None or parsed.label != label_of[example.id]:
            continue
        has_right.add(example.id)
        if wrong := wrong_of.get(example.id):
            records.append(
                Preference(
                    id=example.id,
                    prompt=example.prompt,
                    chosen=example.completion,
                    rejected=completion.render(wrong.thought_process, wrong.label, parsed.form, parsed.draft),
                    label=parsed.label,
                    source=example.source,
                    rejected_source=wrong.source,
                )
            )
    num_pairs = len(label_of)
    return Preferences(
        records=records,
        num_pairs=num_pairs,
        num_without_right=num_pairs - len(has_right),
        num_without_wrong=num_pairs - len(wrong_of),
    )


def read_predicted_thoughts(
    paths: Sequence[Path], examples: Sequence[Example], *, first_sample: int
) -> list[Thought]:
    """Read the student's thoughts from files of `predict`, as further samples of their pairs."""
    found: list[Thought] = []
    for sample, path in enumerate(paths, start=first_sample):
        left_out: Counter[str] = Counter()
        parse = partial(_thought_from, sample=sample, left_out=left_out)
        found += join_thoughts(examples, read_records(path, parse, each="prediction"))
        if left_out:
            reasons = ", ".join(f"{reason}: {num}" for reason, num in sorted(left_out.items()))
            logger.warning("%s: left out %d predictions (%s)", path, left_out.total(), reasons)
    return found


def _thought_from(row: Row, *, sample: int, left_out: Counter[str]) -> Thought | None:
    """Parse a prediction; if its thought does not lead to its label, count it in `left_out`, return None."""
    thought_process = row.optional_text("thought_process")
    if thought_process is None:
        left_out["without a thought"] += 1
        return None
    if row.fields.get("status") == "truncated":
        left_out["cut off at its budget"] += 1
        return None
    if row.fields.get("agreement") == 0:
        left_out["a label that no vote had"] += 1
        return None
    return Thought(
        id=row.identifier() or row.text("id"),
        sample=sample,
        premise=row.text("premise"),
        hypothesis=row.text("hypothesis"),
        thought_process=thought_process,
        predicted_label=row.label("predicted_label"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _WrongThought:
    thought_process: str
    label: int
    source: str


def _first_wrong_thoughts(texts: JoinedTexts, predicted: Sequence[Thought]) -> dict[str, _WrongThought]:
    """Return each pair's first wrong thought: the student's, a teacher's, or the one reflected on."""
    candidates = [
        (each.id, each.thought_process, each.predicted_label, source)
        for source, thoughts in (("prediction", predicted), ("thought", texts.thoughts))
        for each in thoughts
        if each.true_label is not None and not each.correct
    ]
    candidates += [
        (each.id, each.thought_process, 1 - each.true_label, "thought") for each in texts.reflections
    ]
    found: dict[str, _WrongThought] = {}
    for id_, thought_process, label, source in candidates:
        found.setdefault(id_, _WrongThought(thought_process=thought_process, label=label, source=source))
    return found
