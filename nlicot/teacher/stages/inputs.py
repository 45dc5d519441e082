"""What a stage works on: pairs, their thoughts, or texts to score; read anew each time they are walked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nlicot.data.pairs import PairsFile
from nlicot.data.root import DataRoot
from nlicot.data.streaming import JoinedTexts, TextFiles, joined_chunks
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example, Reflection, Thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A split's pairs, the first `limit` of them, or those with `ids`; calling it walks them.

    Each walk reads the file again, so that memory does not grow with the number of pairs.
    """

    file: PairsFile
    limit: int | None = None
    ids: Collection[str] | None = None

    def __call__(self) -> Iterator[Example]:
        """Walk the chosen pairs."""
        return self.among(self.file)

    def among(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Those of the file's pairs, from its beginning, that are wanted."""
        num = 0
        for example in examples:
            if self.limit is not None and num == self.limit:
                return
            if self.ids is None or example.id in self.ids:
                num += 1
                yield example


def pairs_of(
    root: DataRoot,
    split: str,
    *,
    label_map: Mapping[str, int] | None,
    limit: int | None,
    ids: Sequence[str] | None,
) -> Pairs:
    """What a command's flags choose of a split; the file is checked at once.

    Raises:
        DataError: the file cannot be read as it is.
        ConfigError: one of `ids` is no pair of the split.
    """
    path = root.pairs(split)
    file = PairsFile(path, label_map=label_map)
    if ids is not None:
        unknown = set(ids) - {example.id for example in Pairs(file=file, ids=set(ids))()}
        if unknown:
            raise ConfigError(f"--ids: found {', '.join(sorted(unknown))}, expected ids of pairs in {path}")
    return Pairs(file=file, limit=limit, ids=None if ids is None else set(ids))


def thoughts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterator[Thought]]:
    """These pairs' thoughts, in the pairs' order.

    Raises:
        DataError: there are none yet.
    """
    files = _texts(root, split, with_reflections=False)

    def thoughts() -> Iterator[Thought]:
        for chunk, ids in _chosen(pairs, files):
            yield from (thought for thought in chunk.thoughts if thought.id in ids)

    return thoughts


def texts_of(root: DataRoot, split: str, pairs: Pairs) -> Callable[[], Iterator[Thought | Reflection]]:
    """What there is to score: each pair's thoughts and reflections.

    A wrong thought that was reflected on is left out: the reflection stands in for it.

    Raises:
        DataError: there are no thoughts yet.
    """
    files = _texts(root, split, with_reflections=True)

    def texts() -> Iterator[Thought | Reflection]:
        for chunk, ids in _chosen(pairs, files):
            reflected = {(reflection.id, reflection.sample): reflection for reflection in chunk.reflections}
            for thought in chunk.thoughts:
                if thought.id in ids:
                    yield reflected.get((thought.id, thought.sample), thought)

    return texts


def _texts(root: DataRoot, split: str, *, with_reflections: bool) -> TextFiles:
    thoughts, reflections = root.thoughts(split), root.reflections(split)
    if not thoughts.exists():
        raise DataError("no such file", path=thoughts, remedy="write it first: python -m nlicot generate")
    wanted = with_reflections and reflections.exists()
    return TextFiles(thoughts=thoughts, reflections=reflections if wanted else None)


def _chosen(pairs: Pairs, files: TextFiles) -> Iterator[tuple[JoinedTexts, set[str]]]:
    """The split's texts, chunk by chunk, with the ids of the pairs that are wanted of each."""
    limit = pairs.limit
    for chunk in joined_chunks(pairs.file, files):
        wanted = Pairs(file=pairs.file, limit=limit, ids=pairs.ids)
        ids = {example.id for example in wanted.among(chunk.examples)}
        yield chunk, ids
        if limit is not None:
            limit -= len(ids)
            if limit == 0:
                return
