"""Read what an audit looks at: each split's pairs, their texts, and the targets a builder makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlicot import completion
from nlicot.builders.base import Builder
from nlicot.data.pairs import LABELLED_SPLITS, LabelMap, PairFormat, read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import TextFiles, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Reflection, Thought
from nlicot.teacher.prompt import PROMPTS_FOLDER
from nlicot.words import words_of

SPLITS = ("train", "dev", "test")
KINDS = ("pairs", "thoughts", "reflections", "scores")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetText:
    """The thought in a pair's completion, the completion's label, and the kind of text it was made from."""

    example: Example
    text: str
    label: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitData:
    """One split: its pairs, the texts joined to them, and the builder's targets that have a thought."""

    name: str
    examples: Sequence[Example]
    thoughts: Sequence[Thought] = ()
    reflections: Sequence[Reflection] = ()
    targets: Sequence[TargetText] = ()
    files: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> list[Example]:
        """The pairs with a label."""
        return [example for example in self.examples if example.label is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditData:
    """All splits found, train first; prompts by name, that should not contain a pair; the labels' map.

    `of_root`: they are those of a data root, which should have a train split.
    """

    splits: Sequence[SplitData]
    prompts: Mapping[str, str] = field(default_factory=dict)
    label_map: LabelMap | None = None
    of_root: bool = False


def normalised(text: str) -> str:
    """Return the words of a text in lower case, without punctuation; one without words as it is.

    >>> normalised(" The dog's  asleep!")
    'the dog s asleep'
    """
    return " ".join(words_of(text.casefold())) or text.strip()


def read_splits(
    root: DataRoot | None,
    single: Mapping[tuple[str, str], Path],
    builder: Builder,
    pair_format: PairFormat,
) -> list[SplitData]:
    """Read the splits of a data root (None: no root), and of single files by split and kind.

    A split whose pairs are given never takes texts of the root, which belong to the root's own pairs.
    """
    found: dict[str, dict[str, Path]] = {}
    for split in SPLITS:
        given = {kind: single[split, kind] for kind in KINDS if (split, kind) in single}
        paths = given if root is None or "pairs" in given else _files_in_root(root, split) | given
        for kind, path in given.items():
            if not path.exists():
                raise DataError("no such file", path=path, remedy=f"it was given by --{split}_{kind}")
            if "pairs" not in paths:
                raise DataError(
                    f"{kind} of {split} without its pairs", f"--{split}_pairs FILE too", path=path
                )
        if paths:
            found[split] = {kind: paths[kind] for kind in KINDS if kind in paths}
    if root is not None and not found:
        expected = f"one of {', '.join(str(root.pairs(split)) for split in SPLITS)}"
        raise DataError("no pairs", expected, path=root.path, remedy="or give files: --train_pairs FILE")
    return [_read_split(split, files, builder, pair_format) for split, files in found.items()]


def read_prompts(paths: Sequence[Path]) -> dict[str, str]:
    """Read the shipped prompts, the student's and the teacher's, and the user's own files."""
    found = {f"prompt {name}": template for name, template in StudentPrompts().templates.items()}
    for path in (*sorted(PROMPTS_FOLDER.glob("*.yaml")), *paths):
        try:
            name = path.name if path.parent == PROMPTS_FOLDER else str(path)
            found[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt {path}: cannot be read ({error}), expected a text file") from None
    return found


def _read_split(name: str, paths: Mapping[str, Path], builder: Builder, pair_format: PairFormat) -> SplitData:
    optional = name not in LABELLED_SPLITS
    examples = read_examples(paths["pairs"], pair_format, labels_optional=optional)
    if not {"thoughts", "reflections"} & set(paths):
        return SplitData(name=name, examples=examples, files={"pairs": str(paths["pairs"])})
    texts = read_joined(examples, TextFiles(**{kind: paths.get(kind) for kind in KINDS if kind != "pairs"}))
    example_of = {example.id: example for example in examples}
    targets = [
        TargetText(example=example_of[row.id], text=thought, label=row.label, source=row.source)
        for row in builder.build(examples, texts.thoughts, texts.reflections, texts.scores)
        if (parsed := completion.parse(row.completion)) and (thought := parsed.thought_process) is not None
    ]
    return SplitData(
        name=name,
        examples=examples,
        thoughts=texts.thoughts,
        reflections=texts.reflections,
        targets=targets,
        files={kind: str(path) for kind, path in paths.items()},
    )


def _files_in_root(root: DataRoot, split: str) -> dict[str, Path]:
    files = {kind: getattr(root, kind)(split) for kind in KINDS}
    existing = {kind: path for kind, path in files.items() if path.exists()}
    if "pairs" in existing and "thoughts" not in existing:
        return {"pairs": existing["pairs"]}  # like `fit`: without thoughts no other texts are read
    return existing if "pairs" in existing else {}
