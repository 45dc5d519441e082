"""A teacher in this process: the bundled model, any base, or a tuned adapter; no server, key or price.

The answer's JSON is forced: names and quotes are fed, texts are generated until their closing quote or their
part of the budget, labels and scores are read from the logits of the allowed values. So every answer parses.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from nlicot.errors import ModelError
from nlicot.records import Usage
from nlicot.servers.faults import Refused
from nlicot.teacher.backends.base import Connection, Reply, Request

if TYPE_CHECKING:
    from nlicot.prediction.decoding import Decoder
    from nlicot.prediction.grammar import Answer, Script

GATHERING_S = 0.02  # how long a request waits for others to share its batch
Waiting = tuple[Request, asyncio.Future[Reply]]


class LocalBackend:
    """Answers requests in batches of at most `connection.concurrency`, one model at a time."""

    name = "local"
    server = ""

    def __init__(self, connection: Connection) -> None:
        self._batch_size = connection.concurrency
        self._waiting: list[Waiting] = []
        self._gathering: asyncio.Task[None] | None = None
        self._decoders: dict[str, Decoder] = {}

    async def complete(self, request: Request) -> Reply:
        """Wait for other requests, and decode together with them."""
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answered))
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._answer_all())
        return await answered

    async def models(self) -> list[str] | None:
        """Return None: any model that can be loaded is accepted."""
        return None

    async def close(self) -> None:
        """Stop waiting for requests."""
        if self._gathering is not None:
            self._gathering.cancel()

    async def _answer_all(self) -> None:
        while True:
            await asyncio.sleep(GATHERING_S)
            batch = self._next_batch()
            if not batch:
                return
            try:
                replies = await asyncio.to_thread(self._decode, [request for request, _ in batch])
            except BaseException as error:
                for _, answered in batch:
                    if not answered.done():
                        answered.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, answered), reply in zip(batch, replies, strict=True):
                    if not answered.done():
                        answered.set_result(reply)

    def _next_batch(self) -> list[Waiting]:
        """Take the oldest request and those that can be decoded with it."""
        kinds = [_decoding_kind(request) for request, _ in self._waiting]
        alike = [one for one, kind in zip(self._waiting, kinds, strict=True) if kind == kinds[0]]
        self._waiting = [one for one in self._waiting if one not in alike[: self._batch_size]]
        return alike[: self._batch_size]

    def _decode(self, requests: list[Request]) -> list[Reply]:
        try:
            decoder = self._decoder(requests[0])
        except ModelError as error:
            raise Refused("model", str(error)) from error
        started = time.monotonic()
        form = _Form(requests[0], decoder)
        prompts = [
            decoder.prompt_format.encode_prompt("\n\n".join(message.content for message in request.messages))
            for request in requests
        ]
        said = decoder.follow(prompts, form.opening_ids, form.script)
        latency_s = time.monotonic() - started
        return [form.reply(one, len(prompt), latency_s) for prompt, one in zip(prompts, said, strict=True)]

    def _decoder(self, request: Request) -> Decoder:
        from nlicot.model.loaded_model import load_by_name
        from nlicot.prediction.decoding import Decoder
        from nlicot.settings import DecodingSettings

        if request.model not in self._decoders:
            loaded = load_by_name(request.model)
            self._decoders = {request.model: Decoder(loaded.model, loaded.prompt_format, DecodingSettings())}
        settings = DecodingSettings(
            temperature=float(request.params.get("temperature", 0.0)),
            top_p=float(request.params.get("top_p", 1.0)),
            seed=int(request.params.get("random_seed", 0)),
        )
        return self._decoders[request.model].with_settings(settings)


def _decoding_kind(request: Request) -> tuple[str, str, str]:
    return request.model, request.schema.name, json.dumps(dict(request.params), sort_keys=True)


class _Form:
    """A schema as literals to feed, texts to generate and choices to read from logits."""

    def __init__(self, request: Request, decoder: Decoder) -> None:
        from nlicot.prediction.grammar import Choice, FreeText

        fields: dict[str, dict[str, Any]] = request.schema.schema["properties"]
        self._encode = decoder.prompt_format.encode_segment
        # Without allowed values a field is free text.
        self._options: dict[str, list[Any]] = {name: field.get("enum", []) for name, field in fields.items()}
        num_texts = sum(not options for options in self._options.values())
        budget = max(1, int(request.params.get("max_tokens", 512)) // max(1, num_texts))
        quotes = ['"' if isinstance([*options, ""][0], str) else "" for options in self._options.values()]
        prefixes = [f'"{name}": {quote}' for name, quote in zip(fields, quotes, strict=True)]
        self.opening_ids = self._encode("{" + prefixes[0], first=True)
        self.script: Script = []
        literals = [*(f", {prefix}" for prefix in prefixes[1:]), "}"]
        for options, quote, literal in zip(self._options.values(), quotes, literals, strict=True):
            closing_ids = self._encode(quote + literal, first=False)
            if options:
                option_ids = [self._encode(str(option), first=False) for option in options]
                self.script.append(Choice(options=option_ids, following_ids=closing_ids))
            else:
                self.script.append(FreeText(closing_ids=closing_ids, max_tokens=budget))

    def reply(self, found: Answer, num_prompt_tokens: int, latency_s: float) -> Reply:
        """Build the reply from the texts and the choices of one row."""
        texts, choices = iter(found.texts), iter(found.choices)
        answer: dict[str, Any] = {
            name: options[next(choices)] if options else next(texts).strip()
            for name, options in self._options.items()
        }
        num_tokens = sum(len(self._encode(str(value), first=False)) for value in answer.values())
        return Reply(
            text=json.dumps(answer, ensure_ascii=False),
            finish_reason="stop",
            usage=Usage(prompt_tokens=num_prompt_tokens, completion_tokens=num_tokens),
            raw="",
            latency_s=latency_s,
        )
