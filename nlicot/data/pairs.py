"""Read premise/hypothesis pairs: column names, labels and ids, checked for the whole file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nlicot.data.rows import RecordList, Row, binary_label, read_records, shown
from nlicot.errors import DataError
from nlicot.records import LABEL_NAMES, LABELS, Example, content_id

logger = logging.getLogger(__name__)

# Names that public data sets and the predecessor's files use for our columns, the likeliest first.
ALIASES = {
    "id": (),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "label": ("gold_label", "true_label"),
    "phenomenon": (),
}
LABEL_MAP_EXAMPLE = "entailment=1,neutral=0,contradiction=0"


def read_examples(
    path: Path, *, label_map: Mapping[str, int] | None = None, id_prefix: str = ""
) -> RecordList[Example]:
    """Read the pairs of a CSV (`premise,hypothesis[,label][,id][,phenomenon]`) or of JSON lines.

    Column names are matched in any case, and by the names in `ALIASES`. A pair without an id gets one from
    its content, with `-2`, `-3` ... appended if the same content appears again: no row is dropped.

    Args:
        path: a `.csv`, `.jsonl` or `.json` file.
        label_map: the meaning of the file's own labels; without it they must be 0 or 1.
        id_prefix: prepended to ids made from content.
    """
    reader = _PairReader(path, label_map, id_prefix)
    examples = read_records(path, reader.example_from, each="pair")
    reader.check_labels()
    reader.log_aliases()
    reader.make_ids_unique(examples)
    return examples


class _PairReader:
    """Reads the rows of one file, and checks after the last one what concerns several rows."""

    def __init__(self, path: Path, label_map: Mapping[str, int] | None, id_prefix: str) -> None:
        self._path, self._label_map, self._id_prefix = path, label_map, id_prefix
        self._sources_of: dict[tuple[str, ...], dict[str, str]] = {}  # our columns' names by a row's names
        self._has_id: list[bool] = []
        self._unknown_labels: dict[str, int] = {}  # with the first line of each
        self._first_line: dict[bool, int] = {}  # of a row with and of one without a label

    def example_from(self, row: Row) -> Example:
        names = tuple(row.fields)
        if names not in self._sources_of:
            self._sources_of[names] = self._sources(row)
        fields = {column: row.fields[name] for column, name in self._sources_of[names].items()}
        pair = dataclasses.replace(row, fields=fields)
        premise, hypothesis = pair.text("premise"), pair.text("hypothesis")
        given_id = pair.identifier()
        self._has_id.append(given_id is not None)
        return Example(
            id=given_id or self._id_prefix + content_id(premise, hypothesis),
            premise=premise,
            hypothesis=hypothesis,
            label=self._label(pair),
            phenomenon=pair.optional_text("phenomenon"),
        )

    def _sources(self, row: Row) -> dict[str, str]:
        """Return the file's name of each of our columns that the row has."""
        original = {name.strip().casefold(): name for name in row.fields}
        sources = {
            column: original[name]
            for column, aliases in ALIASES.items()
            for name in reversed((column, *aliases))  # so that the likeliest wins
            if name in original
        }
        if missing := [column for column in ("premise", "hypothesis") if column not in sources]:
            has_other_separator = len(row.fields) == 1 and any(mark in "".join(row.fields) for mark in ";\t|")
            remedy = "separate the columns with commas" if has_other_separator else ""
            found = f"the columns {', '.join(map(shown, row.fields)) or '(none)'}"
            expected, line = " and ".join(missing) + " too", row.header_line
            raise DataError(found, expected, path=self._path, line=line, remedy=remedy)
        return sources

    def _label(self, pair: Row) -> int | None:
        """Return the pair's label; None if it has none, or one that `check_labels` will report."""
        value = pair.fields.get("label")
        has_label = not (value is None or (isinstance(value, str) and not value.strip()))
        self._first_line.setdefault(has_label, pair.line)
        if not has_label:
            return None
        label = binary_label(value) if self._label_map is None else self._label_map.get(str(value).strip())
        if label is None:
            self._unknown_labels.setdefault(str(value).strip(), pair.line)
        return label

    def check_labels(self) -> None:
        if unknown := self._unknown_labels:
            has_words = any(character.isalpha() for character in "".join(unknown))
            raise DataError(
                f"the label{'s' if len(unknown) > 1 else ''} {', '.join([*map(shown, unknown)][:8])}",
                " or ".join(map(str, LABELS if self._label_map is None else self._label_map)),
                path=self._path,
                line=min(unknown.values()),
                remedy=f"map them to 0 and 1, for example --label_map {LABEL_MAP_EXAMPLE}"
                if has_words or self._label_map is not None
                else "leave the label empty on every row if labels are not known",
            )
        if len(self._first_line) == 2:
            expected, line = f"one, as on line {self._first_line[True]}", self._first_line[False]
            remedy = "label every pair or none"
            raise DataError("no label", expected, path=self._path, line=line, remedy=remedy)

    def log_aliases(self) -> None:
        used = {
            f"{name.strip()} for {column}": None
            for sources in self._sources_of.values()
            for column, name in sources.items()
            if name.strip().casefold() != column
        }
        if used:
            logger.info("%s: took the column %s", self._path, ", ".join(used))

    def make_ids_unique(self, examples: RecordList[Example]) -> None:
        """Refuse repeated ids, and number repeated ids that were made from content."""
        line_by_id: dict[str, int] = {}
        for example, line, has_id in zip(examples, examples.lines, self._has_id, strict=True):
            if has_id and example.id in line_by_id:
                found = f"the id {shown(example.id)} again, after line {line_by_id[example.id]}"
                raise DataError(found, "each id once", path=self._path, line=line)
            if has_id:
                line_by_id[example.id] = line
        made = [index for index, has_id in enumerate(self._has_id) if not has_id]
        taken = line_by_id.keys() | {examples[index].id for index in made}
        last_number: dict[str, int] = {}
        for index in made:
            id_ = examples[index].id
            if id_ not in line_by_id and id_ not in last_number:
                last_number[id_] = 1
                continue
            number = last_number.get(id_, 1) + 1
            while f"{id_}-{number}" in taken:
                number += 1
            last_number[id_] = number
            examples[index] = dataclasses.replace(examples[index], id=f"{id_}-{number}")
        if num_repeated := sum(number > 1 for number in last_number.values()):
            logger.info("%s: %d pairs appear more than once; all are kept", self._path, num_repeated)


def labelled_pairs_shown(examples: Iterable[Example]) -> list[str]:
    """Return a line for the first pair of each label, with the reading of its label.

    >>> pair = Example(id="a", premise="A dog runs.", hypothesis="An animal moves.", label=1)
    >>> labelled_pairs_shown([pair])
    ["label 1, read as entailment: 'A dog runs.' -> 'An animal moves.'"]
    """
    first: dict[int, Example] = {}
    for example in examples:
        if example.label is not None:
            first.setdefault(example.label, example)
    return [
        f"label {label}, read as {LABEL_NAMES[label]}: {shown(pair.premise)} -> {shown(pair.hypothesis)}"
        for label, pair in sorted(first.items(), reverse=True)
    ]


def check_disjoint(splits: Mapping[str, tuple[Path, Sequence[Example]]], *, allow: bool = False) -> None:
    """Check that no pair of another split is also in train; shared premises are only counted in the log.

    Args:
        splits: each split's file and pairs by its name; nothing is checked without a `train`.
        allow: also only count shared pairs.
    """
    _, train = splits.get("train", (None, ()))
    id_in_train = {(example.premise, example.hypothesis): example.id for example in train}
    train_premises = {example.premise for example in train}
    for split, (path, examples) in splits.items():
        if split == "train":
            continue
        twins = [id_in_train.get((example.premise, example.hypothesis)) for example in examples]
        shared = [index for index, twin in enumerate(twins) if twin is not None]
        if shared and not allow:
            first, more = shared[0], f", and {len(shared) - 1} more" if len(shared) > 1 else ""
            twin = twins[first]
            line = examples.line(first) if isinstance(examples, RecordList) else None
            found = f"pair {shown(examples[first].id)} of {split} in train too (there {shown(twin)}){more}"
            remedy = "remove it from one of them, or allow it: --data.allow_overlap true"
            raise DataError(found, "splits that share no pair", path=path, line=line, remedy=remedy)
        if shared:
            logger.warning("%s: %d pairs of %s are in train too, as allowed", path, len(shared), split)
        if num_premises := sum(example.premise in train_premises for example in examples):
            logger.info("%s: %d pairs of %s have a premise of train", path, num_premises, split)
