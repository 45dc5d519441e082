"""Pairs that come twice: in two splits, in one, with two labels, and premises that two splits share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nlicot.audit.findings import Finding, Section, place, unique
from nlicot.audit.minhash import groups_of_pairs, normalised
from nlicot.audit.reading import AuditData
from nlicot.records import Example
from nlicot.text_tables import Table, counted, percent

MANY_OF_SPLIT = 0.01
MANY_CONFLICTS = 0.005
MOST_SHOWN = 1000
"""Groups that JSON lists in full; ids are never cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    split: str
    example: Example
    key: tuple[str, str]

    @property
    def place(self) -> str:
        return place(self.split, self.example.id)


def check_duplicates(data: AuditData) -> Section:
    """Look for pairs that are the same but for case and punctuation, or nearly the same."""
    pairs = [
        _Pair(
            split=split.name,
            example=example,
            key=(normalised(example.premise), normalised(example.hypothesis)),
        )
        for split in data.splits
        for example in split.examples
    ]
    groups = [
        [pairs[index] for index in group]
        for group in groups_of_pairs([pair.key[0] for pair in pairs], [pair.key[1] for pair in pairs])
    ]
    sizes = {split.name: len(split.examples) for split in data.splits}
    across = [group for group in groups if len({pair.split for pair in group}) > 1]
    findings = [
        *_across_splits(across, sizes),
        *_label_conflicts(groups, len(pairs)),
        *_within_splits(groups, sizes),
        *_shared_premises(pairs, {pair.place for group in across for pair in group}, sizes),
    ]
    rows = [
        (finding.name, str(finding.figures["num"]), finding.figures["where"])
        for finding in findings
        if "where" in finding.figures
    ]
    table = Table(title="repetitions", header=("what", "pairs", "where"), rows=tuple(rows))
    return Section(
        name="duplicates",
        title="Duplicates",
        summary=f"{counted(len(pairs), 'pair')}, {counted(len(groups), 'group')} of pairs that are the same "
        "or nearly (word bigrams of premise and of hypothesis, Jaccard 0.8 or more)",
        findings=tuple(findings),
        tables=(table,) if rows else (),
        figures={"num_pairs": len(pairs), "num_groups": len(groups)},
    )


def _across_splits(groups: Sequence[Sequence[_Pair]], sizes: dict[str, int]) -> list[Finding]:
    """Pairs of an evaluated split that stand in another one too, the same ones and the near ones apart."""
    findings = []
    for name, want_same in (("pair in two splits", True), ("near duplicate in two splits", False)):
        chosen: list[list[str]] = []
        num = 0
        for group in groups:
            first_split = group[0].split
            others = [
                pair for pair in group if pair.split != first_split and _has_twin(pair, group) == want_same
            ]
            if others:
                num += len(others)
                twins = [pair for pair in group if pair.split == first_split]
                chosen.append([pair.place for pair in (*twins, *others)])
        if not chosen:
            continue
        ids = unique(id_ for group in chosen for id_ in group)
        smallest = min(sizes[id_.partition("/")[0]] for id_ in ids)
        is_bad = want_same or num >= MANY_CONFLICTS * smallest
        like = "the same but for case and punctuation" if want_same else "nearly the same"
        findings.append(
            Finding(
                name=name,
                severity="error" if is_bad else "warning",
                summary=f"{counted(num, 'pair')} {like} as one of another split",
                advice="take them out of train: figures on the other split would measure memory",
                ids=ids,
                figures={"num": num, "where": _splits_of(ids), "groups": chosen[:MOST_SHOWN]},
            )
        )
    return findings


def _has_twin(pair: _Pair, group: Sequence[_Pair]) -> bool:
    return any(other.split != pair.split and other.key == pair.key for other in group)


def _label_conflicts(groups: Sequence[Sequence[_Pair]], num_pairs: int) -> list[Finding]:
    """Pairs of the same words and two labels; near duplicates may differ in the very word that decides."""
    chosen = []
    for group in groups:
        by_key: dict[tuple[str, str], list[_Pair]] = {}
        for pair in group:
            if pair.example.label is not None:
                by_key.setdefault(pair.key, []).append(pair)
        chosen += [same for same in by_key.values() if len({pair.example.label for pair in same}) > 1]
    if not chosen:
        return []
    ids = unique(pair.place for group in chosen for pair in group)
    return [
        Finding(
            name="same pair, two labels",
            severity="error" if len(ids) >= MANY_CONFLICTS * num_pairs else "warning",
            summary=f"{counted(len(ids), 'pair')} of the same words with both labels",
            advice="read them and keep the right one, or drop both: no model can learn them",
            ids=ids,
            figures={
                "num": len(ids),
                "where": _splits_of(ids),
                "groups": [[pair.place for pair in group] for group in chosen[:MOST_SHOWN]],
            },
        )
    ]


def _within_splits(groups: Sequence[Sequence[_Pair]], sizes: dict[str, int]) -> list[Finding]:
    findings = []
    for name, want_same, like in (
        ("repeated pairs", True, "the same but for case and punctuation"),
        ("near duplicates", False, "nearly the same"),
    ):
        for split, size in sizes.items():
            chosen = []
            for group in groups:
                own = [pair for pair in group if pair.split == split]
                repeated = [
                    pair
                    for number, pair in enumerate(own[1:], 1)
                    if _repeats(pair, own[:number]) == want_same
                    # Another label makes it a contrast, which teaches, or a conflict, which is told apart.
                    and any(pair.example.label == other.example.label for other in own[:number])
                ]
                if repeated:
                    chosen.append([own[0].place, *(pair.place for pair in repeated)])
            if not chosen:
                continue
            num = sum(len(group) - 1 for group in chosen)
            findings.append(
                Finding(
                    name=name,
                    severity="warning" if num >= MANY_OF_SPLIT * size else "note",
                    summary=f"{counted(num, 'pair')} of {split} ({percent(num / size)}) {like} as an "
                    "earlier one",
                    advice="drop the repetitions: they weigh double in training, and intervals on dev come "
                    "out too narrow",
                    ids=unique(id_ for group in chosen for id_ in group),
                    figures={"num": num, "where": split, "groups": chosen[:MOST_SHOWN]},
                )
            )
    return findings


def _repeats(pair: _Pair, earlier: Iterable[_Pair]) -> bool:
    return any(other.key == pair.key for other in earlier)


def _shared_premises(pairs: Sequence[_Pair], told: set[str], sizes: dict[str, int]) -> list[Finding]:
    """Premises of train in another split; pairs that are told as duplicates already are left out."""
    of_train: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.split == "train":
            of_train.setdefault(pair.key[0], []).append(pair.place)
    findings = []
    for split, size in sizes.items():
        if split == "train":
            continue
        shared = [
            pair
            for pair in pairs
            if pair.split == split and pair.key[0] in of_train and pair.place not in told
        ]
        if not shared:
            continue
        findings.append(
            Finding(
                name="premise in two splits",
                severity="warning" if len(shared) >= MANY_OF_SPLIT * size else "note",
                summary=f"{counted(len(shared), 'pair')} of {split} ({percent(len(shared) / size)}) with a "
                "premise that stands in train too",
                advice="a model may know the text by heart: `python -m nlicot split` keeps premises apart",
                ids=tuple(pair.place for pair in shared),
                figures={"num": len(shared), "where": f"train, {split}"},
            )
        )
    return findings


def _splits_of(ids: Iterable[str]) -> str:
    return ", ".join(unique(id_.partition("/")[0] for id_ in ids))
