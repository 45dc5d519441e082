"""From a training example to token ids; `encoded_dataset` keeps them for training.

Prompt and completion are encoded segment by segment (`completion.segments`), never by searching a
rendered string, so the mask covers the completion and its EOS exactly, whatever the texts hold. What
goes over the length budget loses sentences of its thought or is left out; JSON is never cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from nlicot import completion
from nlicot.completion import Completion, Form, Segment, SegmentKind
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

OverBudget = Literal["cut", "drop"]
CHUNK = 1_000
"""Examples whose texts go through the tokenizer together."""


class TokenKind(IntEnum):
    """What a token belongs to; everything but the prompt is supervised."""

    PROMPT = 0
    SCAFFOLD = 1
    THOUGHT = 2
    LABEL = 3


_KIND_OF = {
    SegmentKind.SCAFFOLD: TokenKind.SCAFFOLD,
    SegmentKind.THOUGHT: TokenKind.THOUGHT,
    SegmentKind.LABEL: TokenKind.LABEL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """One example's tokens: `input_ids` and `kinds` are equally long, prompt first, EOS last."""

    id: str
    input_ids: list[int]
    kinds: list[int]
    label: int
    was_cut: bool = False


def encode_completion(
    prompt_format: PromptFormat, thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST
) -> tuple[list[int], list[int]]:
    """The completion's ids, EOS included, and each one's kind."""
    segments = completion.segments(thought_process, label, form)
    return _joined(
        prompt_format,
        segments,
        (
            prompt_format.encode_segment(segment.text, first=not index)
            for index, segment in enumerate(segments)
        ),
    )


def _joined(
    prompt_format: PromptFormat, segments: Iterable[Segment], encoded: Iterable[list[int]]
) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    kinds: list[int] = []
    for segment, tokens in zip(segments, encoded, strict=True):
        ids += tokens
        kinds += [int(_KIND_OF[segment.kind])] * len(tokens)
    return [*ids, prompt_format.eos_id], [*kinds, int(TokenKind.SCAFFOLD)]


def encode_example(
    prompt_format: PromptFormat, example: TrainingExample, *, max_length: int, over_budget: OverBudget
) -> EncodedExample | None:
    """One example's tokens, at most `max_length` of them, or None where it does not fit.

    With `over_budget="cut"` a thought loses its last sentences until the example fits; with `drop`,
    or where not even one sentence fits, the example is left out.

    Raises:
        ValueError: the completion is not one that `completion.render` wrote.
    """
    (encoded,) = encode_examples(prompt_format, [example], max_length=max_length, over_budget=over_budget)
    return encoded


def encode_examples(
    prompt_format: PromptFormat,
    examples: Iterable[TrainingExample],
    *,
    max_length: int,
    over_budget: OverBudget,
) -> Iterator[EncodedExample | None]:
    """What `encode_example` says it makes of each example, texts many at a time."""
    scaffolds: dict[tuple[str, bool], list[int]] = {}

    def encoded(segment: Segment, first: bool, thought_ids: list[int]) -> list[int]:
        if segment.kind is SegmentKind.THOUGHT:
            return thought_ids
        key = segment.text, first
        if key not in scaffolds:  # a handful of texts, the same in every example
            scaffolds[key] = prompt_format.encode_segment(segment.text, first=first)
        return scaffolds[key]

    left = iter(examples)
    while chunk := list(itertools.islice(left, CHUNK)):
        parsed = [_parsed(example) for example in chunk]
        thoughts = prompt_format.encode_segments(
            [completion.escape(one.thought_process or "") for one in parsed]
        )
        prompts = prompt_format.encode_prompts([example.prompt for example in chunk])
        for example, one, prompt_ids, thought_ids in zip(chunk, parsed, prompts, thoughts, strict=True):
            segments = completion.segments(one.thought_process, one.label, one.form)
            ids, kinds = _joined(
                prompt_format,
                segments,
                (encoded(segment, not index, thought_ids) for index, segment in enumerate(segments)),
            )
            was_cut = False
            if len(prompt_ids) + len(ids) > max_length and over_budget == "cut":
                ids, kinds, was_cut = _cut(prompt_format, one, max_length - len(prompt_ids), ids, kinds)
            if len(prompt_ids) + len(ids) > max_length:
                yield None
                continue
            yield EncodedExample(
                id=example.id,
                input_ids=prompt_ids + ids,
                kinds=[int(TokenKind.PROMPT)] * len(prompt_ids) + kinds,
                label=example.label,
                was_cut=was_cut,
            )


def _parsed(example: TrainingExample) -> Completion:
    parsed = completion.parse(example.completion)
    if parsed is None:
        raise ValueError(f"{example.id}: not a completion: {example.completion[:80]!r}")
    return parsed


def _cut(
    prompt_format: PromptFormat, whole: Completion, room: int, ids: list[int], kinds: list[int]
) -> tuple[list[int], list[int], bool]:
    """The completion without as many last sentences as it must lose to fit, and whether it lost any."""
    parts = completion.sentences(whole.thought_process or "")
    was_cut = False
    while len(parts) > 1 and len(ids) > room:
        parts.pop()
        was_cut = True
        ids, kinds = encode_completion(prompt_format, "".join(parts).rstrip(), whole.label, whole.form)
    return ids, kinds, was_cut
