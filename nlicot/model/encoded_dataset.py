"""Encoded examples in an Arrow file that training reads memory-mapped, cached by what decides them."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlicot.model.encoding import CHUNK, EncodedExample, OverBudget, TokenKind, encode_examples
from nlicot.model.prompt_format import PromptFormat
from nlicot.records import TrainingExample

EXAMPLES, REPORT = "examples.arrow", "report.json"


@dataclass(slots=True, kw_only=True)
class EncodingReport:
    """How an encoded data set came out against its length budget, in examples and tokens."""

    num_examples: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    longest: int = 0

    def count(self, encoded: EncodedExample | None) -> None:
        """Take one example in; None was left out."""
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
    """The examples as a memory-mapped `datasets.Dataset`, and how they came out.

    Columns: `id`, `input_ids`, `kinds`, `label`, `length`, `num_by_kind`. Cached under `cache` by a
    fingerprint of the examples' content, the prompt format and the budget, so that a second start
    encodes nothing.
    """
    from datasets import Dataset

    folder = cache / "encoded" / _fingerprint(prompt_format, examples, max_length, over_budget)
    report_path = folder / REPORT
    if not report_path.is_file():
        encoded = encode_examples(prompt_format, examples, max_length=max_length, over_budget=over_budget)
        _write(encoded, folder)
    report = EncodingReport(**json.loads(report_path.read_text(encoding="utf-8")))
    return Dataset.from_file(str(folder / EXAMPLES)), report


def _fingerprint(
    prompt_format: PromptFormat, examples: Sequence[TrainingExample], max_length: int, over_budget: str
) -> str:
    digest = hashlib.sha256(f"v2\x1f{prompt_format.fingerprint}\x1f{max_length}\x1f{over_budget}".encode())
    for example in examples:
        digest.update(f"{example.id}\x1f{example.prompt}\x1f{example.completion}\x1e".encode())
    return digest.hexdigest()[:20]


def _write(examples: Iterable[EncodedExample | None], folder: Path) -> None:
    """Write beside the folder's place and rename, so that a killed process leaves none."""
    import pyarrow

    report = EncodingReport()
    schema = _features().arrow_schema
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".encoding-", dir=folder.parent))
    done = fresh / "done"
    done.mkdir()
    try:
        with (
            pyarrow.OSFile(str(done / EXAMPLES), "wb") as file,
            pyarrow.ipc.new_stream(file, schema) as stream,
        ):
            for rows in _chunks(examples, report):
                stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
        (done / REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")
        if (folder / REPORT).is_file():  # another rank was quicker, and reads it already
            return
        if folder.is_dir():  # left without a report by another version
            shutil.rmtree(folder)
        try:
            done.rename(folder)
        except OSError:
            if not (folder / REPORT).is_file():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _chunks(
    examples: Iterable[EncodedExample | None], report: EncodingReport
) -> Iterator[list[dict[str, Any]]]:
    left = iter(examples)
    while chunk := list(itertools.islice(left, CHUNK)):
        for encoded in chunk:
            report.count(encoded)
        yield [_row(encoded) for encoded in chunk if encoded is not None]


def _row(encoded: EncodedExample) -> dict[str, Any]:
    return {
        "id": encoded.id,
        "input_ids": encoded.input_ids,
        "kinds": encoded.kinds,
        "label": encoded.label,
        "length": len(encoded.input_ids),
        "num_by_kind": [encoded.kinds.count(kind) for kind in TokenKind],
    }


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
