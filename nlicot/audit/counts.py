"""Check the size of each split and the balance of its labels."""

from __future__ import annotations

from collections.abc import Container, Iterator

from nlicot.audit.findings import Finding, Section, full_id
from nlicot.audit.inputs import AuditData, SplitData
from nlicot.data.pairs import LABELLED_SPLITS
from nlicot.text_tables import Table, percent

RARE = 0.05  # with a label below this proportion, a model that never predicts it looks good
UNEVEN = 0.3
MIN_DIFFERENCE = 0.1


def check_counts(data: AuditData) -> Section:
    """Count every split, and look for labels that are rare or distributed differently in train and dev."""
    rows, figures, proportions = [], {}, {}
    findings: list[Finding] = []
    for split in data.splits:
        num_labelled = len(split.labelled)
        num_positive = sum(example.label == 1 for example in split.labelled)
        counts = {
            "pairs": len(split.examples),
            "premises": len({example.premise for example in split.examples}),
            "label 1": num_positive,
            "label 0": num_labelled - num_positive,
            "unlabelled": len(split.examples) - num_labelled,
            "thoughts": len(split.thoughts),
            "reflections": len(split.reflections),
        }
        figures[split.name] = counts
        positive = "-"
        if num_labelled:
            proportions[split.name] = num_positive / num_labelled
            positive = percent(proportions[split.name])
            findings += _rare_label(split, proportions[split.name])
        rows.append((split.name, *map(str, counts.values()), positive))
    if {"train", "dev"} <= proportions.keys():
        num_dev = next(len(split.labelled) for split in data.splits if split.name == "dev")
        findings += _different_balance(proportions["train"], proportions["dev"], num_dev)
    findings += _not_checked(data, labelled=proportions)
    header = ("split", *next(iter(figures.values())), "share of label 1")
    return Section(
        name="counts",
        title="Counts and balance",
        summary=", ".join(f"{len(split.examples)} pairs of {split.name}" for split in data.splits),
        findings=tuple(findings),
        tables=(Table(title="pairs and texts", header=header, rows=tuple(rows)),),
        figures=figures,
    )


def _not_checked(data: AuditData, *, labelled: Container[str]) -> Iterator[Finding]:
    """Report what is missing for checks that are left out without it."""
    names = [split.name for split in data.splits]
    if data.of_root and "train" not in names:
        yield Finding(
            name="no train pairs",
            severity="warning",
            summary=f"only {' and '.join(names)} can be read, so nothing is compared with train",
            advice="name a root with original_data/train.csv, or the file by --train_pairs",
        )
    for name in names:
        if name in LABELLED_SPLITS and name not in labelled:
            yield Finding(
                name="no labels",
                severity="warning",
                summary=f"{name} has no labels, so nothing that depends on them is checked",
                advice="add a column label, or name yours: --columns label=NAME",
            )


def _rare_label(split: SplitData, proportion: float) -> Iterator[Finding]:
    label, least = (1, proportion) if proportion < 0.5 else (0, 1 - proportion)
    if least >= UNEVEN:
        return
    ids = tuple(full_id(split.name, example.id) for example in split.labelled if example.label == label)
    advice = "collect pairs of that label"
    if ids:
        advice = (
            "collect more of that label, or train with --data.builder.balance true, and judge by macro F1: "
            "accuracy flatters a model that never predicts it"
        )
    yield Finding(
        name="rare label",
        severity="error" if least < RARE else "warning",
        summary=f"label {label} is {percent(least)} of {split.name} "
        f"({len(ids)} of {len(split.labelled)} pairs)",
        advice=advice,
        ids=ids,
        figures={"label": label, "share": least},
    )


def _different_balance(train: float, dev: float, num_dev: int) -> Iterator[Finding]:
    by_chance = 2.0 * (train * (1 - train) / num_dev) ** 0.5
    if abs(train - dev) >= max(MIN_DIFFERENCE, by_chance):
        yield Finding(
            name="label shares differ",
            severity="warning",
            summary=f"label 1 is {percent(train)} of train and {percent(dev)} of dev",
            advice="split again (python -m nlicot split keeps the balance), or expect dev figures to mislead",
            figures={"train": train, "dev": dev},
        )
