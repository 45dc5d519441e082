"""Reads what an audit looks at: every split's pairs, the texts about them, and what a builder makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlicot import completion
from nlicot.builders import Builder
from nlicot.data.root import DataRoot
from nlicot.data.streaming import PairsFile, TextFiles, read_joined
from nlicot.errors import DataError
from nlicot.records import Example, Reflection, Thought

SPLITS = ("train", "dev", "test")
KINDS = ("pairs", "thoughts", "reflections", "scores")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetText:
    """The text that a pair's completion would carry, the label behind it, and what it was made from."""

    example: Example
    text: str
    label: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitData:
    """One split: its pairs, the texts joined to them, and the builder's targets that hold a thought."""

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
    """All splits that are there, train first, and the texts of prompts that pairs must not stand in."""

    splits: Sequence[SplitData]
    prompts: Mapping[str, str] = field(default_factory=dict)


def read_root(
    root: DataRoot,
    builder: Builder,
    *,
    single: Mapping[tuple[str, str], Path] | None = None,
    single_only: bool = False,
    label_map: Mapping[str, int] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> AuditData:
    """Read all splits of a data root, or of the files that stand in for it.

    Args:
        builder: whose targets are looked at.
        single, single_only: as `paths_of` takes them.
        label_map: what the files' own labels mean.
        prompts: texts that no pair may stand in, by name.

    Raises:
        DataError: as `paths_of` and `read_split` raise it.
    """
    paths = paths_of(root, single or {}, single_only=single_only)
    splits = [read_split(split, files, builder, label_map) for split, files in paths.items()]
    return AuditData(splits=splits, prompts=prompts or {})


def read_split(
    name: str, paths: Mapping[str, Path], builder: Builder, label_map: Mapping[str, int] | None = None
) -> SplitData:
    """Read one split's files, those beside the pairs as far as they are there.

    Args:
        paths: where `pairs`, `thoughts`, `reflections` and `scores` lie; all but `pairs` may be left out.

    Raises:
        DataError: something in the files is not as it must be.
    """
    examples = PairsFile(paths["pairs"], label_map=label_map).read()
    if not {"thoughts", "reflections"} & set(paths):
        return SplitData(name=name, examples=examples, files={"pairs": str(paths["pairs"])})
    files = TextFiles(
        thoughts=paths.get("thoughts"), reflections=paths.get("reflections"), scores=paths.get("scores")
    )
    texts = read_joined(examples, files)
    example_of = {example.id: example for example in examples}
    built = builder.build(examples, texts.thoughts, texts.reflections, texts.scores)
    targets = []
    for row in built:
        parsed = completion.parse(row.completion)
        if parsed is not None and parsed.thought_process is not None:
            target = TargetText(
                example=example_of[row.id], text=parsed.thought_process, label=row.label, source=row.source
            )
            targets.append(target)
    return SplitData(
        name=name,
        examples=examples,
        thoughts=texts.thoughts,
        reflections=texts.reflections,
        targets=targets,
        files={kind: str(path) for kind, path in paths.items()},
    )


def paths_of(
    root: DataRoot, single: Mapping[tuple[str, str], Path], *, single_only: bool
) -> dict[str, dict[str, Path]]:
    """Where each split's files lie: the single ones that were named, else those of the root that are there.

    Args:
        single: files by split and kind.
        single_only: read nothing of the root. A split whose pairs were named never takes the root's texts,
            which belong to the root's own pairs.

    Raises:
        DataError: a named file is not there, texts were named without pairs, or there are no pairs at all.
    """
    found: dict[str, dict[str, Path]] = {}
    for split in SPLITS:
        named = {kind: single[split, kind] for kind in KINDS if (split, kind) in single}
        of_root = {} if single_only or "pairs" in named else _of_root(root, split)
        paths = {**of_root, **named}
        for kind, path in named.items():
            if not path.exists():
                raise DataError("no such file", path=path, remedy=f"named by --{split}-{kind}")
            if "pairs" not in paths:
                raise DataError(
                    f"{kind} of {split} without its pairs", f"--{split}-pairs FILE too", path=path
                )
        if "pairs" in paths:
            found[split] = {kind: paths[kind] for kind in KINDS if kind in paths}
    if not found:
        expected = ", ".join(str(root.pairs(split)) for split in SPLITS)
        raise DataError(
            "no pairs", f"one of {expected}", path=root.path, remedy="or name files: --train-pairs FILE"
        )
    return found


def _of_root(root: DataRoot, split: str) -> dict[str, Path]:
    files = {kind: getattr(root, kind)(split) for kind in KINDS}
    there = {kind: path for kind, path in files.items() if path.exists()}
    if "thoughts" not in there:  # as `fit` has it: without thoughts nothing else is read
        there = {kind: path for kind, path in there.items() if kind == "pairs"}
    return there if "pairs" in there else {}
