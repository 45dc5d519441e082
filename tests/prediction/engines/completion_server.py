"""A completion server on loopback in the forms of llama.cpp, vLLM and OpenAI, in place of a real one.

It has the run's model for probabilities; its texts are those of the test.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Rate = Callable[[Sequence[int]], Mapping[int, float]]


class CompletionServer:
    """Serves `/v1/models`, `/tokenize` and `/v1/completions`.

    Args:
        rate: log-probabilities of tokens after some ids.
        form: of log-probabilities: `llama.cpp` has ids, `vllm` named ids, `openai` texts.
        text_of: the text of a token, for `openai`.
        tokenize: the ids of a text; None for a server without such an endpoint.

    Attributes:
        texts: the texts and finish reasons of the next completions that are longer than a token.
        failures: the next responses to completions; then it answers.
        seen: the bodies of all completions.
        keys: the keys sent with all requests.
    """

    def __init__(
        self,
        rate: Rate,
        *,
        form: str = "llama.cpp",
        text_of: Callable[[int], str] = str,
        tokenize: Callable[[str], list[int]] | None = None,
        models: Sequence[str] | None = ("model.gguf",),
    ) -> None:
        self.rate, self.form, self.text_of, self.tokenize, self.models = rate, form, text_of, tokenize, models
        self.texts: deque[tuple[str, str]] = deque()
        self.failures: deque[tuple[int, str]] = deque()
        self.dies_after: int | None = None
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The address, without `/v1`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("authorization"))
                listed = {"data": [{"id": name, "aliases": [name]} for name in outer.models or ()]}
                self.answer(404 if outer.models is None else 200, listed)

            def do_POST(self) -> None:
                outer.keys.append(self.headers.get("authorization"))
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    self.answer(*outer.reply(self.path, body))

            def answer(self, status: int, content: Any) -> None:
                if status == 0:  # the server dies
                    self.close_connection = True
                    return
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                with contextlib.suppress(ConnectionError):  # the client has seen enough
                    self.send_response(status)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the content of a response."""
        if path == "/tokenize" and self.tokenize is not None:
            return 200, {"tokens": self.tokenize(body["content"])}
        if path != "/v1/completions":
            return 404, {"error": {"message": "File Not Found", "code": 404}}
        self.seen.append(body)
        if self.dies_after is not None and len(self.seen) > self.dies_after:
            return 0, ""
        if self.failures:
            return self.failures.popleft()
        if "logprobs" not in body:
            text, reason = self.texts.popleft() if self.texts else ("Step 1: it follows.", "stop")
            return 200, {"choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}]}
        rated = self.rate(body["prompt"])
        choice = {"text": "1", "index": 0, "logprobs": self._logprobs(rated), "finish_reason": "length"}
        return 200, {"choices": [choice]}

    def _logprobs(self, rated: Mapping[int, float]) -> Any:
        if self.form == "llama.cpp":
            likeliest = [{"id": token, "token": "?", "logprob": value} for token, value in rated.items()]
            return {"content": [{**likeliest[0], "top_logprobs": likeliest}]}
        name = self.text_of if self.form == "openai" else "token_id:{}".format
        return {"tokens": ["1"], "top_logprobs": [{name(token): value for token, value in rated.items()}]}
