"""Read premise/hypothesis pairs: column names, labels and ids, checked for the whole file."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections import Counter, UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.data.rows import RecordList, Row, binary_label, other_delimiter, read_records, shown
from nlicot.errors import ConfigError, DataError
from nlicot.records import LABEL_NAMES, LABELS, Example, content_id

logger = logging.getLogger(__name__)

# Names that public data sets and the predecessor's files use for our columns, in lower case, the likeliest
# first. Not pairID: XNLI and WANLI repeat it.
ALIASES = {
    "id": ("uid",),
    "premise": ("sentence1", "sentence_a", "context", "sentence"),
    "hypothesis": ("sentence2", "sentence_b", "question"),
    "label": ("gold_label", "true_label", "gold", "entailment_label", "entailment_judgment"),
    "phenomenon": ("heuristic",),
    "p_entailment": (),
}
LABEL_MAP_EXAMPLE = "entailment=1,neutral=0,contradiction=0"
LABELLED_SPLITS = ("train", "dev")
"""Splits that need labels; a test file may be without, although a run's label map is for all its files."""
_NO_LABEL = frozenset({"-", "-1", "nan", "null", "na", "n/a"})
_ENTAILMENT_NAMES = frozenset({"entailment", "entails", "e", "yes", "true", "1", "supports"})


class LabelMap(UserDict[str, int | None]):
    """The label of each label in a file: 0, 1, or None for pairs to skip.

    It is not a dict, whose keys would be settings to jsonargparse.
    """

    def __str__(self) -> str:
        return ",".join(f"{name}={'skip' if label is None else label}" for name, label in self.items())

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> LabelMap:
        """Read a flag's text or a YAML mapping."""
        labels: dict[str, int | None] = {}
        for part in (value if isinstance(value, str) else str(cls(value))).split(","):
            name, _, text = (piece.strip() for piece in part.rpartition("="))
            label = binary_label(text)
            if not name or (label is None and text != "skip"):
                expected = f"NAME=0, NAME=1 or NAME=skip, such as {LABEL_MAP_EXAMPLE}"
                raise ConfigError(f"--label_map: found {part.strip()!r}, expected {expected}")
            if name in labels:
                raise ConfigError(f"--label_map: found {name!r} twice, expected each name once")
            labels[name] = label
        return cls(labels)

    @classmethod
    def exchanged(cls, label_map: Mapping[str, int | None] | None) -> LabelMap:
        """Return a map, by default that of the labels 0 and 1, with 0 and 1 exchanged.

        >>> str(LabelMap.exchanged(None)), str(LabelMap.exchanged({"entailment": 0, "neutral": 1, "-": None}))
        ('0=1,1=0', 'entailment=1,neutral=0,-=skip')
        """
        own = {"0": 0, "1": 1} if label_map is None else label_map
        return cls({name: None if label is None else 1 - label for name, label in own.items()})

    def key(self, label: str) -> str | None:
        """Return the name under which a file's label is in the map: as it is, or without .0 and in any case.

        Names that differ only in case must agree, or the label must be one of them as it is.

        >>> [LabelMap({"1": 0, "Entailment": 1}).key(label) for label in ("1.0", "ENTAILMENT", "2")]
        ['1', 'Entailment', None]
        """
        if label in self:
            return label
        short = label.removesuffix(".0").lower()
        same = [name for name in self if name.lower() == short]
        return same[0] if len({self[name] for name in same}) == 1 else None


class ColumnNames(UserDict[str, str]):
    """A file's names of some of our columns, empty for one that is not to be read.

    It is not a dict for the same reason as `LabelMap`.
    """

    def __str__(self) -> str:
        return ",".join(f"{ours}={name}" for ours, name in self.items())

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> ColumnNames:
        """Read a flag's text or a YAML mapping."""
        names: dict[str, str] = {}
        for part in (value if isinstance(value, str) else str(cls(value))).split(","):
            ours, equals, name = (piece.strip() for piece in part.partition("="))
            if ours not in ALIASES or not equals or ours in names:
                expected = f"COLUMN=NAME for some of {', '.join(ALIASES)}, each once"
                raise ConfigError(f"--columns: found {part.strip()!r}, expected {expected}")
            twin = next(
                (other for other, each in names.items() if name and each.lower() == name.lower()), None
            )
            if twin:
                found = f"{name!r} for {twin} and for {ours}"
                raise ConfigError(f"--columns: found {found}, expected a column of its own for each")
            names[ours] = name
        return cls(names)


@dataclass(frozen=True, kw_only=True)
class PairFormat:
    """How files of pairs are read.

    Args:
        label_map: labels of other names, such as entailment=1,neutral=0,contradiction=0,-=skip.
        columns: columns of other names, such as premise=context,label=gold,phenomenon=genre.
        delimiter: the character between the columns of a CSV, or tab.
    """

    # Not slotted: jsonargparse reads defaults with vars().
    label_map: LabelMap | None = None
    columns: ColumnNames | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise ConfigError(f"--delimiter: found {self.delimiter!r}, expected one character, or tab")

    @classmethod
    def of(cls, settings: Any) -> PairFormat:
        """Take the format out of a command's settings."""
        return cls(label_map=settings.label_map, columns=settings.columns, delimiter=settings.delimiter)

    @property
    def separator(self) -> str | None:
        """The delimiter as a character."""
        return "\t" if self.delimiter in ("tab", "\\t") else self.delimiter

    def flags(self) -> list[str]:
        """Return the flags that give this format to another command."""
        given = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(PairFormat)]
        return [word for name, value in given if value is not None for word in (f"--{name}", str(value))]


DEFAULT_FORMAT = PairFormat()


def read_examples(
    path: Path,
    pair_format: PairFormat = DEFAULT_FORMAT,
    *,
    labels_optional: bool = False,
    rows: Iterable[Row] | None = None,
) -> RecordList[Example]:
    """Read the pairs of a CSV (`premise,hypothesis[,label][,id]...`, see `ALIASES`) or of another format.

    Column names are matched in any case, and by the names in `ALIASES`. A pair without an id gets one from
    its content, with `-2`, `-3` ... appended if the same content appears again: no row is dropped, except
    those whose label the map skips.

    Args:
        path: a file that `read_rows` can read.
        pair_format: the file's own labels, column names and delimiter.
        labels_optional: accept a file without the optional columns that `pair_format` names.
        rows: those of a table that is not a file; `path` is its name then.
    """
    reader = _PairReader(path, pair_format, labels_optional)
    examples = read_records(
        path, reader.example_from, each="pair", delimiter=pair_format.separator, rows=rows
    )
    reader.check_labels()
    examples = reader.without_gaps(examples)
    if not examples:
        remedy = "to read them without labels: --columns label= and no --label_map"
        raise DataError("only pairs that the label map skips", "other pairs too", path=path, remedy=remedy)
    reader.log_columns()
    reader.log_labels()
    reader.make_ids_unique(examples)
    return examples


class _PairReader:
    """Reads the rows of one file, and checks after the last one what concerns several rows."""

    def __init__(self, path: Path, pair_format: PairFormat, labels_optional: bool) -> None:
        self._path, self._label_map = path, pair_format.label_map
        self._columns: Mapping[str, str] = pair_format.columns or {}
        self._optional = ("label", "phenomenon", "p_entailment") if labels_optional else ()
        self._sources_of: dict[tuple[str, ...], dict[str, str]] = {}  # our columns' names by a row's names
        self._others_of: dict[tuple[str, ...], dict[str, list[str]]] = {}  # that could be ours too
        self._has_id: list[bool] = []
        self._readings: dict[str, int | None] = {}  # of each label, None also for those that are unknown
        self._unknown_labels: dict[str, int] = {}  # with the first line of each
        self._skipped: Counter[str] = Counter()
        self._first_line: dict[bool, int] = {}  # of a row with and of one without any label

    def example_from(self, row: Row) -> Example | None:
        """Return the row's pair; None if the label map skips it."""
        names = tuple(row.fields)
        if names not in self._sources_of:
            self._sources_of[names] = self._sources(row)
        fields = {column: row.fields[name] for column, name in self._sources_of[names].items()}
        pair = Row(path=row.path, line=row.line, header_line=row.header_line, fields=fields)
        value, p_entailment = fields.get("label"), pair.probability("p_entailment")
        has_label = bool(_label_text(value))
        for other in self._others_of[names].get("label", ()):
            self._check_same_label(row, self._sources_of[names]["label"], other)
        if has_label or p_entailment is None:  # a soft label is enough
            self._first_line.setdefault(has_label, row.line)
        label = None
        if has_label:
            text, label, name = _label_text(value), binary_label(value), None
            if self._label_map is not None:  # a map of 0 and 1 is also one of true and false
                name = self._label_map.key(text) or self._label_map.key("" if label is None else str(label))
                label = self._label_map.get(name or "")
            self._readings[text] = label
            if label is None and name is not None:
                self._skipped[name] += 1
                return None
            if label is None:
                self._unknown_labels.setdefault(text, row.line)
        premise, hypothesis = pair.text("premise"), pair.text("hypothesis")
        given_id = pair.identifier()
        self._has_id.append(given_id is not None)
        return Example(
            id=given_id or content_id(premise, hypothesis),
            premise=premise,
            hypothesis=hypothesis,
            label=label,
            phenomenon=pair.optional_text("phenomenon"),
            p_entailment=p_entailment,
        )

    def _sources(self, row: Row) -> dict[str, str]:
        """Return the file's name of each of our columns that the row has."""
        originals: dict[str, list[str]] = {}
        for name in row.fields:
            originals.setdefault(name.strip().casefold(), []).append(name)
        sources: dict[str, str] = {}
        others: dict[str, list[str]] = {}
        for column, aliases in ALIASES.items():
            named = self._columns.get(column)
            candidates = (column, *aliases) if named is None else (named.casefold(),) if named else ()
            existing = [originals[name] for name in candidates if name in originals]
            same = existing[0] if existing else []
            if len(same) > 1:
                raise DataError(
                    f"the columns {' and '.join(map(shown, same))}",
                    "each name once",
                    path=self._path,
                    line=row.header_line,
                    remedy="case makes no difference",
                )
            if same:
                sources[column] = same[0]
                others[column] = [each[0] for each in existing[1:]]
            elif named and column not in self._optional:
                raise self._missing(row, shown(named), f"--columns names it as {column}")
        if missing := [column for column in ("premise", "hypothesis") if column not in sources]:
            flag = ",".join(f"{column}=NAME" for column in missing)
            raise self._missing(row, " and ".join(missing), f"give their names: --columns {flag}")
        if self._label_map is not None and "label" not in {*sources, *self._optional}:
            remedy = "--label_map needs one; give its name: --columns label=NAME"
            raise self._missing(row, "label", remedy)
        for column, name in sources.items():
            if twins := [other for other in sources if sources[other] == name and other != column]:
                found, line = f"the column {shown(name)} as {column} and as {twins[0]}", row.header_line
                remedy = f"--columns {column}=NAME,{twins[0]}=NAME names them"
                raise DataError(found, "a column for each", path=self._path, line=line, remedy=remedy)
        taken = set(sources.values())
        left = {column: [name for name in names if name not in taken] for column, names in others.items()}
        self._others_of[tuple(row.fields)] = left
        return sources

    def _check_same_label(self, row: Row, taken: str, other: str) -> None:
        """Refuse a second column of labels that has another label on this row."""
        texts = [_label_text(row.fields[name]) for name in (taken, other)]
        readings = [text.lower() if (label := binary_label(text)) is None else str(label) for text in texts]
        if readings[1] and readings[0] != readings[1]:
            found = f"{shown(texts[0])} as {taken.strip()} and {shown(texts[1])} as {other.strip()}"
            remedy = "name the column to read: --columns label=NAME"
            raise row.error(found, "one label", remedy=remedy)

    def _missing(self, row: Row, column: str, remedy: str) -> DataError:
        found, line = f"the columns {', '.join(map(shown, row.fields)) or '(none)'}", row.header_line
        remedy = other_delimiter(list(row.fields)) or remedy
        return DataError(found, f"{column} too", path=self._path, line=line, remedy=remedy)

    def check_labels(self) -> None:
        """Refuse unknown labels, and labels on some rows only."""
        if unknown := self._unknown_labels:
            raise DataError(
                f"the label{'s' if len(unknown) > 1 else ''} {', '.join([*map(shown, unknown)][:8])}",
                " or ".join(map(str, LABELS if self._label_map is None else self._label_map)),
                path=self._path,
                line=min(unknown.values()),
                remedy=self._advice(),
            )
        if len(self._first_line) == 2 and not self._skips_gaps:
            expected, line = f"one, as on line {self._first_line[True]}", self._first_line[False]
            flag = _map_flag(self._suggested_map() | {"nan": "skip"})
            remedy = f"label every pair or none, or leave such pairs out: {flag}"
            raise DataError("no label", expected, path=self._path, line=line, remedy=remedy)

    @property
    def _skips_gaps(self) -> bool:
        label_map = LabelMap() if self._label_map is None else self._label_map
        name = label_map.key("nan")
        return name is not None and label_map[name] is None

    def _advice(self) -> str:
        names = [name for name in self._unknown_labels if binary_label(name) is None]
        if not names and self._label_map and self._suggested_map() == {"1": "1", "0": "0"}:
            return "labels are 0 and 1 already: leave --label_map out"
        if len(names) > 8 or any(len(name) > 40 or "," in name for name in names):
            return "is this the column of labels? --columns label=NAME names another"
        labels = self._suggested_map()
        if set(labels.values()) == {"skip"}:
            return "to read the pairs without labels: --columns label= and no --label_map"
        if "?" in labels.values():
            return f"say what each label is, 1 is entailment: {_map_flag(labels)}"
        return f"map them to 0 and 1, for example {_map_flag(labels)}"

    def _suggested_map(self) -> dict[str, str]:
        """Return the file's labels as public sets mean them, with ? for those that only the user knows.

        The user's own map is kept if it reads a label of this file.
        """
        given = {
            name: "skip" if label is None else str(label) for name, label in (self._label_map or {}).items()
        }
        is_used = len(self._readings) > len(self._unknown_labels) or (
            False in self._first_line and self._skips_gaps
        )
        labels = given if is_used else {}
        short = [name.removesuffix(".0") for name in self._readings]
        names = {name.lower(): name for name in reversed(short)}  # the first spelling of each
        if "2" in names and {"0", "1", "2", *_NO_LABEL}.issuperset(names) and not {"0", "1"} & labels.keys():
            # With three numbers, `datasets` writes 0 entailment, 1 neutral, 2 contradiction.
            labels |= {"0": "1", "1": "0", "2": "0"} if "0" in names else dict.fromkeys(("1", "2"), "?")
        elif any(binary_label(name) is not None for name in names):
            is_reversed = labels.get("0") == "1" or labels.get("1") == "0"
            labels = ({"0": "1", "1": "0"} if is_reversed else {"1": "1", "0": "0"}) | labels
        known = {name.lower() for name in labels}
        others = {
            lower: name
            for lower, name in reversed(names.items())
            if lower not in known and binary_label(name) is None
        }
        labels |= {name: "1" for lower, name in others.items() if lower in _ENTAILMENT_NAMES}
        for lower, name in others.items():
            if lower in _NO_LABEL:
                labels[lower] = "skip"
            elif "1" not in labels.values():
                labels[name] = "?"
            else:  # a number that is no label is a mistake in a row, a word is another relation
                labels.setdefault(name, "0" if any(map(str.isalpha, name)) else "skip")
        return labels

    def without_gaps(self, examples: RecordList[Example]) -> RecordList[Example]:
        """Leave out pairs without a label if others have one: the label map has nan=skip."""
        if len(self._first_line) < 2:
            return examples
        kept = [
            index
            for index, example in enumerate(examples)
            if example.label is not None or example.p_entailment is not None
        ]
        self._skipped["nan"] += len(examples) - len(kept)
        self._has_id = [self._has_id[index] for index in kept]
        return examples.select(kept)

    def log_columns(self) -> None:
        """Log columns that were found under another name, and others that could be ours."""
        used = {
            f"{name.strip()} for {column}": None
            for sources in self._sources_of.values()
            for column, name in sources.items()
            if name.strip().casefold() != column
        }
        if used:
            logger.info("%s: took the column %s", self._path, ", ".join(used))
        left = {
            f"{self._sources_of[names][column].strip()} is read as {column}, not {' or '.join(each)}": None
            for names, others in self._others_of.items()
            for column, each in others.items()
            if each
        }
        if left:
            logger.info("%s: %s (--columns names others)", self._path, ", ".join(left))

    def log_labels(self) -> None:
        """Log the number of pairs left out, and a map that gives one label to entailment and to others."""
        if self._skipped:
            labels = ", ".join(map(shown, self._skipped))
            logger.info("%s: skipped %d pairs of label %s", self._path, self._skipped.total(), labels)
        read = {
            text.removesuffix(".0").lower(): label
            for text, label in self._readings.items()
            if label is not None
        }
        if len({name in _ENTAILMENT_NAMES for name in read}) == 2 and len(set(read.values())) == 1:
            label = next(iter(read.values()))
            logger.warning("%s: every pair has label %d under this label map", self._path, label)

    def make_ids_unique(self, examples: RecordList[Example]) -> None:
        """Refuse repeated ids, and number repeated ids that were made from content."""
        line_by_id: dict[str, int] = {}
        for example, line, has_id in zip(examples, examples.lines, self._has_id, strict=True):
            if has_id and example.id in line_by_id:
                found = f"the id {shown(example.id)} again, after line {line_by_id[example.id]}"
                remedy = "--columns id= makes ids from the texts"
                raise DataError(found, "each id once", path=self._path, line=line, remedy=remedy)
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


def _label_text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _map_flag(labels: Mapping[str, str]) -> str:
    ordered = sorted(labels, key=lambda name: ("1", "0", "skip", "?").index(labels[name]))
    return f"--label_map {shlex.quote(','.join(f'{name}={labels[name]}' for name in ordered))}"


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
