"""From a training example to token ids, and to the Arrow file that training reads.

Prompt and completion are encoded segment by segment (`completion.segments`), never by searching a
rendered string, so the mask covers the completion and its EOS exactly, whatever the texts hold. What
goes over the length budget loses sentences of its thought or is left out; JSON is never cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from nlicot import completion
from nlicot.completion import Form, SegmentKind
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

OverBudget = Literal["cut", "drop"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingReport:
    """How an encoded data set came out against its length budget, in examples and tokens."""

    num_examples: int
    num_cut: int
    num_dropped: int
    num_tokens: int
    num_supervised: int
    longest: int


def encode_completion(
    prompt_format: PromptFormat, thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST
) -> tuple[list[int], list[int]]:
    """The completion's ids, EOS included, and each one's kind."""
    ids: list[int] = []
    kinds: list[int] = []
    for segment in completion.segments(thought_process, label, form):
        encoded = prompt_format.encode_segment(segment.text, first=not ids)
        ids += encoded
        kinds += [int(_KIND_OF[segment.kind])] * len(encoded)
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
    parsed = completion.parse(example.completion)
    if parsed is None:
        raise ValueError(f"{example.id}: not a completion: {example.completion[:80]!r}")
    prompt_ids = prompt_format.encode_prompt(example.prompt)
    prompt_kinds = [int(TokenKind.PROMPT)] * len(prompt_ids)
    ids, kinds = encode_completion(prompt_format, parsed.thought_process, parsed.label, parsed.form)
    was_cut = False
    if len(prompt_ids) + len(ids) > max_length and over_budget == "cut" and parsed.thought_process:
        parts = completion.sentences(parsed.thought_process)
        while len(parts) > 1 and len(prompt_ids) + len(ids) > max_length:
            parts.pop()
            was_cut = True
            ids, kinds = encode_completion(prompt_format, "".join(parts).rstrip(), parsed.label, parsed.form)
    if len(prompt_ids) + len(ids) > max_length:
        return None
    return EncodedExample(
        id=example.id,
        input_ids=prompt_ids + ids,
        kinds=prompt_kinds + kinds,
        label=example.label,
        was_cut=was_cut,
    )


def encode_dataset(
    prompt_format: PromptFormat,
    examples: Sequence[TrainingExample],
    *,
    max_length: int,
    over_budget: OverBudget,
    cache: Path,
) -> tuple[Any, EncodingReport]:
    """The examples as a memory-mapped `datasets.Dataset`, and how they came out.

    Columns: `id`, `input_ids`, `kinds`, `label`, `length`, `num_by_kind`. Cached under `cache` by a
    fingerprint of the examples' content, the prompt format and the budget, so that a second start
    encodes nothing.
    """
    from datasets import Dataset

    folder = cache / "encoded" / _fingerprint(prompt_format, examples, max_length, over_budget)
    report_path = folder / "report.json"
    if not report_path.is_file():
        _write_encoded(prompt_format, examples, max_length, over_budget, folder)
    report = EncodingReport(**json.loads(report_path.read_text(encoding="utf-8")))
    if not report.num_examples:  # a stored data set without rows does not load
        return Dataset.from_dict({name: [] for name in _features()}, features=_features()), report
    return Dataset.load_from_disk(str(folder)), report


def _fingerprint(
    prompt_format: PromptFormat, examples: Sequence[TrainingExample], max_length: int, over_budget: str
) -> str:
    digest = hashlib.sha256(f"v1\x1f{prompt_format.fingerprint}\x1f{max_length}\x1f{over_budget}".encode())
    for example in examples:
        digest.update(f"{example.id}\x1f{example.prompt}\x1f{example.completion}\x1e".encode())
    return digest.hexdigest()[:20]


def _write_encoded(
    prompt_format: PromptFormat,
    examples: Sequence[TrainingExample],
    max_length: int,
    over_budget: OverBudget,
    folder: Path,
) -> None:
    import shutil
    import tempfile

    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    counts = {
        "num_examples": 0,
        "num_cut": 0,
        "num_dropped": 0,
        "num_tokens": 0,
        "num_supervised": 0,
        "longest": 0,
    }

    def rows() -> Iterator[dict[str, Any]]:
        for example in examples:
            encoded = encode_example(prompt_format, example, max_length=max_length, over_budget=over_budget)
            if encoded is None:
                counts["num_dropped"] += 1
                continue
            length = len(encoded.input_ids)
            counts["num_examples"] += 1
            counts["num_cut"] += encoded.was_cut
            counts["num_tokens"] += length
            counts["num_supervised"] += sum(kind != TokenKind.PROMPT for kind in encoded.kinds)
            counts["longest"] = max(counts["longest"], length)
            row = asdict(encoded)
            del row["was_cut"]
            yield {**row, "length": length, "num_by_kind": [encoded.kinds.count(kind) for kind in TokenKind]}

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".encoding-", dir=folder.parent))
    try:
        try:
            built = Dataset.from_generator(
                rows, features=_features(), cache_dir=str(fresh / "building"), fingerprint=folder.name
            )
            built.save_to_disk(str(fresh / "done"))
        except ValueError:  # what `datasets` says of no rows at all; the report says it to the user
            if counts["num_examples"]:
                raise
            (fresh / "done").mkdir(exist_ok=True)
        (fresh / "done" / "report.json").write_text(json.dumps(counts), encoding="utf-8")
        if (folder / "report.json").is_file():  # another rank was quicker, and reads it already
            return
        if folder.is_dir():  # left without a report by another version
            shutil.rmtree(folder)
        try:
            (fresh / "done").rename(folder)
        except OSError:
            if not (folder / "report.json").is_file():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _features() -> Any:
    from datasets import Features, Value
    from datasets import List as ListOf

    return Features(
        {
            "id": Value("string"),
            "input_ids": ListOf(Value("int32")),
            "kinds": ListOf(Value("int8")),
            "label": Value("int8"),
            "length": Value("int32"),
            "num_by_kind": ListOf(Value("int32")),
        }
    )
