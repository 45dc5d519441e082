"""One question until it is answered: what to do with an answer that does not parse.

In this order: parse strictly; mend the syntax, flagged; tell the model what was wrong and ask again, twice;
ask the next model; write down a failure. An answer that ran out of room is asked for once more with more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlicot.records import Failure, Provenance
from nlicot.teacher.answers.schema import Answer, Unparsable, parse_answer
from nlicot.teacher.backends.base import Message, Reply, Request, writable
from nlicot.teacher.engine.scheduler import Ask
from nlicot.teacher.stages.prompts import PromptType

MOST_REASKED = 2
LARGER = 2
"""How many times the tokens, where an answer was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A parsed answer, the request that brought it, and its reply."""

    answer: Answer
    request: Request
    reply: Reply


class Unusable(Exception):
    """No model's answer could be used."""

    def __init__(self, kind: str, message: str, attempts: int, raw: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.attempts, self.raw = kind, message, attempts, raw

    def failure(self, *, pair: str, stage: str) -> Failure:
        """The record of it."""
        return Failure(
            id=pair,
            stage=stage,
            kind=self.kind,
            message=writable(self.message),
            attempts=self.attempts,
            raw=writable(self.raw),
        )


async def ask_until_usable(
    ask: Ask,
    request: Request,
    answer_type: PromptType,
    *,
    next_models: Sequence[str] = (),
    check: Callable[[Answer], None] | None = None,
) -> Answered:
    """Ask `request`'s model, then each of `next_models`, until an answer parses and passes `check`.

    Args:
        check: raises `Unparsable` for an answer that parses and still will not do; it is not asked again
            of the same model, which has said what it thinks.

    Raises:
        Unusable: no answer could be used.
    """
    num_asked = 0
    for model in (request.model, *next_models):
        own = dataclasses.replace(request, model=model)
        current, enlarged = own, False
        for _ in range(1 + MOST_REASKED + 1):
            reply = await ask(current)
            num_asked += 1
            if _ran_out(reply):
                problem = Unparsable("truncated", "the answer ran out of tokens")
                if enlarged:
                    break
                current, enlarged = _with_more_room(current), True
                continue
            try:
                answer = parse_answer(reply.text, answer_type)
            except Unparsable as unparsable:
                problem = unparsable
                if len(current.messages) - len(own.messages) == 2 * MOST_REASKED:
                    break
                current = _with_complaint(current, reply, unparsable)
                continue
            try:
                if check is not None:
                    check(answer)
            except Unparsable as unfit:
                problem = unfit
                break
            return Answered(answer=answer, request=current, reply=reply)
    raise Unusable(problem.kind, problem.message, num_asked, reply.text)


def _ran_out(reply: Reply) -> bool:
    return reply.finish_reason == "length" or not reply.text.strip()


def _with_more_room(request: Request) -> Request:
    most = request.params.get("max_tokens")
    params = {**request.params, **({} if most is None else {"max_tokens": LARGER * int(most)})}
    if most is None:  # nothing to enlarge, so another draw
        params["random_seed"] = int(request.params.get("random_seed") or 0) + 1
    return dataclasses.replace(request, params=params)


def _with_complaint(request: Request, reply: Reply, unparsable: Unparsable) -> Request:
    complaint = (
        f"That could not be used: {unparsable.message}. "
        "Answer once more, with nothing but the one JSON object that was asked for."
    )
    turns = (Message(role="assistant", content=writable(reply.text)), Message(role="user", content=complaint))
    return dataclasses.replace(request, messages=request.messages + turns)


def provenance(answered: Answered, prompt_sha256: str, created_at: str) -> Provenance:
    """Where an answer comes from, as it stands in the record."""
    params = dict(answered.request.params)
    if answered.answer.repaired:
        params["repaired"] = True
    if answered.reply.salvaged:
        params["salvaged"] = True
    return Provenance(
        backend=answered.request.backend,
        model=answered.request.model,
        prompt_sha256=prompt_sha256,
        params=params,
        usage=answered.reply.usage,
        created_at=created_at,
    )
