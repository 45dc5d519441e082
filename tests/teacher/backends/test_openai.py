from __future__ import annotations

import datetime
import email.utils
import json

import pytest

from nlicot.records import Usage
from nlicot.teacher.backends.base import (
    BrokenEnvelope,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    writable,
)
from nlicot.teacher.backends.openai import fault_of, message_of, reply_of, retry_after_s, salvage


def body(content: object, **more: object) -> str:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more})


def test_a_valid_envelope_gives_text_usage_and_time() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    reply = reply_of(body("hello", usage=usage, created=5), {"x-ratelimit-limit": "1"}, 0.5)

    assert (reply.text, reply.finish_reason, reply.salvaged) == ("hello", "stop", False)
    assert reply.usage == Usage(prompt_tokens=7, completion_tokens=3)
    assert (reply.created, reply.latency_s) == (5, 0.5)


def test_text_parts_are_joined_without_thinking_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert reply_of(body(parts), {}, 0).text == "ab"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}, 3])
def test_an_invalid_usage_is_none(usage: object) -> None:
    assert reply_of(body("x", usage=usage), {}, 0).usage is None


def test_text_is_salvaged_from_a_truncated_envelope() -> None:
    whole = body('say "a"\n')
    cut = whole[: whole.index("finish_reason")]
    reply = reply_of(cut, {}, 0)
    assert (reply.text, reply.salvaged, reply.usage) == ('say "a"\n', True, None)
    assert salvage(whole[: whole.index("say") + 2]) is None


@pytest.mark.parametrize("text", ["", "<html>502</html>", "{}", '{"choices": []}', "[" * 100_000])
def test_a_body_without_text_is_broken_and_possibly_paid(text: str) -> None:
    with pytest.raises(BrokenEnvelope) as raised:
        reply_of(text, {}, 0)
    assert raised.value.possibly_paid
    assert raised.value.raw == text


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (429, "", RateLimited),
        *((status, "", Transient) for status in (408, 500, 502, 503, 504, 529)),
        *((status, "", Rejected) for status in (400, 413, 422)),
        *((status, "", Refused) for status in (401, 402, 403, 404)),
        (400, '{"message": "Invalid model: x"}', Refused),
        (404, '{"error": {"message": "The model `x` does not exist."}}', Refused),
        (500, "unexpected value for response_format", Rejected),
    ],
)
def test_a_status_determines_the_fault(status: int, text: str, kind: type[Fault]) -> None:
    assert type(fault_of(status, {}, text)) is kind


def test_retry_after_is_parsed_as_seconds_and_as_a_date() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({"retry-after": "-1"}) == 0.0
    assert retry_after_s({"retry-after": email.utils.format_datetime(soon, usegmt=True)}) == pytest.approx(
        30, abs=2
    )
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"message": "No\\nway"}', "No way"),
        ('{"error": {"message": "Inner"}}', "Inner"),
        ('{"detail": [{"loc": 1}]}', '[{"loc": 1}]'),
        ("<html><h1>Bad</h1> gateway</html>", "Bad gateway"),
    ],
)
def test_an_error_message_is_one_line(text: str, message: str) -> None:
    assert message_of(text) == message


def test_a_long_message_is_shortened() -> None:
    assert len(message_of("x" * 1000)) == 200


def test_half_a_surrogate_pair_becomes_writable() -> None:
    assert writable("a\ud800b") == "a?b"
