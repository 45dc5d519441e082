"""Ask one question until an answer is valid.

In this order: parse strictly; repair the syntax, flagged; ask again with the problem, twice;
ask the next model; record a failure. An answer that ran out of tokens is asked for once more with more.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nlicot.records import Failure, Provenance
from nlicot.teacher.answers.parse import Answer, Unparsable, parse_answer
from nlicot.teacher.backends.base import Message, Reply, Request, writable
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.prompts import PromptType

MAX_COMPLAINTS = 2
TRUNCATION_FACTOR = 2
"""Growth of the token budget after a truncated answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidAnswer:
    """A parsed answer, the request that brought it, and its reply."""

    answer: Answer
    request: Request
    reply: Reply

    def provenance(self, prompt_sha256: str) -> Provenance:
        """Return where the answer comes from, for its record."""
        flags = {"repaired": self.answer.repaired, "salvaged": self.reply.salvaged}
        return Provenance(
            backend=self.request.backend,
            model=self.request.model,
            prompt_sha256=prompt_sha256,
            params={**self.request.params, **{name: True for name, is_set in flags.items() if is_set}},
            usage=self.reply.usage,
            created_at=_created_at(self.reply),
        )


def _created_at(reply: Reply) -> str:
    """Format the server's own time of the answer as ISO 8601 in UTC; empty if it gives none.

    Our clock is left out: a run that was killed and resumed must write the same file as one that was not.
    """
    if reply.created is None:
        return ""
    try:
        return datetime.datetime.fromtimestamp(reply.created, datetime.UTC).isoformat()
    except (ValueError, OverflowError, OSError):  # a number that is not a time
        return ""


class NoValidAnswer(Exception):
    """No model gave a valid answer; `problem` and `raw` are those of the last one."""

    def __init__(self, problem: Unparsable, attempts: int, raw: str) -> None:
        super().__init__(str(problem))
        self.problem, self.attempts, self.raw = problem, attempts, raw

    def failure(self, *, pair: str, stage: str) -> Failure:
        """Return the record of the failure."""
        kind, message, raw = self.problem.kind, writable(self.problem.message), writable(self.raw)
        return Failure(id=pair, stage=stage, kind=kind, message=message, attempts=self.attempts, raw=raw)


async def ask_until_valid(
    ask: Ask,
    request: Request,
    prompt_type: PromptType,
    *,
    next_models: Sequence[str] = (),
    check: Callable[[Answer], None] = lambda answer: None,
) -> ValidAnswer:
    """Ask `request`'s model, then each of `next_models`, until an answer parses and passes `check`.

    Args:
        check: raises `Unparsable` for an answer that parses but is not acceptable. The same model is not
            asked again: it has given its opinion.

    Raises:
        NoValidAnswer: no model gave one.
    """
    num_asked = 0
    for model in (request.model, *next_models):
        current = replace(request, model=model)
        num_complaints, is_enlarged = 0, False
        while True:
            reply = await ask(current)
            num_asked += 1
            if reply.finish_reason == "length" or not reply.text.strip():
                problem = Unparsable("truncated", "the answer ran out of tokens")
                if is_enlarged:
                    break
                current, is_enlarged = _with_more_tokens(current), True
                continue
            try:
                answer = parse_answer(reply.text, prompt_type)
            except Unparsable as unparsable:
                problem = unparsable
                if num_complaints == MAX_COMPLAINTS:
                    break
                current = _with_complaint(current, reply, problem)
                num_complaints += 1
                continue
            try:
                check(answer)
            except Unparsable as unacceptable:
                problem = unacceptable
                break
            return ValidAnswer(answer=answer, request=current, reply=reply)
    raise NoValidAnswer(problem, num_asked, reply.text)


def _with_more_tokens(request: Request) -> Request:
    budget = request.params.get("max_tokens")
    if budget is None:  # nothing to enlarge, so draw another answer
        changed = {"random_seed": int(request.params.get("random_seed") or 0) + 1}
    else:
        changed = {"max_tokens": TRUNCATION_FACTOR * int(budget)}
    return replace(request, params={**request.params, **changed})


def _with_complaint(request: Request, reply: Reply, problem: Unparsable) -> Request:
    # Part of the request, so of its key in the journal: other words would pay for old answers again.
    complaint = (
        f"That could not be used: {problem.message}. "
        "Answer once more, with nothing but the one JSON object that was asked for."
    )
    turns = (Message(role="assistant", content=writable(reply.text)), Message(role="user", content=complaint))
    return replace(request, messages=request.messages + turns)
