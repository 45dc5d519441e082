"""`python -m nlicot inspect`: reads, builds and encodes as `fit` does, and shows what comes of it.

The command line is that of `fit`, so that the same configs and flags show the very examples that it would
train on. Only the tokenizer is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nlicot.errors import ConfigError
from nlicot.inspection.lengths import Lengths, bars, histogram, measure
from nlicot.inspection.terminal import legend, render, visible, wants_color
from nlicot.inspection.token_view import Piece, pieces_of
from nlicot.model.base_model import choose_for_inspection
from nlicot.model.encoding import EncodedExample, TokenKind, encode_example
from nlicot.model.prompt_format import PromptFormat, prompt_format_of_base
from nlicot.records import TrainingExample
from nlicot.run.config import parse_inspect
from nlicot.run.data import RunData

MOST_IDS = 5


def main(args: Sequence[str]) -> int:
    """The `inspect` command."""
    settings = parse_inspect(args)
    data = RunData(settings)
    with contextlib.redirect_stdout(sys.stderr) if settings.json else contextlib.nullcontext():
        data.announce_sample()
    data.read_for_fit()
    split = settings.split
    chosen = _chosen(data, split, settings.id, settings.num)
    base = choose_for_inspection(settings.model.base, settings.model.fallback_base, on_sample=data.on_sample)
    prompt_format = prompt_format_of_base(base, settings.model.prompt_format)
    lengths = measure(
        prompt_format,
        data.built[split],
        max_length=data.settings.max_length,
        over_budget=data.settings.over_budget,
    )
    if settings.json:
        print(json.dumps(_as_dict(data, split, base, prompt_format, chosen, lengths)))
        return 0
    color = wants_color(settings.color, sys.stdout)
    parts = [_example_text(data, prompt_format, example, color=color) for example in chosen]
    if chosen:
        parts.append(legend(color=color))
    parts.append(_summary(data, split, base, prompt_format, lengths))
    print("\n\n".join(part for part in parts if part))
    return 0


def _chosen(data: RunData, split: str, ids: Sequence[str], num: int) -> list[TrainingExample]:
    """The examples of these pairs, all of each, else the first `num`."""
    built = data.built[split]
    if not ids:
        return built[:num]
    found = [example for id_ in ids for example in built if example.id == id_]
    missing = set(ids) - {example.id for example in found}
    known = {example.id for example in data.pairs[split]}
    for id_ in ids:
        if id_ in missing & known:
            raise ConfigError(
                f"--id {id_}: found the pair in {split} but no training example of it, expected one that the "
                f"builder {type(data.builder).__name__} takes (it has no text that fits)"
            )
        if id_ in missing:
            near = difflib.get_close_matches(id_, known | {example.id for example in built}, n=3)
            other = next((name for name in data.pairs if id_ in {each.id for each in data.pairs[name]}), None)
            hint = f"it is in {other}: add --split {other}" if other else ""
            hint = hint or (f"did you mean {' or '.join(near)}?" if near else "see the column id")
            raise ConfigError(f"--id {id_}: found no such pair in {split}, expected one of its ids ({hint})")
    return found


def _encoded(data: RunData, prompt_format: PromptFormat, example: TrainingExample) -> EncodedExample | None:
    return encode_example(
        prompt_format, example, max_length=data.settings.max_length, over_budget=data.settings.over_budget
    )


def _example_text(
    data: RunData, prompt_format: PromptFormat, example: TrainingExample, *, color: bool
) -> str:
    encoded = _encoded(data, prompt_format, example)
    heading = f"pair {visible(example.id)}  source {visible(example.source)}  label {example.label}"
    if encoded is None:
        return f"{heading}  LEFT OUT: longer than --data.max_length {data.settings.max_length}"
    num_prompt = encoded.kinds.count(TokenKind.PROMPT)
    num = len(encoded.kinds)
    heading += f"  {num} of at most {data.settings.max_length} tokens"
    heading += f": {num_prompt} prompt, {num - num_prompt} learnt"
    if encoded.was_cut:
        heading += "  CUT at a sentence end"
    return f"{heading}\n\n{render(pieces_of(prompt_format, encoded), color=color)}"


def _summary(data: RunData, split: str, base: str, prompt_format: PromptFormat, lengths: Lengths) -> str:
    num = len(lengths.lengths)
    share = 100 * lengths.num_supervised / max(1, lengths.num_tokens)
    lines = [
        f"{split}: lengths of {num} examples in tokens of {base} ({prompt_format.name})",
        *histogram(lengths),
        f"  median {statistics.median_low(lengths.lengths)}, longest {max(lengths.lengths)}; "
        f"{lengths.num_tokens} tokens in all, {share:.0f} % of them learnt",
    ]
    if not lengths.cut and not lengths.dropped:
        lines.append(f"  all fit into --data.max_length {data.settings.max_length}: 0 cut, 0 left out")
        return "\n".join(lines)
    for ids, what in ((lengths.cut, "cut at a sentence end"), (lengths.dropped, "left out")):
        shown = ", ".join(map(visible, ids[:MOST_IDS])) + (", ..." if len(ids) > MOST_IDS else "")
        lines.append(f"  {len(ids)} {what}" + (f": {shown}" if ids else ""))
    lines.append(f"  to keep them whole: a greater --data.max_length than {data.settings.max_length}")
    if not lengths.num_kept:
        lines.append("  none is left, so fit would stop")
    return "\n".join(lines)


def _as_dict(
    data: RunData,
    split: str,
    base: str,
    prompt_format: PromptFormat,
    chosen: Sequence[TrainingExample],
    lengths: Lengths,
) -> dict[str, Any]:
    return {
        "split": split,
        "builder": type(data.builder).__name__,
        "built": data.reports[split],
        "base": base,
        "prompt_format": prompt_format.name,
        "max_length": data.settings.max_length,
        "over_budget": data.settings.over_budget,
        "num_examples": len(lengths.lengths),
        "num_kept": lengths.num_kept,
        "num_tokens": lengths.num_tokens,
        "num_supervised": lengths.num_supervised,
        "longest": max(lengths.lengths),
        "cut": list(lengths.cut),
        "dropped": list(lengths.dropped),
        "histogram": [asdict(bar) for bar in bars(lengths.lengths, lengths.max_length)],
        "examples": [_example_dict(data, prompt_format, example) for example in chosen],
    }


def _example_dict(data: RunData, prompt_format: PromptFormat, example: TrainingExample) -> dict[str, Any]:
    encoded = _encoded(data, prompt_format, example)
    found: dict[str, Any] = {"id": example.id, "source": example.source, "label": example.label}
    if encoded is None:
        return {**found, "dropped": True}
    return {
        **found,
        "dropped": False,
        "cut": encoded.was_cut,
        "input_ids": encoded.input_ids,
        "kinds": [TokenKind(kind).name.lower() for kind in encoded.kinds],
        "pieces": [_piece_dict(piece) for piece in pieces_of(prompt_format, encoded)],
    }


def _piece_dict(piece: Piece) -> dict[str, Any]:
    return {
        "ids": list(piece.ids),
        "text": piece.text,
        "kind": piece.kind,
        "supervised": piece.supervised,
    }
