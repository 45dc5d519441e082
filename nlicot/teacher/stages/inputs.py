"""The input of a stage: pairs, their thoughts, or the texts to score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import JoinedTexts, TextFiles, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example, Reflection, Thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A split's pairs; calling it iterates over the chosen ones."""

    examples: Sequence[Example]
    chosen: Sequence[Example]

    def __call__(self) -> Iterator[Example]:
        """Iterate over the chosen pairs."""
        return iter(self.chosen)


def pairs_of(
    root: DataRoot,
    split: str,
    *,
    label_map: Mapping[str, int] | None,
    limit: int | None,
    ids: Sequence[str] | None,
) -> Pairs:
    """Read a split's pairs and choose the first `limit` of those with `ids`.

    Raises:
        DataError: the file cannot be read as it is.
        ConfigError: one of `ids` is not a pair of the split.
    """
    path = root.pairs(split)
    examples = read_examples(path, label_map=label_map)
    wanted = {example.id for example in examples} if ids is None else set(ids)
    unknown = wanted - {example.id for example in examples}
    if unknown:
        raise ConfigError(f"--ids: found {', '.join(sorted(unknown))}, expected ids of pairs in {path}")
    chosen = itertools.islice((example for example in examples if example.id in wanted), limit)
    return Pairs(examples=examples, chosen=list(chosen))


def thoughts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterator[Thought]]:
    """Return a function that iterates over these pairs' thoughts, in the order of their file.

    Raises:
        DataError: there are no thoughts yet.
    """
    files = _text_files(root, split, with_reflections=False)

    def thoughts() -> Iterator[Thought]:
        joined, ids = _joined(pairs, files)
        return (thought for thought in joined.thoughts if thought.id in ids)

    return thoughts


def texts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterator[Thought | Reflection]]:
    """Return a function that iterates over the texts to score: each pair's thoughts and reflections.

    A reflection replaces the wrong thought that it is on.

    Raises:
        DataError: there are no thoughts yet.
    """
    files = _text_files(root, split, with_reflections=True)

    def texts() -> Iterator[Thought | Reflection]:
        joined, ids = _joined(pairs, files)
        reflected = {(reflection.id, reflection.sample): reflection for reflection in joined.reflections}
        return (
            reflected.get((thought.id, thought.sample), thought)
            for thought in joined.thoughts
            if thought.id in ids
        )

    return texts


def _text_files(root: DataRoot, split: str, *, with_reflections: bool) -> TextFiles:
    thoughts, reflections = root.thoughts(split), root.reflections(split)
    if not thoughts.exists():
        raise DataError("no such file", path=thoughts, remedy="write it first: python -m nlicot generate")
    wanted = with_reflections and reflections.exists()
    return TextFiles(thoughts=thoughts, reflections=reflections if wanted else None)


def _joined(pairs: Pairs, files: TextFiles) -> tuple[JoinedTexts, set[str]]:
    return read_joined(pairs.examples, files), {example.id for example in pairs.chosen}
