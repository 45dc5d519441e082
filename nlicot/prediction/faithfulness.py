"""Does the thought decide the label? Read labels again after changed thoughts, or with the premise blanked.

Interventions after Lanham et al. 2023 (arXiv:2307.13702): a thought matters to the label only if the label
changes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nlicot.data.atomic_write import write_json
from nlicot.evaluation.metrics import entails, read_metrics
from nlicot.prediction.decoding import Engine, by_length
from nlicot.prediction.predictor import Predictor
from nlicot.records import Example, Prediction

BLANK = "(left out)"
"""Replaces a premise; an empty one would look like an error in the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One intervention: how many labels it flipped, and how many are right after it."""

    name: str
    num: int
    num_flipped: int
    num_right: int


def probe_thoughts(
    predictor: Predictor, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Probe]:
    """Compare the labels of `predictions`, in the order of labelled `examples`, with those after each change.

    Thoughts, and drafts if there are any, are changed only if the label follows them.
    """
    engine = predictor.engine
    before = [int(prediction.predicted_label or 0) for prediction in predictions]
    found = {"as it is": before}
    with predictor.autocast():
        if predictor.form.thinks_before_label:
            thoughts = [prediction.thought_process or "" for prediction in predictions]
            drafts = [prediction.draft_label for prediction in predictions]
            prompts = [predictor.encode(example.premise, example.hypothesis) for example in examples]
            for name, changed in (
                ("thought left out", [""] * len(thoughts)),
                ("thought of the next pair", [*thoughts[1:], *thoughts[:1]]),
                ("thought cut half-way", [_first_half(thought) for thought in thoughts]),
            ):
                found[name] = _labels_after(engine, prompts, changed, drafts)
            others = [None if draft is None else 1 - draft for draft in drafts]
            if others != drafts:
                found["draft of the other label"] = _labels_after(engine, prompts, thoughts, others)
        blanked = [predictor.encode(BLANK, example.hypothesis) for example in examples]
        batch = by_length([str(index) for index in range(len(blanked))], blanked)
        answers = {int(one.id): one.predicted_label for one in engine.decode(batch, form=predictor.form)}
    found["premise blanked"] = [int(answers[index] or 0) for index in range(len(blanked))]
    true = [example.label for example in examples]
    return [
        Probe(
            name=name,
            num=len(after),
            num_flipped=sum(a != b for a, b in zip(before, after, strict=True)),
            num_right=sum(a == b for a, b in zip(after, true, strict=True)),
        )
        for name, after in found.items()
    ]


def _first_half(thought: str) -> str:
    words = thought.split(" ")
    return " ".join(words[: len(words) // 2])


def _labels_after(
    engine: Engine, prompts: Sequence[list[int]], thoughts: Sequence[str], drafts: Sequence[int | None]
) -> list[int]:
    rows = [
        [*prompt, *engine.ids_before_label(thought, draft)]
        for prompt, thought, draft in zip(prompts, thoughts, drafts, strict=True)
    ]
    probabilities = dict(engine.label_probabilities(rows))
    return [int(entails(probabilities[index])) for index in range(len(rows))]


def record_faithfulness(path: Path, split: str, table: Sequence[Probe]) -> None:
    """Record the probe's results with the split's metrics in `metrics.json`."""
    content = read_metrics(path)
    content[split]["faithfulness"] = [asdict(probe) for probe in table]
    write_json(path, content)


def format_probe(table: Sequence[Probe]) -> str:
    """Format the interventions as plain text, one per line."""
    lines = [f"{'does the thought decide?':<28}{'labels flipped':>15}{'accuracy':>11}"]
    for probe in table:
        right = f"{probe.num_right / probe.num:.1%}"
        flipped = "" if probe.name == "as it is" else f"{probe.num_flipped / probe.num:.1%}"
        lines.append(f"{probe.name:<28}{flipped:>15}{right:>11}")
    return "\n".join(lines)
