"""How a response that is not an answer is classified."""

from __future__ import annotations

import datetime
import email.utils
import json

import pytest

from nlicot.servers.faults import (
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    fault_of,
    message_of,
    named_field,
    retry_after_s,
    writable,
)


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
        ('{"error": true, "message": "Outer"}', "Outer"),
        ('{"detail": [{"loc": 1}]}', '[{"loc": 1}]'),
        ("<html><h1>Bad</h1> gateway</html>", "Bad gateway"),
    ],
)
def test_an_error_message_is_one_line(text: str, message: str) -> None:
    assert message_of(text) == message


def test_a_long_message_is_shortened() -> None:
    assert len(message_of("x" * 1000)) == 200


def test_the_message_of_an_error_in_a_choice_is_shown() -> None:
    text = '{"id": "gen-1", "choices": [{"error": {"code": 502, "message": "upstream died"}}]}'
    assert message_of(text) == "upstream died"


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (
            403,
            '{"error": {"code": 403, "message": "m requires moderation. Your input was flagged"}}',
            Rejected,
        ),
        (400, '{"error": {"code": "content_filter", "message": "filtered"}}', Rejected),
        (403, '{"error": {"message": "Your account was flagged"}}', Refused),
    ],
)
def test_a_filter_rejects_one_request_and_not_all(status: int, text: str, kind: type[Fault]) -> None:
    fault = fault_of(status, {}, text)
    assert type(fault) is kind
    assert (fault.kind == "content_filter") is (kind is Rejected)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"error": {"message": "Unsupported parameter", "param": "max_tokens"}}', "max_tokens"),
        ('{"error": {"message": "Use \'max_completion_tokens\' instead."}}', "max_completion_tokens"),
        ('{"error": {"message": "\'temperature\' does not support 0.3", "param": null}}', "temperature"),
        ('{"detail": [{"type": "extra_forbidden", "loc": ["body", "random_seed"]}]}', "random_seed"),
        ('{"detail": [{"loc": ["body", "seed"], "input": {"response_format": 1}}]}', "seed"),
        ('{"error": {"message": "bad", "param": "messages"}}', "messages"),
        ('{"error": {"message": "bad", "param": "response_format.json_schema"}}', "response_format"),
        ('{"detail": "response_format json_schema is not supported"}', "response_format"),
        ('{"message": "This model does not support structured outputs"}', "response_format"),
        ('{"message": "top_k is unknown"}', "top_k"),
        ('{"message": "Bad Request"}', None),
        ("<h1>Bad Request</h1>", None),
        ("[1]", None),
    ],
)
def test_the_field_that_an_error_names(text: str, field: str | None) -> None:
    assert named_field(text, ["top_k"]) == field


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("The model `x` does not exist", "unknown_model"),
        ("The model seed-oss does not exist", "unknown_model"),
        ("Model x is not served", "unknown_model"),
        ("This model is not able to take max_tokens", "http_400"),
    ],
)
def test_a_model_that_lacks_a_field_is_not_unknown(message: str, kind: str) -> None:
    assert fault_of(400, {}, json.dumps({"message": message})).kind == kind


def test_half_a_surrogate_pair_becomes_writable() -> None:
    assert writable("a\ud800b") == "a?b"
