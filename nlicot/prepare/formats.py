"""Formats of prepared instruction data: a training example as a row of a file, and back.

    text               {"text": "[INST] prompt[/INST] completion", "id": ..., "label": ..., "source": ...}
    prompt-completion  {"prompt": "[INST] prompt[/INST]", "completion": " completion", ...}
    messages           {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], ...}

TRL's `SFTTrainer` accepts all three. None contains BOS or EOS: the tokenizer prepends the first and TRL
appends the second, so they would be duplicated. TRL does not template a prompt that is a string, so such a
prompt includes its model's markers; `messages` relies on the tokenizer's chat template. Other trainers
interpret markers inside a premise; `fit` does not.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot import completion
from nlicot.data.rows import Row, read_records
from nlicot.records import TrainingExample


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """The markers of a model's template around a prompt, and the gap before the completion."""

    opening: str
    closing: str
    gap: str = ""


FORMATS = ("text", "prompt-completion", "messages")
MARKERS = {
    # The gap is the dummy prefix of Mistral's tokenizer, which belongs to the completion.
    "mistral": Markers(opening="[INST] ", closing="[/INST]", gap=" "),
    "chatml": Markers(opening="<|im_start|>user\n", closing="<|im_end|>\n<|im_start|>assistant\n"),
}
_BOS, _EOS = "<s>", ("</s>", "<|im_end|>")


def to_row(example: TrainingExample, row_format: str, markers: Markers) -> dict[str, Any]:
    """Render a training example in one of `FORMATS`.

    >>> example = TrainingExample(id="a", prompt="P", completion="C", label=1, source="thought")
    >>> to_row(example, "text", MARKERS["mistral"])
    {'text': '[INST] P[/INST] C', 'id': 'a', 'label': 1, 'source': 'thought'}
    """
    prompt = f"{markers.opening}{example.prompt}{markers.closing}"
    answer = f"{markers.gap}{example.completion}"
    turns = (("user", example.prompt), ("assistant", example.completion))
    content: dict[str, dict[str, Any]] = {
        "text": {"text": prompt + answer},
        "prompt-completion": {"prompt": prompt, "completion": answer},
        "messages": {"messages": [{"role": role, "content": text} for role, text in turns]},
    }
    row = {**content[row_format], "id": example.id, "label": example.label, "source": example.source}
    defaults = {"p_entailment": None, "variant": 0, "learns_draft": True}
    own = {name: getattr(example, name) for name in defaults}
    return row | {name: value for name, value in own.items() if value != defaults[name]}


def read_prepared(path: Path) -> list[TrainingExample]:
    """Read the training examples of a prepared file, in any of the formats."""
    numbers = itertools.count(1)
    return read_records(
        path, lambda row: from_row(row, default_id=f"row-{next(numbers)}"), each="training example"
    )


def from_row(row: Row, *, default_id: str) -> TrainingExample:
    """Parse a row in any of the formats, including the predecessor's `text`."""
    source = row.optional_text("source")
    prompt, answer = _prompt_and_answer(row, is_ours=source is not None and "label" in row.fields)
    parsed = completion.parse(answer)
    if parsed is None:
        raise row.error(
            "a completion that is not JSON with thought_process and predicted_label", "both, in order"
        )
    return TrainingExample(
        id=row.identifier() or default_id,
        prompt=prompt,
        completion=completion.render(parsed.thought_process, parsed.label, parsed.form, parsed.draft),
        label=parsed.label,
        source=source or "prepared",
        variant=row.whole_number("variant") if "variant" in row.fields else 0,
        p_entailment=row.probability("p_entailment"),
        learns_draft=row.optional_label("learns_draft") != 0,
    )


def _prompt_and_answer(row: Row, *, is_ours: bool) -> tuple[str, str]:
    if "messages" in row.fields:
        return _turns(row)
    text = row.optional_text("text")
    if text is None:
        return _unwrapped(row.text("prompt"), is_ours=is_ours), row.text("completion")
    if halves := _halves(text, is_ours=is_ours):
        return halves
    raise row.error("a text of another format", "[INST] prompt [/INST] completion")


def _turns(row: Row) -> tuple[str, str]:
    match row.fields["messages"]:
        case [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]:
            turns = dataclasses.replace(row, fields={"prompt": prompt, "completion": answer})
            return turns.text("prompt"), turns.text("completion")
    raise row.error("messages of another format", "one turn of the user and one of the assistant")


def _unwrapped(prompt: str, *, is_ours: bool) -> str:
    for markers in MARKERS.values():
        if prompt.startswith(markers.opening) and prompt.endswith(markers.closing):
            return _inner(prompt[: -len(markers.closing)], markers, is_ours)
    return prompt


def _halves(text: str, *, is_ours: bool) -> tuple[str, str] | None:
    """Split a rendered text into prompt and completion; None if that is not possible.

    The texts may contain markers too, so the cut is at the first marker that a whole completion follows.
    """
    text = text.strip().removeprefix(_BOS)
    for mark in _EOS:
        text = text.removesuffix(mark)
    text = text.strip()
    for markers in MARKERS.values():
        if not text.startswith(markers.opening):
            continue
        borders = [match.start() for match in re.finditer(re.escape(markers.closing), text)]
        halves = [
            (_inner(text[:at], markers, is_ours), text[at + len(markers.closing) :].strip()) for at in borders
        ]
        whole = [half for half in halves if completion.parse(half[1]) is not None]
        return next(iter(whole or [half for half in halves if half[1]]), None)
    return None


def _inner(prompt: str, markers: Markers, is_ours: bool) -> str:
    """Remove the opening marker; files of other tools have a space before the closing one."""
    inner = prompt[len(markers.opening) :]
    return inner if is_ours else inner.removesuffix(" ")
