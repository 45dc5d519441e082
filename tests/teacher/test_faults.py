"""Each row of the fault table, through the command, against a server that really fails."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import nlicot.teacher.stages  # noqa: F401, before `short_pauses`: its annotations need the class
from nlicot.cli import main
from nlicot.data.thoughts import read_thoughts
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.rate_limiter import RetryPolicy
from nlicot.teacher.engine.scheduler import RunSettings
from tests.teacher.fake_answers import (
    CUT,
    DROP,
    EMPTY,
    FENCED,
    HTML,
    LABEL_2,
    LENGTH,
    MISSING_FIELD,
    NO_USAGE,
    NOT_JSON,
    THINKING,
    THINKING_ONLY,
    TIMEOUT,
    TRICKLE,
    TRUNCATED,
    TRUNCATED_IN_CONTENT,
    TWO_OBJECTS,
    WHITESPACE,
    Behaviour,
    error_200,
    no_content,
    status,
)
from tests.teacher.fake_server import FakeServer

NUM_PAIRS = 8
MARKED = "pair number 3"
TOO_BUSY = status(429, headers={"Retry-After": "0"})


@pytest.fixture(params=["openai", "mistral"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as serving:
        yield serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "original_data").mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(NUM_PAIRS)]
    (folder / "original_data" / "train.csv").write_text(
        "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    )
    return folder


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = functools.partial(
        RunSettings, policy=RetryPolicy(first_pause_s=0.001, first_shared_pause_s=0.001)
    )
    monkeypatch.setattr(scheduler, "RunSettings", settings)
    monkeypatch.setenv("MISTRAL_API_KEY", "secret-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def generate(root: Path, backend: str, server: FakeServer, *more: str) -> int:
    return main(
        [
            *("generate", "--root", str(root), "--split", "train", "--backend", backend, "--yes"),
            *(
                "--server_url",
                server.url,
                "--send_key",
                "true",
                "--model",
                "teacher",
                *more,
            ),
        ]
    )


def asked_about_marked(server: FakeServer) -> int:
    return sum(MARKED in str(body["messages"]) for body in server.completions())


def failures(root: Path) -> list[dict[str, object]]:
    path = root / "original_thoughts" / "train.failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("behaviours", "num_asked"),
    [
        pytest.param([TIMEOUT], 2, id="timeout"),
        pytest.param([DROP], 2, id="dropped"),
        pytest.param([CUT], 2, id="cut"),
        pytest.param([TRICKLE], 2, id="trickled"),
        pytest.param([status(408)], 2, id="408"),
        pytest.param([TOO_BUSY, TOO_BUSY], 3, id="429"),
        pytest.param([status(500), status(502), status(503), status(504), status(529)], 6, id="5xx"),
        pytest.param([NO_USAGE], 1, id="no usage"),
        pytest.param([TRUNCATED], 1, id="broken envelope, text whole"),
        pytest.param([TRUNCATED_IN_CONTENT], 2, id="broken envelope, text cut"),
        pytest.param([HTML, EMPTY], 3, id="HTML, then nothing"),
        pytest.param([Behaviour(headers={"Content-Encoding": "gzip"})], 2, id="not as encoded"),
        pytest.param([FENCED], 1, id="fenced"),
        pytest.param([NOT_JSON, MISSING_FIELD], 3, id="asked again twice"),
        pytest.param([LABEL_2], 2, id="label outside"),
        pytest.param([TWO_OBJECTS], 2, id="two objects"),
        pytest.param([LENGTH], 2, id="out of tokens"),
        pytest.param([WHITESPACE], 2, id="whitespace flood"),
        pytest.param([error_200(429), error_200("429")], 3, id="429 in a 200"),
        pytest.param([error_200(500), error_200(503), error_200(None, "oops")], 4, id="5xx in a 200"),
        pytest.param([no_content("length")], 2, id="null content, out of tokens"),
        pytest.param([no_content("stop", reasoning="So.")], 2, id="null content, only reasoning"),
        pytest.param([THINKING], 1, id="reasoning before the answer"),
        pytest.param([THINKING_ONLY], 2, id="reasoning that does not end"),
    ],
)
def test_a_fault_is_overcome(
    root: Path, backend: str, server: FakeServer, behaviours: Sequence[Behaviour], num_asked: int
) -> None:
    server.script(MARKED, behaviours)
    is_late = behaviours[0] in (TIMEOUT, TRICKLE)

    assert generate(root, backend, server, *["--timeout=3"] * is_late) == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert [thought.id for thought in thoughts] == [f"p{n}" for n in range(NUM_PAIRS)]
    assert asked_about_marked(server) == num_asked
    assert failures(root) == []


@pytest.mark.parametrize(
    ("behaviours", "kind", "num_asked"),
    [
        pytest.param([status(500)] * 6, "http_500", 6, id="six 500s"),
        pytest.param([HTML] * 3, "broken_envelope", 3, id="three broken envelopes"),
        pytest.param([status(400)] * 4, "http_400", 1, id="400"),
        pytest.param([status(413)], "http_413", 1, id="413"),
        pytest.param([status(422)] * 4, "http_422", 1, id="422"),
        pytest.param([NOT_JSON] * 3, "no_json", 3, id="never JSON"),
        pytest.param([LABEL_2] * 3, "label_outside", 3, id="always label 2"),
        pytest.param([LENGTH] * 2, "truncated", 2, id="twice out of tokens"),
    ],
)
def test_a_permanent_fault_fails_only_its_pair(
    root: Path, backend: str, server: FakeServer, behaviours: Sequence[Behaviour], kind: str, num_asked: int
) -> None:
    server.script(MARKED, behaviours)

    assert generate(root, backend, server, "--concurrency", "1") == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert [thought.id for thought in thoughts] == [f"p{n}" for n in range(NUM_PAIRS) if n != 3]
    assert [(failure["id"], failure["kind"]) for failure in failures(root)] == [("p3", kind)]
    assert asked_about_marked(server) == num_asked


def test_control_sequences_in_ids_and_messages_are_replaced_in_the_log(
    root: Path, backend: str, server: FakeServer
) -> None:
    pairs = root / "original_data" / "train.csv"
    pairs.write_text(pairs.read_text().replace("p3,", "p3\x1b[2J,"))
    server.script(MARKED, [status(400, {}, json.dumps({"error": {"message": "no\x1b]0;title\x07"}}))])

    assert generate(root, backend, server) == 0

    (log,) = (root / "logs" / "thoughts").glob("*.log")
    text = log.read_text(encoding="utf-8")
    assert "p3?[2J: " in text and "no?]0;title?" in text
    assert "\x1b" not in text


def test_the_next_model_is_asked_if_the_first_gives_no_valid_answer(
    root: Path, backend: str, server: FakeServer
) -> None:
    server.script(MARKED, [NOT_JSON] * 3)

    assert generate(root, backend, server, "--next_models", "stronger-teacher") == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert thoughts[3].provenance.model == "stronger-teacher"
    assert thoughts[2].provenance.model == "teacher"


@pytest.mark.parametrize(
    ("behaviour", "exit_code"),
    [
        pytest.param(status(401), 3, id="401"),
        pytest.param(status(402), 3, id="402"),
        pytest.param(status(403), 3, id="403"),
    ],
)
def test_a_refusal_stops_the_run_and_keeps_what_was_answered(
    root: Path,
    backend: str,
    server: FakeServer,
    behaviour: Behaviour,
    exit_code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script(MARKED, [behaviour])

    assert generate(root, backend, server, "--concurrency", "1") == exit_code

    assert not (root / "original_thoughts" / "train.jsonl").exists()
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("nlicot: ") and "secret-key" not in message
    assert generate(root, backend, server, "--concurrency", "1") == 0
    assert max(server.answered.values()) == 1


def test_an_unknown_model_is_refused_with_the_servers_list_before_anything_is_asked(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(root, backend, server, "--model", "teecher") == 3

    message = capsys.readouterr().err
    assert "teecher" in message and "stronger-teacher, teacher" in message
    assert server.num_requests == 0


def test_a_run_ends_when_the_first_five_are_all_rejected(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(None, [status(400, body='{"message":"no such parameter"}')] * 100)

    assert generate(root, backend, server, "--concurrency", "1") == 7

    assert "no such parameter" in capsys.readouterr().err
    assert not (root / "original_thoughts" / "train.jsonl").exists()


def test_a_run_stops_before_it_exceeds_the_budget(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--concurrency", "1", "--price", "100,100", "--max_tokens", "100")

    assert generate(root, backend, server, *given, "--budget", "0.5") == 4

    assert 0 < server.num_requests < NUM_PAIRS
    assert "--budget" in capsys.readouterr().err
    assert generate(root, backend, server, *given, "--budget", "50") == 0
    assert max(server.counts.values()) == 1


def test_a_key_is_only_sent_to_its_own_server(root: Path, server: FakeServer) -> None:
    assert generate(root, "openai", server) == 0

    assert all("authorization" not in seen.headers for seen in server.seen)
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert b"secret-key" not in kept


def test_mistrals_key_is_sent_and_never_stored(root: Path, server: FakeServer) -> None:
    assert generate(root, "mistral", server) == 0

    assert {seen.headers.get("authorization") for seen in server.seen} == {"Bearer secret-key"}
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert b"secret-key" not in kept


def test_equal_pairs_are_asked_about_once(root: Path, server: FakeServer) -> None:
    path = root / "original_data" / "train.csv"
    path.write_text("id,premise,hypothesis,label\na,One text.,Another.,1\nb,One text.,Another.,0\n")

    assert generate(root, "openai", server) == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert [(thought.id, thought.true_label) for thought in thoughts] == [("a", 1), ("b", 0)]
    assert server.num_requests == 1


@pytest.mark.parametrize("forms", [("json_schema",), ("json_object", "text"), ("text",)])
def test_the_strongest_output_format_that_a_server_accepts_is_found_once(
    root: Path, backend: str, forms: tuple[str, ...]
) -> None:
    with FakeServer(formats=forms) as server:
        assert generate(root, backend, server) == 0

        used = [(body.get("response_format") or {"type": "text"})["type"] for body in server.completions()]
        assert used[-NUM_PAIRS:] == [forms[0]] * NUM_PAIRS
        assert used[:-NUM_PAIRS].count(forms[0]) == 0


# ------------------------------------------------------------------ routers, reasoning models, filters


def failed(root: Path) -> list[tuple[object, object, object]]:
    return [(failure["id"], failure["kind"], failure["message"]) for failure in failures(root)]


@pytest.mark.parametrize(
    "behaviour",
    [
        error_200(402, "Insufficient credits"),
        error_200("insufficient_quota", "Insufficient credits"),
        error_200(429, "Insufficient credits"),
        status(429, body='{"error": {"message": "Insufficient credits", "code": "insufficient_quota"}}'),
    ],
    ids=["402 in a 200", "quota in a 200", "429 in a 200 for credit", "429 for credit"],
)
def test_no_credit_left_stops_the_run(
    root: Path, backend: str, server: FakeServer, behaviour: Behaviour, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(MARKED, [behaviour])

    assert generate(root, backend, server, "--concurrency", "1") == 3

    assert capsys.readouterr().err.splitlines()[-1] == (
        f"nlicot: {server.url}: Insufficient credits; "
        "add credit at the provider, then run the same command to continue"
    )
    assert asked_about_marked(server) == 1
    assert generate(root, backend, server, "--concurrency", "1") == 0
    assert asked_about_marked(server) == 2
    assert set(server.counts.values()) == {1, 2}


def test_a_server_that_dies_before_the_end_publishes_nothing_and_the_same_command_continues(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(30)]
    (root / "original_data" / "train.csv").write_text("\n".join(["id,premise,hypothesis,label", *rows]))
    ended = [f"pair number {n}." for n in range(20, 30)]
    server.script(lambda body: any(each in str(body["messages"]) for each in ended), [DROP] * 60)

    assert generate(root, backend, server, "--concurrency", "4") == 7

    assert "; no output was written; check the server, and run the same command" in capsys.readouterr().err
    assert not (root / "original_thoughts" / "train.jsonl").exists()
    assert generate(root, backend, server) == 0
    assert len(read_thoughts(root / "original_thoughts" / "train.jsonl")) == 30
    assert sorted(server.counts.values()) == [1] * 20 + [7] * 10


def test_a_split_without_an_answer_needs_only_the_same_command(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"d{n},This is a dev pair {n}.,Pair {n} follows.,{n % 2}" for n in range(4)]
    (root / "original_data" / "dev.csv").write_text("\n".join(["id,premise,hypothesis,label", *rows]))
    server.script("a dev pair", [DROP] * 24)

    assert generate(root, backend, server, "--split", "train,dev") == 7

    assert capsys.readouterr().err.splitlines()[-1] == (
        "nlicot: dev: every pair failed, so no output was written "
        "(check the server, and run the same command to continue)"
    )
    assert generate(root, backend, server, "--split", "train,dev") == 0
    assert len(read_thoughts(root / "original_thoughts" / "dev.jsonl")) == 4


def test_nothing_is_said_about_labels_if_nothing_was_answered(
    root: Path, backend: str, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("pair number", [DROP] * 24)

    assert generate(root, backend, server, "--limit", "4") == 7

    assert "0 of 4 answers could be read" in caplog.text
    assert "teacher finds" not in caplog.text


def test_a_key_that_a_server_repeats_is_neither_kept_nor_shown(
    root: Path,
    backend: str,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    said = "You sent Bearer secret-key"
    server.answer = lambda body: json.dumps({"thought_process": f"{said}.", "predicted_label": 1})
    refusal = json.dumps({"error": {"message": said}})
    headers = {"x-ratelimit-limit-requests": said}
    server.script(MARKED, [status(503, headers, refusal), status(400, headers, refusal)])

    assert generate(root, backend, server) == 0
    assert generate(root, backend, server, "--export_journal", str(root / "journal.jsonl")) == 0

    assert server.seen[-1].headers["authorization"] == "Bearer secret-key"
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if b"secret-key" in path.read_bytes()] == []
    out = capsys.readouterr()
    assert "secret-key" not in f"{out.out}{out.err}{caplog.text}"
    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert {thought.thought_process for thought in thoughts} == {"You sent Bearer [key]."}
    assert [failure["message"] for failure in failures(root)] == ["You sent Bearer [key]"]


@pytest.mark.parametrize(
    "spelled",
    [r"secret\/key", r"\u0073ecret/key", "secret%2Fkey", "secret%2fkey", r"\u0073\u0065cret\u002Fkey"],
)
def test_a_key_that_a_server_repeats_in_another_spelling_is_not_kept(
    root: Path, backend: str, server: FakeServer, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "MISTRAL_API_KEY"):
        monkeypatch.setenv(name, "secret/key")
    server.answer = lambda body: f'{{"thought_process": "You sent {spelled}.", "predicted_label": 1}}'
    server.script(MARKED, [status(400, {}, f'{{"error": {{"message": "You sent {spelled}"}}}}')])

    assert generate(root, backend, server) == 0

    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert {thought.thought_process for thought in thoughts} == {"You sent [key]."}
    assert [failure["message"] for failure in failures(root)] == ["You sent [key]"]


def test_an_unusable_answer_is_shown_without_the_key(
    root: Path,
    backend: str,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    server.answer = lambda body: "You sent Bearer secret-key, and no JSON."

    assert generate(root, backend, server) == 7

    assert "got 'You sent Bearer [key], and no JSON.'" in capsys.readouterr().err


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_names_its_variable(
    root: Path, backend: str, server: FakeServer, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(MARKED, [status(code)])

    assert generate(root, backend, server) == 3

    variable = {"openai": "OPENAI_API_KEY", "mistral": "MISTRAL_API_KEY"}[backend]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"nlicot: {server.url}: scripted {code}; check the key in {variable} (the environment, or .env)"
    )


def test_a_rate_limit_prints_one_line(
    root: Path, backend: str, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script(MARKED, [TOO_BUSY, TOO_BUSY, TOO_BUSY])

    assert generate(root, backend, server) == 0

    said = [record.getMessage() for record in caplog.records if record.name.endswith("scheduler")]
    assert said == [f"{server.url}: 429, waiting 0 s: scripted 429"]


def test_a_text_that_is_too_long_for_the_model_is_sent_once(
    root: Path, backend: str, server: FakeServer
) -> None:
    said = "This model's maximum context length is 4096 tokens"
    server.script(MARKED, [status(400, body=json.dumps({"error": {"message": said}}))])

    assert generate(root, backend, server, "--concurrency", "1") == 0

    assert [(failure["id"], failure["kind"]) for failure in failures(root)] == [("p3", "context_length")]
    assert asked_about_marked(server) == 1


def test_next_repeats_the_flags_of_another_server(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = ("--label_map", "0=0,1=1", "--definitions.entailment", "it follows")

    assert generate(root, backend, server, *maps) == 0

    given = f"--split train {'--backend openai ' if backend == 'openai' else ''}--server_url {server.url}"
    given += " --send_key true"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next         python -m nlicot reflect --root {root} {given} --model teacher "
        "--definitions.entailment 'it follows' --label_map 0=0,1=1"
    )


def test_next_is_prepare_if_no_thought_was_wrong(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def right(body: Mapping[str, Any]) -> str:
        number = int(str(body["messages"][-1]["content"]).split("pair number ")[1].split(".")[0])
        return json.dumps({"thought_process": "It says so.", "predicted_label": number % 2})

    server.answer = right

    assert generate(root, backend, server) == 0

    assert capsys.readouterr().out.splitlines()[-1] == (
        f"next         python -m nlicot prepare --builder correct_only --root {root}"
    )


@pytest.mark.parametrize(("budget", "verb"), [("0.001", "is"), ("0.02", "may be"), ("5", "")])
def test_a_dry_run_compares_the_estimate_with_the_budget(
    root: Path,
    backend: str,
    server: FakeServer,
    budget: str,
    verb: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert generate(root, backend, server, "--dry_run", "--budget", budget, "--price", "1,5") == 0

    lines = capsys.readouterr().out.splitlines()
    cost = lines[1].strip()
    assert "(prices as of" not in cost
    assert lines[2:] == ([f"--budget {budget} {verb} less than this run costs: {cost}"] if verb else [])
    assert server.num_requests == 0


def test_a_dry_run_counts_what_an_earlier_start_spent(
    root: Path, backend: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    price = ("--price", "100,500", "--budget", "0.5", "--concurrency", "1")
    assert generate(root, backend, server, *price) == 4
    capsys.readouterr()
    assert generate(root, backend, server, "--dry_run", *price) == 0
    printed = capsys.readouterr().out
    found = re.search(r"costs: \$(.*) to \$(.*), of which \$(.*) are spent", printed)
    assert found, printed
    low, high, spent = map(float, found.groups())
    assert 0 < spent < 0.5 < low < high


def test_errors_inside_a_200_are_not_booked_as_paid(root: Path, backend: str, server: FakeServer) -> None:
    server.script(MARKED, [error_200(500)] * 6)

    assert generate(root, backend, server, "--concurrency", "1", "--price", "1000,1000") == 0

    assert [kind for _, kind, _ in failed(root)] == ["http_500"]
    attempts = [row for row in journal(root) if row["table"] == "attempts" and row["fault"]]
    assert [(row["fault"], row["possibly_paid"]) for row in attempts] == [("http_500", 0)] * 6


def test_null_content_out_of_tokens_names_the_setting(root: Path, backend: str, server: FakeServer) -> None:
    server.script(MARKED, [no_content("length", reasoning_content="So ...")] * 2)

    assert generate(root, backend, server) == 0

    message = "the answer ran out of its 1024 tokens: raise --max_tokens (reasoning counts, too)"
    assert failed(root) == [("p3", "truncated", message)]
    asked = [body for body in server.completions() if MARKED in str(body["messages"])]
    assert [body["max_tokens"] for body in asked] == [512, 1024]


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        (no_content("content_filter"), "content_filter", "the model or a filter refused (content_filter)"),
        (
            no_content("stop", refusal="I can't help."),
            "refusal",
            'the model or a filter refused (refusal): "I can\'t help."',
        ),
    ],
)
def test_a_filtered_pair_fails_at_once_with_the_reason(
    root: Path, backend: str, server: FakeServer, behaviour: Behaviour, kind: str, message: str
) -> None:
    server.script(MARKED, [behaviour])

    assert generate(root, backend, server) == 0

    assert failed(root) == [("p3", kind, message)]
    assert asked_about_marked(server) == 1


def test_reasoning_is_kept_in_the_journal(root: Path, backend: str, server: FakeServer) -> None:
    def reasoned(body: str) -> str:
        fields = json.loads(body)
        fields["choices"][0]["message"]["reasoning_content"] = "a long thought"
        return json.dumps(fields)

    server.script(MARKED, [Behaviour(body=reasoned)])

    assert generate(root, backend, server) == 0

    raw = [row["content"]["raw"] for row in journal(root) if row["table"] == "replies"]
    assert [json.loads(each)["choices"][0]["message"].get("reasoning_content") for each in raw].count(
        "a long thought"
    ) == 1


def journal(root: Path) -> list[dict[str, Any]]:
    path = root / "journal.jsonl"
    assert main(["generate", "--root", str(root), "--export_journal", str(path), "--overwrite"]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------ fields that a server refuses


def test_the_other_name_of_max_tokens_is_tried_once(root: Path) -> None:
    with FakeServer(refused=["max_tokens"]) as server:
        assert generate(root, "openai", server) == 0

        bodies = server.completions()
        assert [body.get("max_tokens") for body in bodies] == [512] + [None] * NUM_PAIRS
        assert [body.get("max_completion_tokens") for body in bodies] == [None] + [512] * NUM_PAIRS
        assert server.statuses == {400: 1, 200: NUM_PAIRS}


def test_the_other_name_is_also_found_with_another_output_format(root: Path) -> None:
    with FakeServer(refused=["max_tokens"], formats=["text"]) as server:
        assert generate(root, "openai", server) == 0

        assert server.statuses == {400: 1, 422: 3, 200: NUM_PAIRS}


def test_a_server_that_refuses_both_names_is_asked_twice(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(refused=["max_tokens", "max_completion_tokens"]) as server:
        assert generate(root, "openai", server, "--concurrency", "1") == 7

        assert server.num_requests == 6
        assert "'max_tokens' is not supported with this model. (--request_field max_tokens=null leaves" in (
            capsys.readouterr().err
        )
        assert generate(root, "openai", server, "--request_field", "max_tokens=null") == 0


def test_a_limit_that_is_too_large_keeps_its_name(root: Path, server: FakeServer) -> None:
    server.script(MARKED, [status(400, body='{"message": "max_tokens is too large: at most 100"}')])

    assert generate(root, "openai", server, "--concurrency", "1", "--ids", "p3,p4") == 0

    assert all("max_tokens" in body for body in server.completions())
    assert [kind for _, kind, _ in failed(root)] == ["http_400"]


def test_another_refused_field_is_named_and_not_probed(
    root: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(refused=["temperature"]) as server:
        assert generate(root, backend, server, "--concurrency", "1") == 7

        assert server.num_requests == 5
        assert "'temperature' is not supported with this model. (--request_field temperature=null leaves" in (
            capsys.readouterr().err
        )
        assert generate(root, backend, server, "--request_field", "temperature=null") == 0
        assert server.num_requests == 5 + NUM_PAIRS


def test_request_fields_are_laid_over_the_body(root: Path, server: FakeServer) -> None:
    given = ["--request-field", "top_k=5", "--request_field=response_format=null"]
    given += ["--request_field", 'chat_template_kwargs={"enable_thinking": false}']

    assert generate(root, "openai", server, *given) == 0

    for body in server.completions():
        assert (body["top_k"], body["chat_template_kwargs"]) == (5, {"enable_thinking": False})
        assert "response_format" not in body
    assert server.num_requests == NUM_PAIRS
    thoughts = read_thoughts(root / "original_thoughts" / "train.jsonl")
    assert thoughts[0].provenance.params["request_fields"]["top_k"] == 5


def test_the_mistral_sdk_sends_the_fields_that_it_knows(root: Path, server: FakeServer) -> None:
    assert generate(root, "mistral", server, "--request_field", "safe_prompt=true") == 0

    assert [body["safe_prompt"] for body in server.completions()] == [True] * NUM_PAIRS


def test_answers_without_request_fields_are_found_again(root: Path, backend: str, server: FakeServer) -> None:
    field = ["--request_field", "top_k=5"]
    for more, num_asked in (([], 1), ([], 1), (field, 2), (field, 2), ([], 2)):
        assert generate(root, backend, server, "--overwrite", *more) == 0
        assert server.num_requests == num_asked * NUM_PAIRS
