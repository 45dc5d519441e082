"""The `split` command: make a data root of one file of labelled pairs, or of a public set by its name.

A file is divided into train and dev such that no premise is in both: that would let a model recognise texts
instead of inferring, and inflate the dev metrics. A public set keeps its own splits.
"""

from __future__ import annotations

import itertools
import logging
import random
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlicot.command_line import CommandParser, OpenProportion
from nlicot.data.atomic_write import refuse_overwriting, write_csv, write_text
from nlicot.data.pairs import DEFAULT_FORMAT, PairFormat, labelled_pairs_shown, read_examples
from nlicot.data.public_sets import HUB_REVISION, find_public_set, provenance, read_public_set
from nlicot.data.root import DataRoot
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example
from nlicot.text_tables import counted

logger = logging.getLogger(__name__)

README = "README.md"
"""The name of the file with the source and licence of a public set, next to its pairs."""


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
    paths = _paths(out_root, ("train", "dev"))
    if pairs_path.resolve() in [path.resolve() for path in paths.values()]:
        raise ConfigError(f"{pairs_path} would be replaced by its own split; copy it elsewhere first")
    _refuse_other_files(out_root, paths)
    _refuse_another_set(out_root, paths)
    refuse_overwriting(*paths.values(), overwrite=overwrite)
    examples = read_examples(pairs_path, pair_format)
    num = sum(example.label is None for example in examples)
    if num == len(examples):
        raise DataError("pairs without labels", "a column label with 0 or 1", path=pairs_path)
    if num:
        remedy = "those with soft labels only can be --data.unlabelled_pairs of fit, in a file of their own"
        raise DataError(
            f"{counted(num, 'pair')} without a label", "one for each pair", path=pairs_path, remedy=remedy
        )
    try:
        split = split_examples(examples, dev, seed)
    except DataError as error:
        raise DataError(str(error), path=pairs_path) from None
    if len(labels := {example.label for example in examples}) == 1:
        logger.warning("%s: every pair has label %s; a model learns from both labels", pairs_path, *labels)
    return _write_pairs({paths["train"]: split.train, paths["dev"]: split.dev}, overwrite=overwrite)


def write_public_set(
    name: str,
    out_root: Path = Path("data"),
    *,
    dev: float,
    seed: int,
    pair_format: PairFormat = DEFAULT_FORMAT,
    overwrite: bool = False,
) -> dict[Path, list[Example]]:
    """Write a public set's splits, and a README.md with its licence, to `<out_root>/original_data/`.

    A set without its own dev pairs gets some of its training pairs. Returns the pairs by path.
    """
    public_set = find_public_set(name)
    paths = _paths(out_root, {"train": "", "dev": "", **public_set.splits})
    readme_path = out_root / "original_data" / README
    readme = provenance(name, public_set, pair_format)
    _refuse_other_files(out_root, paths)
    _refuse_another_set(out_root, paths, readme)
    refuse_overwriting(*paths.values(), readme_path, overwrite=overwrite)
    splits = read_public_set(public_set, pair_format)
    if "dev" not in splits:
        split = split_examples(splits["train"], dev, seed)
        splits |= {"train": split.train, "dev": split.dev}
    write_text(readme_path, readme, overwrite=overwrite)
    return _write_pairs({path: splits[name] for name, path in paths.items()}, overwrite=overwrite)


def _paths(out_root: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: out_root / "original_data" / f"{name}.csv" for name in names}


def _refuse_other_files(out_root: Path, paths: Mapping[str, Path]) -> None:
    """Refuse a root that has one of the splits in another format."""
    others = [DataRoot(out_root).pairs_files(name) for name in paths]
    if other := next((each for each in itertools.chain(*others) if each not in paths.values()), None):
        remedy = "a root has one file of each split: move it, or name another folder with --out"
        raise ConfigError(f"{other} exists already; {remedy}")


def _refuse_another_set(out_root: Path, paths: Mapping[str, Path], readme: str | None = None) -> None:
    """Refuse to leave what an earlier `--dataset` wrote next to pairs that are not of that set."""
    earlier = out_root / "original_data" / README
    if not earlier.is_file():
        return
    first_line = earlier.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if HUB_REVISION not in first_line or (readme is not None and readme.startswith(f"{first_line}\n")):
        return
    left = [path for path in DataRoot(out_root).pairs_files("test") if path not in paths.values()]
    if readme is None:
        left.insert(0, earlier)  # its licence and source would be taken for those of the new pairs
    if left:
        raise ConfigError(
            f"{', '.join(map(str, left))}: found it from another data set ({first_line}), expected none "
            "next to these pairs; move it away, or name another folder with --out"
        )


def _write_pairs(written: dict[Path, list[Example]], *, overwrite: bool) -> dict[Path, list[Example]]:
    for path, pairs in written.items():
        optional = ("label", "phenomenon", "p_entailment")
        names = ["id", "premise", "hypothesis"]
        names += [name for name in optional if any(getattr(pair, name) is not None for pair in pairs)]
        rows = ([getattr(pair, name) for name in names] for pair in pairs)
        write_csv(path, names, rows, overwrite=overwrite)
    return written


def main(args: Sequence[str]) -> int:
    """Run the `split` command."""
    parser = CommandParser(
        "split",
        description="Split labelled pairs into train and dev: seeded, stratified, no premise in both. "
        "Or write the splits of a public set.",
        example="python -m nlicot split pairs.csv --dev 0.1   (then: fit --root data)",
    )
    add = parser.add_argument
    pairs_help = "a file with the columns premise,hypothesis,label[,id]"
    add("pairs", nargs="?", type=Path | None, metavar="PAIRS.csv", help=pairs_help)
    add("--dataset", type=str | None, help="a public set instead of a file: a name that `datasets` lists")
    add("--dev", type=OpenProportion, default=0.1, help="proportion of the pairs that go to dev")
    add("--seed", type=int, default=0, help="seed of the split")
    add("--out", type=Path, default=Path("data"), help="the data root to write to")
    add("--overwrite", type=bool, default=False, help="replace an earlier split")
    parser.add_class_arguments(PairFormat)
    settings = parser.parse(args)
    if settings.pairs is None and settings.dataset is None:
        raise ConfigError("split: found no file of pairs, expected PAIRS.csv or --dataset NAME")
    if settings.pairs is not None and settings.dataset is not None:
        raise ConfigError(f"--dataset {settings.dataset}: found the file {settings.pairs} too, expected one")
    options = {
        "dev": settings.dev,
        "seed": settings.seed,
        "pair_format": PairFormat.of(settings),
        "overwrite": settings.overwrite,
    }
    if settings.dataset is None:
        written = write_split(settings.pairs, settings.out, **options)
    else:
        written = write_public_set(settings.dataset, settings.out, **options)
        print((settings.out / "original_data" / "README.md").read_text(encoding="utf-8"))
    for path, examples in written.items():
        num_positive = sum(example.label == 1 for example in examples)
        num_negative = sum(example.label == 0 for example in examples)
        counts = f"{num_positive} of label 1, {num_negative} of label 0"
        print(f"{path}: {len(examples)} pairs, {counts if num_positive + num_negative else 'no labels'}")
    everything = itertools.chain.from_iterable(written.values())
    print("\n".join(labelled_pairs_shown(everything)))
    root = shlex.quote(str(settings.out))
    print(f"next: python -m nlicot fit --config configs/label_only.yaml --root {root}")
    print("      (without a GPU add --config configs/overlays/small_model.yaml --model.base bundled)")
    return 0
