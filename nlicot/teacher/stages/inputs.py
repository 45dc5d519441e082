"""The inputs of a stage: a split's pairs, their thoughts, or the texts to score."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import JoinedTexts, TextFiles, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example, Reflection, Thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All pairs of a split, to which its texts are joined, and those that were chosen."""

    all: Sequence[Example]
    chosen: Sequence[Example]


def read_pairs(
    root: DataRoot,
    split: str,
    *,
    label_map: Mapping[str, int] | None,
    limit: int | None,
    ids: Sequence[str] | None,
) -> Pairs:
    """Read a split's pairs, and choose the first `limit` of those with `ids`.

    Raises:
        DataError: the file cannot be read as it is.
        ConfigError: one of `ids` is not a pair of the split.
    """
    path = root.pairs(split)
    examples = read_examples(path, label_map=label_map)
    known = {example.id for example in examples}
    wanted = known if ids is None else set(ids)
    if wanted - known:
        unknown = ", ".join(sorted(wanted - known))
        raise ConfigError(f"--ids: found {unknown}, expected ids of pairs in {path}")
    chosen = itertools.islice((example for example in examples if example.id in wanted), limit)
    return Pairs(all=examples, chosen=list(chosen))


def read_thoughts_of(root: DataRoot, split: str, pairs: Pairs) -> list[Thought]:
    """Read the chosen pairs' thoughts, in the pairs' order.

    Raises:
        DataError: there are none yet, or one matches no pair.
    """
    ids = {example.id for example in pairs.chosen}
    joined = _read_texts(root, split, pairs, with_reflections=False)
    return [thought for thought in joined.thoughts if thought.id in ids]


def read_texts_of(root: DataRoot, split: str, pairs: Pairs) -> list[Thought | Reflection]:
    """Read the texts to score: the chosen pairs' thoughts, or the reflections that replace wrong ones.

    Raises:
        DataError: there are no thoughts yet, or a text matches no pair.
    """
    ids = {example.id for example in pairs.chosen}
    joined = _read_texts(root, split, pairs, with_reflections=True)
    reflections = {(reflection.id, reflection.sample): reflection for reflection in joined.reflections}
    return [
        reflections.get((thought.id, thought.sample), thought)
        for thought in joined.thoughts
        if thought.id in ids
    ]


def _read_texts(root: DataRoot, split: str, pairs: Pairs, *, with_reflections: bool) -> JoinedTexts:
    thoughts, reflections = root.thoughts(split), root.reflections(split)
    if not thoughts.exists():
        raise DataError("no such file", path=thoughts, remedy="write it first: python -m nlicot generate")
    wanted = with_reflections and reflections.exists()
    return read_joined(pairs.all, TextFiles(thoughts=thoughts, reflections=reflections if wanted else None))
