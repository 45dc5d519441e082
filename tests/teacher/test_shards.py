"""The teacher's commands in shards, which run at the same time, against a server of this machine."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlicot.cli import main
from tests.chaos.commands import start
from tests.teacher.fake_answers import NOT_JSON
from tests.teacher.fake_server import FakeServer
from tests.time_limits import HANGS_S

NUM_PAIRS = 40
SHARDS = ["1/3", "2/3", "3/3"]
OUTPUTS = {"generate": "original_thoughts", "reflect": "reflected_thoughts", "score": "scored_thoughts"}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as serving:
        yield serving


def flags(command: str, root: Path, server: FakeServer, *more: str) -> list[str]:
    teacher = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
    return [command, "--root", str(root), "--split", "train", *teacher, *more]


def test_merged_shards_are_the_whole_outputs_byte_for_byte(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    (whole / "original_data").mkdir(parents=True)
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(NUM_PAIRS)]
    (whole / "original_data" / "train.csv").write_text(
        "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    )
    shutil.copytree(whole, sharded)
    # The first sample of one pair cannot be read, in either root.
    server.script(lambda body: "pair number 5." in str(body) and "seed" not in body, [NOT_JSON] * 6)
    for command, folder in OUTPUTS.items():
        more = ["--samples", "2"] if command == "generate" else []
        assert main(flags(command, whole, server, *more)) == 0
        running = [start(flags(command, sharded, server, *more, "--shard", shard)) for shard in SHARDS]
        for process in running:
            printed, _ = process.communicate(timeout=HANGS_S)
            assert process.returncode == 0, printed
        output = sharded / folder / "train.jsonl"
        assert f"next         python -m nlicot merge-shards {output}\n" in printed
        assert not output.exists()

        assert main(["merge-shards", str(output)]) == 0

        for name in ("train.jsonl", "train.failures.jsonl"):
            expected = whole / folder / name
            if expected.exists():
                assert (sharded / folder / name).read_bytes() == expected.read_bytes(), (command, name)
            else:
                assert not (sharded / folder / name).exists(), (command, name)
    assert (whole / "original_thoughts" / "train.failures.jsonl").read_text().count("\n") == 1
    capsys.readouterr()


def test_shards_of_other_settings_are_not_merged(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "original_data").mkdir()
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(4)]
    (tmp_path / "original_data" / "train.csv").write_text(
        "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    )
    for shard, more in (("1/2", ["--samples=2"]), ("2/2", [])):
        assert main(flags("generate", tmp_path, server, "--shard", shard, *more)) == 0
    assert main(["merge-shards", str(tmp_path / "original_thoughts" / "train.jsonl")]) == 2
    assert "(run it again as the others)" in capsys.readouterr().err


def test_a_shard_asks_only_about_its_own_pairs_and_has_its_own_journal(
    tmp_path: Path, server: FakeServer
) -> None:
    (tmp_path / "original_data").mkdir()
    rows = [f"p{n},This is pair number {n}.,Pair {n} follows.,{n % 2}" for n in range(4)]
    (tmp_path / "original_data" / "train.csv").write_text(
        "\n".join(["id,premise,hypothesis,label", *rows]) + "\n"
    )
    for shard, mine in (("1/2", "01"), ("2/2", "23")):
        asked = len(server.completions())
        assert main(flags("generate", tmp_path, server, "--shard", shard)) == 0
        texts = [str(body["messages"]) for body in server.completions()[asked:]]
        assert [n for n in "0123" if any(f"pair number {n}." in text for text in texts)] == list(mine)
    journals = sorted(tmp_path.glob("journal/*/generate.sqlite"))
    assert [path.parent.name for path in journals] == ["shard-1-of-2", "shard-2-of-2"]
    for path in journals:
        assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM replies").fetchone() == (2,)

    # A finished shard is not replaced, and nothing is asked again.
    asked = len(server.completions())
    assert main(flags("generate", tmp_path, server, "--shard", "1/2")) == 2
    assert main(flags("generate", tmp_path, server, "--shard", "1/2", "--retry_failures")) == 0
    assert main(flags("generate", tmp_path, server, "--shard", "1/2", "--overwrite")) == 0
    assert len(server.completions()) == asked
