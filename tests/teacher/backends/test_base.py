from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from nlicot.errors import ConfigError
from nlicot.servers.faults import Fault
from nlicot.teacher.backends.base import (
    AnswerSchema,
    Backend,
    Endpoint,
    Message,
    Request,
    connect,
    endpoint,
    find_key,
)
from tests.teacher.fake_answers import Behaviour, error_200, status
from tests.teacher.fake_server import FakeServer


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MISTRAL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def connected(name: str, url: str | None, folder: Path, *, send_key: bool | None = True) -> Backend:
    return connect(name, url, send_key=send_key, timeout_s=5, concurrency=2, journal_folder=folder)


def key_sent(backend: Backend, server: FakeServer) -> str | None:
    async def ask() -> None:
        await backend.models()
        await backend.close()

    asyncio.run(ask())
    return server.seen[-1].headers.get("authorization")


def test_v1_is_stripped_from_an_address() -> None:
    bare = Endpoint(name="openai", server="http://host:1")
    assert [endpoint("openai", f"http://host:1{end}") for end in ("", "/", "/v1", "/v1/")] == [bare] * 4
    assert endpoint("mistral", None) == Endpoint(name="mistral", server="https://api.mistral.ai")


def test_openai_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="found no --server_url, expected the server's address"):
        endpoint("openai", None)


def test_mistral_needs_a_key_and_the_message_names_alternatives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no MISTRAL_API_KEY .* or --backend local"):
        connected("mistral", None, tmp_path)


def test_a_key_comes_from_the_environment_before_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("# keys\nexport MISTRAL_API_KEY='from-file'\nOTHER=1\n")
    with FakeServer() as server:
        assert key_sent(connected("mistral", server.url, tmp_path), server) == "Bearer from-file"
        monkeypatch.setenv("MISTRAL_API_KEY", "from-environment")
        assert key_sent(connected("mistral", server.url, tmp_path), server) == "Bearer from-environment"
        assert key_sent(connected("openai", server.url, tmp_path), server) is None


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("mistral", "http://127.0.0.1:8000"),
        ("mistral", "https://mistral.ai.example.org"),
        ("mistral", "http://api.mistral.ai"),
        ("mistral-batch", "https://example.org"),
        ("openai", "http://192.168.0.7:8000"),
        ("openai", "http://localhost.example.org"),
        ("openai", "HTTP://[2001:db8::1]:8000"),
    ],
)
def test_a_key_is_not_sent_elsewhere_or_unencrypted_unless_that_is_asked_for(
    backend: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MISTRAL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "the-secret-key")
    with pytest.raises(ConfigError, match=r"would be sent .*; to send it, add --send_key true") as error:
        find_key(backend, url)
    assert "the-secret-key" not in str(error.value)
    assert find_key(backend, url, send_key=True) == "the-secret-key"
    assert find_key(backend, url, send_key=False) == ""


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("mistral", None),
        ("mistral", "https://codestral.mistral.ai"),
        ("openai", "https://example.org"),
        ("openai", "http://localhost:8000"),
        ("openai", "http://127.0.0.2"),
        ("openai", "http://[::1]:8000"),
    ],
)
def test_a_key_is_sent_to_its_provider_encrypted_or_on_this_machine(
    backend: str, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MISTRAL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "the-secret-key")
    assert find_key(backend, url) == "the-secret-key"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schl\u00fcssel"])
def test_a_key_with_characters_that_no_key_has_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match=r"^OPENAI_API_KEY: found a blank or a character") as error:
        find_key("openai", "https://example.org")
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "found 'localhost:8000', expected http:// or https:// and a host"),
        ("ftp://host", "found 'ftp://host', expected http:// or https:// and a host"),
        ("http://", "found 'http://', expected http:// or https:// and a host"),
        ("http://:8000", "found 'http://:8000', expected http:// or https:// and a host"),
        ("http://a b", "found 'http://a b', expected http:// or https:// and a host"),
        ("http://host:99999", "found 'http://host:99999', Port out of range 0-65535"),
        ("http://host:eight", "found 'http://host:eight', Port could not be cast to integer"),
        ("https://user:secret@host", "found a user name or password in the address, expected none"),
        ("user:secret@host", "found a user name or password in the address, expected none"),
        ("https://host/?key=secret", "found a query in the address"),
        ("https://host/#secret", "found a query in the address"),
    ],
)
def test_an_address_is_refused_without_repeating_a_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        endpoint("openai", url)
    assert str(error.value).startswith(f"--server_url: {message}")
    assert "secret" not in str(error.value)


def test_a_local_model_has_no_server() -> None:
    with pytest.raises(ConfigError, match="--server_url: found one, but --backend local asks a model in"):
        endpoint("local", "http://localhost:8000")


def test_request_fields_are_part_of_the_key_only_if_they_are_given() -> None:
    """The key of requests without them is that of journals written before there were any."""
    request = Request(
        stage="generate",
        backend="openai",
        server="http://host:1",
        model="m",
        messages=(Message(role="user", content="a"),),
        params={"max_tokens": 5},
        schema=AnswerSchema(name="n", schema={}),
    )
    old = (
        '{"backend":"openai","messages":[["user","a"]],"model":"m","params":{"max_tokens":5},"sample":0,'
        '"schema":["n",{}],"server":"http://host:1","stage":"generate"}'
    )
    assert request.key() == hashlib.sha256(old.encode()).hexdigest()
    assert replace(request, fields={"top_k": None}).key() != request.key()


@pytest.mark.parametrize(
    ("behaviour", "served"),
    [
        (error_200(401, "no key"), "http_401: no key"),
        (error_200(429, "slow down"), "http_429: slow down"),
        (status(404), None),
        (Behaviour(body='{"detail": "Not Found"}'), None),
        (Behaviour(body="[]"), None),
        (Behaviour(body='{"data": [{"id": "m", "aliases": ["n"]}]}'), ["m", "n"]),
    ],
)
@pytest.mark.parametrize("name", ["openai", "mistral"])
def test_an_error_instead_of_the_list_of_models(
    name: str, behaviour: Behaviour, served: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "secret")

    async def ask(backend: Backend) -> object:
        try:
            return await backend.models()
        except Fault as fault:
            return str(fault)
        finally:
            await backend.close()

    with FakeServer() as server:
        server.listing = behaviour
        assert asyncio.run(ask(connected(name, server.url, tmp_path))) == served
