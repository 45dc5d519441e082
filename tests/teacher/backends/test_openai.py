from __future__ import annotations

import json

import pytest

from nlicot.records import Usage
from nlicot.servers.faults import (
    BrokenEnvelope,
    Fault,
    RateLimited,
    Refused,
    Rejected,
    Transient,
)
from nlicot.teacher.backends.openai import reply_of, salvage


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


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, {"prompt_tokens": "many"}, 3),
        {"prompt_tokens": float("inf"), "completion_tokens": 1},
        {"prompt_tokens": -9, "completion_tokens": 1},
    ],
)
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


# ------------------------------------------------------------------ an error inside a 200


def in_200(error: object, **more: object) -> str:
    return json.dumps({"error": error, **more})


@pytest.mark.parametrize(
    ("text", "fault", "kind"),
    [
        (in_200({"code": 429, "message": "slow down"}), RateLimited, "http_429"),
        (in_200({"code": "429", "message": "slow down"}), RateLimited, "http_429"),
        (in_200({"status": 429, "message": "slow down"}), RateLimited, "http_429"),
        (in_200({"code": 402, "message": "no credits"}), Refused, "http_402"),
        (in_200({"code": 500, "message": "oops"}), Transient, "http_500"),
        (in_200({"code": 502, "message": ""}), Transient, "http_502"),
        (in_200({"code": 400, "message": "bad"}), Rejected, "http_400"),
        (in_200("Rate limit exceeded"), RateLimited, "http_429"),
        (in_200("Rate limited", code=429), RateLimited, "http_429"),
        (in_200({"message": "wait", "type": "rate_limit_error"}), RateLimited, "http_429"),
        (in_200({"message": "You exceeded your quota", "code": "insufficient_quota"}), Refused, "http_402"),
        (in_200({"message": "wrong", "code": "invalid_api_key"}), Refused, "http_401"),
        (in_200({"message": "bad", "type": "invalid_request_error"}), Rejected, "http_400"),
        (in_200({"message": "x", "code": "content_filter"}), Rejected, "content_filter"),
        (in_200("something broke"), Transient, "http_500"),
        (in_200({"code": 0, "message": "?"}), Transient, "http_500"),
        (in_200(True, code=429, message="slow down"), RateLimited, "http_429"),
        (in_200(429, message="slow down"), RateLimited, "http_429"),
        (in_200({"code": 429}, choices=[]), RateLimited, "http_429"),
        (f"[{in_200({'code': 503, 'message': 'busy', 'status': 'UNAVAILABLE'})}]", Transient, "http_503"),
        (
            '{"object": "error", "message": "x", "type": "rate_limited", "code": "1300"}',
            RateLimited,
            "http_429",
        ),
        ('{"type": "error", "error": {"type": "overloaded_error"}}', Transient, "http_500"),
        ('{"detail": "Unauthorized"}', Refused, "http_401"),
        ('{"code": 503, "message": "busy"}', Transient, "http_503"),
        ('{"choices": [{"error": {"code": 429, "message": "upstream"}}]}', RateLimited, "http_429"),
        (
            '{"choices": [{"message": {"content": "half"}, "error": {"code": 502}}]}',
            Transient,
            "http_502",
        ),
        ('{"choices": [{"message": {"content": null}, "finish_reason": "error"}]}', Transient, "http_500"),
    ],
)
def test_an_error_in_a_200_is_the_fault_that_its_code_says(text: str, fault: type[Fault], kind: str) -> None:
    with pytest.raises(Fault) as raised:
        reply_of(text, {"retry-after": "7"}, 0)
    assert (type(raised.value), raised.value.kind, raised.value.raw) == (fault, kind, text)
    assert not raised.value.possibly_paid
    if fault is RateLimited:
        assert raised.value.retry_after_s == 7.0


@pytest.mark.parametrize(("num_tokens", "is_paid"), [(0, False), (9, True)])
def test_an_error_is_possibly_paid_if_its_usage_says_so(num_tokens: int, is_paid: bool) -> None:
    usage = {"prompt_tokens": num_tokens, "completion_tokens": 0}
    with pytest.raises(Transient) as raised:
        reply_of(in_200({"code": 500, "message": "oops"}, usage=usage), {}, 0)
    assert raised.value.possibly_paid is is_paid


@pytest.mark.parametrize("error", [None, "", {"code": 429}, "a warning"])
def test_an_answer_next_to_an_error_field_is_read(error: object) -> None:
    assert reply_of(body("hello", error=error), {}, 0).text == "hello"


# ------------------------------------------------------------------ no content


def message(finish_reason: str, **fields: object) -> str:
    return json.dumps({"choices": [{"message": fields, "finish_reason": finish_reason}]})


@pytest.mark.parametrize("finish_reason", ["length", "stop", "content_filter"])
@pytest.mark.parametrize("content", [{"content": None}, {"content": []}, {}])
def test_null_content_is_an_empty_text(finish_reason: str, content: dict[str, object]) -> None:
    reply = reply_of(message(finish_reason, role="assistant", **content), {}, 0)
    assert (reply.text, reply.finish_reason, reply.salvaged) == ("", finish_reason, False)


def test_a_refusal_is_the_text_with_its_own_finish_reason() -> None:
    reply = reply_of(message("stop", content=None, refusal="I can't."), {}, 0)
    assert (reply.text, reply.finish_reason) == ("I can't.", "refusal")
    assert reply_of(message("stop", content="hello", refusal=None), {}, 0).finish_reason == "stop"


# ------------------------------------------------------------------ reasoning is not the answer

DRAFT = '{"thought_process": "a draft", "predicted_label": 0}'


@pytest.mark.parametrize(
    "fields",
    [
        {"content": None, "reasoning_content": DRAFT},
        {"content": None, "reasoning": DRAFT},
        {"content": None, "reasoning": {"content": DRAFT}},
        {"reasoning": {"content": DRAFT}, "content": None},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}]},
        {"content": [{"type": "reasoning", "text": DRAFT}]},
    ],
)
def test_reasoning_is_kept_in_the_body_and_never_read(fields: dict[str, object]) -> None:
    text = message("length", **fields)
    reply = reply_of(text, {}, 0)
    assert (reply.text, reply.raw) == ("", text)
    assert salvage(text) is None
    assert salvage(text[:-20]) is None


def test_only_the_content_of_the_message_is_salvaged() -> None:
    text = message("stop", reasoning={"content": DRAFT, "n": [1]}, content="the answer")
    assert salvage(text) == salvage(text[:-5]) == "the answer"
    assert salvage(text[: text.index("the answer") + 4]) is None
    assert (
        salvage('{"choices": [{"message": {"content": [{"type": "text", "text": "parts"}], "x": ') == "parts"
    )
    assert salvage('{"message": {"content": [1]}}') is None
