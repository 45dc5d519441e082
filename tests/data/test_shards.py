from __future__ import annotations

from pathlib import Path

import pytest

from nlicot.data.merge_shards import merge_shards
from nlicot.data.root import failures_path
from nlicot.data.shards import Shard, ShardOfWork
from nlicot.errors import ConfigError
from nlicot.records import Example

PAIRS = [Example(id=f"p{n}", premise=f"Premise {n}.", hypothesis="It is.", label=n % 2) for n in range(7)]


@pytest.mark.parametrize("num", range(1, 8))
def test_the_shards_have_every_item_once_and_in_order(num: int) -> None:
    parts = [Shard(index, num).of(PAIRS) for index in range(1, num + 1)]
    assert [pair for part in parts for pair in part] == PAIRS
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_shards_of_many_items_start_at_multiples() -> None:
    items = list(range(50))
    parts = [Shard(index, 3).of(items, multiple=8) for index in (1, 2, 3)]
    assert [part[0] for part in parts] == [0, 16, 32]
    assert [item for part in parts for item in part] == items
    assert Shard(2, 3).of(items[:23], multiple=8)[0] == 7  # not enough for a multiple in each


def test_more_shards_than_items_are_refused() -> None:
    with pytest.raises(ConfigError, match="--shard 2/8: found 7 inputs, expected 8 or more"):
        Shard(2, 8).of(PAIRS)


def test_all_shards_of_the_same_work_agree_on_it_and_no_others_do() -> None:
    first, second = (ShardOfWork.of(Shard(index, 2), "predict", PAIRS, 0.5) for index in (1, 2))
    assert first.work == second.work
    others = [
        ShardOfWork.of(Shard(1, 2), "predict", PAIRS[:-1], 0.5),
        ShardOfWork.of(Shard(1, 2), "predict", PAIRS[::-1], 0.5),
        ShardOfWork.of(Shard(1, 2), "predict", PAIRS, 0.6),
    ]
    assert len({first.work, *(other.work for other in others)}) == 4


def write_shard(folder: Path, index: int, rows: str, *, num_failures: int = 0) -> Path:
    path = Shard(index, 2).path(folder / "train.jsonl")
    counts = f'"num_records": {rows.count(chr(10))}, "num_failures": {num_failures}'
    first = f'{{"shard": "{index}/2", "command": "generate", "work": "w", {counts}}}\n'
    path.write_text(first + rows, encoding="utf-8")
    return path


def test_shards_may_be_in_other_folders_and_are_put_in_order(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    # A line separator of Unicode does not end a line, and numbers stay as they are.
    texts = ['{"id": "a", "text": "one\u2028two", "p": 0.30000001192092896}\n', '{"id": "b"}\n{"id": "c"}\n']
    paths = [write_shard(folders[i], i + 1, texts[i]) for i in (0, 1)]
    assert merge_shards(tmp_path / "whole.jsonl", paths[::-1]) == [tmp_path / "whole.jsonl"]
    assert (tmp_path / "whole.jsonl").read_text(encoding="utf-8") == "".join(texts)


def test_a_second_merge_replaces_the_failures_of_the_first(tmp_path: Path) -> None:
    write_shard(tmp_path, 1, '{"id": "a"}\n')
    second, whole = write_shard(tmp_path, 2, "", num_failures=1), tmp_path / "train.jsonl"
    failures_path(second).write_text('{"id": "b", "kind": "no_json"}\n')
    merge_shards(whole)
    assert failures_path(whole).read_text() == '{"id": "b", "kind": "no_json"}\n'

    write_shard(tmp_path, 2, '{"id": "b"}\n')
    failures_path(second).unlink()
    with pytest.raises(ConfigError, match=r"train\.jsonl exists already; add --overwrite"):
        merge_shards(whole)
    assert merge_shards(whole, overwrite=True) == [whole]
    assert whole.read_text() == '{"id": "a"}\n{"id": "b"}\n'
    assert not failures_path(whole).exists()
