"""The lines of a batch's files: requests as they are uploaded, answers and errors as they come back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nlicot.teacher.backends.base import Reply, Request
from nlicot.teacher.backends.http.envelope import fault_of, reply_of
from nlicot.teacher.backends.http.structured_output import Strength, response_format

NO_STATUS = 422
"""Of an error without one: what a server could not even send is mostly a request that it could not read."""
_KEY = re.compile(r'"custom_id"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """What became of one request in a batch: a status and a body, as one sent alone would have got."""

    status: int
    body: str

    def reply(self, latency_s: float) -> Reply:
        """The reply in it.

        Raises:
            Fault: it is an error, or holds no text.
        """
        if self.status != 200:
            raise fault_of(self.status, {}, self.body)
        return reply_of(self.body, {}, latency_s)


def request_line(key: str, request: Request) -> str:
    """A request as a line of a batch's file. The model is the job's, and stands in no line."""
    body = {
        "messages": request.turns(),
        **request.params,
        "response_format": response_format(request, Strength.SCHEMA),
    }
    return json.dumps({"custom_id": key, "body": body}) + "\n"


def answers_of(text: str) -> Iterator[tuple[str, BatchAnswer]]:
    """The answers in a file of results or errors, each with its request's key; other lines are left out.

    >>> line = '{"custom_id": "k", "response": {"status_code": 400, "body": {"message": "too long"}}}'
    >>> list(answers_of(line))
    [('k', BatchAnswer(status=400, body='{"message": "too long"}'))]
    """
    for line in text.split("\n"):  # and nowhere else: an answer may hold U+2028
        try:
            found = json.loads(line)
        except ValueError:
            key = _KEY.search(line)
            if key is not None:  # paid for, so that the text in it is salvaged if that can be done
                yield key[1], BatchAnswer(status=200, body=line)
            continue
        if isinstance(found, dict) and isinstance(found.get("custom_id"), str):
            yield found["custom_id"], _answer(found)


def _answer(line: Mapping[str, Any]) -> BatchAnswer:
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        status = response.get("status_code", 200)
        body = response.get("body") if response.get("body") is not None else error
    else:
        status, body = _status_in(error), error
    return BatchAnswer(
        status=status if isinstance(status, int) else NO_STATUS,
        body=body if isinstance(body, str) else json.dumps(body),
    )


def _status_in(error: Any) -> int:
    """The HTTP status in an error, where it has one."""
    named = error if isinstance(error, dict) else {}
    for name in ("status_code", "code"):
        if re.fullmatch(r"[45]\d\d", str(named.get(name))):
            return int(named[name])
    return NO_STATUS
