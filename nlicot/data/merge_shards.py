"""The `merge-shards` command: the file that a command without `--shard` would have written, byte for byte."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nlicot.command_line import CommandParser
from nlicot.data.atomic_write import refuse_overwriting, write_csv, write_jsonl, write_text
from nlicot.data.root import ensemble_path, failures_path
from nlicot.data.rows import read_rows
from nlicot.data.shards import Shard, ShardFile
from nlicot.errors import ConfigError, DataError


def merge_shards(output: Path, paths: Sequence[Path] = (), *, overwrite: bool = False) -> list[Path]:
    """Write `output` from its shards, by default those next to it; returns the files that were written.

    A teacher's failures, or the CSV of predictions, are written next to it. Raises `DataError` unless each
    shard of the same work is given once and is complete.
    """
    shards = _complete(output, [ShardFile.read(path) for path in paths or _next_to(output)])
    failures, csv_path = failures_path(output), output.with_suffix(".csv")
    has_failures = any(shard.num_failures for shard in shards)
    has_csv = shards[0].part.command == "predict"
    written = [*[csv_path] * has_csv, *[failures] * has_failures, output]
    if any(shard.path.resolve() == output.resolve() for shard in shards):
        raise ConfigError(f"{output}: found it among its shards, expected the name of the whole file")
    refuse_overwriting(*written, overwrite=overwrite)

    def rows_of(read: Callable[[ShardFile], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(map(read, shards))

    if has_csv:
        labels = ([row.get("predicted_label")] for row in rows_of(ShardFile.records))
        write_csv(csv_path, ["prediction"], labels, overwrite=overwrite)
    if has_failures:
        write_jsonl(failures, rows_of(_failures), overwrite=overwrite)
    write_jsonl(output, rows_of(ShardFile.records), overwrite=overwrite)
    if not has_failures:
        failures.unlink(missing_ok=True)  # of an earlier merge
    members = ensemble_path(shards[0].path)
    if members.is_file():
        write_text(ensemble_path(output), members.read_text(encoding="utf-8"), overwrite=True)
    else:
        ensemble_path(output).unlink(missing_ok=True)
    return written


def _next_to(output: Path) -> list[Path]:
    pattern = f"{glob.escape(output.stem)}.shard-*-of-*{glob.escape(output.suffix)}"
    found = [path for path in output.parent.glob(pattern) if not path.stem.endswith(".failures")]
    if not found:
        first = Shard(1, 2).path(output).name
        remedy, lines = "", output.with_suffix(".jsonl")
        if lines != output and any(output.parent.glob(f"{glob.escape(lines.stem)}.shard-*")):
            remedy = f"; give {lines}, next to which the .csv is written"
        raise ConfigError(f"{output}: found no shards next to it, expected files such as {first}{remedy}")
    return sorted(found)


def _complete(output: Path, shards: Sequence[ShardFile]) -> list[ShardFile]:
    """Return the shards in order; refuse others than one of each index of the same work."""
    first, by_index = shards[0], dict[int, ShardFile]()
    num = first.part.shard.num
    for shard in shards:
        if shard.part.shard.num != num:
            found, expected = f"shard {shard.part.shard}", f"one of {num} shards, as {first.path} is"
            remedy = "name the shards to merge after the output"
            raise DataError(found, expected, path=shard.path, remedy=remedy)
        if (shard.part.command, shard.part.work) != (first.part.command, first.part.work):
            found = f"a shard of `{shard.part.command}` with other pairs or settings"
            expected = f"those of {first.path}, by `{first.part.command}`"
            raise DataError(found, expected, path=shard.path, remedy="run it again as the others")
        if (earlier := by_index.setdefault(shard.part.shard.index, shard)) is not shard:
            found, expected = f"shard {shard.part.shard} again", f"it once: {earlier.path} has it too"
            raise DataError(found, expected, path=shard.path)
    if missing := [str(Shard(index, num)) for index in range(1, num + 1) if index not in by_index]:
        found, expected = f"{len(by_index)} of {num} shards", f"{', '.join(missing)} too"
        raise DataError(found, expected, path=output, remedy="run these, or copy them next to the others")
    return [by_index[index] for index in sorted(by_index)]


def _failures(shard: ShardFile) -> Iterator[dict[str, Any]]:
    """Yield the failures of a shard; raises `DataError` if there are others than its first line says."""
    if not shard.num_failures:
        return
    path = failures_path(shard.path)
    rows = [row.fields for row in read_rows(path)]
    if len(rows) != shard.num_failures:
        found, expected = f"{len(rows)} failures", f"{shard.num_failures}, as {shard.path} says"
        raise DataError(found, expected, path=path, remedy="copy it again")
    yield from rows


def main(args: Sequence[str]) -> int:
    """Run the `merge-shards` command."""
    parser = CommandParser(
        "merge-shards",
        description="Put the files of `--shard 1/N` to `--shard N/N` together, as one command would have "
        "written them.",
        example="python -m nlicot merge-shards data/original_thoughts/train.jsonl",
    )
    add = parser.add_argument
    add("output", type=Path, metavar="FILE", help="the whole file, which is written")
    add("shards", type=Path, nargs="*", default=[], metavar="SHARD", help="by default all next to it")
    add("--overwrite", type=bool, default=False, help="replace an earlier merge")
    settings = parser.parse(args)
    *others, output = merge_shards(settings.output, settings.shards, overwrite=settings.overwrite)
    print(f"merged       {output}")
    for path in others:
        print(f"             {path}")
    return 0
