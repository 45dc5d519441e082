"""Mistral's files and batch jobs on loopback, over HTTP; uploads and jobs are counted.

In a test: `with FakeBatchServer() as server: ...`. A job is over after `num_polls_until_over`
polls, and its answers are those of the chat server.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.teacher.fake_answers import CREATED, Behaviour, default_answer, envelope_of, status
from tests.teacher.fake_server import FakeServer, Seen, _write

FILES, JOBS, MODELS = "/v1/files", "/v1/batch/jobs", "/v1/models"
OVER = ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED")
Fields = dict[str, Any]


class FakeBatchServer(FakeServer):
    """Serves `/v1/files`, `/v1/batch/jobs` and `/v1/models`; completions exist only in batches.

    Args:
        num_polls_until_over: a job is over at this poll.
        ending: the final status of a job, and how many of its requests are answered; None is all.
        line: the result line for a request's body; None is the default one.

    Attributes:
        files: uploaded and result files, by id.
        jobs: the created jobs, in order, as the server reports them.
        asked: how often each `custom_id` is in a created job.
        hold_at: `create` (the job is not created, no response), `created` (created, no response), `dropped`
            (created, then the connection is closed) or `look` (polling a job gets no response).
        held: set once a request is held.
        loses_files: no file can be downloaded.
        num_late: how many listings do not show any job yet.
        faults: responses to send instead, by method and path.
    """

    def __init__(
        self,
        *,
        num_polls_until_over: int = 1,
        ending: tuple[str, int | None] = ("SUCCESS", None),
        line: Callable[[Mapping[str, Any]], Fields | str | None] = lambda body: None,
        key: str | None = "the-key",
    ) -> None:
        super().__init__(key=key)
        self.num_polls_until_over, self.ending, self.line = num_polls_until_over, ending, line
        self.files: dict[str, bytes] = {}
        self.jobs: list[Fields] = []
        self.asked: Counter[str] = Counter()
        self.num_polls: Counter[str] = Counter()
        self.hold_at = ""
        self.held = threading.Event()
        self.loses_files = False
        self.num_late = 0
        self.faults: dict[tuple[str, str], deque[Behaviour]] = {}

    def lines(self, job: Fields) -> list[Fields]:
        """Return a job's requests, as uploaded."""
        return [json.loads(line) for line in self.files[job["input_files"][0]].decode().splitlines()]

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head[:-4].split("\r\n")
        method, target, _ = request_line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await self._content(reader, headers)
        path = urlsplit(target).path
        self.seen.append(Seen(target, headers, None))
        fault = self.faults.get((method, path))
        if headers.get("authorization") != f"Bearer {self.key}":
            behaviour: Behaviour | None = status(401, body='{"detail":"Unauthorized"}')
        elif fault:
            behaviour = fault.popleft()
        else:
            behaviour = await self._behaviour_of(method, target, headers, content)
        if behaviour is None:
            return False
        return await _write(writer, behaviour, str(behaviour.body))

    async def _content(self, reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await reader.readexactly(int(headers.get("content-length", 0)))
        content = b""
        while size := int(await reader.readline(), 16):
            content += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return content

    async def _behaviour_of(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes
    ) -> Behaviour | None:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if (method, path) == ("POST", FILES):
            return _json(self._keep_file(headers, content))
        if (method, path) == ("POST", JOBS):
            return await self._create(json.loads(content))
        if (method, path) == ("GET", JOBS):
            page, size = int(query["page"][0]), int(query["page_size"][0])
            shown = self.jobs[::-1] if self.num_late == 0 else []
            self.num_late = max(0, self.num_late - 1)
            listed = shown[page * size : (page + 1) * size]
            return _json({"object": "list", "total": len(shown), "data": listed})
        if (method, path) == ("GET", MODELS):
            return _json({"object": "list", "data": [{"id": name} for name in self.models or ()]})
        if method == "GET" and path.startswith(f"{JOBS}/"):
            return await self._look(path.removeprefix(f"{JOBS}/"))
        file_id = path.removeprefix(f"{FILES}/").removesuffix("/content")
        if method == "GET" and file_id in self.files and not self.loses_files:
            octets = {"Content-Type": "application/octet-stream"}
            return Behaviour(headers=octets, body=self.files[file_id].decode())
        return status(404, body='{"detail":"Not Found"}')

    async def _hold(self, moment: str) -> None:
        if self.hold_at == moment:
            self.held.set()
            await asyncio.Event().wait()

    # ------------------------------------------------------------- files

    def _keep_file(self, headers: Mapping[str, str], content: bytes) -> Fields:
        message = email.message_from_bytes(
            f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + content, policy=email.policy.HTTP
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        assert parts["purpose"].get_content().strip() == "batch"
        return self._file(parts["file"].get_payload(decode=True), str(parts["file"].get_filename()))

    def _file(self, content: bytes, name: str) -> Fields:
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        fields = {"object": "file", "bytes": len(content), "created_at": CREATED, "filename": name}
        return {
            "id": file_id,
            "purpose": "batch",
            "sample_type": "batch_request",
            "source": "upload",
        } | fields

    # ------------------------------------------------------------- jobs

    async def _create(self, asked: Fields) -> Behaviour | None:
        await self._hold("create")
        job = {
            "id": f"job-{len(self.jobs)}",
            "object": "batch",
            "status": "QUEUED",
            "created_at": CREATED,
            "errors": [],
            "output_file": None,
            "error_file": None,
            **{name: asked[name] for name in ("input_files", "endpoint", "model", "metadata")},
            **{f"{name}_requests": 0 for name in ("total", "completed", "succeeded", "failed")},
        }
        self.jobs.append(job)
        self.asked.update(line["custom_id"] for line in self.lines(job))
        await self._hold("created")
        if self.hold_at == "dropped":
            self.hold_at = ""
            return None
        return _json(job)

    async def _look(self, job_id: str) -> Behaviour:
        job = next((job for job in self.jobs if job["id"] == job_id), None)
        if job is None:
            return status(404, body='{"detail":"no such job"}')
        await self._hold("look")
        self.num_polls[job_id] += 1
        if job["status"] not in OVER:
            job["status"] = "RUNNING"
            if self.num_polls[job_id] >= self.num_polls_until_over:
                self._end(job)
        return _json(job)

    def _end(self, job: Fields) -> None:
        job["status"], num_answered = self.ending
        results: dict[str, list[str]] = {"output_file": [], "error_file": []}
        for asked in self.lines(job)[:num_answered]:
            line = self._result(job, asked)
            is_error = isinstance(line, dict) and (line.get("response") or {}).get("status_code") != 200
            results["error_file" if is_error else "output_file"].append(
                line if isinstance(line, str) else json.dumps(line)
            )
        for name, lines in results.items():
            if lines:
                job[name] = self._file("\n".join(reversed(lines)).encode(), name)["id"]  # in no order
        job["succeeded_requests"] = len(results["output_file"])
        job["failed_requests"] = len(results["error_file"])
        if job["status"] == "FAILED":
            job["errors"] = [{"message": "the file could not be read", "count": 1}]

    def _result(self, job: Fields, asked: Fields) -> Fields | str:
        body = asked["body"] | {"model": job["model"]}
        usual = {"status_code": 200, "body": json.loads(envelope_of(body, default_answer(body), "stop"))}
        made = self.line(body)
        if isinstance(made, str):
            return made.replace("CUSTOM_ID", asked["custom_id"])
        return {"id": "line", "custom_id": asked["custom_id"], "response": usual, "error": None} | (
            made or {}
        )


def _json(content: Fields) -> Behaviour:
    return Behaviour(body=json.dumps(content))
