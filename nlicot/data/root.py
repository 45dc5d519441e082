"""A project's files: where they lie in a data root, and how they become records.

The readers take CSV and JSON lines to `Example`, `Thought`, `Reflection` and `Score`. What a file format is
stands in `files`, how pairs are read in `pairs`, which pair a thought belongs to in `joining`; all are
offered here too, so that other modules import `storage` alone.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from nlicot.data.atomic_write import refuse_overwriting, write_csv, write_jsonl, write_text
from nlicot.data.pairs import PairsFile, parse_label_map
from nlicot.data.rows import RecordList, Row, line_of, read_rows, shown
from nlicot.data.thoughts import (
    JoinedReflections,
    check_disjoint,
    join_reflections,
    join_scores,
    join_thoughts,
)
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example, Provenance, Reflection, Score, Thought, Usage, content_id

__all__ = [
    "SAMPLE_ROOT",
    "TRY_ROOT",
    "DataRoot",
    "JoinedReflections",
    "PairsFile",
    "RecordList",
    "ScoredTexts",
    "check_disjoint",
    "join_reflections",
    "join_scores",
    "join_thoughts",
    "line_of",
    "parse_label_map",
    "read_examples",
    "read_reflections",
    "read_scores",
    "read_thoughts",
    "refuse_overwriting",
    "working_root",
    "write_csv",
    "write_jsonl",
    "write_text",
]

logger = logging.getLogger(__name__)

SAMPLE_ROOT = Path(__file__).parents[2] / "data" / "sample"
TRY_ROOT = SAMPLE_ROOT.with_name("try")
SCORES = range(1, 6)

T = TypeVar("T")
Scored: TypeAlias = Score | Thought | Reflection
"""What a row of a file of scores can be."""


@dataclass(frozen=True, slots=True)
class DataRoot:
    """A folder with a project's data; its methods say where each file lies."""

    path: Path

    def pairs(self, split: str) -> Path:
        """`original_data/<split>.csv`, or the `.jsonl` or `.json` that is there in its stead."""
        candidates = [self.path / "original_data" / f"{split}{end}" for end in (".csv", ".jsonl", ".json")]
        return next((path for path in candidates if path.exists()), candidates[0])

    def thoughts(self, split: str) -> Path:
        """The teacher's blind thoughts."""
        return self.path / "original_thoughts" / f"{split}.jsonl"

    def reflections(self, split: str) -> Path:
        """The stronger teacher's reflections on the wrong thoughts."""
        return self.path / "reflected_thoughts" / f"{split}.jsonl"

    def scores(self, split: str) -> Path:
        """The judge's scores and the regenerations they led to."""
        return self.path / "scored_thoughts" / f"{split}.jsonl"

    def finetune(self, name: str) -> Path:
        """Prepared instruction data."""
        return self.path / "finetune" / f"{name}.jsonl"

    @property
    def is_sample(self) -> bool:
        """Whether this is the sample that ships with the project, by whatever path it was named."""
        return self.path.resolve() == SAMPLE_ROOT.resolve()


def working_root(root: Path | None) -> DataRoot:
    """The data root that a command may write to: the one named, else a copy of the sample in `data/try`.

    The copy is made where it is missing, and said in the log whenever it is used.

    Raises:
        ConfigError: the sample itself was named, or no copy of it can be made.
    """
    if root is not None:
        named = DataRoot(root.expanduser())
        if named.is_sample:
            raise ConfigError(
                f"--root {root}: found the sample itself, which no command writes to, expected a folder of "
                f"your own (without --root a copy of the sample is used: {_short(TRY_ROOT)})"
            )
        return named
    logger.info(
        "SAMPLE DATA: no --root was given, so this works in %s, a copy of the small sample in %s. For your "
        "own pairs: python -m nlicot split PAIRS.csv, then add --root data (see data/README.md).",
        _short(TRY_ROOT),
        _short(SAMPLE_ROOT),
    )
    if not TRY_ROOT.exists():
        _copy_whole(SAMPLE_ROOT, TRY_ROOT)
    return DataRoot(_short(TRY_ROOT))


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder such that `target` is there in full or not at all."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        shutil.copytree(source, temporary)
        temporary.rename(target)
    except OSError as error:
        if not target.exists():  # else another process was quicker, with the same content
            raise ConfigError(
                f"{_short(target)}: the sample cannot be copied there ({error.strerror or error}); "
                "name a folder of your own with --root"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _short(path: Path) -> Path:
    """The path as seen from the folder one works in, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_examples(
    path: Path, *, label_map: Mapping[str, int] | None = None, id_prefix: str = ""
) -> RecordList[Example]:
    """Read all pairs of a file, as `PairsFile` gives them.

    Args:
        label_map: what the file's own labels mean; without it they must be 0 or 1.
        id_prefix: stands before ids made from content.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    return PairsFile(path, label_map=label_map, id_prefix=id_prefix).read()


def read_thoughts(path: Path) -> RecordList[Thought]:
    """Read a teacher's thoughts, the predecessor's files included; unknown fields are ignored.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    thoughts = _read_all(path, thought_from)
    if not thoughts:
        raise no_thoughts(path)
    return thoughts


def no_thoughts(path: Path) -> DataError:
    """What a file of thoughts without a row is."""
    return DataError("no rows", "a thought on each line", path=path)


def read_reflections(path: Path) -> RecordList[Reflection]:
    """Read reflections; the predecessor's files hold the reflected label as `predicted_label`.

    An empty file is fine: there may have been nothing to reflect on.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    return _read_all(path, reflection_from)


def _read_all(path: Path, record_from: Callable[[Row], T]) -> RecordList[T]:
    records, lines = [], []
    for row in read_rows(path):
        records.append(record_from(row))
        lines.append(row.line)
    return RecordList(records, lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """What a judge said, and the texts that were written anew because of it."""

    scores: RecordList[Score]
    thoughts: RecordList[Thought]
    reflections: RecordList[Reflection]


def read_scores(path: Path) -> ScoredTexts:
    """Read a file of scores, with the regenerated thoughts and reflections between them.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    return scored_texts((row.line, scored_from(row)) for row in read_rows(path))


def scored_texts(records: Iterable[tuple[int, Scored]]) -> ScoredTexts:
    """Records and the lines that they stand on, by their kind."""
    found: dict[type, tuple[list[Any], list[int]]] = {kind: ([], []) for kind in (Score, Thought, Reflection)}
    for line, record in records:
        of_kind, lines = found[type(record)]
        of_kind.append(record)
        lines.append(line)
    return ScoredTexts(
        scores=RecordList(*found[Score]),
        thoughts=RecordList(*found[Thought]),
        reflections=RecordList(*found[Reflection]),
    )


def thought_from(row: Row) -> Thought:
    """The thought that a row holds; raises `DataError`."""
    premise, hypothesis = row.text("premise"), row.text("hypothesis")
    return Thought(
        id=row.identifier() or content_id(premise, hypothesis),
        sample=row.whole_number("sample", 0),
        round=row.whole_number("round", 0),
        premise=premise,
        hypothesis=hypothesis,
        thought_process=row.text("thought_process"),
        predicted_label=row.label("predicted_label"),
        relation=row.optional_text("relation"),
        true_label=row.optional_label("true_label"),
        provenance=_provenance_from(row),
    )


def reflection_from(row: Row) -> Reflection:
    """The reflection that a row holds; raises `DataError`."""
    premise, hypothesis = row.text("premise"), row.text("hypothesis")
    reflected = row.optional_label("reflected_label")
    return Reflection(
        id=row.identifier() or content_id(premise, hypothesis),
        sample=row.whole_number("sample", 0),
        round=row.whole_number("round", 0),
        premise=premise,
        hypothesis=hypothesis,
        true_label=row.label("true_label"),
        thought_process=row.text("thought_process"),
        error_analysis=row.text("error_analysis"),
        improved_thought_process=row.text("improved_thought_process"),
        reflected_label=row.label("predicted_label") if reflected is None else reflected,
        provenance=_provenance_from(row),
    )


def scored_from(row: Row) -> Scored:
    """The score that a row holds, or the regenerated text; raises `DataError`."""
    if "score" in row.fields:
        return _score_from(row)
    if not {"thought_process", "improved_thought_process"} & row.fields.keys():
        raise row.error(
            f"the fields {', '.join(map(shown, row.fields)) or '(none)'}",
            "a score, or the thought_process or improved_thought_process of a regeneration",
        )
    text = reflection_from(row) if "improved_thought_process" in row.fields else thought_from(row)
    if not text.round:
        raise row.error(
            "a regenerated text of round 0", "round 1 or later", remedy="round 0 is the first text"
        )
    return text


def _score_from(row: Row) -> Score:
    score, target = row.whole_number("score", 0), row.optional_text("target") or "thought"
    if score not in SCORES:
        raise row.error(f"score {shown(row.fields['score'])}", f"{SCORES[0]} to {SCORES[-1]}")
    if target not in ("thought", "reflection"):
        raise row.error(f"target {shown(target)}", "'thought' or 'reflection'")
    return Score(
        id=row.identifier() or row.text("id"),
        sample=row.whole_number("sample", 0),
        target="thought" if target == "thought" else "reflection",
        round=row.whole_number("round", 0),
        score=score,
        analysis=row.optional_text("analysis") or "",
        provenance=_provenance_from(row),
    )


def _provenance_from(row: Row) -> Provenance:
    value = _object(row, row.fields, "provenance")
    if not value:
        return Provenance()
    inner = dataclasses.replace(row, fields=value)
    usage = _object(row, value, "usage")
    tokens = dataclasses.replace(row, fields=usage)
    return Provenance(
        backend=inner.optional_text("backend") or "",
        model=inner.optional_text("model") or "",
        prompt_sha256=inner.optional_text("prompt_sha256") or "",
        params=_object(row, value, "params"),
        usage=Usage(
            prompt_tokens=tokens.whole_number("prompt_tokens", 0),
            completion_tokens=tokens.whole_number("completion_tokens", 0),
        )
        if usage
        else None,
        created_at=inner.optional_text("created_at") or "",
    )


def _object(row: Row, fields: dict[str, object], name: str) -> dict[str, object]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise row.error(f"{name} {shown(value)}", "a JSON object")
    return value
