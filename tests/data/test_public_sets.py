"""Public sets are read by the commands of `docs/data-formats.md`, and by name; all texts are invented.

A folder with a set's name on the hub, in the working directory, goes before the hub: `datasets` reads it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.pairs import read_examples
from nlicot.data.public_sets import PUBLIC_SETS
from nlicot.records import Example

DOCS = Path(__file__).parents[2] / "docs" / "data-formats.md"
COMMANDS = re.findall(r"^\| [^|]+ \| `python -m nlicot split (.+)` \|$", DOCS.read_text(), re.MULTILINE)
PAIRS = [
    ('The sign says "open', "The shop is open."),  # a quote that GLUE's files leave unbalanced
    ("Two girls carry a canoe.", "The girls are sisters."),
    ("A dog chews a slipper.", "The dog sleeps."),
    ("A cat sits.", "The cat is old."),
]
THREE_WAY = ["entailment", "neutral", "contradiction"]
UPPER = [label.upper() for label in THREE_WAY]
PARSES = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"


def rows(names: tuple[str, str], label: str, labels: list[Any], **others: list[Any]) -> list[dict[str, Any]]:
    """Objects with each pair's texts, its label and further columns."""
    found = []
    for index, (texts, value) in enumerate(zip(PAIRS, labels, strict=False)):
        further = {name: values[index] for name, values in others.items()}
        found.append({**further, **dict(zip(names, texts, strict=True)), label: value})
    return found


def jsonl(objects: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in objects).encode()


def tsv(header: str, objects: list[dict[str, Any]]) -> bytes:
    """Tab-separated columns without quoting; columns that the objects lack are filled."""
    names = header.split()
    lines = ["\t".join(str(each.get(name, "x")) for name in names) for each in objects]
    return "\n".join(["\t".join(names), *lines, ""]).encode()


def table(objects: list[dict[str, Any]], classes: list[str]) -> bytes:
    """A Parquet file as `datasets` writes it, with a class label."""
    from datasets import ClassLabel, Dataset

    made = Dataset.from_list(objects).cast_column("label", ClassLabel(names=classes))
    content = io.BytesIO()
    made.to_parquet(content)
    return content.getvalue()


def rte(attribute: str, labels: list[str], doctype: str = "") -> bytes:
    pairs = [
        f'<pair id="{number}" {attribute}="{label}" task="IE" length="short">\n'
        f"\t<t>{premise} &amp; more</t>\n\t<h>{hypothesis}</h>\n</pair>"
        for number, ((premise, hypothesis), label) in enumerate(zip(PAIRS, labels, strict=False), start=1)
    ]
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n{doctype}<entailment-corpus>'
    return "\n".join([head, *pairs, "</entailment-corpus>"]).encode()


def esnli() -> bytes:
    made = rows(("Sentence1", "Sentence2"), "gold_label", THREE_WAY, pairID=["a", "b", "c"])
    content = io.StringIO()
    writer = csv.DictWriter(content, ["pairID", "gold_label", "Sentence1", "Sentence2", "Explanation_1"])
    writer.writeheader()
    writer.writerows({**row, "Explanation_1": "Signs\ntell."} for row in made)
    return content.getvalue().encode()


SENTENCES = ("sentence1", "sentence2")
TEXTS = ("premise", "hypothesis")
DASH = [*THREE_WAY, "-"]
GENRES = ["fiction", "slate", "fiction", "slate"]
SNLI = rows(
    SENTENCES,
    "gold_label",
    DASH,
    annotator_labels=[[label] for label in DASH],
    captionID=["1.jpg#0"] * 4,
    pairID=["1.jpg#0r1n"] * 4,
)
MNLI = rows(
    SENTENCES, "gold_label", DASH, genre=GENRES, pairID=["1n", "2e", "3c", "4e"], promptID=[1, 2, 3, 4]
)
GLUE_MNLI = f"index promptID pairID genre {PARSES} sentence1 sentence2 label1 gold_label"
XNLI_END = "promptID pairID genre label1 label2 label3 label4 label5 sentence1_tokenized sentence2_tokenized"
XNLI = f"language gold_label {PARSES} sentence1 sentence2 {XNLI_END} match"
LANGUAGES = ["en", "de", "en"]
SICK = "pair_ID sentence_A sentence_B entailment_label relatedness_score entailment_AB entailment_BA"
SICK_ROWS = rows(("sentence_A", "sentence_B"), "entailment_label", UPPER, pair_ID=["1", "2", "3"])
SEMEVAL = rows(("sentence_A", "sentence_B"), "entailment_judgment", UPPER, pair_ID=["1", "2", "3"])
HANS = ["lexical_overlap", "subsequence", "constituent"]
HANS_ROWS = rows(
    SENTENCES,
    "gold_label",
    ["entailment", *["non-entailment"] * 2],
    heuristic=HANS,
    pairID=["ex0", "ex1", "ex2"],
)
TWO_WAY = ["entailment", "not_entailment", "not_entailment"]
FEVER = ["SUPPORTS", "NOT ENOUGH INFO", "REFUTES"]
INTERNAL_SUBSET = "<!DOCTYPE entailment-corpus [\n<!ELEMENT t (#PCDATA)>\n]>\n"
FILES = {
    "snli_1.0_train.jsonl": jsonl(SNLI),
    "snli_1.0_train.txt": tsv(f"gold_label {PARSES} sentence1 sentence2 captionID pairID label1", SNLI),
    "train-00000-of-00001.parquet": table(rows(TEXTS, "label", [0, 1, 2, -1]), THREE_WAY),
    "esnli_dev.csv": esnli(),
    "multinli_1.0_train.jsonl": jsonl(MNLI),
    "MNLI/train.tsv": tsv(GLUE_MNLI, MNLI[:3]),
    "R1/train.jsonl": jsonl(
        rows(
            ("context", "hypothesis"),
            "label",
            ["e", "n", "c"],
            uid=["u1", "u2", "u3"],
            model_label=["n", "e", "e"],
            emturk=[True] * 3,
            genre=["wikipedia"] * 3,
            reason=["r"] * 3,
            tag=["train_r1_9"] * 3,
        )
    ),
    "xnli.dev.tsv": tsv(XNLI, rows(SENTENCES, "gold_label", THREE_WAY, language=LANGUAGES, pairID=["1"] * 3)),
    "SICK.txt": tsv(f"{SICK} sentence_A_original sentence_B_original SemEval_set", SICK_ROWS),
    "SICK_train.txt": tsv("pair_ID sentence_A sentence_B relatedness_score entailment_judgment", SEMEVAL),
    "heuristics_train_set.txt": tsv(
        f"gold_label {PARSES} sentence1 sentence2 pairID heuristic subcase template", HANS_ROWS
    ),
    "train.jsonl": jsonl(
        rows(TEXTS, "gold", THREE_WAY, id=[200, 201, 202], genre=["generated"] * 3, pairID=["7"] * 3)
    ),
    "RTE/train.tsv": tsv("index sentence1 sentence2 label", rows(SENTENCES, "label", TWO_WAY)),
    "superglue/RTE/train.jsonl": jsonl(rows(TEXTS, "label", TWO_WAY, idx=[0, 1, 2])),
    "rte.csv": b'sentence1,sentence2,label,idx\n"The sign says ""open",The shop is open.,0,0\n'
    b"Two girls carry a canoe.,The girls are sisters.,1,1\nA dog chews a slipper.,The dog sleeps.,1,2\n",
    "rte1_dev.xml": rte("value", ["TRUE", "FALSE", "FALSE"]),
    "rte3_dev.xml": rte("entailment", ["YES", "NO", "NO"], INTERNAL_SUBSET),
    "rte5_dev.xml": rte("entailment", ["ENTAILMENT", "UNKNOWN", "CONTRADICTION"]),
    "QNLI/train.tsv": tsv(
        "index question sentence label",
        [
            {"question": hypothesis, "sentence": premise, "label": label}
            for (premise, hypothesis), label in zip(PAIRS, TWO_WAY, strict=False)
        ],
    ),
    "scitail_1.0_structure_train.jsonl": jsonl(
        rows(
            SENTENCES, "gold_label", ["entails", "neutral", "neutral"], question=["Q?"] * 3, answer=["A"] * 3
        )
    ),
    "train_fitems.jsonl": jsonl(
        rows(("context", "query"), "label", FEVER, cid=["1", "2", "3"], fid=["f1", "f2", "f3"])
    ),
}
PHENOMENA = {
    "multinli_1.0_train.jsonl": GENRES[:3],
    "MNLI/train.tsv": GENRES[:3],
    "xnli.dev.tsv": LANGUAGES,
    "heuristics_train_set.txt": HANS,
    "rte1_dev.xml": ["IE"] * 3,
    "rte3_dev.xml": ["IE"] * 3,
}
IDS = {
    "multinli_1.0_train.jsonl": ["1n", "2e", "3c"],
    "R1/train.jsonl": ["u1", "u2", "u3"],
    "SICK.txt": ["1", "2", "3"],
    "heuristics_train_set.txt": ["ex0", "ex1", "ex2"],
    "train.jsonl": ["200", "201", "202"],
    "rte1_dev.xml": ["1", "2", "3"],
    "rte3_dev.xml": ["1", "2", "3"],
    "rte5_dev.xml": ["1", "2", "3"],
}


def test_every_set_in_the_docs_has_a_file_here() -> None:
    assert [command.split()[0] for command in COMMANDS] == list(FILES)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_public_set_is_read_by_its_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *flags = shlex.split(command)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES[name])
    assert main(["split", name, *flags]) == 0
    found = [
        pair for split in ("train", "dev") for pair in read_examples(Path(f"data/original_data/{split}.csv"))
    ]
    more = " & more" if name.endswith(".xml") else ""
    expected = {
        hypothesis: (f"{premise}{more}", label, phenomenon)
        for (premise, hypothesis), label, phenomenon in zip(
            PAIRS, [1, 0, 0], PHENOMENA.get(name, [None] * 3), strict=False
        )
    }
    assert {pair.hypothesis: (pair.premise, pair.label, pair.phenomenon) for pair in found} == expected
    if name in IDS:
        assert sorted(pair.id for pair in found) == IDS[name]
    if "skip" in command:
        assert [line for line in caplog.messages if f"{name}: skipped 1 pairs of label '-" in line]


def parquet(config: str, splits: dict[str, list[Any]], **options: Any) -> dict[str, bytes]:
    """A set's repository with a Parquet file for each split of labels, and their list in its README.md."""
    listed = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits)
    readme = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n"
    tables = {
        f"{config}/{split}-00000-of-00001.parquet": labelled_table(labels, **options)
        for split, labels in splits.items()
    }
    return {"README.md": readme.encode(), **tables}


def converted(config: str, splits: dict[str, list[Any]], **options: Any) -> dict[str, bytes]:
    """A branch with the hub's own conversion of a set, which has no README.md."""
    return {
        f"{config}/{split}/0000.parquet": labelled_table(labels, **options)
        for split, labels in splits.items()
    }


def labelled_table(
    labels: list[Any], classes: list[str] | None = None, names: tuple[str, str] = TEXTS, **others: list[Any]
) -> bytes:
    objects = rows(names, "label", labels, **others)
    return table(objects, classes) if classes else plain_table(objects)


def plain_table(objects: list[dict[str, Any]]) -> bytes:
    from datasets import Dataset

    content = io.BytesIO()
    Dataset.from_list(objects).to_parquet(content)
    return content.getvalue()


SPLITS = {"train": [0, 1, 2], "validation": [1, 0], "test": [2, 0, -1]}
TWO_CLASSES = {"train": [0, 1, 1], "validation": [1, 0], "test": [-1, -1]}
COPIES = {
    "snli": ("stanfordnlp/snli", parquet("plain_text", SPLITS, classes=THREE_WAY)),
    "mnli": (
        "nyu-mll/multi_nli",
        parquet(
            "default",
            {"train": [0, 1, 2], "validation_matched": [1, 0], "validation_mismatched": [2, 0, -1]},
            classes=THREE_WAY,
            genre=GENRES,
            pairID=["1n"] * 4,
        ),
    ),
    "anli:r2": (
        "facebook/anli",
        parquet(
            "plain_text",
            {
                f"{split}_{number}": labels if number == "r2" else [0]
                for number in ("r1", "r2", "r3")
                for split, labels in zip(("train", "dev", "test"), SPLITS.values(), strict=True)
            },
            classes=THREE_WAY,
            uid=["u"] * 4,
        ),
    ),
    "rte": ("nyu-mll/glue", parquet("rte", TWO_CLASSES, classes=TWO_WAY[:2], names=SENTENCES)),
    "cb": (
        "aps/super_glue",
        parquet(
            "cb",
            {"train": [0, 2, 1], "validation": [2, 0], "test": [-1, -1]},
            classes=["entailment", "contradiction", "neutral"],
        ),
    ),
    "wanli": (
        "alisawuffles/WANLI",
        {
            "train.jsonl": jsonl(rows(TEXTS, "gold", [*THREE_WAY[1:], *THREE_WAY[:2]], id=[2, 3, 4, 5])),
            "test.jsonl": jsonl(rows(TEXTS, "gold", ["contradiction", "entailment"], id=[0, 1])),
            "anonymized_annotations.jsonl": jsonl([{"WorkerId": 1, "gold": "neutral"}]),
        },
    ),
    "xnli:de": ("facebook/xnli", parquet("de", SPLITS, classes=THREE_WAY)),
    "sick": (
        "RobZamp/sick",
        converted("default", SPLITS, classes=THREE_WAY, names=("sentence_A", "sentence_B")),
    ),
    "hans": (
        "jhu-cogsci/hans",
        converted(
            "plain_text",
            {"train": [0, 1, 1], "validation": [1, 0]},
            classes=["entailment", "non-entailment"],
            heuristic=[*HANS, HANS[0]],
        ),
    ),
    "scitail": (
        "allenai/scitail",
        parquet(
            "tsv_format",
            {
                "train": ["entails", "neutral", "neutral"],
                "validation": ["neutral", "entails"],
                "test": ["neutral", "entails"],
            },
        ),
    ),
}
"""The repository of each set on the hub and its files, by the set's name here."""
LABELS = {
    "rte": {"train": [1, 0, 0], "dev": [0, 1], "test": [None, None]},
    "cb": {"train": [1, 0, 0], "dev": [0, 1], "test": [None, None]},
    "hans": {"train": [1, 0, 0], "dev": [0, 1]},
    "scitail": {"train": [1, 0, 0], "dev": [0, 1], "test": [0, 1]},
}
"""The labels of each split, unless they are those of `SPLITS`."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an empty cache of `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write_copy(name: str, files: dict[str, bytes] | None = None) -> None:
    path, own = COPIES[name]
    for file, content in (files or own).items():
        target = Path(path, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def read_split(split: str) -> list[Example]:
    return read_examples(Path("data", "original_data", f"{split}.csv"))


def test_every_set_has_a_copy_here() -> None:
    assert [name.partition(":")[0] for name in COPIES] == list(PUBLIC_SETS)


@pytest.mark.parametrize("name", [name for name in COPIES if name != "wanli"])
def test_a_set_is_read_by_its_name(name: str, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_copy(name)
    assert main(["split", "--dataset", name]) == 0
    expected = LABELS.get(name, {"train": [1, 0, 0], "dev": [0, 1], "test": [0, 1]})
    for split, labels in expected.items():
        pairs = read_split(split)
        assert [(pair.premise, pair.hypothesis) for pair in pairs] == PAIRS[: len(labels)], split
        assert [pair.label for pair in pairs] == labels, split
    assert sorted(path.stem for path in Path("data/original_data").glob("*.csv")) == sorted(expected)
    found = {pair.hypothesis: pair.phenomenon for pair in read_split("train")}
    phenomena = {"mnli": GENRES[:3], "hans": HANS}.get(name, [None] * 3)
    assert list(found.values()) == phenomena
    skipped = [line for line in caplog.messages if "skipped 1 pairs of label '-1'" in line]
    assert len(skipped) == (name not in LABELS)


def test_a_set_without_dev_pairs_gets_some_of_train(work: Path) -> None:
    write_copy("wanli")
    assert main(["split", "--dataset", "wanli", "--dev", "0.25"]) == 0
    train, dev = read_split("train"), read_split("dev")
    assert not {pair.premise for pair in train} & {pair.premise for pair in dev}
    found = {pair.hypothesis: pair.label for pair in [*train, *dev]}
    assert found == dict(zip([texts[1] for texts in PAIRS], [0, 0, 1, 0], strict=True))
    assert [pair.label for pair in read_split("test")] == [0, 1]


def test_licence_and_citation_are_shown_and_kept_and_a_root_is_not_replaced(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_copy("sick")
    args = ["split", "--dataset", "sick", "--out", "sick"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    readme = Path("sick/original_data/README.md").read_text()
    assert readme in printed
    assert "labels: -1=skip,entailment=1,neutral=0,contradiction=0\n" in readme
    assert "licence: cc-by-nc-sa-3.0 (" in readme
    assert "cite: Marelli, " in readme
    assert "sick/original_data/dev.csv: 2 pairs, 1 of label 1, 1 of label 0" in printed
    assert main(args) == 2
    assert "README.md exists already; add --overwrite to replace it" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0


def test_the_reading_of_labels_may_be_another(work: Path) -> None:
    write_copy("snli")
    label_map = "entailment=1,contradiction=0,neutral=skip"
    assert main(["split", "--dataset", "snli", "--label_map", label_map]) == 0
    assert [pair.label for pair in read_split("train")] == [1, 0]


def test_pairs_without_a_text_are_skipped_and_counted(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = table(
        [{"premise": "A.", "hypothesis": " ", "label": 0}, *rows(TEXTS, "label", [1, 0])], THREE_WAY
    )
    write_copy("snli")
    write_copy("snli", {"plain_text/train-00000-of-00001.parquet": blank})
    assert main(["split", "--dataset", "snli"]) == 0
    assert [pair.label for pair in read_split("train")] == [0, 1]
    assert "stanfordnlp/snli/train: skipped 1 pairs without a premise or a hypothesis" in caplog.messages


REFUSED = {
    "another order": (
        parquet("plain_text", SPLITS, classes=THREE_WAY[::-1]),
        "found the class labels contrad",
    ),
    "other classes": (
        parquet("plain_text", SPLITS, classes=["e", "n", "c"]),
        "found the class labels e, n, c,",
    ),
    "no classes": (
        parquet("plain_text", SPLITS),
        "found labels of type int64, expected entailment, neutral, ",
    ),
    "no dev": (
        parquet("plain_text", {"train": [0, 1], "test": [1]}, classes=THREE_WAY),
        "stanfordnlp/snli: found the splits train, test, expected validation too",
    ),
    "another config": (parquet("default", SPLITS, classes=THREE_WAY), "BuilderConfig 'plain_text' not found"),
    "other columns": (
        parquet("plain_text", SPLITS, classes=THREE_WAY, names=SENTENCES),
        "expected 'premise' too (--columns names it as premise)",
    ),
    "no labels": (
        parquet("plain_text", {**SPLITS, "train": [-1]}, classes=THREE_WAY),
        "found only pairs that",
    ),
}


@pytest.mark.parametrize("copy", REFUSED)
def test_a_set_that_is_not_as_the_table_says_is_refused(
    copy: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, line = REFUSED[copy]
    write_copy("snli", files)
    assert main(["split", "--dataset", "snli"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert line in error
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("--dataset snil", "--dataset snil: no such set; did you mean snli?"),
        ("--dataset x", "--dataset x: no such set; available: snli, mnli, anli,"),
        ("--dataset anli", "--dataset anli: no such set; expected anli:r1 or anli:r2 or anli:r3"),
        ("--dataset xnli:xx", "--dataset xnli:xx: no such set; expected xnli:ar or "),
        ("--dataset snli:de", "--dataset snli:de: no such set; expected snli"),
        ("pairs.csv --dataset snli", "--dataset snli: found the file pairs.csv too, expected one"),
        ("", "split: found no file of pairs, expected PAIRS.csv or --dataset NAME"),
    ],
)
def test_a_name_that_is_not_in_the_table_is_refused(
    args: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", *args.split()]) == 2
    assert f"nlicot: {line}" in capsys.readouterr().err


def test_the_list_has_every_set_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, public_set in PUBLIC_SETS.items():
        (line,) = (line for line in lines if line.split()[0] in (name, f"{name}:VARIANT"))
        assert line.endswith(public_set.license_)
        assert public_set.path in line
    assert "anli: VARIANT is one of r1, r2, r3" in lines


class Hub(BaseHTTPRequestHandler):
    """A hub that has nothing for this account."""

    status, reason = 404, "RepoNotFound"

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *_: object) -> None: ...


class GatedHub(Hub):
    """A hub whose set must be asked for."""

    status, reason = 403, "GatedRepo"


def split_by(environment: dict[str, str], folder: Path) -> str:
    """Return the refusal of `split --dataset snli`."""
    finished = subprocess.run(
        [sys.executable, "-m", "nlicot", "split", "--dataset", "snli"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(DOCS.parents[1]),
            "HF_HOME": str(folder / "home"),
            **environment,
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2, finished.stderr
    assert not (folder / "data").exists()
    first, line = finished.stderr.splitlines()
    assert first == "reading stanfordnlp/snli on the hub, or its copy in the cache"
    return line


def test_a_set_that_was_not_downloaded_is_refused_without_a_network(tmp_path: Path) -> None:
    line = split_by({"HF_HUB_OFFLINE": "1"}, tmp_path)
    assert line.startswith("nlicot: stanfordnlp/snli: the hub cannot be reached, and the set is not in the")


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    line = split_by({"HF_ENDPOINT": "http://127.0.0.1:9"}, tmp_path)
    assert line.startswith("nlicot: stanfordnlp/snli: the hub cannot be reached, and the set is not in the")


@pytest.mark.parametrize(("hub", "words"), [(Hub, "doesn't exist on the Hub"), (GatedHub, "gated dataset")])
def test_a_set_that_is_missing_or_gated_is_one_line(hub: type[Hub], words: str, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = split_by({"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}, tmp_path)
        server.shutdown()
    assert words in line
    assert "accept its terms and set HF_TOKEN" in line
