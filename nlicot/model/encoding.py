"""From a training example to token ids; `encoded_dataset` stores them for training.

Prompt and completion are encoded segment by segment (`completion.segments`), never by searching a rendered
string, so the mask covers exactly the completion and its EOS, whatever the texts contain. A thought that
exceeds the length budget loses whole sentences, or the example is dropped; JSON is never cut.
"""

from __future__ import annotations

import functools
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
CHUNK_SIZE = 1_000
"""Number of examples whose texts go through the tokenizer together."""


class TokenKind(IntEnum):
    """The part of an example that a token belongs to; all but the prompt are supervised."""

    PROMPT = 0
    SCAFFOLD = 1
    THOUGHT = 2
    LABEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """The tokens of one example: `input_ids` and `kinds` are equally long, prompt first, EOS last."""

    id: str
    input_ids: list[int]
    kinds: list[int]
    label: int
    was_cut: bool = False


def encode_completion(
    prompt_format: PromptFormat, thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST
) -> tuple[list[int], list[int]]:
    """Return the ids of a completion, EOS included, and their kinds."""
    segments = completion.segments(thought_process, label, form)
    ids_by_segment = [
        prompt_format.encode_segment(segment.text, first=not index) for index, segment in enumerate(segments)
    ]
    return _join(prompt_format, segments, ids_by_segment)


def _join(
    prompt_format: PromptFormat, segments: Iterable[Segment], ids_by_segment: Iterable[list[int]]
) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    kinds: list[int] = []
    for segment, tokens in zip(segments, ids_by_segment, strict=True):
        ids += tokens
        kinds += [int(TokenKind[segment.kind.name])] * len(tokens)
    return [*ids, prompt_format.eos_id], [*kinds, int(TokenKind.SCAFFOLD)]


def encode_example(
    prompt_format: PromptFormat, example: TrainingExample, *, max_length: int, over_budget: OverBudget
) -> EncodedExample | None:
    """Return the tokens of one example, at most `max_length`, or None if it does not fit.

    With `over_budget="cut"` a thought loses its last sentences until the example fits; with `drop`, or if the
    first sentence is already too long, the example is dropped.

    Raises:
        ValueError: the completion was not written by `completion.render`.
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
    """Yield the result of `encode_example` for each example, tokenizing many texts at once."""
    encode_scaffold = functools.cache(prompt_format.encode_segment)  # a handful of texts, in every example
    left = iter(examples)
    while chunk := list(itertools.islice(left, CHUNK_SIZE)):
        parsed = [_parse(example) for example in chunk]
        thoughts = prompt_format.encode_segments(
            [completion.escape(each.thought_process or "") for each in parsed]
        )
        prompts = prompt_format.encode_prompts([example.prompt for example in chunk])
        for example, whole, prompt_ids, thought_ids in zip(chunk, parsed, prompts, thoughts, strict=True):
            segments = completion.segments(whole.thought_process, whole.label, whole.form)
            ids_by_segment = [
                thought_ids
                if segment.kind is SegmentKind.THOUGHT
                else encode_scaffold(segment.text, first=not index)
                for index, segment in enumerate(segments)
            ]
            ids, kinds = _join(prompt_format, segments, ids_by_segment)
            max_ids = max_length - len(prompt_ids)
            was_cut = len(ids) > max_ids and over_budget == "cut"
            if was_cut:
                ids, kinds = _cut(prompt_format, whole, max_ids) or (ids, kinds)
            if len(ids) > max_ids:
                yield None
                continue
            yield EncodedExample(
                id=example.id,
                input_ids=prompt_ids + ids,
                kinds=[int(TokenKind.PROMPT)] * len(prompt_ids) + kinds,
                label=example.label,
                was_cut=was_cut,
            )


def _parse(example: TrainingExample) -> Completion:
    parsed = completion.parse(example.completion)
    if parsed is None:
        raise ValueError(f"{example.id}: not a completion: {example.completion[:80]!r}")
    return parsed


def _cut(prompt_format: PromptFormat, whole: Completion, max_ids: int) -> tuple[list[int], list[int]] | None:
    """Encode a completion without as many last sentences as needed; None if its first one is too long."""
    sentences = completion.sentences(whole.thought_process or "")
    while len(sentences) > 1:
        sentences.pop()
        ids, kinds = encode_completion(prompt_format, "".join(sentences).rstrip(), whole.label, whole.form)
        if len(ids) <= max_ids:
            return ids, kinds
    return None
