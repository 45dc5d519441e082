"""`--engine openai`: any server with OpenAI's completions that hosts the exported model.

Prompts are sent as token ids, so no server applies a template or reads a control token from a pair's text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from nlicot import completion
from nlicot.errors import CheckpointError, ModelError, NlicotError, NoAnswers, ServerRefused
from nlicot.prediction.engines.text import GeneratedText, PartialAnswer, TextEngine, TextRequest
from nlicot.prediction.grammar import Answer, FreeText, Script
from nlicot.run.folder import AGREEMENT, QUESTIONS
from nlicot.servers.address import bare_address, checked_address, key_for
from nlicot.servers.faults import (
    BrokenEnvelope,
    Fault,
    Refused,
    Rejected,
    Transient,
    fault_in,
    fault_of,
    named_field,
    one_line,
    parsed,
    status_of_error,
    text_of,
    writable,
)
from nlicot.servers.openai_server import OpenAIServer, model_names
from nlicot.settings import PredictionSettings

if TYPE_CHECKING:
    from nlicot.prediction.predictor import Member

T = TypeVar("T")
logger = logging.getLogger(__name__)
KEY_VARIABLE = "OPENAI_API_KEY"
FITTING_SERVERS = "llama.cpp's llama-server, vLLM and SGLang"
WANTS_TEXT = re.compile(r"valid string|type string", re.I)
BATCH_SIZE = 32
"""Requests in flight by default; servers queue those for which they have no slot."""
TIMEOUT_S = 600.0
"""For one whole response, the time in the server's queue included."""
PAUSES_S = (1.0, 4.0, 15.0)
"""Before a request is sent again; a server may still be loading its model."""
NUM_LIKELIEST = 20
"""Log-probabilities asked for: as many as vLLM gives by default."""
LARGEST_DIFFERENCE = 0.1
"""Mean difference of p(entailment) from the run's that is accepted: GGUF files may be in 4 bits."""
PLAIN_SAMPLING = {
    "top_k": -1,
    "min_p": 0.0,
    "repeat_penalty": 1.0,  # llama.cpp's name
    "repetition_penalty": 1.0,
    "samplers": ["temperature", "top_p"],  # llama.cpp's default order cuts before the temperature
}
"""Servers have other defaults, also from the model's folder."""
TOKENIZERS = {"/tokenize": ("content", "prompt"), "/extras/tokenize": ("input",)}
"""Endpoints that return a text's ids, with the names of the text: of llama.cpp and vLLM, llama-cpp-python."""
REMEDIES = {
    **dict.fromkeys(("http_401", "http_403"), f"set {KEY_VARIABLE} to a key of this server"),
    "http_404": "check --server_url",
    "unknown_model": "check --server_model",
    "context_length": "start the server with a longer context",
}


class OpenAIEngine(TextEngine):
    """Asks one server.

    Raises:
        CheckpointError: the run's export has a damaged `agreement.json`.
        ModelError: the server has another model, or lacks something.
        NoAnswers: it cannot be reached, or broke off.
        ServerRefused: it rejects all requests.
    """

    def __init__(self, member: Member, settings: PredictionSettings) -> None:
        super().__init__(member, settings)
        self._address = bare_address(checked_address(str(settings.server_url)))
        self._is_up = False  # it has answered a request
        self._api_key = key_for(self._address, KEY_VARIABLE, send_key=settings.send_key)
        self._model = self._find_model(settings.server_model, member.run_name)
        self._check_tokenizer(member.resolved.base.name)
        self._check_predictions(member.checkpoint.parent)

    @property
    def batch_size(self) -> int:
        """The maximum number of rows in flight."""
        return self.settings.batch_size or BATCH_SIZE

    def run(
        self, rows: Sequence[Sequence[int]], script: Script, num_samples: int
    ) -> Iterator[tuple[int, Answer]]:
        """Continue the rows next to each other, each at its own pace."""
        left = self.partial_answers(rows, num_samples)
        running: set[asyncio.Task[PartialAnswer]] = set()
        with asyncio.Runner() as runner:
            server = self._connect()

            async def next_finished() -> set[asyncio.Task[PartialAnswer]]:
                for partial in itertools.islice(left, self.batch_size - len(running)):
                    running.add(asyncio.create_task(self._follow(server, partial, script)))
                if not running:
                    return set()
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running.difference_update(finished)
                return finished

            async def stop() -> None:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await server.close()

            try:
                while finished := runner.run(next_finished()):
                    failed = {task for task in finished if task.exception() is not None}
                    for partial in [task.result() for task in finished - failed]:
                        yield partial.index, partial.answer
                    for task in failed:
                        task.result()  # raises
            finally:
                runner.run(stop())

    async def _follow(self, server: OpenAIServer, partial: PartialAnswer, script: Script) -> PartialAnswer:
        try:
            for step in script:
                if isinstance(step, FreeText):
                    partial.add_text(step, await self._generate(server, partial.text_request(step)))
                else:
                    listed = await self._log_probabilities(server, partial.ids, step.first_ids)
                    partial.add_choice(step, listed)
        except Fault as fault:
            raise self._error(fault) from fault
        return partial

    async def _generate(self, server: OpenAIServer, request: TextRequest) -> GeneratedText:
        choice = await self._complete(
            server,
            {
                "prompt": request.ids,
                "max_tokens": request.max_tokens,
                "stop": [request.stop],
                "seed": request.seed,
                "temperature": self.settings.temperature,
                "top_p": self.settings.top_p,
            },
        )
        return GeneratedText(text=writable(choice["text"]), is_closed=choice.get("finish_reason") == "stop")

    async def _log_probabilities(
        self, server: OpenAIServer, row: Sequence[int], ids: Sequence[int]
    ) -> Mapping[int, float]:
        """Ask for one token, and the likeliest ones; newer versions of vLLM return exactly `ids`."""
        choice = await self._complete(
            server,
            {
                "prompt": row,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": NUM_LIKELIEST,
                "logprob_token_ids": ids,
                "return_tokens_as_token_ids": True,
            },
        )
        by_text = {self.prompt_format.decode_inner([token]): token for token in ids}
        try:
            return likeliest_tokens(choice["logprobs"], by_text)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            message = f"{self._where}: found no log-probabilities, from which labels are read"
            raise ModelError(f"{message}; {FITTING_SERVERS} return them") from None

    async def _complete(self, server: OpenAIServer, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a completion; return the choice."""
        model = {} if self._model is None else {"model": self._model}
        url, whole = server.url("/v1/completions"), {**model, **PLAIN_SAMPLING, **body}
        return choice_in(await self._answered(server, lambda: server.post(url, whole)))

    @property
    def _where(self) -> str:
        return f"--server_url {self._address}"

    def _find_model(self, wanted: str | None, run: str) -> str | None:
        """Return the name to ask for, None if the server has no list and needs none."""

        async def ask(server: OpenAIServer) -> list[str] | None:
            return model_names(await self._answered(server, lambda: server.get(server.url("/v1/models"))))

        served = self._exchange(ask)
        if served is None or wanted in served:
            return wanted
        served = list(dict.fromkeys(served))  # llama.cpp's server lists a name as an alias, too
        listed = ", ".join(served) or "none"
        if wanted is not None:
            raise ModelError(f"--server_model: found {wanted}, expected one that the server has: {listed}")
        if run in served:
            return run
        if len(served) == 1:
            return served[0]
        raise ModelError(f"{self._where} has several models: name the run's with --server_model ({listed})")

    def _check_tokenizer(self, base: str) -> None:
        """Refuse a server whose tokenizer makes other ids of a text, if it shows them."""
        text = completion.render("Step 1: It's 0, not 1; \U0001f600 so \u6f22\u5b57.", 1)
        expected = self.prompt_format.encode_segment(text, first=True)

        async def ask(server: OpenAIServer) -> Any:
            for path, names in TOKENIZERS.items():
                options = {"add_special": False, "add_special_tokens": False, "parse_special": False}
                body = {"model": self._model, **options, **dict.fromkeys(names, text)}
                response = await server.response(server.post(server.url(path), body))
                if response.status_code == 200:
                    return parsed(text_of(response))
            return None

        found = self._exchange(ask)
        if not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
            return
        # The first token may have a space before it there.
        if found["tokens"][1 - len(expected) :] != expected[1:]:
            raise ModelError(
                f"{self._where}: the model there has another tokenizer than the run's base, {base}; "
                "serve what `export` wrote"
            )

    def _check_predictions(self, run_folder: Path) -> None:
        """Refuse a server that predicts otherwise than the run did when it was exported."""
        path = next(iter(sorted(run_folder.glob(f"*/{AGREEMENT}"))), None)
        if path is None:
            logger.info("%s: not compared with the run, which has no export that was checked", self._where)
            return
        try:
            asked = json.loads(path.read_text(encoding="utf-8")).get(QUESTIONS, [])
            rows = [[int(token) for token in each["ids"].split()] for each in asked]
            expected = [float(each["p_entailment"]) for each in asked]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}); remove it") from error
        found = dict(self.label_probabilities(rows))
        differences = [abs(found[index] - p) for index, p in enumerate(expected)]
        if differences and (mean := sum(differences) / len(differences)) > LARGEST_DIFFERENCE:
            raise ModelError(
                f"{self._where}: the model there is not the run's: p(entailment) of {len(rows)} pairs in "
                f"{path} differs by {mean:.2f} on average; serve what `export` wrote"
            )

    async def _answered(
        self, server: OpenAIServer, send: Callable[[], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        """Send a request, again after a pause if the server is busy, loads its model or was lost."""
        for pause_s in (*PAUSES_S, None):
            try:
                response = await server.response(send())
                self._is_up = True
                if response.status_code == 429 or (
                    response.status_code >= 500 and not _takes_no_ids(text_of(response))
                ):
                    raise fault_in(response)
                return response
            except Transient as fault:
                if pause_s is None or not (self._is_up or fault.kind == "timeout"):
                    raise
                await asyncio.sleep(max(pause_s, min(fault.retry_after_s or 0.0, PAUSES_S[-1])))
        raise AssertionError("the last attempt returns or raises")

    def _connect(self) -> OpenAIServer:
        return OpenAIServer(self._address, api_key=self._api_key, timeout_s=TIMEOUT_S)

    def _exchange(self, ask: Callable[[OpenAIServer], Awaitable[T]]) -> T:
        """Run one exchange over connections of its own, and word its fault."""

        async def exchange() -> T:
            server = self._connect()
            try:
                return await ask(server)
            finally:
                await server.close()

        try:
            return asyncio.run(exchange())
        except Fault as fault:
            raise self._error(fault) from fault

    def _error(self, fault: Fault) -> NlicotError:
        message = f"{self._where}: {fault.message}"
        if fault.kind in REMEDIES:
            message += f"; {REMEDIES[fault.kind]}"
        if _takes_no_ids(fault.raw):
            found = "the server takes texts only, and prompts are lists of token ids"
            return ModelError(f"{self._where}: {found}; {FITTING_SERVERS} take them")
        if isinstance(fault, Refused):
            return ServerRefused(message)
        if isinstance(fault, Rejected):
            return ModelError(message)
        return NoAnswers(f"{message}; predictions so far are kept, run the same command to continue")


def _takes_no_ids(body: str) -> bool:
    """Recognize a server that wants a text as its prompt; the one of llama-cpp-python reports it as a 500."""
    return named_field(body, ["prompt"]) == "prompt" and WANTS_TEXT.search(body) is not None


def choice_in(response: httpx2.Response) -> dict[str, Any]:
    """Return the one choice in a response with a completion; raises a `Fault` if there is none."""
    body = text_of(response)
    content = parsed(body)
    if response.status_code != 200:
        raise fault_in(response)
    if (status := status_of_error(content)) is not None:
        raise fault_of(status, response.headers, body)
    try:
        choice: dict[str, Any] = content["choices"][0]
        if isinstance(choice["text"], str):
            return choice
    except (KeyError, IndexError, TypeError):
        pass
    raise BrokenEnvelope("broken_envelope", f"no completion in the body: {one_line(body)}", raw=body)


def likeliest_tokens(found: Any, by_text: Mapping[str, int]) -> dict[int, float]:
    """Return log-probabilities by id: in llama.cpp's form, or in OpenAI's, which names tokens by their texts.

    >>> likeliest_tokens({"content": [{"top_logprobs": [{"id": 3, "logprob": -0.5}]}]}, {})
    {3: -0.5}
    >>> likeliest_tokens({"top_logprobs": [{"token_id:3": -0.5, "1": -2, "else": -7.0}]}, {"1": 4})
    {3: -0.5, 4: -2.0, -3: -7.0}
    """
    if "content" in found:
        return {int(each["id"]): float(each["logprob"]) for each in found["content"][0]["top_logprobs"]}
    listed: dict[int, float] = {}
    for number, (name, value) in enumerate(found["top_logprobs"][0].items(), start=1):
        is_id = name.startswith("token_id:")  # as vLLM was asked to
        token = int(name.removeprefix("token_id:")) if is_id else by_text.get(name, -number)
        listed[token] = float(value)
    return listed
