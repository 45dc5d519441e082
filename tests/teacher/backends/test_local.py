"""A teacher in this process: the bundled model fills in the fields of each stage."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nlicot.cli import main
from nlicot.data.thoughts import read_thoughts
from nlicot.servers.faults import Refused
from nlicot.teacher.answers import SCHEMAS, parse_answer
from nlicot.teacher.backends.base import Connection, Message, Reply, Request
from nlicot.teacher.backends.local import LocalBackend
from nlicot.teacher.prompt import PromptType


def request(kind: PromptType, text: str, model: str = "bundled", max_tokens: int = 16) -> Request:
    return Request(
        stage="generate",
        backend="local",
        server="",
        model=model,
        messages=(Message(role="user", content=text),),
        params={"temperature": 0.0, "max_tokens": max_tokens},
        schema=SCHEMAS[kind],
    )


def answers(requests: list[Request]) -> list[Reply]:
    async def ask() -> list[Reply]:
        backend = LocalBackend(Connection(concurrency=4))
        try:
            return list(await asyncio.gather(*(backend.complete(one) for one in requests)))
        finally:
            await backend.close()

    return asyncio.run(ask())


def test_every_kind_of_answer_is_valid_json_with_its_fields() -> None:
    texts = ("A dog runs. Does an animal move?", 'She said "no" twice. Did she speak?')
    asked = [request(kind, text) for kind in PromptType for text in texts]

    for one, reply in zip(asked, answers(asked), strict=True):
        kind = next(kind for kind in PromptType if SCHEMAS[kind] == one.schema)
        found = parse_answer(reply.text, kind)
        assert not found.repaired
        assert list(found.fields) == list(one.schema.schema["properties"])
        assert reply.usage is not None and reply.usage.completion_tokens > 0


def test_a_model_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(Refused, match="/nowhere"):  # it does not exist
        answers([request(PromptType.SCORING, "?", model="/nowhere")])


def test_generate_runs_without_key_or_server(tmp_path: Path) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    (folder / "train.csv").write_text(
        "id,premise,hypothesis,label\na,A dog runs.,An animal moves.,1\nb,It rains.,It is dry.,0\n"
    )
    flags = ["--backend", "local", "--model", "bundled", "--temperature", "0", "--max-tokens", "12"]

    assert main(["generate", "--root", str(tmp_path), "--split", "train", *flags, "--next-models="]) == 0

    thoughts = read_thoughts(tmp_path / "original_thoughts" / "train.jsonl")
    assert [thought.id for thought in thoughts] == ["a", "b"]
    (summary,) = (tmp_path / "logs" / "thoughts").glob("*-train.summary.json")
    assert json.loads(summary.read_text())["cost_usd"] == 0.0
