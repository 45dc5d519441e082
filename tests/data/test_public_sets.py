"""The commands of `docs/data-formats.md` read files of the real shape, with invented texts."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.pairs import read_examples

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
