"""The stages through their commands, against a server on loopback: their requests and their outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.thoughts import read_reflections, read_scores, read_thoughts
from nlicot.records import Score, Thought
from nlicot.teacher.backends.base import Connection
from nlicot.teacher.backends.openai import OpenAIBackend
from nlicot.teacher.engine.journal import Journal
from nlicot.teacher.stages import StageSettings, generate_thoughts, reflect_on, score_texts
from tests.teacher.engine.test_scheduler import Jobs, Scripted, question
from tests.teacher.fake_answers import status
from tests.teacher.fake_server import FakeServer

NUM_PAIRS = 12


def answer(body: Mapping[str, Any]) -> str:
    """Right about even pairs, wrong about odd ones; the judge likes texts of a second round."""
    asked = "\n".join(message["content"] for message in body["messages"])
    schema = body["response_format"]["json_schema"]
    number = int(re.findall(r"pair number (\d+)", asked)[0])
    if schema["name"] == "score":
        return json.dumps({"analysis": "So so.", "score": 5 if "A better thought" in asked else 2})
    given = re.search(r"true label is ([01])", asked)
    if schema["name"] == "reflection":
        label = int(given[1]) if given else 0
        return json.dumps(
            {
                "error_analysis": "It misread.",
                "improved_thought_process": f"Improved {number}.",
                "reflected_label": 1 - label if number == 7 else label,
            }
        )
    if schema["name"] == "relation":
        relation = ("entailment", "contradiction")[(number + 1) % 2]
        return json.dumps({"thought_process": f"Thought {number}.", "relation": relation})
    text = f"Thought {number}, by {body.get('seed', 0)}."
    if "So so." in asked:
        text = f"A better thought {number}."
    return json.dumps({"thought_process": text, "predicted_label": 0})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer=answer) as serving:
        yield serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "original_data").mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(NUM_PAIRS)]
    text = "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    (folder / "original_data" / "train.csv").write_text(text)
    return folder


def run(command: str, root: Path, server: FakeServer, *more: str) -> int:
    flags = ["--root", str(root), "--split", "train", "--backend", "openai", "--server_url", server.url]
    flags += ["--model", "teacher", "--next_models=", *(["--yes"] if command == "generate" else [])]
    if command == "score":
        flags += ["--regenerate_with=stronger-teacher"]
    return main([command, *flags, *more])


def test_generate_writes_a_thought_for_each_pair_in_order(root: Path, server: FakeServer) -> None:
    assert run("generate", root, server) == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert [thought.id for thought in thoughts] == [f"p{n}" for n in range(NUM_PAIRS)]
    assert [thought.correct for thought in thoughts] == [n % 2 == 0 for n in range(NUM_PAIRS)]
    assert thoughts[0].provenance.model == "teacher"
    (summary,) = (root / "logs" / "thoughts").glob("*-train.summary.json")
    assert json.loads(summary.read_text())["teacher"]["accuracy"]["value"] == 0.5


def test_the_summaries_of_all_splits_add_up_to_what_was_paid(root: Path, server: FakeServer) -> None:
    rows = [f"d{n},This is pair number {20 + n}.,Pair {n} follows.,{n % 2}" for n in range(3)]
    (root / "original_data" / "dev.csv").write_text("\n".join(["id,premise,hypothesis,label", *rows]))
    server.script("pair number 22.", [status(500)])

    assert run("generate", root, server, "--split", "train,dev", "--price", "1000,2000") == 0

    found = {
        split: json.loads(next((root / "logs" / "thoughts").glob(f"*-{split}.summary.json")).read_text())
        for split in ("train", "dev")
    }
    assert {split: each["num_requests"] for split, each in found.items()} == {"train": NUM_PAIRS, "dev": 3}
    assert {split: each["faults_on_the_way"] for split, each in found.items()} == {
        "train": {},
        "dev": {"http_500": 1},
    }
    thoughts = [
        each for split in found for each in read_thoughts(root / "original_thoughts" / f"{split}.jsonl")
    ]
    usages = [thought.provenance.usage for thought in thoughts]
    paid = sum(usage.prompt_tokens + 2 * usage.completion_tokens for usage in usages if usage) / 1000
    assert sum(each["cost_usd"] for each in found.values()) == pytest.approx(paid)
    assert [each["run_cost_usd"] for each in found.values()] == [pytest.approx(paid)] * 2
    assert sum(each["prompt_tokens"] for each in found.values()) == sum(u.prompt_tokens for u in usages if u)


def test_each_sample_is_asked_with_its_own_seed(root: Path, server: FakeServer) -> None:
    assert run("generate", root, server, "--samples", "3", "--limit", "2") == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert [(thought.id, thought.sample) for thought in thoughts] == [
        (id_, sample) for id_ in ("p0", "p1") for sample in range(3)
    ]
    assert len({thought.thought_process for thought in thoughts}) == 6


def test_ids_and_limit_choose_pairs_even_if_others_have_texts_too(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server) == 0
    assert run("reflect", root, server, "--ids", "p3,p4,p5") == 0
    assert [row.id for row in read_reflections(root / "reflected_thoughts" / "train.jsonl")] == ["p3", "p5"]

    assert run("reflect", root, server, "--limit", "2", "--overwrite") == 0
    assert [row.id for row in read_reflections(root / "reflected_thoughts" / "train.jsonl")] == ["p1"]

    assert run("reflect", root, server, "--ids", "p3,nobody", "--overwrite") == 2
    assert "nobody" in capsys.readouterr().err


def test_reflect_asks_about_wrong_thoughts_only_and_takes_no_wrong_label(
    root: Path, server: FakeServer
) -> None:
    assert run("generate", root, server) == 0
    before = (root / "original_thoughts" / "train.jsonl").read_bytes()
    assert run("reflect", root, server) == 0

    reflections = read_reflections(root / "reflected_thoughts" / "train.jsonl")
    assert [reflection.id for reflection in reflections] == ["p1", "p3", "p5", "p9", "p11"]
    assert all(reflection.reflected_label == reflection.true_label == 1 for reflection in reflections)
    assert reflections[0].thought_process == "Thought 1, by 0."
    failures = (root / "reflected_thoughts" / "train.failures.jsonl").read_text().splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["kind"]) for line in failures] == [
        ("p7", "wrong_label")
    ]
    assert (root / "original_thoughts" / "train.jsonl").read_bytes() == before


def test_score_keeps_every_round_and_escalates(root: Path, server: FakeServer) -> None:
    assert run("generate", root, server) == 0
    assert run("reflect", root, server) == 0
    assert run("score", root, server, "--rounds", "2") == 0

    found = read_scores(root / "scored_thoughts" / "train.jsonl")
    of_p0 = [(score.round, score.score) for score in found.scores if score.id == "p0"]
    assert of_p0 == [(0, 2), (1, 5)]
    (again,) = [thought for thought in found.thoughts if thought.id == "p0"]
    assert (again.round, again.thought_process, again.provenance.model) == (
        1,
        "A better thought 0.",
        "stronger-teacher",
    )
    of_p1 = [(score.target, score.round, score.score) for score in found.scores if score.id == "p1"]
    assert of_p1 == [("reflection", round_, 2) for round_ in range(3)]


def test_a_finished_stage_is_not_overwritten_and_asks_nothing_again(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server) == 0
    asked = server.num_requests
    assert run("generate", root, server) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err
    assert run("generate", root, server, "--overwrite") == 0
    assert run("generate", root, server, "--overwrite", "--reparse") == 0
    assert server.num_requests == asked


def test_only_changed_questions_are_asked_again(root: Path, server: FakeServer, tmp_path: Path) -> None:
    assert run("generate", root, server) == 0
    path = root / "original_data" / "train.csv"
    path.write_text(path.read_text().replace("Pair 4 follows.", "Pair number 4 follows at once."))
    assert run("generate", root, server, "--overwrite") == 0
    assert server.num_requests == NUM_PAIRS + 1

    definitions = tmp_path / "definitions.yaml"
    definitions.write_text("entailment: it follows\nno_entailment: it does not follow\n")
    assert run("generate", root, server, "--overwrite", "--definitions", str(definitions)) == 0
    assert server.num_requests == 2 * NUM_PAIRS + 1


def test_a_dry_run_asks_nothing_and_needs_no_key(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    assert main(["generate", "--root", str(root), "--split", "train", "--dry_run"]) == 0

    output = capsys.readouterr().out
    assert "12 requests" in output and re.search(r"\$\d+\.\d\d to \$\d+\.\d\d", output)
    assert not (root / "original_thoughts").exists()


def test_the_probe_stops_a_lopsided_teacher_and_keeps_its_answers(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "many"
    (root / "original_data").mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(160)]
    (root / "original_data" / "train.csv").write_text(
        "id,premise,hypothesis,label\n" + "\n".join(rows) + "\n"
    )
    flags = ["--root", str(root), "--split", "train", "--backend", "openai", "--server_url", server.url]
    flags += ["--model", "teacher", "--next_models="]

    assert main(["generate", *flags]) == 6
    output = capsys.readouterr()
    assert (
        "teacher finds 0 % of label 1 and 100 % of label 0: the label definitions do not fit this data"
        in output.err
    )
    assert server.num_requests == 100
    assert main(["generate", *flags, "--yes"]) == 0
    assert server.num_requests == 160


def test_relations_are_mapped_and_the_best_map_is_proposed(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--prompt_type", "relation", "--relation_map", "entailment=0,neutral=1,contradiction=1")
    assert run("generate", root, server, *flags, "--probe") == 0

    output = capsys.readouterr().out
    assert "entailment=1,neutral=0,contradiction=0  100.0%" in output
    assert "entailment=0,neutral=1,contradiction=1  0.0%" in output
    better = ("--prompt_type", "relation", "--relation_map", "entailment=1,neutral=0,contradiction=0")
    assert run("generate", root, server, *better) == 0
    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert all(thought.correct for thought in thoughts)
    assert thoughts[1].relation == "entailment"
    assert server.num_requests == NUM_PAIRS


def test_a_relation_map_names_all_three_relations(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server, "--prompt_type", "relation", "--relation_map", "neutral=1") == 2
    assert "expected 0 or 1 for each of entailment, neutral, contradiction" in capsys.readouterr().err


def test_the_journal_is_exported_as_json_lines(root: Path, server: FakeServer, tmp_path: Path) -> None:
    assert run("generate", root, server) == 0
    path = tmp_path / "journal.jsonl"
    assert run("generate", root, server, "--export_journal", str(path)) == 0

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tables = [row["table"] for row in rows]
    assert {table: tables.count(table) for table in set(tables)} == {
        "attempts": NUM_PAIRS,
        "replies": NUM_PAIRS,
        "finals": NUM_PAIRS,
    }


@pytest.mark.parametrize(("backend", "spent"), [(Scripted, 0.25), (Jobs, 0.0)])
def test_a_killed_notebook_counts_requests_in_flight_as_spent_unless_they_are_in_a_job(
    tmp_path: Path, backend: type[Scripted], spent: float
) -> None:
    path = tmp_path / "g.sqlite"
    with Journal(path, job="generate") as journal:
        journal.start_attempt("k", question("a"), "p", 0.25)

    made = generate_thoughts([], backend=backend({}), settings=StageSettings(model="teacher"), journal=path)

    assert made.report.spent_usd == spent


def test_the_stages_are_also_plain_functions(server: FakeServer, tmp_path: Path) -> None:
    from nlicot.records import Example

    pairs = [
        Example(id=f"p{n}", premise=f"This is pair number {n}.", hypothesis="It follows.", label=n % 2)
        for n in range(4)
    ]
    settings = StageSettings(model="teacher")

    made = generate_thoughts(
        pairs,
        backend=OpenAIBackend(Connection(server=server.url)),
        settings=settings,
        journal=tmp_path / "g.sqlite",
    )
    reflected = reflect_on(
        made.records,
        backend=OpenAIBackend(Connection(server=server.url)),
        settings=settings,
        journal=tmp_path / "r.sqlite",
    )
    scored = score_texts(
        made.records[:1],
        backend=OpenAIBackend(Connection(server=server.url)),
        settings=settings,
        journal=tmp_path / "s.sqlite",
        regenerate_with=["stronger-teacher"],
    )

    assert [thought.correct for thought in made.records] == [True, False, True, False]
    assert [reflection.id for reflection in reflected.records] == ["p1", "p3"]
    assert [type(record) for record in scored.records] == [Score, Thought, Score]
    assert made.failures == []
