"""A teacher in this process: the bundled model, any base, or a tuned adapter; no server, no key, no price.

The answer's JSON is not asked for but forced: names and quotes are fed, texts are generated until their
closing quote or their share of the budget, labels and scores are read from the logits of what is allowed.
So every answer parses, and a student can teach itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from nlicot.records import Usage
from nlicot.teacher.backends.base import Connection, Refused, Reply, Request

if TYPE_CHECKING:
    from nlicot.prediction.answer_script import Said, Script
    from nlicot.prediction.decoding import Decoder

GATHERING_S = 0.02
"""How long a request waits for others that can be decoded with it."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    answered: asyncio.Future[Reply]


class LocalBackend:
    """Answers requests in batches, one model at a time.

    Args:
        batch_size: most requests that are decoded together.
    """

    name = "local"
    server = ""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._gathering: asyncio.Task[None] | None = None
        self._decoders: dict[str, Decoder] = {}

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Build it for the registry."""
        return cls(batch_size=connection.concurrency)

    async def complete(self, request: Request) -> Reply:
        """Wait for others, and decode with them.

        Raises:
            Refused: the model cannot be loaded.
        """
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._answer_all())
        return await waiting.answered

    async def models(self) -> list[str] | None:
        """Any model that can be loaded will do; loading says more than a list."""
        return None

    async def close(self) -> None:
        """Stop waiting for more."""
        if self._gathering is not None:
            self._gathering.cancel()

    async def _answer_all(self) -> None:
        while True:
            await asyncio.sleep(GATHERING_S)
            alike = self._next_batch()
            if not alike:
                return
            try:
                replies = await asyncio.to_thread(self._decode, [one.request for one in alike])
            except BaseException as error:
                for one in alike:
                    if not one.answered.done():
                        one.answered.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for one, reply in zip(alike, replies, strict=True):
                if not one.answered.done():
                    one.answered.set_result(reply)

    def _next_batch(self) -> list[_Waiting]:
        """The longest waiting request and those that are decoded in the same way."""
        if not self._waiting:
            return []
        first = _way(self._waiting[0].request)
        alike = [one for one in self._waiting if _way(one.request) == first][: self.batch_size]
        taken = set(map(id, alike))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        return alike

    def _decode(self, requests: list[Request]) -> list[Reply]:
        from nlicot.errors import ModelError

        try:
            decoder = self._decoder(requests[0])
        except ModelError as error:
            raise Refused("model", str(error)) from error
        started = time.monotonic()
        fields = _Fields(requests[0], decoder)
        prompts = [decoder.prompt_format.encode_prompt(_one_prompt(request)) for request in requests]
        said = decoder.follow(prompts, fields.opening_ids, fields.script)
        latency_s = time.monotonic() - started
        return [fields.reply(one, len(prompt), latency_s) for prompt, one in zip(prompts, said, strict=True)]

    def _decoder(self, request: Request) -> Decoder:
        from nlicot.model.ready import load_ready
        from nlicot.prediction.decoding import Decoder
        from nlicot.settings import DecodingSettings

        params = request.params
        if request.model not in self._decoders:
            ready = load_ready(request.model)
            self._decoders = {request.model: Decoder(ready.model, ready.prompt_format, DecodingSettings())}
        decoder = self._decoders[request.model]
        decoder.settings = DecodingSettings(
            temperature=float(params.get("temperature", 0.0)),
            top_p=float(params.get("top_p", 1.0)),
            seed=int(params.get("random_seed", 0)),
        )
        return decoder


def _way(request: Request) -> tuple[Any, ...]:
    return request.model, request.schema.name, json.dumps(dict(request.params), sort_keys=True)


def _one_prompt(request: Request) -> str:
    return "\n\n".join(message.content for message in request.messages)


class _Fields:
    """A schema's fields as literals to feed, texts to generate and choices to read."""

    def __init__(self, request: Request, decoder: Decoder) -> None:
        from nlicot.prediction.answer_script import Choice, FreeText

        self.fields: dict[str, dict[str, Any]] = request.schema.schema["properties"]
        self._encode = decoder.prompt_format.encode_segment
        names = list(self.fields)
        num_texts = sum(not self._options(name) for name in names)
        budget = max(1, int(request.params.get("max_tokens", 512)) // max(1, num_texts))
        self.opening_ids = self._encode("{" + self._before(names[0]), first=True)
        steps: list[FreeText | Choice] = []
        for name, following in zip(names, [*names[1:], None], strict=True):
            literal = "}" if following is None else f", {self._before(following)}"
            options = self._options(name)
            if options:
                quote = '"' if isinstance(options[0], str) else ""
                steps.append(
                    Choice(
                        options=[self._encode(str(option), first=False) for option in options],
                        following_ids=self._encode(quote + literal, first=False),
                    )
                )
            else:
                steps.append(
                    FreeText(closing_ids=self._encode('"' + literal, first=False), max_tokens=budget)
                )
        self.script: Script = steps

    def _options(self, name: str) -> list[Any]:
        """What the field may be, where that is a short list."""
        found = self.fields[name]
        if "minimum" in found and "maximum" in found:
            return list(range(found["minimum"], found["maximum"] + 1))
        return list(found.get("enum", ()))

    def _before(self, name: str) -> str:
        options = self._options(name)
        quote = "" if options and not isinstance(options[0], str) else '"'
        return f'"{name}": {quote}'

    def reply(self, said: Said, num_prompt_tokens: int, latency_s: float) -> Reply:
        """The row's answer as the JSON object that it is."""
        texts, shares = iter(said.texts), iter(said.shares)
        answer: dict[str, Any] = {}
        for name in self.fields:
            options = self._options(name)
            if options:
                row = next(shares)
                answer[name] = options[max(range(len(row)), key=row.__getitem__)]
            else:
                answer[name] = next(texts).strip()
        text = json.dumps(answer, ensure_ascii=False)
        num_said = sum(len(self._encode(str(value), first=False)) for value in answer.values())
        usage = Usage(prompt_tokens=num_prompt_tokens, completion_tokens=num_said)
        return Reply(text=text, finish_reason="stop", usage=usage, raw="", latency_s=latency_s)
