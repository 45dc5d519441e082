from __future__ import annotations

import csv
import logging
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nlicot.config_files import SAMPLE
from nlicot.data.pairs import LabelMap, PairFormat, read_examples
from nlicot.data.public_sets import PUBLIC_SETS, provenance
from nlicot.data.split import split_examples, write_split
from nlicot.errors import ConfigError, DataError
from nlicot.records import Example

YES_OR_NO = PairFormat(label_map=LabelMap({"yes": 1, "no": 0}))


def pairs(num_premises: int, hypotheses_each: int = 1, seed: int = 0) -> list[Example]:
    """Pairs in a mixed order, two labels in three of them 1."""
    made = [
        Example(
            id=f"{premise}-{hypothesis}",
            premise=f"premise {premise}",
            hypothesis=f"hypothesis {hypothesis}",
            label=int((premise + hypothesis) % 3 != 0),
        )
        for premise in range(num_premises)
        for hypothesis in range(hypotheses_each)
    ]
    random.Random(seed).shuffle(made)
    return made


def label_counts(examples: list[Example]) -> Counter[int | None]:
    return Counter(example.label for example in examples)


def pairs_file(folder: Path, rows: str, header: str = "premise,hypothesis,label") -> Path:
    path = folder / "all.csv"
    path.write_text(f"{header}\n{rows}")
    return path


def test_every_pair_is_in_one_split_in_the_original_order() -> None:
    examples = pairs(30, 3)
    split = split_examples(examples, 0.2, seed=1)
    in_dev = {example.id for example in split.dev}
    assert split.dev == [example for example in examples if example.id in in_dev]
    assert split.train == [example for example in examples if example.id not in in_dev]


@pytest.mark.parametrize("dev", [0.1, 0.5, 0.9])
def test_no_premise_is_in_both_splits(dev: float) -> None:
    split = split_examples(pairs(40, 3), dev, seed=0)
    assert not {example.premise for example in split.train} & {example.premise for example in split.dev}


@pytest.mark.parametrize("dev", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_single_premises_give_each_label_its_exact_proportion(dev: float, seed: int) -> None:
    # 120 premises, 80 of label 1 and 40 of label 0: all five shares are whole numbers.
    split = split_examples(pairs(120), dev, seed)
    assert label_counts(split.dev) == {1: round(80 * dev), 0: round(40 * dev)}


@pytest.mark.parametrize("dev", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_each_label_is_within_one_group_of_its_proportion(dev: float, seed: int) -> None:
    examples = pairs(100, 4)
    split = split_examples(examples, dev, seed)
    for label, count in label_counts(examples).items():
        assert abs(label_counts(split.dev)[label] - dev * count) <= 4


def test_groups_of_all_sizes_go_to_dev() -> None:
    # Largest groups first would fill dev with nothing but threes.
    sizes = [1, 2, 3] * 100
    examples = [
        Example(id=f"{group}-{at}", premise=f"{group}", hypothesis=f"{at}", label=group % 2)
        for group, size in enumerate(sizes)
        for at in range(size)
    ]
    split = split_examples(examples, 0.2, seed=3)
    in_dev = Counter(Counter(example.premise for example in split.dev).values())
    assert all(abs(count - 60) <= 1 for count in label_counts(split.dev).values())
    assert all(10 <= in_dev[size] <= 30 for size in (1, 2, 3))


def test_unlabelled_pairs_are_split_too() -> None:
    examples = [Example(id=str(at), premise=str(at), hypothesis="H") for at in range(10)]
    assert len(split_examples(examples, 0.3, seed=0).dev) == 3


def test_the_seed_decides_the_split() -> None:
    examples = pairs(50, 2)
    assert split_examples(examples, 0.2, seed=1) == split_examples(examples, 0.2, seed=1)
    assert split_examples(examples, 0.2, seed=1) != split_examples(examples, 0.2, seed=2)


def test_another_process_makes_the_same_split() -> None:
    code = (
        "from nlicot.records import Example; from nlicot.data.split import split_examples;"
        "pairs = [Example(id=str(at), premise=str(at), hypothesis='H', label=at % 2) for at in range(40)];"
        "print([pair.id for pair in split_examples(pairs, 0.1, seed=7).dev])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    examples = [Example(id=str(at), premise=str(at), hypothesis="H", label=at % 2) for at in range(40)]
    assert outputs == {f"{[example.id for example in split_examples(examples, 0.1, seed=7).dev]}\n"}


@pytest.mark.parametrize("dev", [0.001, 0.999])
def test_neither_split_is_ever_empty(dev: float) -> None:
    examples = [Example(id=str(at), premise=str(at // 3), hypothesis=str(at), label=1) for at in range(7)]
    split = split_examples(examples, dev, seed=0)
    assert sorted([len(split.train), len(split.dev)]) == [1, 6]
    assert len(split.dev) == (1 if dev < 0.5 else 6)


def test_one_premise_cannot_be_split() -> None:
    with pytest.raises(DataError) as raised:
        split_examples(pairs(1, 5), 0.5, seed=0)
    assert str(raised.value) == "found 1 different premises, expected 2 or more, to have one in each split"


def test_a_written_split_reads_back_unchanged(tmp_path: Path) -> None:
    rows = "".join(f"P{at},H,{'yes' if at % 2 else 'no'}\n" for at in range(20))
    path = pairs_file(tmp_path, rows)
    written = write_split(path, tmp_path / "new", dev=0.2, seed=5, pair_format=YES_OR_NO)
    folder = tmp_path / "new" / "original_data"
    assert list(written) == [folder / "train.csv", folder / "dev.csv"]
    for written_path, examples in written.items():
        assert read_examples(written_path) == examples
    everything = read_examples(path, YES_OR_NO)
    split = split_examples(everything, 0.2, seed=5)
    assert list(written.values()) == [split.train, split.dev]
    assert label_counts(split.dev) == {0: 2, 1: 2}


@pytest.mark.parametrize(
    "extra, header", [("", ["id", "premise", "hypothesis", "label"]),
                      ("negation", ["id", "premise", "hypothesis", "label", "phenomenon"])]
)  # fmt: skip
def test_a_phenomenon_column_is_written_if_there_is_one(
    tmp_path: Path, extra: str, header: list[str]
) -> None:
    path = pairs_file(tmp_path, f"P,H,1,{extra}\nQ,H,1,{extra}\n", "premise,hypothesis,label,phenomenon")
    written = write_split(path, tmp_path, dev=0.5, seed=0)
    for written_path in written:
        with written_path.open(newline="") as file:
            assert next(csv.reader(file)) == header


def test_a_split_is_written_to_the_folder_data_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_split(pairs_file(tmp_path, "P,H,1\nQ,H,0\n"), dev=0.5, seed=0)
    assert (tmp_path / "data" / "original_data" / "dev.csv").is_file()


def test_an_older_split_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, "P,H,1\nQ,H,0\n")
    dev_path = tmp_path / "original_data" / "dev.csv"
    dev_path.parent.mkdir()
    dev_path.write_text("old")
    with pytest.raises(ConfigError) as raised:
        write_split(path, tmp_path, dev=0.5, seed=0)
    assert str(raised.value) == f"{dev_path} exists already; add --overwrite to replace it"
    assert [entry.name for entry in dev_path.parent.iterdir()] == ["dev.csv"]
    write_split(path, tmp_path, dev=0.5, seed=0, overwrite=True)
    assert len(read_examples(dev_path)) == 1


def test_a_file_is_never_replaced_by_its_own_split(tmp_path: Path) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    path = pairs_file(folder, "P,H,1\nQ,H,0\n").rename(folder / "train.csv")
    with pytest.raises(ConfigError) as raised:
        write_split(path, tmp_path, dev=0.5, seed=0, overwrite=True)
    assert str(raised.value) == f"{path} would be replaced by its own split; copy it elsewhere first"


@pytest.mark.parametrize("name", ["train.jsonl", "dev.csv.gz"])
def test_a_split_does_not_join_a_file_of_another_format(tmp_path: Path, name: str) -> None:
    other = tmp_path / "original_data" / name
    other.parent.mkdir()
    other.touch()
    with pytest.raises(ConfigError) as raised:
        write_split(pairs_file(tmp_path, "P,H,1\nQ,H,0\n"), tmp_path, dev=0.5, seed=0, overwrite=True)
    assert str(raised.value) == (
        f"{other} exists already; a root has one file of each split: "
        "move it, or name another folder with --out"
    )
    assert [path.name for path in other.parent.iterdir()] == [name]


def test_premises_that_look_alike_stay_together(tmp_path: Path) -> None:
    twins = ["A\u0301 b.", "\u00c1 b.", " \u00c1 b.", "\u00c1  b. ", "\u00c1\u00a0b.", "\u00c1\nb."]
    examples = [
        Example(id=f"{at}", premise=premise, hypothesis=f"{at}", label=at % 2)
        for at, premise in enumerate([*twins, *map(str, range(6))])
    ]
    for seed in range(20):
        split = split_examples(examples, 0.5, seed)
        assert len({example.premise for example in split.dev} & {*twins}) in (0, len(twins))
        assert sorted(split.train + split.dev, key=examples.index) == examples


def test_one_label_only_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = pairs_file(tmp_path, "P,H,1\nQ,H,1\n")
    with caplog.at_level(logging.WARNING):
        write_split(path, tmp_path, dev=0.5, seed=0)
    assert caplog.messages == [f"{path}: every pair has label 1; a model learns from both labels"]


def test_unlabelled_pairs_are_not_split_into_files(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, "P,H\nQ,H\n", "premise,hypothesis")
    with pytest.raises(DataError) as raised:
        write_split(path, tmp_path, dev=0.5, seed=0)
    assert str(raised.value) == f"{path}: found pairs without labels, expected a column label with 0 or 1"
    assert not (tmp_path / "original_data").exists()


def test_soft_labels_do_not_decide_where_a_pair_goes(tmp_path: Path) -> None:
    header = "premise,hypothesis,label,p_entailment"
    path = pairs_file(tmp_path, "P,H,,0.9\nQ,H,0,\nR,H,1,\n", header)
    with pytest.raises(DataError, match="found 1 pair without a label, expected one for each pair"):
        write_split(path, tmp_path, dev=0.5, seed=0)
    assert not (tmp_path / "original_data").exists()


def test_a_file_with_one_premise_is_named(tmp_path: Path) -> None:
    path = pairs_file(tmp_path, "P,H,1\nP,I,0\n")
    with pytest.raises(DataError) as raised:
        write_split(path, tmp_path, dev=0.5, seed=0)
    assert str(raised.value) == (
        f"{path}: found 1 different premises, expected 2 or more, to have one in each split"
    )


def test_the_samples_pairs_are_split_as_ever() -> None:
    examples = read_examples(SAMPLE / "original_data" / "train.csv")[560:740]  # its first 180
    numbers = [12, 14, 19, 29, 32, 39, 52, 56, 60, 70, 78, 86, 100, 112, 113, 123, 130, 163, 175]
    ids = [example.id for example in split_examples(examples, 0.1, seed=0).dev]
    assert ids == [f"sample-train-{number:03}" for number in numbers]


@pytest.mark.parametrize("dev", [0.1, 0.3])
def test_the_shared_tasks_pairs_are_split_exactly(real_data: Path, dev: float) -> None:
    examples = read_examples(real_data / "comp34812" / "train.csv")
    split = split_examples(examples, dev, seed=0)
    for label, count in label_counts(list(examples)).items():
        assert abs(label_counts(split.dev)[label] - dev * count) <= 1


def test_what_another_data_set_left_is_not_kept_next_to_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "original_data"
    folder.mkdir(parents=True)
    readme = provenance("hans", PUBLIC_SETS["hans"], PairFormat())
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "test.csv").write_text("premise,hypothesis,label\nA,B,1\n", encoding="utf-8")
    path = pairs_file(tmp_path, "P,H,1\nQ,H,0\n")
    with pytest.raises(ConfigError) as refused:
        write_split(path, tmp_path / "root", dev=0.5, seed=0)
    found = f"{folder / 'README.md'}, {folder / 'test.csv'}: found it from another data set (hans: "
    assert str(refused.value).startswith(found)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "test.csv"]
    (folder / "README.md").write_text("My own notes.\n", encoding="utf-8")
    write_split(path, tmp_path / "root", dev=0.5, seed=0)
