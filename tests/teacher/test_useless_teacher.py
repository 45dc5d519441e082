"""A teacher whose answers can never be read: each command's requests, its message, and the next start."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.thoughts import read_thoughts
from nlicot.errors import NoAnswers
from nlicot.records import Example, Thought
from nlicot.teacher.backends.base import Connection
from nlicot.teacher.backends.mistral import MistralBatchBackend
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.rate_limiter import RetryPolicy
from nlicot.teacher.engine.scheduler import RunSettings
from nlicot.teacher.stages import StageSettings, generate_thoughts, reflect_on, score_texts
from tests.teacher.fake_answers import LENGTH, Behaviour, default_answer, envelope_of, status
from tests.teacher.fake_batch_server import FakeBatchServer
from tests.teacher.fake_server import FakeServer

NUM_PAIRS = 120
PROSE = "The hypothesis follows from the premise, so I would say yes."
Body = Mapping[str, Any]
FAST = RetryPolicy(first_pause_s=0.001, batch_quiet_s=0.05, batch_poll_s=0.01, batch_max_poll_s=0.02)


def prose(body: Body) -> str:
    return PROSE


def prose_about(numbers: Callable[[int], bool]) -> Callable[[Body], str]:
    """Answer in prose about some of the pairs, and validly about the others."""

    def answer(body: Body) -> str:
        number = int(body["messages"][1]["content"].partition("pair number ")[2].partition(".")[0])
        return PROSE if numbers(number) else default_answer(body)

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("MISTRAL_API_KEY", "a-key")
    with FakeServer(answer=prose, keep_seen=False) as serving:
        yield serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name in ("original_data", "original_thoughts"):
        (folder / name).mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(NUM_PAIRS)]
    (folder / "original_data" / "train.csv").write_text(
        "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    )
    return folder


def with_thoughts(root: Path) -> Path:
    """Add a wrong thought about each pair."""
    lines = []
    for n in range(NUM_PAIRS):
        pair = {"id": f"p{n}", "premise": f"This is pair number {n}.", "hypothesis": f"Pair {n} follows."}
        labels = {"true_label": n % 2, "predicted_label": 1 - n % 2}
        lines.append(json.dumps({**pair, "thought_process": "It says so.", **labels}))
    (root / "original_thoughts" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root


def run(command: str, root: Path, server: FakeServer, *more: str, backend: str = "openai") -> int:
    given = ["--root", str(root), "--backend", backend, "--server_url", server.url, "--model", "teacher"]
    given += ["--send_key", "true"]
    given += ["--concurrency", "64", "--yes"]
    return main([command, *given, *more])


def output(root: Path, split: str = "train") -> Path:
    return root / "original_thoughts" / f"{split}.jsonl"


@pytest.mark.parametrize("backend", ["openai", "mistral"])
def test_generate_stops_after_ten_pairs_and_writes_nothing(
    root: Path, server: FakeServer, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server, "--concurrency", "1", backend=backend) == 7

    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        f"nlicot: {server.url}: 0 of 10 answers could be read, most often no_json (10): "
        "found no JSON object with the fields thought_process, predicted_label; "
        f"pair p0 got {PROSE!r}; use another --model or --prompt, or a server that enforces JSON "
        "(response_format); --retry_failures asks again"
    )
    assert "next" not in printed.out
    assert server.num_requests == 30
    assert not output(root).exists()


def test_the_same_command_asks_nothing_until_failures_are_retried(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server) == 7
    assert run("generate", root, server) == 7
    assert "most often no_json (10), in an earlier run; nothing was sent now: " in capsys.readouterr().err
    assert server.num_requests == 30

    server.answer = default_answer
    assert run("generate", root, server, "--retry_failures") == 0
    assert server.num_requests == 30 + NUM_PAIRS
    assert len(read_thoughts(output(root))) == NUM_PAIRS


def test_another_setting_asks_again_from_the_first_pair(root: Path, server: FakeServer) -> None:
    assert run("generate", root, server) == 7
    server.answer = default_answer

    assert run("generate", root, server, "--model", "stronger-teacher") == 0
    assert server.num_requests == 30 + NUM_PAIRS


def test_answers_that_run_out_of_tokens_point_at_their_budget(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = default_answer
    server.script(lambda body: body["max_tokens"] < 4000, [LENGTH] * 1000)

    assert run("generate", root, server) == 7
    assert "most often truncated (10): " in (message := capsys.readouterr().err)
    assert "raise --max_tokens, or use another --model" in message
    assert server.num_requests == 20

    assert run("generate", root, server, "--max_tokens", "4000") == 0


def test_the_probe_says_how_many_answers_could_be_read(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", root, server, "--probe") == 7
    assert "0 of 10 answers could be read" in capsys.readouterr().err

    server.answer = prose_about(lambda number: number % 10 < 3)
    assert run("generate", root, server, "--probe", "--model", "stronger-teacher") == 0
    assert capsys.readouterr().out.startswith("70 of 100 answers could be read\nteacher finds ")


def test_a_teacher_that_fails_on_some_pairs_continues(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = prose_about(lambda number: number % 10 < 3)

    assert run("generate", root, server) == 0

    assert len(read_thoughts(output(root))) == 84
    assert server.num_requests == 84 + 3 * 36
    assert "next         python -m nlicot reflect" in capsys.readouterr().out


@pytest.mark.parametrize("num_models", [1, 2])
def test_reflect_stops_as_well(
    root: Path, server: FakeServer, num_models: int, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ",".join(["stronger-teacher"][: num_models - 1])
    assert run("reflect", with_thoughts(root), server, f"--next_models={models}") == 7
    assert "0 of 10 answers could be read, most often no_json (10)" in capsys.readouterr().err
    assert server.num_requests == 30 * num_models
    assert not (root / "reflected_thoughts" / "train.jsonl").exists()


def test_reflect_stops_after_fifty_answers_that_keep_the_wrong_label(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def stubborn(body: Body) -> str:
        number = int(body["messages"][1]["content"].partition("pair number ")[2].partition(".")[0])
        return json.dumps(json.loads(default_answer(body)) | {"reflected_label": 1 - number % 2})

    server.answer = stubborn
    assert run("reflect", with_thoughts(root), server) == 7
    message = capsys.readouterr().err
    assert "50 pairs in a row failed as wrong_label: found reflected_label 1, expected 0; pair p" in message
    assert "compare the labels with --label_map and --definitions" in message
    assert server.num_requests <= 50 + 63
    asked = server.num_requests
    assert run("reflect", root, server) == 7
    assert server.num_requests == asked


def test_score_stops_as_well(root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", with_thoughts(root), server) == 7
    assert "0 of 10 answers could be read, most often no_json (10)" in capsys.readouterr().err
    assert server.num_requests == 30
    assert not (root / "scored_thoughts" / "train.jsonl").exists()


def test_score_stops_if_no_rewrite_can_be_read(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda body: (
        PROSE if body["model"] == "stronger-teacher" else json.dumps({"analysis": "So so.", "score": 2})
    )
    given = ("--regenerate_with=stronger-teacher", "--concurrency", "1")

    assert run("score", with_thoughts(root), server, *given) == 7
    message = capsys.readouterr().err
    assert "0 of 10 rewrites could be read, most often no_json (10): " in message
    assert "name other models in --regenerate_with, or set --rounds 0" in message
    assert server.num_requests == 10 * (1 + 3)
    assert run("score", root, server, "--rounds", "0") == 0
    assert server.num_requests == 40 + NUM_PAIRS - 10


def test_an_earlier_output_is_not_replaced_by_an_empty_one(root: Path, server: FakeServer) -> None:
    server.answer = default_answer
    assert run("generate", root, server) == 0
    before = output(root).read_bytes()

    server.answer = prose
    assert run("generate", root, server, "--model", "stronger-teacher", "--overwrite") == 7
    assert run("generate", root, server, "--model", "stronger-teacher", "--overwrite", "--limit", "5") == 7

    assert output(root).read_bytes() == before


def test_retried_failures_are_added_to_the_output(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = prose_about(lambda number: number % 10 < 3)
    assert run("generate", root, server) == 0
    before = set(output(root).read_text().splitlines())
    server.answer = default_answer

    num_failed = sum(number % 10 < 3 for number in range(NUM_PAIRS))
    for more, num in (((), 0), (("--retry_failures",), num_failed)):
        capsys.readouterr()
        assert run("generate", root, server, "--dry_run", *more) == 0
        assert f"{num} requests" in capsys.readouterr().out
    assert run("generate", root, server) == 2
    assert run("generate", root, server, "--retry_failures", "--limit", "9") == 2
    assert run("generate", root, server, "--retry_failures", "--model", "stronger-teacher") == 2
    assert capsys.readouterr().err.count("train.jsonl exists already; add --overwrite") == 3

    assert run("generate", root, server, "--retry_failures") == 0
    assert before < set(output(root).read_text().splitlines())
    assert len(read_thoughts(output(root))) == NUM_PAIRS
    assert not (root / "original_thoughts" / "train.failures.jsonl").exists()


def test_a_split_in_which_every_pair_failed_has_no_output(
    root: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"d{n},This is pair number {1000 + n}.,It follows.,{n % 2}" for n in range(20)]
    path = root / "original_data" / "dev.csv"
    path.write_text("\n".join(["id,premise,hypothesis,label", *rows]) + "\n")
    server.answer = prose_about(lambda number: number >= 1000)

    assert run("generate", root, server) == 7
    printed = capsys.readouterr()
    assert "dev          no output: every pair failed" in printed.out
    assert printed.err.splitlines()[-1] == (
        "nlicot: dev: every pair failed, so no output was written (--retry_failures asks again)"
    )
    assert "next" not in printed.out
    assert len(read_thoughts(output(root))) == NUM_PAIRS
    assert not output(root, "dev").exists()

    server.answer = default_answer
    assert run("generate", root, server, "--retry_failures") == 0
    assert len(read_thoughts(output(root, "dev"))) == 20


def test_a_server_that_dies_leaves_no_output_and_the_same_command_continues(
    root: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduler, "RunSettings", functools.partial(RunSettings, policy=FAST))
    server.answer = default_answer
    server.script(None, [Behaviour()] * 40 + [status(503)] * 6 * NUM_PAIRS)

    assert run("generate", root, server, "--concurrency", "16") == 7
    assert "50 pairs in a row failed as http_503: scripted 503" in capsys.readouterr().err
    assert not output(root).exists()

    server._scripts.clear()
    assert run("generate", root, server) == 0
    assert len(read_thoughts(output(root))) == NUM_PAIRS
    assert max(server.answered.values()) == 1


# ------------------------------------------------------------------ mistral-batch


@pytest.fixture
def batches() -> Iterator[FakeBatchServer]:
    def line(body: Body) -> dict[str, Any]:
        envelope = json.loads(envelope_of(body, PROSE, "stop"))
        return {"response": {"status_code": 200, "body": envelope}}

    with FakeBatchServer(line=line) as serving:
        yield serving


def examples() -> list[Example]:
    return [
        Example(id=f"p{n}", premise=f"Pair {n}.", hypothesis="It follows.", label=n % 2)
        for n in range(NUM_PAIRS)
    ]


def wrong_thoughts() -> list[Thought]:
    return [
        Thought(
            id=pair.id,
            premise=pair.premise,
            hypothesis=pair.hypothesis,
            thought_process="It says so.",
            predicted_label=1 - int(pair.label or 0),
            true_label=pair.label,
        )
        for pair in examples()
    ]


@pytest.mark.parametrize("stage", ["generate", "reflect", "score"])
def test_a_batch_stops_after_its_first_job_of_a_hundred(
    batches: FakeBatchServer, tmp_path: Path, stage: str
) -> None:
    def ask() -> Any:
        connection = Connection(
            server=batches.url, api_key="the-key", journal_folder=tmp_path, concurrency=10_000
        )
        options: dict[str, Any] = {
            "backend": MistralBatchBackend(connection, FAST),
            "settings": StageSettings(model="teacher"),
            "journal": tmp_path / f"{stage}.sqlite",
            "run": RunSettings(concurrency=10_000, policy=FAST),
        }
        if stage == "generate":
            return generate_thoughts(examples(), **options)
        if stage == "reflect":
            return reflect_on(wrong_thoughts(), **options)
        return score_texts(wrong_thoughts(), **options)

    with pytest.raises(NoAnswers, match="0 of 100 answers could be read, most often no_json"):
        ask()
    assert [len(batches.lines(job)) for job in batches.jobs] == [100]

    with pytest.raises(NoAnswers, match="in an earlier run; nothing was sent now"):
        ask()
    assert len(batches.jobs) == 1
