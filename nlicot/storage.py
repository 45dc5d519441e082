"""A project's files: where they lie in a data root, and how they become records.

The readers take CSV and JSON lines to `Example`, `Thought` and `Reflection`. What a file format is stands in
`files`, which pair a thought belongs to in `joining`; both are offered here too, so that other modules
import `storage` alone.
"""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlicot.errors import ConfigError, DataError
from nlicot.files import (
    RecordList,
    Row,
    binary_label,
    line_of,
    read_rows,
    refuse_overwriting,
    shown,
    write_csv,
    write_jsonl,
    write_text,
)
from nlicot.joining import JoinedReflections, check_disjoint, join_reflections, join_thoughts
from nlicot.records import LABELS, Example, Provenance, Reflection, Thought, Usage, content_id

__all__ = [
    "SAMPLE_ROOT",
    "DataRoot",
    "JoinedReflections",
    "RecordList",
    "check_disjoint",
    "join_reflections",
    "join_thoughts",
    "line_of",
    "parse_label_map",
    "read_examples",
    "read_reflections",
    "read_thoughts",
    "refuse_overwriting",
    "write_csv",
    "write_jsonl",
    "write_text",
]

logger = logging.getLogger(__name__)

SAMPLE_ROOT = Path(__file__).parent.parent / "data" / "sample"

# Other names that public data sets and the predecessor's files give our columns, the likelier first.
ALIASES = {
    "id": (),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "label": ("gold_label", "true_label"),
    "phenomenon": (),
}
LABEL_MAP_HINT = "--label-map entailment=1,neutral=0,contradiction=0"


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


def parse_label_map(text: str) -> dict[str, int]:
    """The labels that `--label-map` gives to a file's own words.

    >>> parse_label_map("entailment=1, neutral=0")
    {'entailment': 1, 'neutral': 0}

    Raises:
        ConfigError: a part is not NAME=0 or NAME=1, or a name stands twice.
    """
    label_map: dict[str, int] = {}
    for part in text.split(","):
        name, _, digit = (piece.strip() for piece in part.rpartition("="))
        label = binary_label(digit)
        if not name or label is None:
            raise ConfigError(
                f"--label-map: found {part.strip()!r}, expected NAME=0 or NAME=1 ({LABEL_MAP_HINT})"
            )
        if name in label_map:
            raise ConfigError(f"--label-map: found {name!r} twice, expected each name once")
        label_map[name] = label
    return label_map


def read_examples(
    path: Path, *, label_map: Mapping[str, int] | None = None, id_prefix: str = ""
) -> RecordList[Example]:
    """Read pairs from a CSV (`premise,hypothesis[,label][,id][,phenomenon]`) or JSON lines.

    Column names are taken in any case, and under the names in `ALIASES`. A pair without an id gets one from
    its content, with `-2`, `-3` ... behind it where the same content comes again: rows are never dropped.

    Args:
        label_map: what the file's own labels mean; without it they must be 0 or 1.
        id_prefix: stands before ids made from content.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    columns, labels = _Columns(path), _Labels(path, label_map)
    examples: list[Example] = []
    lines = array("L")
    for row in read_rows(path):
        pair = columns.renamed(row)
        example = Example(
            id=pair.identifier() or "",
            premise=pair.text("premise"),
            hypothesis=pair.text("hypothesis"),
            label=labels.read(pair),
            phenomenon=pair.optional_text("phenomenon"),
        )
        examples.append(example)
        lines.append(row.line)
    if not examples:
        raise DataError("no rows", "a row for each pair", path=path)
    labels.check()
    columns.log_aliases()
    _fill_in_ids(path, examples, lines, id_prefix)
    return RecordList(examples, lines)


class _Columns:
    """Finds our columns among a file's own names, and remembers which alias was taken for what."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source_of: dict[tuple[str, ...], dict[str, str]] = {}

    def renamed(self, row: Row) -> Row:
        """The row under our names, other columns left out."""
        names = tuple(row.fields)
        if names not in self._source_of:
            self._source_of[names] = self._find(names, row)
        sources = self._source_of[names]
        return dataclasses.replace(row, fields={column: row.fields[name] for column, name in sources.items()})

    def _find(self, names: tuple[str, ...], row: Row) -> dict[str, str]:
        spelt = {name.strip().casefold(): name for name in names}
        sources = {}
        for column, aliases in ALIASES.items():
            found = next((spelt[name] for name in (column, *aliases) if name in spelt), None)
            if found is not None:
                sources[column] = found
        missing = [column for column in ("premise", "hypothesis") if column not in sources]
        if missing:
            separated = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
            raise DataError(
                f"the columns {', '.join(map(shown, names)) or '(none)'}",
                " and ".join(missing) + " too",
                path=self._path,
                line=row.header_line,
                remedy="separate the columns with commas" if separated else "",
            )
        return sources

    def log_aliases(self) -> None:
        """Say once which alias was taken for what."""
        taken = {
            f"{name.strip()} for {column}": None
            for sources in self._source_of.values()
            for column, name in sources.items()
            if name.strip().casefold() != column
        }
        if taken:
            logger.info("%s: took the column %s", self._path, ", ".join(taken))


class _Labels:
    """Reads a file's labels, and complains at its end with all that were not understood."""

    def __init__(self, path: Path, label_map: Mapping[str, int] | None) -> None:
        self._path, self._map = path, label_map
        self._unknown: dict[str, int] = {}
        self._first_labelled = self._first_unlabelled = 0

    def read(self, row: Row) -> int | None:
        """The row's label; None where it has none, or one that `check` will complain about."""
        value = row.fields.get("label")
        if value is None or (isinstance(value, str) and not value.strip()):
            self._first_unlabelled = self._first_unlabelled or row.line
            return None
        self._first_labelled = self._first_labelled or row.line
        label = binary_label(value) if self._map is None else self._map.get(str(value).strip())
        if label is None:
            self._unknown.setdefault(str(value).strip(), row.line)
        return label

    def check(self) -> None:
        """Raise a `DataError` for unknown labels, or where only some rows have one."""
        if self._unknown:
            found = [shown(label) for label in self._unknown]
            is_word = any(character.isalpha() for character in "".join(self._unknown))
            raise DataError(
                f"the label{'s' if len(found) > 1 else ''} {', '.join(found[:8])}",
                " or ".join(map(str, LABELS if self._map is None else self._map)),
                path=self._path,
                line=min(self._unknown.values()),
                remedy=f"say what it means, for example {LABEL_MAP_HINT}"
                if is_word or self._map is not None
                else "leave the labels out where they are not known",
            )
        if self._first_labelled and self._first_unlabelled:
            raise DataError(
                "no label",
                f"one, as line {self._first_labelled} has",
                path=self._path,
                line=self._first_unlabelled,
                remedy="label every pair or none",
            )


def _fill_in_ids(path: Path, examples: list[Example], lines: Sequence[int], prefix: str) -> None:
    taken: set[str] = set()
    for index, example in enumerate(examples):
        if example.id and example.id in taken:
            first = next(lines[at] for at in range(index) if examples[at].id == example.id)
            found = f"the id {shown(example.id)} again, after line {first}"
            raise DataError(found, "an id once", path=path, line=lines[index])
        taken.add(example.id)
    num_alike: dict[str, int] = {}
    for index, example in enumerate(examples):
        if example.id:
            continue
        base = own = prefix + content_id(example.premise, example.hypothesis)
        while own in taken:
            num_alike[base] = num_alike.get(base, 1) + 1
            own = f"{base}-{num_alike[base]}"
        taken.add(own)
        examples[index] = dataclasses.replace(example, id=own)
    if num_alike:
        logger.info("%s: %d pairs come more than once and were kept", path, len(num_alike))


def read_thoughts(path: Path) -> RecordList[Thought]:
    """Read a teacher's thoughts, the predecessor's files included; unknown fields are ignored.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    thoughts, lines = [], []
    for row in read_rows(path):
        premise, hypothesis = row.text("premise"), row.text("hypothesis")
        thought = Thought(
            id=row.identifier() or content_id(premise, hypothesis),
            sample=row.whole_number("sample", 0),
            premise=premise,
            hypothesis=hypothesis,
            thought_process=row.text("thought_process"),
            predicted_label=row.label("predicted_label"),
            relation=row.optional_text("relation"),
            true_label=row.optional_label("true_label"),
            provenance=_read_provenance(row),
        )
        thoughts.append(thought)
        lines.append(row.line)
    if not thoughts:
        raise DataError("no rows", "a thought on each line", path=path)
    return RecordList(thoughts, lines)


def read_reflections(path: Path) -> RecordList[Reflection]:
    """Read reflections; the predecessor's files hold the reflected label as `predicted_label`.

    An empty file is fine: there may have been nothing to reflect on.

    Raises:
        DataError: with path and line, for whatever cannot be read as it is.
    """
    reflections, lines = [], []
    for row in read_rows(path):
        premise, hypothesis = row.text("premise"), row.text("hypothesis")
        reflected = row.optional_label("reflected_label")
        reflection = Reflection(
            id=row.identifier() or content_id(premise, hypothesis),
            sample=row.whole_number("sample", 0),
            premise=premise,
            hypothesis=hypothesis,
            true_label=row.label("true_label"),
            thought_process=row.text("thought_process"),
            error_analysis=row.text("error_analysis"),
            improved_thought_process=row.text("improved_thought_process"),
            reflected_label=row.label("predicted_label") if reflected is None else reflected,
            provenance=_read_provenance(row),
        )
        reflections.append(reflection)
        lines.append(row.line)
    return RecordList(reflections, lines)


def _read_provenance(row: Row) -> Provenance:
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
