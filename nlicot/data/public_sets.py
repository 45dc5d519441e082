"""Public data sets by name: where the hub has each, and how its columns and labels are read.

`split --dataset NAME` makes a data root of one, which every other command reads; `datasets` lists them. The
library `datasets` downloads a set and keeps it in its cache. A set with other columns or class labels than in
this table is refused: 0 means entailment in most of them, and their other numbers have no common order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nlicot.command_line import CommandParser
from nlicot.config_files import hint
from nlicot.data.pairs import ColumnNames, LabelMap, PairFormat, read_examples
from nlicot.data.rows import Row
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example
from nlicot.text_tables import Table, aligned

logger = logging.getLogger(__name__)

THREE_WAY = {"entailment": 1, "neutral": 0, "contradiction": 0}
CONVERTED = "refs/convert/parquet"
"""The hub's own conversion of a set whose files need a script, which `datasets` no longer runs."""
CHANGED = "the set is not what it was: read its files with --columns and --label_map instead"
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSet:
    """A data set on the hub; `{variant}` in a field is what follows the colon in `xnli:de`.

    Args:
        path: its name on the hub.
        revision: the commit that this table describes, or a branch.
        config: the part of it that is read, by its name there; None if it has only one.
        splits: its own split for each of ours; without dev, dev is taken from train.
        unlabelled: our splits that have no labels there.
        columns: its names of our columns; ids are made from content, since its own repeat in some sets.
        labels: the reading of each label, in the order of its class labels.
        variants: what may follow the colon.
        license_: as the hub's card states it.
        citation: authors, year, title and venue.
    """

    path: str
    revision: str
    config: str | None = None
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"}
    )
    unlabelled: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int]
    variants: Sequence[str] = ()
    license_: str
    citation: str

    def of_variant(self, variant: str) -> PublicSet:
        """Return the set of one variant."""
        splits = {ours: theirs.format(variant=variant) for ours, theirs in self.splits.items()}
        return replace(self, config=self.config and self.config.format(variant=variant), splits=splits)

    def format_with(self, given: PairFormat) -> PairFormat:
        """Return how its pairs are read; labels and columns in `given` replace those of the table."""
        texts = {"premise": "premise", "hypothesis": "hypothesis", "label": "label", "id": ""}
        labels = self.labels if given.label_map is None else given.label_map
        return PairFormat(
            label_map=LabelMap({"-1": None, **labels}),
            columns=ColumnNames({**texts, **self.columns, **(given.columns or {})}),
        )


PUBLIC_SETS = {
    "snli": PublicSet(
        path="stanfordnlp/snli",
        revision="cdb5c3d5eed6ead6e5a341c8e56e669bb666725b",
        config="plain_text",
        labels=THREE_WAY,
        license_="cc-by-sa-4.0",
        citation="Bowman, Angeli, Potts, Manning (2015): A large annotated corpus for learning natural "
        "language inference. EMNLP",
    ),
    "mnli": PublicSet(
        path="nyu-mll/multi_nli",
        revision="da70db2af9d09693783c3320c4249840212ee221",
        splits={"train": "train", "dev": "validation_matched", "test": "validation_mismatched"},
        columns={"phenomenon": "genre"},
        labels=THREE_WAY,
        license_="cc-by-3.0, cc-by-sa-3.0, mit, other",
        citation="Williams, Nangia, Bowman (2018): A Broad-Coverage Challenge Corpus for Sentence "
        "Understanding through Inference. NAACL",
    ),
    "anli": PublicSet(
        path="facebook/anli",
        revision="8e4813d81f46d313dac7892e1c28076917cfcdf9",
        config="plain_text",
        splits={"train": "train_{variant}", "dev": "dev_{variant}", "test": "test_{variant}"},
        labels=THREE_WAY,
        variants=("r1", "r2", "r3"),
        license_="cc-by-nc-4.0",
        citation="Nie, Williams, Dinan, Bansal, Weston, Kiela (2020): Adversarial NLI: A New Benchmark for "
        "Natural Language Understanding. ACL",
    ),
    "rte": PublicSet(
        path="nyu-mll/glue",
        revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        config="rte",
        unlabelled=("test",),
        columns={"premise": "sentence1", "hypothesis": "sentence2"},
        labels={"entailment": 1, "not_entailment": 0},
        license_="other",
        citation="Wang, Singh, Michael, Hill, Levy, Bowman (2019): GLUE: A Multi-Task Benchmark and Analysis "
        "Platform for Natural Language Understanding. ICLR; and the four RTE challenges that it joins",
    ),
    "cb": PublicSet(
        path="aps/super_glue",
        revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
        config="cb",
        unlabelled=("test",),
        labels={"entailment": 1, "contradiction": 0, "neutral": 0},
        license_="other",
        citation="de Marneffe, Simons, Tonhauser (2019): The CommitmentBank: Investigating projection in "
        "naturally occurring discourse. Sinn und Bedeutung 23",
    ),
    "wanli": PublicSet(
        path="alisawuffles/WANLI",
        revision="61c95318fd71c55b6ba355d76253254615f387ec",
        splits={"train": "train", "test": "test"},
        columns={"label": "gold"},
        labels=THREE_WAY,
        license_="cc-by-4.0",
        citation="Liu, Swayamdipta, Smith, Choi (2022): WANLI: Worker and AI Collaboration for Natural "
        "Language Inference Dataset Creation. Findings of EMNLP",
    ),
    "xnli": PublicSet(
        path="facebook/xnli",
        revision="b8dd5d7af51114dbda02c0e3f6133f332186418e",
        config="{variant}",
        labels=THREE_WAY,
        variants=(
            *("ar", "bg", "de", "el", "en", "es", "fr", "hi"),
            *("ru", "sw", "th", "tr", "ur", "vi", "zh"),
        ),
        license_="none on the hub",
        citation="Conneau, Rinott, Lample, Williams, Bowman, Schwenk, Stoyanov (2018): XNLI: Evaluating "
        "Cross-lingual Sentence Representations. EMNLP",
    ),
    "sick": PublicSet(
        path="RobZamp/sick",
        revision=CONVERTED,
        columns={"premise": "sentence_A", "hypothesis": "sentence_B"},
        labels=THREE_WAY,
        license_="cc-by-nc-sa-3.0",
        citation="Marelli, Menini, Baroni, Bentivogli, Bernardi, Zamparelli (2014): A SICK cure for the "
        "evaluation of compositional distributional semantic models. LREC",
    ),
    "hans": PublicSet(
        path="jhu-cogsci/hans",
        revision=CONVERTED,
        splits={"train": "train", "dev": "validation"},
        columns={"phenomenon": "heuristic"},
        labels={"entailment": 1, "non-entailment": 0},
        license_="unknown",
        citation="McCoy, Pavlick, Linzen (2019): Right for the Wrong Reasons: Diagnosing Syntactic "
        "Heuristics in Natural Language Inference. ACL",
    ),
    "scitail": PublicSet(
        path="allenai/scitail",
        revision="0cc4353235b289165dfde1c7c5d1be983f99ce44",
        config="tsv_format",
        labels={"entails": 1, "neutral": 0},
        license_="none on the hub",
        citation="Khot, Sabharwal, Clark (2018): SciTail: A Textual Entailment Dataset from Science Question "
        "Answering. AAAI",
    ),
}


def find_public_set(name: str) -> PublicSet:
    """Return the set with a name such as `snli` or `xnli:de`; raises `ConfigError` if there is none."""
    known, colon, variant = name.partition(":")
    if known not in PUBLIC_SETS:
        raise ConfigError(f"--dataset {name}: no such set; {hint(known, tuple(PUBLIC_SETS))}")
    found = PUBLIC_SETS[known]
    if not found.variants and not colon:
        return found
    if variant not in found.variants:
        expected = " or ".join(f"{known}:{each}" for each in found.variants) or known
        raise ConfigError(f"--dataset {name}: no such set; expected {expected}")
    return found.of_variant(variant)


def read_public_set(public_set: PublicSet, given: PairFormat) -> dict[str, list[Example]]:
    """Read the pairs of each of a set's splits."""
    tables, pair_format = _load(public_set), public_set.format_with(given)
    columns: Mapping[str, str] = pair_format.columns or {}
    without_labels = PairFormat(columns=ColumnNames({**columns, "label": ""}))
    found: dict[str, list[Example]] = {}
    for ours, theirs in public_set.splits.items():
        path = Path(public_set.path, theirs)
        if theirs not in tables:
            raise DataError(f"the splits {', '.join(tables)}", f"{theirs} too", path=public_set.path)
        rows = _rows(tables[theirs], columns, path)
        if ours in public_set.unlabelled:
            found[ours] = read_examples(path, without_labels, rows=rows)
        else:
            _check_class_labels(tables[theirs], columns["label"], public_set, path)
            found[ours] = read_examples(path, pair_format, rows=rows)
    return found


def _load(public_set: PublicSet) -> Mapping[str, Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    path = public_set.path
    here = f"the folder {path}" if Path(path).is_dir() else f"{path} on the hub, or its copy in the cache"
    logger.info("reading %s", here)
    # Else each of six attempts to reach the hub is two warnings, twice.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        tables: Mapping[str, Any] = load_dataset(path, public_set.config, revision=public_set.revision)
    except ConnectionError:
        found = "the hub cannot be reached, and the set is not in the cache"
        remedy = "try again with a network and without HF_HUB_OFFLINE, or put a copy of the set into a folder"
        raise DataError(found, path=path, remedy=f"{remedy} {path}") from None
    except DatasetNotFoundError as error:
        terms = f"if {HUB}/{path} asks for it, accept its terms and set HF_TOKEN"
        raise DataError(_first_line(error), path=path, remedy=terms) from None
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(_first_line(error), path=path, remedy=CHANGED) from None
    return tables


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _check_class_labels(table: Any, column: str, public_set: PublicSet, path: Path) -> None:
    """Refuse labels that are numbers of other classes, or of unknown ones; words are read as they are."""
    feature = table.features.get(column)
    names = getattr(feature, "names", None)
    if feature is None or getattr(feature, "dtype", None) == "string" or names == [*public_set.labels]:
        return
    found = f"the class labels {', '.join(names)}" if names else f"labels of type {feature.dtype}"
    raise DataError(
        found,
        f"{', '.join(public_set.labels)}, in this order",
        path=path,
        remedy=CHANGED,
    )


def _rows(table: Any, columns: Mapping[str, str], path: Path) -> Iterator[Row]:
    """Yield the rows, with class labels by their names, except those without a premise or hypothesis."""
    names = getattr(table.features.get(columns["label"]), "names", ())
    num_blank = 0
    for line, row in enumerate(table, start=1):
        texts = (row.get(columns[column]) for column in ("premise", "hypothesis"))
        if any(isinstance(text, str) and not text.strip() for text in texts):
            num_blank += 1
            continue
        label = row.get(columns["label"])
        if names and label is not None and label >= 0:
            row[columns["label"]] = names[label]
        yield Row(path=path, line=line, header_line=1, fields=row)
    if num_blank:
        logger.info("%s: skipped %d pairs without a premise or a hypothesis", path, num_blank)


HUB_REVISION = " on the hub, revision "
"""In the first line of a README that `provenance` wrote."""


def provenance(name: str, public_set: PublicSet, given: PairFormat) -> str:
    """Return where a set is from, its licence and its citation, for a README next to its pairs."""
    return (
        f"{name}: {public_set.path}{HUB_REVISION}{public_set.revision}\n"
        f"labels: {public_set.format_with(given).label_map}\n"
        f"licence: {public_set.license_} ({HUB}/{public_set.path})\n"
        f"cite: {public_set.citation}\n"
    )


def main(args: Sequence[str]) -> int:
    """Run the `datasets` command."""
    CommandParser(
        "datasets",
        description="List the public sets that split --dataset makes a data root of.",
        example="python -m nlicot datasets   (then: split --dataset snli --out data/snli)",
    ).parse(args)
    header = ("name", "on the hub", "dev", "test", "labels", "licence")
    rows = []
    for name, each in PUBLIC_SETS.items():
        named = each.of_variant("VARIANT").splits
        splits = {ours: named[ours] + " (no labels)" * (ours in each.unlabelled) for ours in named}
        rows.append(
            (
                f"{name}:VARIANT" if each.variants else name,
                each.path,
                splits.get("dev", "part of train"),
                splits.get("test", "none"),
                str(LabelMap(each.labels)),
                each.license_,
            )
        )
    print(*aligned(Table(header=header, rows=rows)), sep="\n")
    for name, each in PUBLIC_SETS.items():
        if each.variants:
            print(f"{name}: VARIANT is one of {', '.join(each.variants)}")
    return 0
