"""The command `inspect`: read, build and encode as `fit` does, and show the examples and their lengths.

The command line is that of `fit`, so the same configs and flags show the examples that it would train on.
Only the tokenizer is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nlicot.errors import ConfigError
from nlicot.inspection.lengths import Lengths, bars, histogram, measure
from nlicot.inspection.terminal import legend, render, visible, wants_color
from nlicot.inspection.token_view import pieces_of
from nlicot.model.base_model import choose_for_inspection
from nlicot.model.encoding import EncodedExample, TokenKind, encode_example
from nlicot.model.prompt_format import PromptFormat, prompt_format_of_base
from nlicot.records import TrainingExample
from nlicot.run.config import parse_inspect
from nlicot.run.data import RunData

MOST_IDS = 5


def main(args: Sequence[str]) -> int:
    """Run the `inspect` command."""
    settings = parse_inspect(args)
    data = RunData(settings)
    with contextlib.redirect_stdout(sys.stderr) if settings.json else contextlib.nullcontext():
        data.announce_sample()
    data.read_for_fit()
    chosen = _chosen(data, settings.split, settings.id, settings.num)
    base = choose_for_inspection(settings.model.base, settings.model.fallback_base, on_sample=data.on_sample)
    split = _Split(settings.split, data, base, prompt_format_of_base(base, settings.model.prompt_format))
    if settings.json:
        print(json.dumps(split.as_dict(chosen)))
        return 0
    color = wants_color(settings.color, sys.stdout)
    parts = [split.example_text(example, color=color) for example in chosen]
    if chosen:
        parts.append(legend(color=color))
    parts.append(split.summary())
    print("\n\n".join(part for part in parts if part))
    return 0


def _chosen(data: RunData, split: str, ids: Sequence[str], num: int) -> list[TrainingExample]:
    """Return all examples of these pairs, or without ids the first `num` examples."""
    built = data.built[split]
    if not ids:
        return built[:num]
    known = {example.id for example in data.pairs[split]} | {example.id for example in built}
    for id_ in ids:
        if id_ not in known:
            near = difflib.get_close_matches(id_, known, n=3)
            other = next((name for name in data.pairs if id_ in {each.id for each in data.pairs[name]}), None)
            hint = f"it is in {other}: add --split {other}" if other else ""
            hint = hint or (f"did you mean {' or '.join(near)}?" if near else "see the column id")
            raise ConfigError(f"--id {id_}: no such pair in {split} ({hint})")
        if id_ not in {example.id for example in built}:
            raise ConfigError(
                f"--id {id_}: the builder {type(data.builder).__name__} makes no training example of this "
                "pair (it has no text that the builder uses)"
            )
    return [example for id_ in ids for example in built if example.id == id_]


@dataclass(frozen=True)
class _Split:
    """A split's training examples, as text and as JSON."""

    name: str
    data: RunData
    base: str
    prompt_format: PromptFormat

    @property
    def budget(self) -> dict[str, Any]:
        settings = self.data.settings
        return {"max_length": settings.max_length, "over_budget": settings.over_budget}

    def lengths(self) -> Lengths:
        return measure(self.prompt_format, self.data.built[self.name], **self.budget)

    def encoded(self, example: TrainingExample) -> EncodedExample | None:
        return encode_example(self.prompt_format, example, **self.budget)

    def example_text(self, example: TrainingExample, *, color: bool) -> str:
        encoded, max_length = self.encoded(example), self.budget["max_length"]
        heading = f"pair {visible(example.id)}  source {visible(example.source)}  label {example.label}"
        if encoded is None:
            return f"{heading}  LEFT OUT: longer than --data.max_length {max_length}"
        num, num_prompt = len(encoded.kinds), encoded.kinds.count(TokenKind.PROMPT)
        heading += f"  {num} of at most {max_length} tokens: {num_prompt} prompt, {num - num_prompt} learnt"
        if encoded.was_cut:
            heading += "  CUT at a sentence end"
        return f"{heading}\n\n{render(pieces_of(self.prompt_format, encoded), color=color)}"

    def summary(self) -> str:
        lengths, max_length = self.lengths(), self.budget["max_length"]
        percentage = 100 * lengths.num_supervised / max(1, lengths.num_tokens)
        lines = [
            f"{self.name}: lengths of {len(lengths.lengths)} examples in tokens of {self.base} "
            f"({self.prompt_format.name})",
            *histogram(lengths),
            f"  median {statistics.median_low(lengths.lengths)}, longest {max(lengths.lengths)}; "
            f"{lengths.num_tokens} tokens in all, {percentage:.0f} % of them learnt",
        ]
        if not lengths.cut and not lengths.dropped:
            return "\n".join([*lines, f"  all fit into --data.max_length {max_length}: 0 cut, 0 left out"])
        for ids, what in ((lengths.cut, "cut at a sentence end"), (lengths.dropped, "left out")):
            shown = ", ".join(map(visible, ids[:MOST_IDS])) + (", ..." if len(ids) > MOST_IDS else "")
            lines.append(f"  {len(ids)} {what}" + (f": {shown}" if ids else ""))
        lines.append(f"  to keep them whole: --data.max_length above {max_length}")
        if not lengths.num_kept:
            lines.append("  no example is left, so fit would stop")
        return "\n".join(lines)

    def as_dict(self, chosen: Sequence[TrainingExample]) -> dict[str, Any]:
        lengths = self.lengths()
        return {
            "split": self.name,
            "builder": type(self.data.builder).__name__,
            "built": self.data.reports[self.name],
            "base": self.base,
            "prompt_format": self.prompt_format.name,
            **self.budget,
            "num_examples": len(lengths.lengths),
            "num_kept": lengths.num_kept,
            "num_tokens": lengths.num_tokens,
            "num_supervised": lengths.num_supervised,
            "longest": max(lengths.lengths),
            "cut": lengths.cut,
            "dropped": lengths.dropped,
            "histogram": [asdict(bar) for bar in bars(lengths.lengths, lengths.max_length)],
            "examples": list(map(self.example_dict, chosen)),
        }

    def example_dict(self, example: TrainingExample) -> dict[str, Any]:
        encoded = self.encoded(example)
        found = {"id": example.id, "source": example.source, "label": example.label}
        if encoded is None:
            return {**found, "dropped": True}
        return {
            **found,
            "dropped": False,
            "cut": encoded.was_cut,
            "input_ids": encoded.input_ids,
            "kinds": [TokenKind(kind).name.lower() for kind in encoded.kinds],
            "pieces": [asdict(piece) for piece in pieces_of(self.prompt_format, encoded)],
        }
