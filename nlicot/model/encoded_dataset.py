"""Encoded examples in an Arrow file that training memory-maps, cached by everything that decides them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import build_folder_once
from nlicot.model.encoding import CHUNK_SIZE, EncodedExample, OverBudget, TokenKind, encode_examples
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

EXAMPLES, REPORT = "examples.arrow", "report.json"


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
        self.num_supervised += length - encoded.kinds.count(TokenKind.PROMPT)
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

    Columns: `id`, `input_ids`, `kinds`, `label`, `length`, `num_by_kind`. Stored in `cache` by a hash of the
    examples, the prompt format and the budget, so that a second call encodes nothing.
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
            "length": Value("int32"),
            "num_by_kind": ListOf(Value("int32")),
        }
    )

    def encode(folder: Path) -> None:
        schema, report = features.arrow_schema, EncodingReport()
        encoded = encode_examples(prompt_format, examples, max_length=max_length, over_budget=over_budget)
        with (
            pyarrow.OSFile(str(folder / EXAMPLES), "wb") as file,
            pyarrow.ipc.new_stream(file, schema) as stream,
        ):
            while chunk := list(itertools.islice(encoded, CHUNK_SIZE)):
                for each in chunk:
                    report.count(each)
                rows = [_row(each) for each in chunk if each is not None]
                stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
        (folder / REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")

    folder = cache / "encoded" / _fingerprint(prompt_format, examples, max_length, over_budget)
    build_folder_once(folder, encode, marker=REPORT)
    report = EncodingReport(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
    return Dataset.from_file(str(folder / EXAMPLES)), report


def _fingerprint(
    prompt_format: PromptFormat, examples: Sequence[TrainingExample], max_length: int, over_budget: str
) -> str:
    digest = hashlib.sha256(f"v2\x1f{prompt_format.fingerprint}\x1f{max_length}\x1f{over_budget}".encode())
    for example in examples:
        digest.update(f"{example.id}\x1f{example.prompt}\x1f{example.completion}\x1e".encode())
    return digest.hexdigest()[:20]


def _row(encoded: EncodedExample) -> dict[str, Any]:
    return {
        "id": encoded.id,
        "input_ids": encoded.input_ids,
        "kinds": encoded.kinds,
        "label": encoded.label,
        "length": len(encoded.input_ids),
        "num_by_kind": [encoded.kinds.count(kind) for kind in TokenKind],
    }
