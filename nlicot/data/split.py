"""One file of labelled pairs into train and dev, so that no premise stands in both.

The first step of a person's own project; `write_split` makes the data root that all other commands read.
A premise in both splits would let a model recognise texts instead of inferring, and flatter the dev figures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlicot.command_line import LABEL_MAP_HELP, CommandParser, LabelMap
from nlicot.data.atomic_write import refuse_overwriting, write_csv
from nlicot.data.pairs import read_examples
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Pairs for training and for development, each in the order of the file they come from."""

    train: list[Example]
    dev: list[Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSplit:
    """A split, and the files it was written to."""

    split: Split
    train_path: Path
    dev_path: Path


def split_examples(examples: Sequence[Example], dev: float, seed: int) -> Split:
    """Split by premise, with each label's share in dev as near to `dev` as whole premises allow.

    Premises are taken in an order shuffled by `seed`, each one that brings the counts per label nearer to
    what is asked for. The same pairs, share and seed give the same split on every machine.

    Args:
        dev: share of the pairs that go to dev, between 0 and 1.

    Raises:
        ConfigError: `dev` is not between 0 and 1.
        DataError: the pairs have fewer than two different premises.
    """
    if not 0 < dev < 1:
        raise ConfigError(f"--dev: found {dev}, expected a number between 0 and 1, for example 0.1")
    labels_of: dict[str, Counter[int | None]] = {}
    for example in examples:
        labels_of.setdefault(example.premise, Counter())[example.label] += 1
    if len(labels_of) < 2:
        raise DataError(f"{len(labels_of)} different premises", "2 or more, to have one in each split")
    # The smaller side is filled: the many premises that remain can then even out what the first ones skewed.
    chosen = _premises_for(min(dev, 1 - dev), labels_of, seed)
    in_dev = [(example.premise in chosen) == (dev <= 0.5) for example in examples]
    return Split(
        train=[example for example, is_dev in zip(examples, in_dev, strict=True) if not is_dev],
        dev=[example for example, is_dev in zip(examples, in_dev, strict=True) if is_dev],
    )


def _premises_for(share: float, labels_of: Mapping[str, Counter[int | None]], seed: int) -> set[str]:
    premises = list(labels_of)
    random.Random(seed).shuffle(premises)
    missing: dict[int | None, float] = {}
    for labels in labels_of.values():
        for label, count in labels.items():
            missing[label] = missing.get(label, 0.0) + share * count
    chosen = set()
    for premise in premises:
        labels = labels_of[premise]
        # (m - c)^2 < m^2, summed over the premise's labels: taking it leaves less missing than leaving it.
        if sum(count * (count - 2 * missing[label]) for label, count in labels.items()) < 0:
            chosen.add(premise)
            for label, count in labels.items():
                missing[label] -= count
    # A share of less than half a pair still gets the smallest premise, so that neither side is empty.
    return chosen or {min(premises, key=lambda premise: labels_of[premise].total())}


def write_split(
    pairs_path: Path,
    out_root: Path = Path("data"),
    *,
    dev: float,
    seed: int,
    label_map: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> WrittenSplit:
    """Split a file of labelled pairs into `<out_root>/original_data/train.csv` and `dev.csv`.

    Raises:
        ConfigError: `dev` is no share, an output exists and `overwrite` is false, or is the input itself.
        DataError: the pairs cannot be read, have no labels, or have fewer than two premises.
    """
    folder = out_root / "original_data"
    train_path, dev_path = folder / "train.csv", folder / "dev.csv"
    if pairs_path.resolve() in (train_path.resolve(), dev_path.resolve()):
        raise ConfigError(f"{pairs_path} would be replaced by its own split; copy it elsewhere first")
    refuse_overwriting(train_path, dev_path, overwrite=overwrite)
    examples = read_examples(pairs_path, label_map=label_map)
    if examples[0].label is None:
        raise DataError("pairs without labels", "a column label with 0 or 1", path=pairs_path)
    try:
        split = split_examples(examples, dev, seed)
    except DataError as error:
        raise DataError(str(error), path=pairs_path) from None
    _write_pairs(train_path, split.train, overwrite)
    _write_pairs(dev_path, split.dev, overwrite)
    return WrittenSplit(split=split, train_path=train_path, dev_path=dev_path)


def _write_pairs(path: Path, examples: list[Example], overwrite: bool) -> None:
    header = ["id", "premise", "hypothesis", "label"]
    if any(example.phenomenon for example in examples):
        header.append("phenomenon")
    rows = ([getattr(example, name) for name in header] for example in examples)
    write_csv(path, header, rows, overwrite=overwrite)


def main(args: Sequence[str]) -> int:
    """Run the `split` command."""
    parser = CommandParser(
        "split",
        description="Split labelled pairs into train and dev: seeded, stratified, no premise in both.",
        example="python -m nlicot split pairs.csv --dev 0.1   (then: fit --root data)",
    )
    add = parser.add_argument
    add("pairs", type=Path, metavar="PAIRS.csv", help="a file with the columns premise,hypothesis,label[,id]")
    add("--dev", type=float, default=0.1, help="proportion of the pairs that go to dev")
    add("--seed", type=int, default=0, help="seed of the split")
    add("--out", type=Path, default=Path("data"), help="the data root to write to")
    add("--label_map", type=LabelMap, default=None, help=LABEL_MAP_HELP)
    add("--overwrite", type=bool, default=False, help="replace an earlier split")
    settings = parser.parse(args)
    written = write_split(
        settings.pairs,
        settings.out,
        dev=settings.dev,
        seed=settings.seed,
        label_map=settings.label_map,
        overwrite=settings.overwrite,
    )
    for path, examples in ((written.train_path, written.split.train), (written.dev_path, written.split.dev)):
        num_positive = sum(example.label == 1 for example in examples)
        counts = f"{num_positive} of label 1, {len(examples) - num_positive} of label 0"
        print(f"{path}: {len(examples)} pairs, {counts}")
    print(f"next: python -m nlicot fit --config configs/label_only.yaml --root {settings.out}")
    print("      (without a GPU add --model.base bundled)")
    return 0
