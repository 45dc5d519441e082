"""From training examples to token ids and a loss mask, stored in an Arrow file that training memory-maps.

Prompt and completion are encoded segment by segment (`completion.segments`), never by searching a rendered
string, so the mask covers exactly the completion and its EOS, whatever the texts contain. A thought that
exceeds the length budget loses whole sentences, or the example is dropped; JSON is never cut.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from nlicot import completion
from nlicot.completion import Completion, SegmentKind
from nlicot.data.checksums import build_cache
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

OverBudget = Literal["cut", "drop"]
CHUNK_SIZE = 1_000
"""Number of examples whose texts go through the tokenizer together."""
EXAMPLES, REPORT = "examples.arrow", "report.json"


class TokenKind(IntEnum):
    """The part of an example that a token belongs to; all but those in `UNSUPERVISED` are learnt."""

    PROMPT = 0
    SCAFFOLD = 1
    THOUGHT = 2
    LABEL = 3
    DRAFT = 4
    MASKED_DRAFT = 5


UNSUPERVISED = (TokenKind.PROMPT, TokenKind.MASKED_DRAFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """The tokens of one example: `input_ids` and `kinds` are equally long, prompt first, EOS last."""

    id: str
    input_ids: list[int]
    kinds: list[int]
    label: int
    p_entailment: float | None = None
    was_cut: bool = False

    @property
    def num_supervised(self) -> int:
        """The number of tokens that are learnt."""
        return len(self.kinds) - sum(map(self.kinds.count, UNSUPERVISED))


@dataclass(slots=True, kw_only=True)
class EncodingReport:
    """Counts of encoded examples and their tokens, and of those that exceeded the length budget."""

    num_examples: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    longest: int = 0

    def count(self, encoded: EncodedExample | None) -> None:
        """Count one example; None was dropped."""
        if encoded is None:
            self.num_dropped += 1
            return
        length = len(encoded.input_ids)
        self.num_examples += 1
        self.num_cut += encoded.was_cut
        self.num_tokens += length
        self.num_supervised += encoded.num_supervised
        self.longest = max(self.longest, length)


def encode_dataset(
    prompt_format: PromptFormat,
    examples: Sequence[TrainingExample],
    *,
    max_length: int,
    over_budget: OverBudget,
    cache: Path,
) -> tuple[Any, EncodingReport]:
    """Return the examples as a memory-mapped `datasets.Dataset`, with their counts.

    Columns: `id`, `input_ids`, `kinds`, `label`, `p_entailment`, `length`, `num_by_kind`, and `slot`, a
    number that variants share. Stored in `cache` by a hash of the examples, the prompt format and the budget,
    so that a second call encodes nothing.
    """
    import pyarrow
    from datasets import Dataset, Features, Value
    from datasets import List as ListOf

    features = Features(
        {
            "id": Value("string"),
            "input_ids": ListOf(Value("int32")),
            "kinds": ListOf(Value("int8")),
            "label": Value("int8"),
            "p_entailment": Value("float64"),
            "length": Value("int32"),
            "num_by_kind": ListOf(Value("int32")),
            "slot": Value("int32"),
        }
    )

    def encode(folder: Path) -> None:
        schema, report = features.arrow_schema, EncodingReport()
        encoded = encode_examples(prompt_format, examples, max_length=max_length, over_budget=over_budget)
        slots = itertools.accumulate(int(not each.variant) for each in examples)
        numbered = zip(slots, encoded, strict=True)
        with (
            pyarrow.OSFile(str(folder / EXAMPLES), "wb") as file,
            pyarrow.ipc.new_stream(file, schema) as stream,
        ):
            while chunk := list(itertools.islice(numbered, CHUNK_SIZE)):
                for _, each in chunk:
                    report.count(each)
                rows = [
                    {
                        "id": each.id,
                        "input_ids": each.input_ids,
                        "kinds": each.kinds,
                        "label": each.label,
                        "p_entailment": each.p_entailment,
                        "length": len(each.input_ids),
                        "num_by_kind": [each.kinds.count(kind) for kind in TokenKind],
                        "slot": slot,
                    }
                    for slot, each in chunk
                    if each is not None
                ]
                stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
        (folder / REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")

    digest = hashlib.sha256(f"v5\x1f{prompt_format.fingerprint}\x1f{max_length}\x1f{over_budget}".encode())
    for each in examples:
        fields = (each.id, each.variant, each.p_entailment, each.learns_draft, each.prompt, each.completion)
        digest.update(("\x1f".join(map(str, fields)) + "\x1e").encode())
    folder = cache / "encoded" / digest.hexdigest()[:20]
    build_cache(folder, encode)
    report = EncodingReport(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
    return Dataset.from_file(str(folder / EXAMPLES)), report


def encode_examples(
    prompt_format: PromptFormat,
    examples: Iterable[TrainingExample],
    *,
    max_length: int,
    over_budget: OverBudget,
) -> Iterator[EncodedExample | None]:
    """Yield the tokens of each example, at most `max_length`, or None if it does not fit.

    With `over_budget="cut"` a thought loses its last sentences until the example fits; with `drop`, or if the
    first sentence is already too long, the example is dropped. Many texts are tokenized at once.
    """
    encode_scaffold = functools.cache(prompt_format.encode_segment)  # a handful of texts, in every example
    left = iter(examples)
    while chunk := list(itertools.islice(left, CHUNK_SIZE)):
        parsed = [_parse(example) for example in chunk]
        thoughts = prompt_format.encode_segments(
            [completion.escape(each.thought_process or "") for each in parsed]
        )
        prompts = prompt_format.encode_prompts([example.prompt for example in chunk])
        for example, whole, prompt_ids, thought_ids in zip(chunk, parsed, prompts, thoughts, strict=True):
            ids, kinds = _join_segments(prompt_format, whole, encode_scaffold, thought_ids)
            max_ids = max_length - len(prompt_ids)
            was_cut = len(ids) > max_ids and over_budget == "cut"
            if was_cut:
                ids, kinds = _cut(prompt_format, whole, max_ids) or (ids, kinds)
            if len(ids) > max_ids:
                yield None
                continue
            if not example.learns_draft:
                masked = {int(TokenKind.DRAFT): int(TokenKind.MASKED_DRAFT)}
                kinds = [masked.get(kind, kind) for kind in kinds]
            yield EncodedExample(
                id=example.id,
                input_ids=prompt_ids + ids,
                kinds=[int(TokenKind.PROMPT)] * len(prompt_ids) + kinds,
                label=example.label,
                p_entailment=example.p_entailment,
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
        shorter = replace(whole, thought_process="".join(sentences).rstrip())
        ids, kinds = _join_segments(prompt_format, shorter, prompt_format.encode_segment)
        if len(ids) <= max_ids:
            return ids, kinds
    return None


def _join_segments(
    prompt_format: PromptFormat,
    whole: Completion,
    encode_segment: Callable[..., list[int]],
    thought_ids: list[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of a completion, EOS included, and their kinds."""
    ids: list[int] = []
    kinds: list[int] = []
    segments = completion.segments(whole.thought_process, whole.label, whole.form, whole.draft)
    for index, segment in enumerate(segments):
        if segment.kind is SegmentKind.THOUGHT and thought_ids is not None:
            segment_ids = thought_ids
        else:
            segment_ids = encode_segment(segment.text, first=not index)
        ids += segment_ids
        segment_kinds = [int(TokenKind[segment.kind.name])] * len(segment_ids)
        if index and segments[index - 1].kind is SegmentKind.THOUGHT:
            # Decoding feeds the scaffold, but a thought's end must be predicted, as surely as its words.
            segment_kinds[0] = int(TokenKind.THOUGHT)
        kinds += segment_kinds
    return [*ids, prompt_format.eos_id], [*kinds, int(TokenKind.SCAFFOLD)]
