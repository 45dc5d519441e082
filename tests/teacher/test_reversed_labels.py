"""Files with 0 for entailment, and a teacher that is right every time: each command stops before it pays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.pairs import read_examples
from nlicot.data.thoughts import read_thoughts
from tests.teacher.fake_server import FakeServer

NUM_PAIRS = 300
# As `datasets` exports GLUE's RTE: 0 is entailment, 1 is not.
CLASS_LABELS = """\
sentence1,sentence2,label,idx
A man plays a lute on a bench.,A person makes music.,0,0
A man plays a lute on a bench.,A man is asleep.,1,1
Two girls carry a canoe.,The girls are sisters.,1,2
Two girls carry a canoe.,Some people carry a boat.,0,3
A dog chews a slipper.,The animal is swimming.,1,4
A dog chews a slipper.,The slipper is new.,1,5
The bakery opens at six.,The bakery is closed at five.,0,6
The bakery opens at six.,The bakery sells bicycles.,1,7
"""
ENTAILED = ("matches it", "makes music", "carry a boat", "closed at five")
STOP = (
    "teacher finds 0 % of label 1 and 0 % of label 0: labels look reversed; with --label_map 0=1,1=0 in "
    "every command the teacher is right on 100.0 % (docs/teacher.md, 'Reversed labels'), or continue with "
    "--yes"
)


def answer(body: Mapping[str, Any]) -> str:
    asked = body["messages"][-1]["content"]
    entailed = any(text in asked for text in ENTAILED)
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    number = hashlib.sha256(asked.encode()).hexdigest()[:8]  # no two thoughts are the same
    texts = dict.fromkeys(properties, f"It is what the premise {number} says.")
    if "relation" in texts:
        return json.dumps(texts | {"relation": "entailment" if entailed else "contradiction"})
    if "score" in texts:
        return json.dumps(texts | {"score": 5})
    name = "reflected_label" if "reflected_label" in texts else "predicted_label"
    label = int("true label is 1" in asked) if name == "reflected_label" else int(entailed)
    return json.dumps(texts | {name: label})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer=answer) as serving:
        yield serving


def data_root(folder: Path, pairs: str, split: str = "train") -> Path:
    path = folder / "data" / "original_data" / f"{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pairs)
    return folder / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    hypotheses = ("matches it", "contradicts it")
    rows = [f"p{n},This is pair number {n}.,Pair {n} {hypotheses[n % 2]}.,{n % 2}" for n in range(NUM_PAIRS)]
    return data_root(tmp_path, "\n".join(["id,premise,hypothesis,label", *rows]) + "\n")


def run(command: str, root: Path, server: FakeServer, *more: str) -> int:
    flags = ["--root", str(root), "--backend", "openai", "--server_url", server.url, "--price", "1,2"]
    return main([command, *flags, "--model", "teacher", "--next_models=", *more])


def test_generate_stops_after_the_probe_and_asks_nothing_twice_with_the_map_that_fits(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server) == 6
    printed = capsys.readouterr()
    assert STOP in printed.err
    assert printed.out.splitlines() == [
        "teacher finds 0 % of label 1 and 0 % of label 0: labels look reversed",
        "  label 0: 0 of 50 (0% to 7%)",
        "  label 1: 0 of 50 (0% to 7%)",
        "  two of the pairs:",
        "    p0: 'This is pair number 0.' / 'Pair 0 matches it.'",
        "      teacher: 1 (entailment), file: 0 (no entailment)",
        "    p1: 'This is pair number 1.' / 'Pair 1 contradicts it.'",
        "      teacher: 0 (no entailment), file: 1 (entailment)",
    ]
    assert server.num_requests == 100
    assert not (root / "original_thoughts").exists()

    assert run("generate", root, server, "--label-map", "0=1,1=0") == 0
    assert server.num_requests == NUM_PAIRS
    assert all(thought.correct for thought in read_thoughts(root / "original_thoughts" / "train.jsonl"))


def test_the_complement_of_the_users_own_map_is_proposed(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "original_data" / "train.csv"
    text = path.read_text().replace(".,0\n", ".,entailment\n").replace(".,1\n", ".,neutral\n")
    path.write_text(text)
    assert run("generate", root, server, "--label_map", "entailment=0,neutral=1", "--probe") == 6
    assert "with --label_map entailment=1,neutral=0 in every command" in capsys.readouterr().err
    assert run("generate", root, server, "--label_map", "entailment=1,neutral=0", "--probe") == 0
    assert server.num_requests == 100


def test_an_exchanged_relation_map_is_blamed_before_the_labels(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--label_map", "0=1,1=0", "--prompt_type", "relation", "--probe")
    exchanged = ("--relation_map", "entailment=0,neutral=1,contradiction=1")
    assert run("generate", root, server, *flags, *exchanged) == 6
    assert (
        "labels look reversed; with generate --prompt_type relation --relation_map "
        "entailment=1,neutral=0,contradiction=0 the teacher is right on 100.0 %"
    ) in capsys.readouterr().err
    assert run("generate", root, server, *flags) == 0


@pytest.mark.parametrize("command", ["reflect", "score"])
def test_reflect_and_score_stop_before_they_ask_and_in_a_dry_run(
    command: str, root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server, "--yes") == 0
    asked = server.num_requests
    thoughts = root / "original_thoughts" / "train.jsonl"
    for dry_run in ((), ("--dry-run",)):
        capsys.readouterr()
        assert run(command, root, server, *dry_run) == 6
        printed = capsys.readouterr()
        assert f"{thoughts}: {STOP}" in printed.err
        assert "    p1: 'This is pair number 1.' / 'Pair 1 contradicts it.'" in printed.out
    assert server.num_requests == asked

    assert run(command, root, server, "--label_map", "0=1,1=0", "--dry_run") == 0
    assert run(command, root, server, "--limit", "2", "--yes") == 0
    assert server.num_requests == asked + 2


def test_reflect_stops_too_if_the_teacher_also_has_other_definitions(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A strict teacher calls one entailment in five so, and nothing else."""
    path = root / "original_thoughts" / "train.jsonl"
    path.parent.mkdir()
    pairs = read_examples(root / "original_data" / "train.csv")
    texts = [{"id": pair.id, "premise": pair.premise, "hypothesis": pair.hypothesis} for pair in pairs]
    said = [
        {"thought_process": f"Thought {n}.", "predicted_label": int(n % 10 == 0)} for n in range(NUM_PAIRS)
    ]
    path.write_text("\n".join(json.dumps(text | each) for text, each in zip(texts, said, strict=True)))
    assert run("reflect", root, server, "--dry_run") == 6
    assert (
        "teacher finds 0 % of label 1 and 80 % of label 0: the label definitions do not fit this data; "
        "labels may be reversed too: with --label_map 0=1,1=0 in every command the teacher is right "
        "on 60.0 %; then "
    ) in capsys.readouterr().err
    assert run("reflect", root, server, "--label_map", "0=1,1=0", "--dry_run") == 0


def test_eight_pairs_of_a_public_set_suffice_if_every_answer_is_the_other_label(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_root(tmp_path, CLASS_LABELS)
    assert run("generate", root, server, "--probe") == 6
    assert STOP in capsys.readouterr().err

    assert run("generate", root, server, "--yes") == 0
    capsys.readouterr()
    assert main(["audit", "--root", str(root)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "ERROR labels look reversed: in train the teacher finds 0 % of label 1 and 0 % of" in printed
    assert "with --label_map 0=1,1=0 in every command the teacher is right on 100.0 %" in printed
    assert "1 (entailment) 0 (no entailment) 'A man plays a lute on a bench.' / 'A person makes" in printed
    assert "weak teacher" not in printed
    assert main(["audit", "--root", str(root), "--label_map", "0=1,1=0"]) == 0
    assert server.num_requests == 8
