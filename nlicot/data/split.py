"""The `split` command: divide one file of labelled pairs into train and dev such that no premise is in both.

A premise in both would let a model recognise texts instead of inferring, and inflate the dev metrics.
"""

from __future__ import annotations

import itertools
import logging
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlicot.command_line import CommandParser, OpenProportion
from nlicot.data.atomic_write import refuse_overwriting, write_csv
from nlicot.data.pairs import DEFAULT_FORMAT, PairFormat, labelled_pairs_shown, read_examples
from nlicot.data.root import DataRoot
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Pairs for training and for development, each in the order of their file."""

    train: list[Example]
    dev: list[Example]


def split_examples(examples: Sequence[Example], dev: float, seed: int) -> Split:
    """Split by premise, with each label's proportion in dev as close to `dev` as whole premises allow.

    Premises are visited in an order shuffled by `seed`; each one that brings the counts per label closer to
    the target is taken. The same arguments give the same split on every machine.
    """
    labels_of: dict[str, Counter[int | None]] = {}
    for example in examples:
        labels_of.setdefault(_premise_key(example), Counter())[example.label] += 1
    if len(labels_of) < 2:
        raise DataError(f"{len(labels_of)} different premises", "2 or more, to have one in each split")
    # The smaller side is filled: the many premises that remain can even out what the first ones skewed.
    chosen = _premises_for(min(dev, 1 - dev), labels_of, seed)
    split = Split(train=[], dev=[])
    for example in examples:
        is_dev = (_premise_key(example) in chosen) == (dev <= 0.5)
        (split.dev if is_dev else split.train).append(example)
    return split


def _premise_key(example: Example) -> str:
    """Return the premise in one form: a model recognises it whatever its blanks and composed letters."""
    return unicodedata.normalize("NFC", " ".join(example.premise.split()))


def _premises_for(proportion: float, labels_of: Mapping[str, Counter[int | None]], seed: int) -> set[str]:
    premises = list(labels_of)
    random.Random(seed).shuffle(premises)
    missing: dict[int | None, float] = defaultdict(float)
    for labels in labels_of.values():
        for label, count in labels.items():
            missing[label] += proportion * count
    chosen = set()
    for premise in premises:
        labels = labels_of[premise]
        # (m - c)^2 < m^2, summed over the premise's labels: less is missing with the premise than without.
        if sum(count * (count - 2 * missing[label]) for label, count in labels.items()) < 0:
            chosen.add(premise)
            for label, count in labels.items():
                missing[label] -= count
    # A proportion of less than half a pair still gets the smallest premise, so that no side is empty.
    return chosen or {min(premises, key=lambda premise: labels_of[premise].total())}


def write_split(
    pairs_path: Path,
    out_root: Path = Path("data"),
    *,
    dev: float,
    seed: int,
    pair_format: PairFormat = DEFAULT_FORMAT,
    overwrite: bool = False,
) -> dict[Path, list[Example]]:
    """Split a file into `<out_root>/original_data/train.csv` and `dev.csv`; return the pairs by path."""
    paths = [out_root / "original_data" / name for name in ("train.csv", "dev.csv")]
    if pairs_path.resolve() in [path.resolve() for path in paths]:
        raise ConfigError(f"{pairs_path} would be replaced by its own split; copy it elsewhere first")
    others = [DataRoot(out_root).pairs_files(path.stem) for path in paths]
    if other := next((each for each in itertools.chain(*others) if each not in paths), None):
        remedy = "a root has one file of each split: move it, or name another folder with --out"
        raise ConfigError(f"{other} exists already; {remedy}")
    refuse_overwriting(*paths, overwrite=overwrite)
    examples = read_examples(pairs_path, pair_format)
    if examples[0].label is None:
        raise DataError("pairs without labels", "a column label with 0 or 1", path=pairs_path)
    try:
        split = split_examples(examples, dev, seed)
    except DataError as error:
        raise DataError(str(error), path=pairs_path) from None
    if len(labels := {example.label for example in examples}) == 1:
        logger.warning("%s: every pair has label %s; a model learns from both labels", pairs_path, *labels)
    written = dict(zip(paths, (split.train, split.dev), strict=True))
    for path, pairs in written.items():
        names = ["id", "premise", "hypothesis", "label", "phenomenon"]
        header = names if any(pair.phenomenon for pair in pairs) else names[:-1]
        rows = ([getattr(pair, name) for name in header] for pair in pairs)
        write_csv(path, header, rows, overwrite=overwrite)
    return written


def main(args: Sequence[str]) -> int:
    """Run the `split` command."""
    parser = CommandParser(
        "split",
        description="Split labelled pairs into train and dev: seeded, stratified, no premise in both.",
        example="python -m nlicot split pairs.csv --dev 0.1   (then: fit --root data)",
    )
    add = parser.add_argument
    add("pairs", type=Path, metavar="PAIRS.csv", help="a file with the columns premise,hypothesis,label[,id]")
    add("--dev", type=OpenProportion, default=0.1, help="proportion of the pairs that go to dev")
    add("--seed", type=int, default=0, help="seed of the split")
    add("--out", type=Path, default=Path("data"), help="the data root to write to")
    add("--overwrite", type=bool, default=False, help="replace an earlier split")
    parser.add_class_arguments(PairFormat)
    settings = parser.parse(args)
    written = write_split(
        settings.pairs,
        settings.out,
        dev=settings.dev,
        seed=settings.seed,
        pair_format=PairFormat.of(settings),
        overwrite=settings.overwrite,
    )
    for path, examples in written.items():
        num_positive = sum(example.label == 1 for example in examples)
        counts = f"{num_positive} of label 1, {len(examples) - num_positive} of label 0"
        print(f"{path}: {len(examples)} pairs, {counts}")
    everything = itertools.chain.from_iterable(written.values())
    print("\n".join(labelled_pairs_shown(everything)))
    print(f"next: python -m nlicot fit --config configs/label_only.yaml --root {settings.out}")
    print("      (without a GPU add --model.base bundled)")
    return 0
