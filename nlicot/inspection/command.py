"""The command `inspect`: read, build and encode as `fit` does, and show the examples and their lengths.

The command line is that of `fit`, so the same configs and flags show the examples that it would train on.
Only the tokenizer is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nlicot.errors import ConfigError
from nlicot.inspection.view import bars, legend, measure, pieces_of, render, visible, wants_color
from nlicot.model.base_model import choose_for_inspection
from nlicot.model.encoding import EncodedExample, TokenKind, encode_examples
from nlicot.model.prompt_format import PromptFormat, prompt_format_of_base
from nlicot.records import TrainingExample
from nlicot.run.config import parse_inspect
from nlicot.run.data import RunData


def main(args: Sequence[str]) -> int:
    """Run the `inspect` command."""
    settings = parse_inspect(args)
    data = RunData(settings)
    with contextlib.redirect_stdout(sys.stderr) if settings.json else contextlib.nullcontext():
        data.announce_sample()

    @functools.cache
    def find_base() -> str:
        model = settings.model
        return choose_for_inspection(model.base, model.fallback_base, on_sample=data.on_sample)

    @functools.cache
    def load_prompt_format() -> PromptFormat:
        return prompt_format_of_base(find_base(), settings.model.prompt_format)

    # Errors in the data come first; a builder that limits a thought's tokens needs the tokenizer, though.
    data.read_for_fit(lambda thought: load_prompt_format().count_thought_tokens(thought))
    chosen = _chosen(data, settings.split, settings.id, settings.num)
    base, prompt_format = find_base(), load_prompt_format()
    max_length, over_budget = settings.data.max_length, settings.data.over_budget
    lengths = measure(prompt_format, data.built[settings.split], max_length, over_budget)
    encoded = list(encode_examples(prompt_format, chosen, max_length=max_length, over_budget=over_budget))
    if settings.json:
        content = {
            "split": settings.split,
            "builder": type(data.builder).__name__,
            "built": data.reports[settings.split],
            "base": base,
            "prompt_format": prompt_format.name,
            "max_length": max_length,
            "over_budget": over_budget,
            "num_examples": len(lengths.lengths),
            "num_kept": lengths.report.num_examples,
            "num_tokens": lengths.report.num_tokens,
            "num_supervised": lengths.report.num_supervised,
            "longest": max(lengths.lengths),
            "cut": lengths.cut,
            "dropped": lengths.dropped,
            "histogram": [asdict(bar) for bar in bars(lengths.lengths, max_length)],
            "examples": [_as_dict(prompt_format, *each) for each in zip(chosen, encoded, strict=True)],
        }
        print(json.dumps(content))
        return 0
    color = wants_color(settings.color, sys.stdout)
    for example, each in zip(chosen, encoded, strict=True):
        print(f"{_heading(example, each, max_length)}\n")
        if each is not None:
            print(f"{render(pieces_of(prompt_format, each), color=color)}\n")
    if chosen and color:
        print(f"{legend()}\n")
    heading = f"{settings.split}: lengths of {len(lengths.lengths)} examples in tokens of {base}"
    print(lengths.summary(f"{heading} ({prompt_format.name})"))
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


def _heading(example: TrainingExample, encoded: EncodedExample | None, max_length: int) -> str:
    heading = f"pair {visible(example.id)}  source {visible(example.source)}  label {example.label}"
    if example.p_entailment is not None:
        heading += f"  p_entailment {example.p_entailment:.3f}"
    if encoded is None:
        return f"{heading}  LEFT OUT: longer than --data.max_length {max_length}"
    num, num_prompt = len(encoded.kinds), encoded.kinds.count(TokenKind.PROMPT)
    heading += f"  {num} of at most {max_length} tokens: {num_prompt} prompt, {encoded.num_supervised} learnt"
    return f"{heading}  CUT at a sentence end" if encoded.was_cut else heading


def _as_dict(
    prompt_format: PromptFormat, example: TrainingExample, encoded: EncodedExample | None
) -> dict[str, Any]:
    found = {"id": example.id, "source": example.source, "label": example.label, "dropped": encoded is None}
    if example.p_entailment is not None:
        found["p_entailment"] = example.p_entailment
    if encoded is None:
        return found
    return {
        **found,
        "cut": encoded.was_cut,
        "input_ids": encoded.input_ids,
        "kinds": [TokenKind(kind).name.lower() for kind in encoded.kinds],
        "pieces": [asdict(piece) for piece in pieces_of(prompt_format, encoded)],
    }
