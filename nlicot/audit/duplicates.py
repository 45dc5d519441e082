"""Check for repeated pairs, premises and thoughts, within and across splits, and for pairs in prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product

import numpy as np

from nlicot.audit.findings import Finding, Section, full_id, unique
from nlicot.audit.inputs import AuditData, normalised
from nlicot.text_tables import Table, counted, percent

THRESHOLD = 0.8
NUM_BANDS, ROWS_PER_BAND, SEED = 20, 6, 0
MANY_OF_SPLIT = 0.01
MANY_CONFLICTS = 0.005
MANY_THOUGHTS = 0.05
MAX_GROUPS_IN_JSON = 1000  # ids are never cut
MIN_CONTAINMENT = 0.8
MIN_WORDS = 6  # shorter texts may occur in a prompt by chance
LIKE = {True: "the same but for case and punctuation", False: "nearly the same"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    split: str
    full_id: str
    label: int | None
    key: tuple[str, str]


def _pairs(data: AuditData) -> list[_Pair]:
    return [
        _Pair(
            split=split.name,
            full_id=full_id(split.name, each.id),
            label=each.label,
            key=(normalised(each.premise), normalised(each.hypothesis)),
        )
        for split in data.splits
        for each in split.examples
    ]


def check_duplicates(data: AuditData) -> Section:
    """Look for pairs that are the same but for case and punctuation, or nearly the same."""
    pairs = _pairs(data)
    groups = [[pairs[index] for index in group] for group in pair_groups([pair.key for pair in pairs])]
    sizes = {split.name: len(split.examples) for split in data.splits}
    across = [group for group in groups if len({pair.split for pair in group}) > 1]
    findings = [
        *_across_splits(across, sizes),
        *_label_conflicts(groups, len(pairs)),
        *_within_splits(groups, sizes),
        *_shared_premises(pairs, {pair.full_id for group in across for pair in group}, sizes),
        *_repeated_thoughts(data),
    ]
    rows = [(finding.name, str(finding.figures["num"]), finding.figures["where"]) for finding in findings]
    table = Table(title="repetitions", header=("what", "pairs", "where"), rows=rows)
    return Section(
        name="duplicates",
        title="Duplicates",
        summary=f"{counted(len(pairs), 'pair')}, {counted(len(groups), 'group')} of pairs that are the same "
        "or nearly (word bigrams of premise and of hypothesis, Jaccard 0.8 or more)",
        findings=tuple(findings),
        tables=(table,) if rows else (),
        figures={"num_pairs": len(pairs), "num_groups": len(groups)},
    )


def pair_groups(pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return groups of indices of pairs that are near duplicates of the group's first pair in both texts.

    MinHash (Broder 1997, "On the resemblance and containment of documents") with banding (Leskovec et al.,
    "Mining of Massive Datasets", chapter 3) proposes candidates, which are compared exactly: there are no
    false positives, and at the threshold about 2 pairs in 1,000 are missed.
    """
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    texts = list(dict.fromkeys(chain.from_iterable(pairs)))
    encoded = ([" ".join(each).encode() for each in _bigrams(text)] for text in texts)
    num_rows = NUM_BANDS * ROWS_PER_BAND
    sketches = MinHash.generator(encoded, num_perm=num_rows // 2, seed=SEED)
    hashes_of = {text: sketch.hashvalues for text, sketch in zip(texts, sketches, strict=True)}
    index = MinHashLSH(num_perm=num_rows, params=(NUM_BANDS, ROWS_PER_BAND))
    groups = defaultdict(list)
    for number, pair in enumerate(pairs):
        # Each band has rows of both texts, so pairs that share only a premise are not candidates.
        hashes = np.stack([hashes_of[text] for text in pair], axis=1).ravel()
        sketch = LeanMinHash(seed=SEED, hashvalues=hashes, scheme="affine32")
        for first in sorted(index.query(sketch)):
            if all(similarity(a, b) >= THRESHOLD for a, b in zip(pair, pairs[first], strict=True)):
                groups[first].append(number)
                break
        else:
            index.insert(number, sketch)
            groups[number].append(number)
    return [group for group in groups.values() if len(group) > 1]


def similarity(a: str, b: str) -> float:
    """Return the Jaccard index of two texts' word bigrams: the size of the intersection over the union's."""
    of_a, of_b = _bigrams(a), _bigrams(b)
    return len(of_a & of_b) / len(of_a | of_b)


def _bigrams(text: str) -> set[tuple[str, str]]:
    """Word bigrams; the text's start and end count as words."""
    return set(pairwise(("", *text.split(), "")))


def _across_splits(groups: Sequence[Sequence[_Pair]], sizes: dict[str, int]) -> Iterator[Finding]:
    for name, is_same in (("pair in two splits", True), ("near duplicate in two splits", False)):
        id_groups, num = [], 0
        for group in groups:
            repeated = [
                pair
                for pair in group
                if pair.split != group[0].split
                and any(other.split != pair.split and other.key == pair.key for other in group) == is_same
            ]
            if repeated:
                num += len(repeated)
                originals = [pair for pair in group if pair.split == group[0].split]
                id_groups.append([pair.full_id for pair in (*originals, *repeated)])
        if id_groups:
            smallest = min(sizes[id_.partition("/")[0]] for id_ in chain.from_iterable(id_groups))
            yield _finding(
                name,
                id_groups,
                num,
                severity="error" if is_same or num >= MANY_CONFLICTS * smallest else "warning",
                summary=f"{counted(num, 'pair')} {LIKE[is_same]} as one of another split",
                advice="remove them from train: figures on the other split would measure memory",
            )


def _label_conflicts(groups: Sequence[Sequence[_Pair]], num_pairs: int) -> Iterator[Finding]:
    """Only pairs of the same words count: near duplicates may differ in the very word that decides."""
    same_words = defaultdict(list)
    for pair in chain.from_iterable(groups):
        if pair.label is not None:
            same_words[pair.key].append(pair)
    id_groups = [
        [pair.full_id for pair in same]
        for same in same_words.values()
        if len({pair.label for pair in same}) > 1
    ]
    if id_groups:
        num = len(set(chain.from_iterable(id_groups)))
        yield _finding(
            "same pair, two labels",
            id_groups,
            num,
            severity="error" if num >= MANY_CONFLICTS * num_pairs else "warning",
            summary=f"{counted(num, 'pair')} of the same words with both labels",
            advice="read them and keep the right one, or drop both: no model can learn them",
        )


def _within_splits(groups: Sequence[Sequence[_Pair]], sizes: dict[str, int]) -> Iterator[Finding]:
    kinds = (("repeated pairs", True), ("near duplicates", False))
    for (name, is_same), (split, size) in product(kinds, sizes.items()):
        id_groups = []
        for group in groups:
            own = [pair for pair in group if pair.split == split]
            repeated = [
                pair.full_id
                for number, pair in enumerate(own)
                if any(other.key == pair.key for other in own[:number]) == is_same
                # With another label it is a useful contrast, or a conflict, which is reported separately.
                and any(pair.label == other.label for other in own[:number])
            ]
            if repeated:
                id_groups.append([own[0].full_id, *repeated])
        if id_groups:
            num = sum(len(group_ids) - 1 for group_ids in id_groups)
            yield _finding(
                name,
                id_groups,
                num,
                severity="warning" if num >= MANY_OF_SPLIT * size else "note",
                summary=f"{counted(num, 'pair')} of {split} ({percent(num / size)}) {LIKE[is_same]} as an "
                "earlier one",
                advice="drop the repetitions: they count double in training and make intervals on dev "
                "too narrow",
            )


def _finding(
    name: str, id_groups: list[list[str]], num: int, *, severity: str, summary: str, advice: str
) -> Finding:
    ids = unique(chain.from_iterable(id_groups))
    splits = ", ".join(unique(id_.partition("/")[0] for id_ in ids))
    figures = {"num": num, "where": splits, "groups": id_groups[:MAX_GROUPS_IN_JSON]}
    return Finding(name=name, severity=severity, summary=summary, advice=advice, ids=ids, figures=figures)


def _shared_premises(pairs: Sequence[_Pair], reported: set[str], sizes: dict[str, int]) -> Iterator[Finding]:
    """Pairs already reported as duplicates are skipped."""
    train_premises = {pair.key[0] for pair in pairs if pair.split == "train"}
    for split, size in sizes.items():
        ids = [
            pair.full_id
            for pair in pairs
            if pair.split == split != "train" and pair.key[0] in train_premises
            if pair.full_id not in reported
        ]
        if ids:
            yield Finding(
                name="premise in two splits",
                severity="warning" if len(ids) >= MANY_OF_SPLIT * size else "note",
                summary=f"{counted(len(ids), 'pair')} of {split} ({percent(len(ids) / size)}) with a premise "
                "that is also in train",
                advice="a model may know the text by heart: `python -m nlicot split` keeps premises apart",
                ids=tuple(ids),
                figures={"num": len(ids), "where": f"train, {split}"},
            )


def _repeated_thoughts(data: AuditData) -> Iterator[Finding]:
    pairs_of = defaultdict(set)
    thoughts = []
    for split in data.splits:
        for thought in split.thoughts:
            text = normalised(thought.thought_process)
            pairs_of[text].add((normalised(thought.premise), normalised(thought.hypothesis)))
            thoughts.append((split.name, thought.id, text))
    repeated = [(split, id_) for split, id_, text in thoughts if len(pairs_of[text]) > 1]
    if repeated:
        num, proportion = len(repeated), len(repeated) / len(thoughts)
        yield Finding(
            name="one thought for several pairs",
            severity="error" if proportion >= MANY_THOUGHTS else "warning",
            summary=f"{num} of {counted(len(thoughts), 'thought')} ({percent(proportion)}) are word for word "
            "the thought of another pair too",
            advice="generate these pairs again: such a text was written without reading",
            ids=unique(full_id(split, id_) for split, id_ in repeated),
            figures={"share": proportion, "num": num, "where": ", ".join(unique(s for s, _ in repeated))},
        )


def check_prompt_examples(data: AuditData) -> Section | None:
    """Look for pairs in prompts: a teacher or student that was shown a pair there does not infer it."""
    if not data.prompts:
        return None
    pairs = _pairs(data)
    ids_of = {}
    for name, prompt in data.prompts.items():
        bigrams = set(pairwise(normalised(prompt).split()))
        if ids := [pair.full_id for pair in pairs if any(_occurs(text, bigrams) for text in pair.key)]:
            ids_of[name] = ids
    all_ids = unique(chain.from_iterable(ids_of.values()))
    finding = Finding(
        name="pair in a prompt",
        severity="error",
        summary=f"{counted(len(all_ids), 'pair')} with a text that occurs in {', '.join(ids_of)}",
        advice="use other examples in the prompt, or leave these pairs out of what is measured",
        ids=all_ids,
        figures={"by_prompt": ids_of},
    )
    return Section(
        name="prompt_examples",
        title="Prompt examples",
        summary=f"{len(data.prompts)} prompts, {len(all_ids)} pairs in them",
        findings=(finding,) if all_ids else (),
    )


def _occurs(text: str, bigrams: set[tuple[str, str]]) -> bool:
    words = text.split()
    own = list(pairwise(words))
    return len(words) >= MIN_WORDS and sum(each in bigrams for each in own) / len(own) >= MIN_CONTAINMENT
