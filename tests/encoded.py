"""One example, or one completion, as tokens."""

from __future__ import annotations

from nlicot.completion import Completion, Form
from nlicot.model.encoding import EncodedExample, OverBudget, _join_segments, encode_examples
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample


def encode_example(
    prompt_format: PromptFormat, example: TrainingExample, *, max_length: int, over_budget: OverBudget
) -> EncodedExample | None:
    """Encode one example, or return None if it does not fit."""
    (encoded,) = encode_examples(prompt_format, [example], max_length=max_length, over_budget=over_budget)
    return encoded


def encode_completion(
    prompt_format: PromptFormat, thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST
) -> tuple[list[int], list[int]]:
    """Return the ids of a completion, EOS included, and their kinds."""
    whole = Completion(thought_process=thought_process, label=label, form=form)
    return _join_segments(prompt_format, whole, prompt_format.encode_segment)
