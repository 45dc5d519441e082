"""Counts and balance: how many pairs, premises and texts each split has, and of which label."""

from __future__ import annotations

from nlicot.audit.findings import Finding, Section, place
from nlicot.audit.reading import AuditData, SplitData
from nlicot.text_tables import Table, percent

LEAST_SHARE = 0.05
"""Below this share of a label a model that never predicts it looks good."""
UNEVEN_SHARE = 0.3
SHARES_APART = 0.1


def check_counts(data: AuditData) -> Section:
    """Count every split, and look for labels that are rare or shared out unevenly."""
    rows, findings, figures, shares = [], [], {}, {}
    for split in data.splits:
        labelled = split.labelled
        ones = sum(example.label == 1 for example in labelled)
        counts = {
            "pairs": len(split.examples),
            "premises": len({example.premise for example in split.examples}),
            "label 1": ones,
            "label 0": len(labelled) - ones,
            "unlabelled": len(split.examples) - len(labelled),
            "thoughts": len(split.thoughts),
            "reflections": len(split.reflections),
        }
        figures[split.name] = counts
        share = ones / len(labelled) if labelled else None
        shown = "-" if share is None else percent(share)
        rows.append((split.name, *map(str, counts.values()), shown))
        if share is not None:
            shares[split.name] = (share, len(labelled))
            findings += _rare_label(split, share)
    if {"train", "dev"} <= shares.keys():
        findings += _shares_apart(shares["train"], shares["dev"])
    header = ("split", *next(iter(figures.values())), "share of label 1")
    return Section(
        name="counts",
        title="Counts and balance",
        summary=", ".join(f"{len(split.examples)} pairs of {split.name}" for split in data.splits),
        findings=tuple(findings),
        tables=(Table(title="pairs and texts", header=header, rows=tuple(rows)),),
        figures=figures,
    )


def _rare_label(split: SplitData, share: float) -> list[Finding]:
    label, least = (1, share) if share < 0.5 else (0, 1 - share)
    if least >= UNEVEN_SHARE:
        return []
    ids = [place(split.name, example.id) for example in split.labelled if example.label == label]
    num = f"{percent(least)} of {split.name} ({len(ids)} of {len(split.labelled)} pairs)"
    return [
        Finding(
            name="rare label",
            severity="error" if least < LEAST_SHARE else "warning",
            summary=f"label {label} is {num}",
            advice="collect more of that label, or train with --data.builder.balance true, and judge by "
            "macro F1: accuracy flatters a model that never says it",
            ids=tuple(ids),
            figures={"label": label, "share": least},
        )
    ]


def _shares_apart(train: tuple[float, int], dev: tuple[float, int]) -> list[Finding]:
    (train_share, _), (dev_share, num_dev) = train, dev
    spread = 2.0 * (train_share * (1 - train_share) / num_dev) ** 0.5
    if abs(train_share - dev_share) < max(SHARES_APART, spread):
        return []
    return [
        Finding(
            name="label shares differ",
            severity="warning",
            summary=f"label 1 is {percent(train_share)} of train and {percent(dev_share)} of dev",
            advice="split anew (python -m nlicot split keeps the shares), or expect dev figures to mislead",
            figures={"train": train_share, "dev": dev_share},
        )
    ]
