"""What a stage works on: pairs, their thoughts, or texts to score; read anew each time they are walked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nlicot.errors import ConfigError, DataError
from nlicot.pairs import PairsFile
from nlicot.records import Example, Reflection, Thought
from nlicot.storage import DataRoot, join_reflections, join_thoughts, read_reflections, read_thoughts

Pairs = Callable[[], Iterable[Example]]


def pairs_of(
    root: DataRoot,
    split: str,
    *,
    label_map: Mapping[str, int] | None,
    limit: int | None,
    ids: Sequence[str] | None,
) -> Pairs:
    """A split's pairs, the first `limit` of them, or those with `ids`; the file is checked at once.

    Raises:
        DataError: the file cannot be read as it is.
        ConfigError: one of `ids` is no pair of the split.
    """
    file = PairsFile(root.pairs(split), label_map=label_map)
    wanted = None if ids is None else set(ids)

    def pairs() -> Iterator[Example]:
        num = 0
        for example in file:
            if wanted is not None and example.id not in wanted:
                continue
            if limit is not None and num == limit:
                return
            num += 1
            yield example

    if wanted is not None:
        unknown = wanted - {example.id for example in pairs()}
        if unknown and limit is None:
            raise ConfigError(
                f"--ids: found {', '.join(sorted(unknown))}, expected ids of pairs in {root.pairs(split)}"
            )
    return pairs


def thoughts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterable[Thought]]:
    """These pairs' thoughts, in the pairs' order.

    Raises:
        DataError: there are none yet, or they cannot be read or joined.
    """
    path = root.thoughts(split)
    _refuse_missing(path)
    joined = join_thoughts(list(pairs()), read_thoughts(path), path=path)
    return lambda: joined


def texts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterable[Thought | Reflection]]:
    """What there is to score: each pair's thoughts and reflections.

    A wrong thought that was reflected on is left out: the reflection stands in for it.
    """
    thoughts = list(thoughts_of(root, split, pairs)())
    path = root.reflections(split)
    reflections: Sequence[Reflection] = ()
    if path.exists():
        found = join_reflections(list(pairs()), thoughts, read_reflections(path), path=path)
        reflections = found.reflections
    reflected = {(reflection.id, reflection.sample): reflection for reflection in reflections}

    def texts() -> Iterator[Thought | Reflection]:
        for thought in thoughts:
            yield reflected.get((thought.id, thought.sample), thought)

    return texts


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise DataError("no such file", path=path, remedy="write it first: python -m nlicot generate")
