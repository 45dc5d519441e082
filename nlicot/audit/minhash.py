"""Find near duplicates among short texts by MinHash and banding, in numpy.

A text is the set of its word bigrams, including its start and end; two texts are near duplicates if the
Jaccard index of these sets is at least `THRESHOLD`. MinHash (Broder 1997, "On the resemblance and
containment of documents") proposes candidates, banding (Leskovec et al., "Mining of Massive Datasets",
chapter 3) keeps them few, and every candidate is checked against the sets themselves: there are no false
positives, and at the threshold about 2 pairs in 1,000 are missed.

datasketch 2.0 needs 4 to 5 times as long and 2.5 times the memory for 40,000 pairs (docs/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

THRESHOLD = 0.8
NUM_BANDS, ROWS_PER_BAND = 20, 6
MAX_NEIGHBOURS = 3
"""Maximum number of neighbours that a text is compared with in a bucket."""
MAX_LEADERS = 50
"""Maximum number of groups that a pair is compared with if all resemble each other a little."""
_WORD = re.compile(r"\w+")
_EDGE = 0

Hashes = npt.NDArray[np.uint64]


def normalised(text: str) -> str:
    """Return the words of a text in lower case, without punctuation.

    >>> normalised(" The dog's  asleep!")
    'the dog s asleep'
    """
    return " ".join(_WORD.findall(text.casefold()))


class Shingles:
    """The word bigrams of texts, as numbers: those of text i are `flat[starts[i]:starts[i + 1]]`."""

    def __init__(self, texts: Sequence[str]) -> None:
        number_of: dict[str, int] = {}
        words = [
            [_EDGE, *(number_of.setdefault(word, len(number_of) + 1) for word in text.split()), _EDGE]
            for text in texts
        ]
        lengths = np.fromiter((len(each) - 1 for each in words), dtype=np.int64, count=len(words))
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        numbers = np.fromiter(chain.from_iterable(words), dtype=np.uint64)
        is_last = np.zeros(len(numbers), dtype=bool)
        is_last[np.cumsum(lengths + 1) - 1] = True
        first = np.flatnonzero(~is_last)
        self.flat: Hashes = numbers[first] * np.uint64(len(number_of) + 1) + numbers[first + 1]

    def similarity(self, a: int, b: int) -> float:
        """Return the Jaccard index of two texts' sets: the size of their intersection over their union's."""
        if a == b:
            return 1.0
        of_a, of_b = (set(self.flat[self.starts[i] : self.starts[i + 1]].tolist()) for i in (a, b))
        return len(of_a & of_b) / len(of_a | of_b)


def text_groups(shingles: Shingles) -> list[int]:
    """Return a group number for each text; groups are chains of near duplicates."""
    num = len(shingles.starts) - 1
    parent = list(range(num))
    if num < 2:
        return parent

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    checked: set[tuple[int, int]] = set()
    for keys in _band_keys(shingles):
        order = np.argsort(keys, kind="stable")
        for a, b in _neighbours(keys[order], order):
            if (a, b) not in checked:
                checked.add((a, b))
                if root(a) != root(b) and shingles.similarity(a, b) >= THRESHOLD:
                    parent[max(root(a), root(b))] = min(root(a), root(b))
    return [root(index) for index in range(num)]


def _band_keys(shingles: Shingles) -> Iterator[Hashes]:
    """Yield one key per text for each band; keys are equal if all of the band's minima are."""
    rng = np.random.default_rng(0)
    mixed = _mixed(shingles.flat)
    for _ in range(NUM_BANDS):
        key = np.zeros(len(shingles.starts) - 1, dtype=np.uint64)
        for _ in range(ROWS_PER_BAND):
            factor = rng.integers(2**64, dtype=np.uint64) | np.uint64(1)
            hashes = (mixed * factor) >> np.uint64(20)
            key = _mixed(key ^ np.minimum.reduceat(hashes, shingles.starts[:-1]))
        yield key


def _mixed(numbers: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele et al. 2014), so that neighbouring numbers hash far apart."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _neighbours(keys: Hashes, order: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a small bucket, and a chain through a large one."""
    for distance in range(1, 1 + MAX_NEIGHBOURS):
        alike = np.flatnonzero(keys[distance:] == keys[:-distance])
        # `order` is stable, so the first of the two is the earlier text.
        yield from zip(order[alike].tolist(), order[alike + distance].tolist(), strict=True)


def pair_groups(premises: Sequence[str], hypotheses: Sequence[str]) -> list[list[int]]:
    """Group pairs of normalised texts that are near duplicates in both texts: two or more, in order.

    Every member is a near duplicate of its group's first.
    """
    columns = [_grouped(premises), _grouped(hypotheses)]
    buckets: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(premises)):
        key = tuple(groups[numbers[index]] for numbers, _, groups in columns)
        buckets.setdefault(key, []).append(index)

    def near(a: int, b: int) -> bool:
        return all(
            shingles.similarity(numbers[a], numbers[b]) >= THRESHOLD for numbers, shingles, _ in columns
        )

    found = []
    for members in buckets.values():
        groups: list[list[int]] = []
        for index in members if len(members) > 1 else ():
            group = next((group for group in groups[:MAX_LEADERS] if near(group[0], index)), None)
            if group is None:
                groups.append([index])
            else:
                group.append(index)
        found += [group for group in groups if len(group) > 1]
    return sorted(found)


def _grouped(texts: Sequence[str]) -> tuple[list[int], Shingles, list[int]]:
    """Return each text's number among the distinct ones, their shingles, and their groups."""
    number_of: dict[str, int] = {}
    numbers = [number_of.setdefault(text, len(number_of)) for text in texts]
    shingles = Shingles(list(number_of))
    return numbers, shingles, text_groups(shingles)
