"""Shards: consecutive parts of a command's inputs, for several machines, and the files of their results.

`--shard 2/4` works on the second of four parts. The first line of a shard's file says which part of which
inputs it has; the lines after it are those of the whole file. `merge_shards` puts the files together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nlicot.data.rows import Row, read_rows, shown
from nlicot.errors import ConfigError, DataError
from nlicot.records import to_json_dict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts: `index` counts from 1 to `num`.

    >>> shard = Shard.parse("2/4")
    >>> shard.of("abcdefghij"), str(shard.path(Path("train.jsonl")))
    ('cde', 'train.shard-2-of-4.jsonl')
    """

    index: int
    num: int

    @classmethod
    def parse(cls, value: str) -> Shard:
        """Read a flag's text."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value))
        index, num = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= num:
            raise ConfigError(f"--shard: found {value!r}, expected I/N for part I of N, such as 1/4")
        return cls(index, num)

    def __str__(self) -> str:
        return f"{self.index}/{self.num}"

    @property
    def name(self) -> str:
        """The shard's name in files and folders."""
        return f"shard-{self.index}-of-{self.num}"

    def of(self, items: Sequence[T], *, multiple: int = 1) -> Sequence[T]:
        """Return this part of the items; if there are enough, every part starts at a multiple of a number."""
        if len(items) < self.num:
            raise ConfigError(
                f"--shard {self}: found {len(items)} inputs, expected {self.num} or more; use fewer shards"
            )
        multiple = multiple if len(items) >= self.num * multiple else 1
        starts = [index * len(items) // self.num // multiple * multiple for index in range(self.num)]
        return items[starts[self.index - 1] : [*starts, len(items)][self.index]]

    def path(self, whole: Path) -> Path:
        """Return the path of this shard's file; that of the whole file is `whole`."""
        return whole.with_name(f"{whole.stem}.{self.name}{whole.suffix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOfWork:
    """A shard of what one command does: shards of other inputs or other settings have another `work`."""

    shard: Shard
    command: str
    work: str

    @classmethod
    def of(cls, shard: Shard, command: str, items: Iterable[Any], *settings: object) -> ShardOfWork:
        """Describe a shard by the inputs of all shards, and by the settings that must be the same."""
        digest = hashlib.sha256(repr(settings).encode())
        for item in items:
            digest.update(json.dumps(to_json_dict(item)).encode())
        return cls(shard=shard, command=command, work=digest.hexdigest()[:16])

    def first_line(self, num_records: int, num_failures: int = 0) -> dict[str, Any]:
        """Return the first line of the shard's file."""
        part = {"shard": str(self.shard), "command": self.command, "work": self.work}
        return part | {"num_records": num_records, "num_failures": num_failures}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A shard's file, of which the first line was read."""

    path: Path
    part: ShardOfWork
    num_records: int
    num_failures: int

    @classmethod
    def read(cls, path: Path) -> ShardFile:
        """Read a file's first line."""
        first = next(read_rows(path), Row(path=path, line=1, header_line=1, fields={}))
        try:
            part = ShardOfWork(
                shard=Shard.parse(first.text("shard")), command=first.text("command"), work=first.text("work")
            )
        except (DataError, ConfigError):
            found = f"the fields {', '.join(map(shown, first.fields)) or '(none)'}"
            raise first.error(found, "the first line of a file that --shard wrote") from None
        counts = {name: first.whole_number(name) for name in ("num_records", "num_failures")}
        return cls(path=path, part=part, **counts)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records; raises `DataError` if the file has more or fewer than its first line says."""
        num = -1
        for num, row in enumerate(read_rows(self.path)):
            if num:
                yield row.fields
        if num != self.num_records:
            found, expected = f"{num} records", f"{self.num_records}, as its first line says"
            raise DataError(found, expected, path=self.path, remedy="copy it again, or run that shard again")
