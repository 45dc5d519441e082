from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nlicot.errors import ConfigError
from nlicot.teacher.backends.base import Backend, Endpoint, connect, endpoint
from tests.teacher.fake_server import FakeServer


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MISTRAL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def connected(name: str, url: str | None, folder: Path) -> Backend:
    return connect(name, url, timeout_s=5, concurrency=2, journal_folder=folder)


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
