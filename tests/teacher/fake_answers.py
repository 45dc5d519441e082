"""The answers of the fake servers: valid and broken behaviours, and the default answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CREATED = 1_767_225_600
"""2026-01-01: the time of every answer, so that none depends on the clock."""
TEXTS = ("thought_process", "error_analysis", "improved_thought_process", "analysis")
# The fields of each kind of answer, by the field that only this kind has; the prompt asks for them.
KINDS = {
    "improved_thought_process": ("error_analysis", "improved_thought_process", "reflected_label"),
    "score": ("analysis", "score"),
    "relation": ("thought_process", "relation"),
    "predicted_label": ("thought_process", "predicted_label"),
}
OPTIONS: dict[str, list[Any]] = {
    "relation": ["entailment", "neutral", "contradiction"],
    "score": [1, 2, 3, 4, 5],
    "predicted_label": [0, 1],
    "reflected_label": [0, 1],
}


@dataclass(frozen=True)
class Behaviour:
    """The server's reaction to one request.

    Args:
        how: `answer`, `hang` (never answer), `drop` (close at once), `cut` (close in the middle of the body),
            `trickle` (one byte at a time, forever).
        content: the answer's text, or a function of the default one.
        body: the whole body, or a function of the default one.
        delay_s: added to the server's delay.
    """

    how: str = "answer"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: str | Callable[[str], str] | None = None
    body: str | Callable[[str], str] | None = None
    finish_reason: str = "stop"
    delay_s: float = 0.0


def status(code: int, headers: Mapping[str, str] | None = None, body: str | None = None) -> Behaviour:
    """Make an error response, in Mistral's form unless a body is given."""
    shape = {
        "object": "error",
        "message": f"scripted {code}",
        "type": "scripted",
        "param": None,
        "code": None,
    }
    return Behaviour(status=code, headers=headers or {}, body=json.dumps(shape) if body is None else body)


def content(text: str, finish_reason: str = "stop") -> Behaviour:
    """Make a valid envelope with this text."""
    return Behaviour(content=text, finish_reason=finish_reason)


def error_200(code: object, message: str = "scripted", **more: Any) -> Behaviour:
    """Make an error inside a 200, as routers send it."""
    return Behaviour(body=json.dumps({"error": {"code": code, "message": message}, **more}))


def no_content(finish_reason: str, **message: Any) -> Behaviour:
    """Make a valid envelope whose content is null; `message` are more fields of the message."""

    def change(body: str) -> str:
        fields = json.loads(body)
        fields["choices"][0]["message"] |= {"content": None, **message}
        return json.dumps(fields)

    return Behaviour(body=change, finish_reason=finish_reason)


def _with(**changed: Any) -> Callable[[str], str]:
    """Change fields of a JSON object; None removes one."""

    def change(text: str) -> str:
        fields = json.loads(text) | changed
        return json.dumps({name: value for name, value in fields.items() if value is not None})

    return change


OK = Behaviour()
TIMEOUT, DROP, CUT, TRICKLE = (Behaviour(how=how) for how in ("hang", "drop", "cut", "trickle"))
# A 200 with a broken envelope.
TRUNCATED = Behaviour(body=lambda body: body[: body.index('"finish_reason"')])
TRUNCATED_IN_CONTENT = Behaviour(body=lambda body: body[: body.index('"content"') + 30])
HTML = Behaviour(headers={"Content-Type": "text/html"}, body="<html><body><h1>Bad gateway</h1></body></html>")
EMPTY = Behaviour(body="")
NO_USAGE = Behaviour(body=_with(usage=None))
NO_CHOICES = Behaviour(body=_with(choices=[]))
# A valid envelope with an unusable answer.
NOT_JSON = content("The hypothesis follows from the premise, so I would say yes.")
MISSING_FIELD = Behaviour(content=_with(thought_process=None, improved_thought_process=None, analysis=None))
LABEL_2 = Behaviour(
    content=lambda text: json.dumps(
        {
            name: value if name in TEXTS else 9 if name == "score" else 2
            for name, value in json.loads(text).items()
        }
    )
)
TWO_OBJECTS = Behaviour(content=lambda text: f"{text}\n{text}")
FENCED = Behaviour(content=lambda text: f"Here it is:\n```json\n{text}\n```")
LENGTH = Behaviour(content=lambda text: text[: len(text) // 2], finish_reason="length")
WHITESPACE = content(" \n" * 300, finish_reason="length")
THINKING = Behaviour(content=lambda text: f"<think>Perhaps {text}?\nNo.</think>\n\n{text}")
THINKING_ONLY = Behaviour(content=lambda text: f"<think>Perhaps {text}? Or")


def request_key(body: Mapping[str, Any]) -> str:
    """Return the identity of a request: all of it except the form of structured output."""
    asked = {name: value for name, value in body.items() if name != "response_format"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def default_answer(body: Mapping[str, Any]) -> str:
    """Return a valid answer in the requested form; texts and labels depend on a hash of the request."""
    asked = body["messages"][-1]["content"]
    seed = body.get("seed") or body.get("random_seed") or 0
    digest = hashlib.sha256(f"{body.get('model')}\n{seed}\n{asked}".encode()).digest()
    answer: dict[str, Any] = {}
    for name in _fields(body):
        options = OPTIONS.get(name)
        if options is None:
            answer[name] = f"The texts say so, by {digest.hex()[:8]}. So that is what follows."
        else:
            answer[name] = options[digest[0] % len(options)]
    return json.dumps(answer)


def _fields(body: Mapping[str, Any]) -> Sequence[str]:
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        return list(response_format["json_schema"]["schema"]["properties"])
    said = "\n".join(str(message["content"]) for message in body["messages"])
    return next((fields for name, fields in KINDS.items() if f'"{name}"' in said), KINDS["predicted_label"])


def envelope_of(body: Mapping[str, Any], text: str, finish_reason: str) -> str:
    """Wrap the text in a chat completion; usage counts four characters as a token."""
    num_asked = sum(len(str(message["content"])) for message in body["messages"]) // 4 + 1
    num_answered = len(text) // 4 + 1
    message = {"role": "assistant", "content": text, "tool_calls": None}
    usage = {
        "prompt_tokens": num_asked,
        "completion_tokens": num_answered,
        "total_tokens": num_asked + num_answered,
    }
    return json.dumps(
        {
            "id": f"cmpl-{request_key(body)[:12]}",
            "object": "chat.completion",
            "created": CREATED,
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": usage,
        }
    )
