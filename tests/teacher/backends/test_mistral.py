"""The batch backend against an HTTP server: jobs are found again, and no request is in two of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nlicot.errors import ConfigError, DataError
from nlicot.servers.faults import Fault, Refused, Rejected, Transient
from nlicot.teacher.backends.base import (
    BACKENDS,
    AnswerSchema,
    Connection,
    Message,
    Reply,
    Request,
    check_fields,
    connect,
)
from nlicot.teacher.backends.mistral import BatchAnswer, MistralBatchBackend, answers_of
from nlicot.teacher.engine.rate_limiter import RetryPolicy
from tests.chaos.damage import damages
from tests.teacher.fake_answers import Behaviour, default_answer, error_200, status
from tests.teacher.fake_batch_server import JOBS, FakeBatchServer
from tests.time_limits import HANGS_S

T = TypeVar("T")
KEY = "the-key"
SCHEMA = AnswerSchema(
    name="answer",
    schema={"type": "object", "properties": {"thought_process": {"type": "string"}, "predicted_label": {}}},
)
FAST = RetryPolicy(batch_quiet_s=0.03, batch_poll_s=0.01, batch_max_poll_s=0.02, batch_settle_s=0.1)


@pytest.fixture
def server() -> Iterator[FakeBatchServer]:
    with FakeBatchServer() as server:
        yield server


def backend_for(
    server: FakeBatchServer, folder: Path, *, policy: RetryPolicy = FAST, concurrency: int = 10_000
) -> MistralBatchBackend:
    connection = Connection(server=server.url, api_key=KEY, journal_folder=folder, concurrency=concurrency)
    return MistralBatchBackend(connection, policy)


def request(number: int, *, model: str = "teacher", server: str = "somewhere") -> Request:
    return Request(
        stage="generate",
        backend="mistral-batch",
        server=server,
        model=model,
        messages=(Message(role="system", content="Judge."), Message(role="user", content=f"Pair {number}.")),
        params={"temperature": 0.3, "max_tokens": 64, "random_seed": 7},
        schema=SCHEMA,
    )


def text_for(request: Request) -> str:
    """Compute the server's answer from the request."""
    turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    schema = {"type": "json_schema", "json_schema": {"schema": request.schema.schema}}
    return default_answer(
        {"model": request.model, "messages": turns, "response_format": schema, **request.params}
    )


async def outcomes_of(backend: MistralBatchBackend, requests: list[Request]) -> list[Reply | BaseException]:
    return await asyncio.gather(*map(backend.complete, requests), return_exceptions=True)


def answered(backend: MistralBatchBackend, requests: list[Request]) -> list[Reply | BaseException]:
    """Send all requests at once in a new event loop, and close."""

    async def run() -> list[Reply | BaseException]:
        try:
            return await outcomes_of(backend, requests)
        finally:
            await backend.close()

    return asyncio.run(run())


def cut_off(
    server: FakeBatchServer, backend: MistralBatchBackend, requests: list[Request], moment: str
) -> None:
    """Send the requests, and cancel when the server holds at `moment`, like a second Ctrl-C."""

    async def run() -> None:
        asked = asyncio.gather(*map(backend.complete, requests), return_exceptions=True)
        assert await asyncio.to_thread(server.held.wait, HANGS_S), moment
        asked.cancel()
        await backend.close()

    server.hold_at = moment
    asyncio.run(run())
    server.hold_at = ""
    server.held.clear()


def texts(replies: list[Reply | BaseException]) -> list[str]:
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return [reply.text for reply in replies if isinstance(reply, Reply)]


def fault_in(outcome: Reply | BaseException) -> tuple[type[Fault], str, bool]:
    assert isinstance(outcome, Fault), outcome
    return type(outcome), outcome.kind, outcome.possibly_paid


def within(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


# ------------------------------------------------------------------ one batch


def test_requests_that_wait_together_share_one_job(server: FakeBatchServer, tmp_path: Path) -> None:
    requests = [request(number) for number in range(5)]
    replies = answered(backend_for(server, tmp_path), requests)

    assert texts(replies) == [text_for(request) for request in requests]
    (job,) = server.jobs
    keys = sorted(request.key() for request in requests)
    assert job["endpoint"] == "/v1/chat/completions"
    assert job["model"] == "teacher"
    assert job["metadata"] == {
        "nlicot_fingerprint": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        "nlicot_attempt": "0",
    }
    assert sorted(server.asked) == keys


def test_a_line_contains_the_request_without_the_model(server: FakeBatchServer, tmp_path: Path) -> None:
    answered(backend_for(server, tmp_path), [request(1)])

    assert server.lines(server.jobs[0]) == [
        {
            "custom_id": request(1).key(),
            "body": {
                "messages": [
                    {"role": "system", "content": "Judge."},
                    {"role": "user", "content": "Pair 1."},
                ],
                "temperature": 0.3,
                "max_tokens": 64,
                "random_seed": 7,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA.schema, "strict": True},
                },
            },
        }
    ]


def test_a_reply_has_usage_finish_reason_and_body(server: FakeBatchServer, tmp_path: Path) -> None:
    (reply,) = answered(backend_for(server, tmp_path), [request(1)])

    assert isinstance(reply, Reply)
    assert reply.finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len("Judge.Pair 1.") // 4 + 1
    assert json.loads(reply.raw)["choices"][0]["message"]["content"] == reply.text
    assert reply.latency_s > 0


def test_a_job_is_polled_until_it_is_over(server: FakeBatchServer, tmp_path: Path) -> None:
    server.num_polls_until_over = 4
    assert texts(answered(backend_for(server, tmp_path), [request(1)])) == [text_for(request(1))]
    assert server.num_polls["job-0"] == 4


def test_a_full_batch_is_submitted_at_once(server: FakeBatchServer, tmp_path: Path) -> None:
    backend = backend_for(server, tmp_path, concurrency=10, policy=replace(FAST, batch_quiet_s=0.2))
    requests = [request(number) for number in range(25)]

    assert texts(answered(backend, requests)) == [text_for(request) for request in requests]
    assert sorted(len(server.lines(job)) for job in server.jobs) == [5, 10, 10]
    assert max(server.asked.values()) == 1


def test_each_model_has_its_own_job(server: FakeBatchServer, tmp_path: Path) -> None:
    requests = [request(1), request(1, model="stronger-teacher"), request(2)]

    assert texts(answered(backend_for(server, tmp_path), requests)) == [text_for(r) for r in requests]
    assert {job["model"]: len(server.lines(job)) for job in server.jobs} == {
        "teacher": 2,
        "stronger-teacher": 1,
    }


def test_a_request_repeated_after_its_answer_goes_into_a_new_job(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    answered(backend_for(server, tmp_path), [request(1)])
    answered(backend_for(server, tmp_path), [request(1)])

    fingerprints, attempts = zip(*(job["metadata"].values() for job in server.jobs), strict=True)
    assert len(set(fingerprints)) == 1
    assert attempts == ("0", "1")


def test_models_are_listed_and_the_key_is_in_no_file_or_log(
    server: FakeBatchServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[str] | None:
        backend = backend_for(server, tmp_path)
        try:
            await backend.complete(request(1))
            return await backend.models()
        finally:
            await backend.close()

    with caplog.at_level(logging.INFO, "nlicot"):
        assert within(run()) == ["teacher", "stronger-teacher"]
    assert "batch job job-0: 1 requests to teacher" in caplog.text
    written = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(written) == 1
    assert KEY not in caplog.text + "".join(written)


# ------------------------------------------------------------------ faults


def scripted(body: Any) -> dict[str, Any] | str | None:
    asked = body["messages"][-1]["content"]
    error = {"object": "error", "message": "scripted"}
    return {
        "Pair 1.": {"response": {"status_code": 400, "body": error}},
        "Pair 2.": {"response": {"status_code": 503, "body": error}},
        "Pair 3.": {"response": None, "error": {"message": "scripted", "code": 429}},
        "Pair 4.": {"response": None, "error": "could not be read"},
        "Pair 5.": {"response": {"status_code": 200, "body": {"choices": []}}},
        "Pair 6.": '{"custom_id": "CUSTOM_ID", "response": {"body": {"message": {"content": "salvaged"}',
        "Pair 7.": '{"custom',
        "Pair 8.": {"response": {"status_code": 401, "body": {"detail": "Unauthorized"}}},
    }.get(asked)


def test_a_failed_line_gives_the_same_fault_as_outside_of_a_batch(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.line = scripted
    outcomes = answered(backend_for(server, tmp_path), [request(number) for number in range(9)])

    assert isinstance(outcomes[0], Reply)
    assert isinstance(outcomes[6], Reply)
    assert (outcomes[6].text, outcomes[6].salvaged) == ("salvaged", True)
    faults = [fault_in(outcomes[number]) for number in (1, 2, 3, 4, 5, 7, 8)]
    assert [(kind.__name__, name, paid) for kind, name, paid in faults] == [
        ("Rejected", "http_400", False),
        ("Transient", "http_503", False),
        ("RateLimited", "http_429", False),
        ("Rejected", "http_422", False),
        ("BrokenEnvelope", "broken_envelope", True),
        # The server counts one answer more than could be parsed.
        ("Transient", "batch_success", True),
        ("Refused", "http_401", False),
    ]


USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


def error_in_200(body: Any) -> dict[str, Any] | None:
    error = {"code": 429, "message": "slow down"}
    broken = {"message": {"content": "half"}, "error": {"code": 502, "message": "upstream"}}
    return {
        "Pair 1.": {"response": {"status_code": 200, "body": {"error": error}}},
        "Pair 2.": {
            "response": {"status_code": 200, "body": {"error": {"code": "402", "message": "paid up"}}}
        },
        "Pair 3.": {"response": {"status_code": 200, "body": {"choices": [broken]}}},
        "Pair 4.": {"response": {"status_code": 200, "body": None}, "error": error},
        "Pair 5.": {"response": {"status_code": 200, "body": None}, "error": {"message": "lost"}},
        "Pair 6.": {"response": None, "error": {"message": "slow down", "type": "rate_limited"}},
        "Pair 7.": {"response": {"status_code": 200, "body": {"error": error, "usage": USAGE}}},
        "Pair 8.": {"response": {"status_code": 200, "body": None}},
    }.get(body["messages"][-1]["content"])


def test_an_error_in_the_200_of_a_line_is_the_fault_that_its_code_says(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.line = error_in_200
    outcomes = answered(backend_for(server, tmp_path), [request(number) for number in range(9)])

    assert isinstance(outcomes[0], Reply)
    faults = [fault_in(outcome) for outcome in outcomes[1:]]
    assert [(kind.__name__, name, paid) for kind, name, paid in faults] == [
        ("RateLimited", "http_429", False),
        ("Refused", "http_402", False),
        ("Transient", "http_502", False),
        ("RateLimited", "http_429", False),
        ("Transient", "http_500", False),
        ("RateLimited", "http_429", False),
        ("RateLimited", "http_429", True),
        ("BrokenEnvelope", "broken_envelope", True),
    ]


def test_request_fields_are_in_the_lines_of_a_batch(server: FakeBatchServer, tmp_path: Path) -> None:
    changed = replace(request(1), fields={"temperature": None, "min_p": 0.1})
    answered(backend_for(server, tmp_path), [changed])

    body = server.lines(server.jobs[0])[0]["body"]
    assert list(body) == ["messages", "max_tokens", "random_seed", "response_format", "min_p"]
    assert body["min_p"] == 0.1


@pytest.mark.parametrize(
    ("backend", "fields", "message"),
    [
        (
            "mistral",
            {"min_p": 1},
            "--request_field: found min_p, expected one that the mistralai SDK sends: model",
        ),
        ("mistral", {"http_headers": None}, "--request_field: found http_headers, expected one that"),
        (
            "mistral",
            {"top_k": "x"},
            "--request_field top_k: found 'x', the mistralai SDK says: Input should be",
        ),
        ("local", {"top_k": 1}, "--request_field: --backend local sends nothing to a server"),
    ],
)
def test_a_field_that_cannot_be_sent_is_refused(backend: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_fields(backend, fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["mistral-batch", "openai"])
def test_other_backends_send_any_field(backend: str) -> None:
    check_fields(backend, {"min_p": 1})


def test_answers_are_delivered_before_faults(server: FakeBatchServer, tmp_path: Path) -> None:
    """Five failures before the first answer would end a run."""
    server.line = scripted
    order: list[int] = []

    async def ask(backend: MistralBatchBackend, number: int) -> None:
        try:
            await backend.complete(request(number))
        except Fault:
            pass
        finally:
            order.append(number)

    async def run() -> None:
        backend = backend_for(server, tmp_path)
        await asyncio.gather(*(ask(backend, number) for number in (1, 2, 9, 4, 10)))
        await backend.close()

    within(run())
    assert sorted(order[:2]) == [9, 10]


def test_a_failed_line_is_retried_in_a_new_job(server: FakeBatchServer, tmp_path: Path) -> None:
    server.line = scripted
    backend = backend_for(server, tmp_path)

    async def run() -> Reply:
        with pytest.raises(Transient, match="http_503"):
            await backend.complete(request(2))
        server.line = lambda body: None
        try:
            return await backend.complete(request(2))
        finally:
            await backend.close()

    assert within(run()).text == text_for(request(2))
    assert [job["metadata"]["nlicot_attempt"] for job in server.jobs] == ["0", "1"]


def test_an_expired_job_gives_its_answers_and_the_rest_can_be_retried(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.ending = ("TIMEOUT_EXCEEDED", 2)
    requests = [request(number) for number in range(4)]
    outcomes = answered(backend_for(server, tmp_path), requests)

    in_job = [line["custom_id"] for line in server.lines(server.jobs[0])]
    by_key = {request.key(): outcome for request, outcome in zip(requests, outcomes, strict=True)}
    assert all(isinstance(by_key[key], Reply) for key in in_job[:2])
    assert [fault_in(by_key[key]) for key in in_job[2:]] == [(Transient, "batch_timeout_exceeded", False)] * 2

    server.ending = ("SUCCESS", None)
    unanswered = [request for request in requests if request.key() in in_job[2:]]
    assert texts(answered(backend_for(server, tmp_path), unanswered)) == [text_for(r) for r in unanswered]
    assert sorted(server.asked.values()) == [1, 1, 2, 2]


@pytest.mark.parametrize(("ending", "kind"), [("FAILED", "batch_failed"), ("CANCELLED", "batch_cancelled")])
def test_a_failed_or_cancelled_job_is_not_repeated(
    server: FakeBatchServer, tmp_path: Path, ending: str, kind: str
) -> None:
    server.ending = (ending, 0)
    (outcome,) = answered(backend_for(server, tmp_path), [request(1)])

    assert fault_in(outcome) == (Rejected, kind, False)
    if ending == "FAILED":
        assert "the file could not be read" in str(outcome)


def test_answers_that_are_counted_but_missing_are_possibly_paid(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.loses_files = True
    (outcome,) = answered(backend_for(server, tmp_path), [request(1)])
    assert fault_in(outcome) == (Transient, "batch_success", True)


def test_transient_server_faults_are_waited_out(server: FakeBatchServer, tmp_path: Path) -> None:
    server.faults[("GET", JOBS)] = deque([status(503), status(429), error_200(429)])
    server.faults[("POST", "/v1/files")] = deque([status(502), error_200(502)])
    server.faults[("POST", JOBS)] = deque([status(429)])
    server.faults[("GET", f"{JOBS}/job-0")] = deque([status(500), status(503)])
    server.faults[("GET", "/v1/files/file-1/content")] = deque([status(504)])

    assert texts(answered(backend_for(server, tmp_path), [request(1)])) == [text_for(request(1))]
    assert len(server.jobs) == 1
    assert not any(server.faults.values())


def test_an_upload_whose_response_has_no_id_is_repeated(server: FakeBatchServer, tmp_path: Path) -> None:
    server.faults[("POST", "/v1/files")] = deque([Behaviour(body="{}"), Behaviour(body='{"id": null}')])

    assert texts(answered(backend_for(server, tmp_path), [request(1)])) == [text_for(request(1))]
    assert len(server.jobs) == 1


def test_a_server_that_never_names_the_uploaded_file_is_a_fault(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.faults[("POST", "/v1/files")] = deque([Behaviour(body="{}")] * 2)
    policy = replace(FAST, batch_max_attempts=2)

    (outcome,) = answered(backend_for(server, tmp_path, policy=policy), [request(1)])
    assert fault_in(outcome) == (Transient, "broken_envelope", False)
    assert not server.jobs


@pytest.mark.parametrize(("code", "kind"), [(422, Rejected), (401, Refused)])
def test_a_rejected_job_leaves_no_record(
    server: FakeBatchServer, tmp_path: Path, code: int, kind: type[Fault]
) -> None:
    server.faults[("POST", JOBS)] = deque([status(code)])
    requests = [request(1), request(2)]
    outcomes = answered(backend_for(server, tmp_path), requests)

    assert [fault_in(outcome) for outcome in outcomes] == [(kind, f"http_{code}", False)] * 2
    assert not list(tmp_path.rglob("*.json"))
    assert texts(answered(backend_for(server, tmp_path), requests)) == [text_for(r) for r in requests]
    assert [job["metadata"]["nlicot_attempt"] for job in server.jobs] == ["0"]


def test_a_job_whose_creation_was_cut_off_is_found_by_its_metadata(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.hold_at = "dropped"
    requests = [request(1), request(2)]
    backend = backend_for(server, tmp_path)

    async def run() -> list[Reply | BaseException]:
        outcomes = await outcomes_of(backend, requests)
        assert [fault_in(outcome) for outcome in outcomes] == [(Transient, "connection", False)] * 2
        try:
            return await outcomes_of(backend, requests)
        finally:
            await backend.close()

    assert texts(within(run())) == [text_for(request) for request in requests]
    assert len(server.jobs) == 1


def test_a_job_is_created_once_it_is_certain_that_there_is_none(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    server.faults[("POST", JOBS)] = deque([status(503)])
    backend = backend_for(server, tmp_path)

    async def run() -> Reply:
        with pytest.raises(Transient, match="http_503"):
            await backend.complete(request(1))
        try:
            return await backend.complete(request(1))
        finally:
            await backend.close()

    assert within(run()).text == text_for(request(1))
    assert [job["metadata"]["nlicot_attempt"] for job in server.jobs] == ["0"]


# ------------------------------------------------------------------ continuing


def test_an_interrupted_run_continues_with_its_job(server: FakeBatchServer, tmp_path: Path) -> None:
    requests = [request(number) for number in range(6)]
    cut_off(server, backend_for(server, tmp_path), requests, "look")

    assert texts(answered(backend_for(server, tmp_path), requests)) == [text_for(r) for r in requests]
    assert len(server.jobs) == 1
    assert server.num_polls["job-0"] == 1  # polled once for all requests


def test_requests_of_an_old_job_stay_in_it_and_the_rest_get_a_new_one(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    cut_off(server, backend_for(server, tmp_path), [request(number) for number in range(6)], "look")

    later = [request(number) for number in range(4, 9)]
    assert texts(answered(backend_for(server, tmp_path), later)) == [text_for(r) for r in later]
    assert [len(server.lines(job)) for job in server.jobs] == [6, 3]

    # Requests that were not repeated still wait in the first job, which is over.
    first = [request(number) for number in range(4)]
    assert texts(answered(backend_for(server, tmp_path), first)) == [text_for(r) for r in first]
    assert max(server.asked.values()) == 1


def test_requests_of_a_job_whose_id_was_never_saved_stay_in_it(
    server: FakeBatchServer, tmp_path: Path
) -> None:
    cut_off(server, backend_for(server, tmp_path), [request(number) for number in range(6)], "created")

    later = [request(number) for number in range(4, 9)]
    assert texts(answered(backend_for(server, tmp_path), later)) == [text_for(r) for r in later]
    assert [len(server.lines(job)) for job in server.jobs] == [6, 3]
    assert max(server.asked.values()) == 1


def test_a_job_may_appear_late_in_the_list(server: FakeBatchServer, tmp_path: Path) -> None:
    cut_off(server, backend_for(server, tmp_path), [request(number) for number in range(6)], "created")
    server.num_late = 1

    (reply,) = answered(backend_for(server, tmp_path, policy=replace(FAST, batch_settle_s=1.0)), [request(3)])
    assert texts([reply]) == [text_for(request(3))]
    assert len(server.jobs) == 1


def test_late_requests_are_answered_from_a_job_that_is_over(server: FakeBatchServer, tmp_path: Path) -> None:
    requests = [request(1), request(2)]
    cut_off(server, backend_for(server, tmp_path), requests, "look")
    backend = backend_for(server, tmp_path)

    async def run() -> list[str]:
        first = await backend.complete(requests[0])
        second = await backend.complete(requests[1])
        await backend.close()
        return [first.text, second.text]

    assert within(run()) == [text_for(request) for request in requests]
    assert max(server.asked.values()) == 1


def test_a_job_is_found_if_its_record_was_lost(server: FakeBatchServer, tmp_path: Path) -> None:
    cut_off(server, backend_for(server, tmp_path / "lost"), [request(1), request(2)], "look")
    others = [dict(server.jobs[0], id=f"other-{number}", metadata=None) for number in range(250)]
    server.jobs += others  # newer ones, on the list's first pages

    answered(backend_for(server, tmp_path / "new"), [request(1), request(2)])
    assert len(server.jobs) == 1 + len(others)


def test_an_unknown_job_is_refused_and_not_paid_for_again(server: FakeBatchServer, tmp_path: Path) -> None:
    cut_off(server, backend_for(server, tmp_path), [request(1)], "look")
    server.jobs.clear()

    (outcome,) = answered(backend_for(server, tmp_path), [request(1)])
    assert fault_in(outcome) == (Refused, "unknown_batch_job", False)
    (path,) = (tmp_path / "batches").iterdir()
    assert f"move {path} away to send its 1 open requests again, and pay" in str(outcome)


def test_a_damaged_record_is_named(server: FakeBatchServer, tmp_path: Path) -> None:
    cut_off(server, backend_for(server, tmp_path), [request(1)], "look")
    (path,) = (tmp_path / "batches").iterdir()
    num_refused = 0
    for _, do_damage in damages(path):
        do_damage()
        try:
            backend_for(server, tmp_path)  # four other bytes may be another valid record
        except DataError as error:
            assert str(error).startswith(f"{path}: not a record of a batch (")
            num_refused += 1
    assert num_refused >= 12


# ------------------------------------------------------------------ SIGKILL

NUM_PAIRS = 12
RUN = """
import sys
from pathlib import Path
from nlicot.records import Example
from nlicot.teacher.backends.base import Connection
from nlicot.teacher.backends.mistral import MistralBatchBackend
from nlicot.teacher.engine.rate_limiter import RetryPolicy
from nlicot.teacher.engine.scheduler import RunSettings
from nlicot.teacher.stages import StageSettings, generate_thoughts

url, folder, num = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
examples = [
    Example(id=f"p{n}", premise=f"Pair {n}.", hypothesis="It follows.", label=n % 2, phenomenon=None)
    for n in range(num)
]
backend = MistralBatchBackend(
    Connection(server=url, api_key="the-key", journal_folder=folder, concurrency=10_000),
    RetryPolicy(batch_quiet_s=0.1, batch_poll_s=0.02, batch_max_poll_s=0.05, batch_settle_s=0.5),
)
made = generate_thoughts(
    examples,
    backend=backend,
    settings=StageSettings(model="teacher"),
    journal=folder / "generate.sqlite",
    run=RunSettings(concurrency=100),
)
print(len(made.failures), *(f"{thought.id}:{thought.thought_process}" for thought in made.records), sep="\\n")
"""


def command(server: FakeBatchServer, folder: Path, num_pairs: int = NUM_PAIRS) -> list[str]:
    return [sys.executable, "-c", RUN, server.url, str(folder), str(num_pairs)]


def finished(server: FakeBatchServer, folder: Path, num_pairs: int = NUM_PAIRS) -> list[str]:
    run = subprocess.run(
        command(server, folder, num_pairs), capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def killed(server: FakeBatchServer, folder: Path, moment: str) -> None:
    server.hold_at = moment
    with subprocess.Popen(command(server, folder), stderr=subprocess.PIPE, text=True) as process:
        held = server.held.wait(HANGS_S)
        os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=HANGS_S)
    assert held, errors
    server.hold_at = ""
    server.held.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "num_jobs_at_kill"),
    [("create", 0), ("created", 1), ("look", 1)],
    ids=["before the job was created", "before its id was noted", "while it was waited for"],
)
def test_a_killed_run_finds_its_job_and_sends_nothing_twice(
    tmp_path: Path, moment: str, num_jobs_at_kill: int
) -> None:
    with FakeBatchServer() as whole:
        unkilled = finished(whole, tmp_path / "whole")
    assert unkilled[0] == "0"
    assert len(unkilled) == 1 + NUM_PAIRS

    with FakeBatchServer(num_polls_until_over=2) as server:
        killed(server, tmp_path / "killed", moment)
        assert len(server.jobs) == num_jobs_at_kill
        assert finished(server, tmp_path / "killed") == unkilled

        metadata = [tuple(job["metadata"].items()) for job in server.jobs]
        assert len(metadata) == len(set(metadata)) == 1
        assert sorted(server.asked.values()) == [1] * NUM_PAIRS


@pytest.mark.slow
def test_a_killed_run_continues_with_additional_pairs(tmp_path: Path) -> None:
    with FakeBatchServer() as server:
        killed(server, tmp_path, "look")
        answers = finished(server, tmp_path, NUM_PAIRS + 5)

        assert len(answers) == 1 + NUM_PAIRS + 5
        assert [len(server.lines(job)) for job in server.jobs] == [NUM_PAIRS, 5]
        assert max(server.asked.values()) == 1


# ------------------------------------------------------------------ registry and lines


def test_the_batch_backend_is_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)

    def connected() -> Any:
        options = {"timeout_s": 9, "concurrency": 16, "journal_folder": tmp_path}
        return connect("mistral-batch", "https://here/v1", send_key=True, **options)

    with pytest.raises(ConfigError, match="--backend mistral-batch: found no MISTRAL_API_KEY"):
        connected()
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    backend = connected()
    assert isinstance(backend, MistralBatchBackend)
    assert (backend.name, backend.server) == ("mistral-batch", "https://here")
    assert BACKENDS["mistral-batch"].in_flight(16) == 10_000
    assert BACKENDS["mistral"].in_flight(16) == 16


def test_a_line_may_contain_unicode_line_separators() -> None:
    line = json.dumps(
        {"custom_id": "k", "response": {"status_code": 200, "body": "a\u2028b\x85c"}}, ensure_ascii=False
    )
    assert dict(answers_of(f"{line}\n\n")) == {"k": BatchAnswer(status=200, body="a\u2028b\x85c")}
