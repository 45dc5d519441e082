"""A stage's state on disk: requests, replies, and the outcome of each task, in one SQLite file.

An attempt is committed before it is sent, and a reply before it is parsed: a killed process loses at most
what was in flight. Outcomes (`finals`) can all be recomputed from the replies.
"""

import collections
import contextlib
import datetime
import fcntl
import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from nlicot.data.atomic_write import disk_errors
from nlicot.errors import DataError, DiskFull, JournalInUse
from nlicot.servers.faults import Fault, writable
from nlicot.teacher.backends.base import Reply, Request

T = TypeVar("T")

# NORMAL: a commit survives the death of the process; a power failure may lose the last moments. The log is
# merged into the file every 64 MB: that waits for the disk, and every request waits with it. Tables with row
# numbers, since keys are random: 32 us of CPU for a request and its reply, and 48 without them.
PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=16000;"
SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, pair TEXT NOT NULL, model TEXT NOT NULL, job TEXT NOT NULL,
    started_at REAL NOT NULL, reserved_usd REAL NOT NULL DEFAULT 0,
    fault TEXT, message TEXT, possibly_paid INTEGER, raw TEXT
);
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, job TEXT NOT NULL, content TEXT NOT NULL, cost_usd REAL, received_at REAL NOT NULL,
    crc INTEGER
);
CREATE TABLE IF NOT EXISTS finals (
    key TEXT PRIMARY KEY, ok INTEGER NOT NULL, correct INTEGER, content TEXT NOT NULL, crc INTEGER
);
"""
OUTCOMES_PER_WRITE = 256
WITH_CRC = ("replies", "finals")
"""Tables with the CRC-32 of each row's key and content, which is NULL in rows of earlier versions."""
KEYS = {"attempts": "number", "replies": "key", "finals": "key"}
"""The primary key of each table."""
KEY_DIGITS = 10
"""Digits of a hexadecimal key that the search for readable rows distinguishes."""
MAX_UNREADABLE_RANGES = 10_000
"""Ranges of keys that this search tries in vain, after about a second."""
REMEDY = "restore a copy, or move it away to pay for all answers again"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A task's records as JSON objects, or one failure if not `ok`; `correct` is None without both labels."""

    ok: bool
    correct: bool | None
    rows: list[dict[str, Any]]


class Journal:
    """The journal of one stage; a context manager, held by one process at a time.

    A budget counts what earlier starts with the same `job` spent. `interrupted_are_paid`: count requests that
    were in flight when a run ended as possibly paid; those of a batch job are not, as the job is found again.
    """

    def __init__(self, path: Path, *, job: str = "", interrupted_are_paid: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.job = path, job
        self._unwritten: dict[str, Outcome] = {}
        with contextlib.ExitStack() as opened:
            with disk_errors(path):
                opened.enter_context(_lock(path))
            with _disk_errors(path):
                self._database = _connect(path)
            opened.callback(lambda: self._database.close())
            with _disk_errors(path):
                if self._is_damaged():
                    self._database.close()
                    self._database = _salvaged(path)
                self._database.executescript(PRAGMAS + SCHEMA)
                self._add_crc()
                with self._transaction():
                    for key in self._unreadable("finals"):  # computed again from the replies
                        self._database.execute("DELETE FROM finals WHERE key = ?", (key,))
                    self._set_aside(unreadable := self._unreadable("replies"), "unreadable")
                    self.interrupted = self._close_interrupted(interrupted_are_paid)
            if unreadable:
                logger.warning("%s: %d answers cannot be read; they are asked again", path, len(unreadable))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._opened:
            self.flush()

    def _is_damaged(self) -> bool:
        try:
            (found,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):
                raise
            return True
        return bool(found != "ok")

    def _add_crc(self) -> None:
        """Add the column that a journal of an earlier version lacks."""
        for table in WITH_CRC:
            names = [column[1] for column in self._database.execute(f"PRAGMA table_info({table})")]
            if "crc" not in names:
                self._database.execute(f"ALTER TABLE {table} ADD COLUMN crc INTEGER")

    def _unreadable(self, table: str) -> list[str]:
        """Return the keys of rows whose content is not JSON in UTF-8, or is not as it was written."""
        columns = "key, CAST(content AS BLOB), json_valid(content), crc"
        # A reply whose key has a suffix was set aside; the key of an outcome always has one.
        in_use = "WHERE instr(key, '/') = 0" if table == "replies" else ""
        rows = self._database.execute(f"SELECT {columns} FROM {table} {in_use}")
        return [
            key
            for key, content, is_json, crc in rows
            if not (is_json and _is_utf8(content) and crc in (None, _crc(key, content)))
        ]

    def _set_aside(self, keys: Sequence[str], reason: str) -> None:
        """Rename the keys of those `keys` that have a reply, so that their requests are sent again."""
        values = {"keys": json.dumps(keys), "reason": reason}
        chosen = "WHERE key IN (SELECT value FROM json_each(:keys))"
        # Attempts move with their replies: without one they would count as sent and never answered.
        self._database.execute(
            "UPDATE attempts SET key = key || '/' || :reason || '-' ||"
            " (SELECT received_at FROM replies WHERE replies.key = attempts.key)"
            f" {chosen} AND key IN (SELECT key FROM replies)",
            values,
        )
        renamed = "UPDATE replies SET key = key || '/' || :reason || '-' || received_at"
        self._database.execute(f"{renamed} {chosen}", values)

    def _close_interrupted(self, possibly_paid: bool) -> list[tuple[str, str]]:
        """List key and pair of what a killed process left in flight; mark it, to be listed only once."""
        unanswered = "WHERE fault IS NULL AND key NOT IN (SELECT key FROM replies)"
        query = f"SELECT key, pair FROM attempts {unanswered} ORDER BY number"
        found = self._database.execute(query).fetchall()
        mark = f"UPDATE attempts SET fault = 'interrupted', possibly_paid = {possibly_paid:d} {unanswered}"
        self._database.execute(mark)
        return found

    def start_attempt(self, key: str, request: Request, pair: str, reserved_usd: float) -> int:
        """Record that a request is about to be sent; returns the attempt's number."""
        return self._write(
            "INSERT INTO attempts (key, pair, model, job, started_at, reserved_usd) VALUES (?,?,?,?,?,?)",
            (key, pair, request.model, self.job, time.time(), reserved_usd),
        )

    def save_reply(self, key: str, reply: Reply, cost_usd: float | None) -> None:
        """Commit a reply; it may be parsed only after this."""
        content = reply.to_json()
        self._write(
            "INSERT OR REPLACE INTO replies VALUES (?,?,?,?,?,?)",
            (key, self.job, content, cost_usd, time.time(), _crc(key, content.encode())),
        )

    def save_fault(self, attempt: int, fault: Fault) -> None:
        """Record the fault in which an attempt ended."""
        self._write(
            "UPDATE attempts SET fault = ?, message = ?, possibly_paid = ?, raw = ? WHERE number = ?",
            (fault.kind, writable(fault.message), int(fault.possibly_paid), writable(fault.raw), attempt),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _disk_errors(self.path), self._database:
            self._database.execute("BEGIN")
            yield

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        with _disk_errors(self.path):
            return self._database.execute(statement, values).lastrowid or 0

    def reply(self, key: str) -> Reply | None:
        """Return the reply to an equal request, from this run or an earlier one."""
        with _disk_errors(self.path):
            query = "SELECT CAST(content AS BLOB) FROM replies WHERE key = ?"
            row = self._database.execute(query, (key,)).fetchone()
            if row is None:
                return None
            try:
                return Reply.from_json(row[0].decode())
            except (ValueError, LookupError, TypeError):
                logger.warning("%s: the answer to %s cannot be read; it is asked again", self.path, key[:12])
                with self._transaction():
                    self._set_aside([key], "unreadable")
                return None

    def spent_usd(self) -> float:
        """Return what this job has cost: its replies, and the reservations of attempts possibly paid."""
        replies = "SELECT TOTAL(cost_usd) FROM replies WHERE job = :job"
        lost = "SELECT TOTAL(reserved_usd) FROM attempts WHERE job = :job AND possibly_paid = 1"
        with _disk_errors(self.path):
            found = self._database.execute(f"SELECT ({replies}) + ({lost})", {"job": self.job})
            return float(found.fetchone()[0])

    def save_outcome(self, key: str, outcome: Outcome) -> None:
        """Record a task's outcome; several are written together."""
        self._unwritten[key] = outcome
        if len(self._unwritten) >= OUTCOMES_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        """Commit the outcomes that are pending."""
        unwritten = self._unwritten.items()
        contents = [json.dumps(one.rows) for one in self._unwritten.values()]
        rows = [
            (key, int(one.ok), one.correct, content, _crc(key, content.encode()))
            for (key, one), content in zip(unwritten, contents, strict=True)
        ]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO finals VALUES (?,?,?,?,?)", rows)
        self._unwritten.clear()

    def outcomes(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Return the outcomes of those `keys` that have one."""
        self.flush()
        found = {}
        for key, ok, correct, content in self._select("key, ok, correct, content", keys):
            is_correct = None if correct is None else bool(correct)
            found[key] = Outcome(ok=bool(ok), correct=is_correct, rows=json.loads(content))
        return found

    def statuses(self, keys: Sequence[str]) -> dict[str, tuple[bool, bool | None]]:
        """Return `ok` and `correct` of those `keys` that have an outcome."""
        found = self._select("key, ok, correct", keys)
        return {key: (bool(ok), None if correct is None else bool(correct)) for key, ok, correct in found}

    def _select(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM finals WHERE key IN (SELECT value FROM json_each(?))"
        with _disk_errors(self.path):
            yield from self._database.execute(query, (json.dumps(keys),))

    def discard_outcomes(self, *, failed_only: bool) -> None:
        """Discard outcomes so that they are recomputed from the replies, which stay.

        With `failed_only`, the replies of failed tasks are set aside as well: those requests are sent again.
        """
        self.flush()
        failed = "SELECT DISTINCT value FROM finals, json_each(content, '$[0].reply_keys') WHERE NOT ok"
        with self._transaction():
            if failed_only:
                self._set_aside([key for (key,) in self._database.execute(failed)], "failed")
            self._database.execute(f"DELETE FROM finals {'WHERE NOT ok' if failed_only else ''}")

    def export(self) -> Iterator[dict[str, Any]]:
        """Iterate over all rows as JSON objects, by table: `attempts`, `replies`, `finals`."""
        for table in KEYS:
            cursor = self._database.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                fields = dict(zip(names, row, strict=True))
                fields.pop("crc", None)
                if "content" in fields:
                    with contextlib.suppress(ValueError):  # of a reply that cannot be read
                        fields["content"] = json.loads(fields["content"])
                yield {"table": table, **fields}


def _connect(path: Path) -> sqlite3.Connection:
    # In a notebook requests run in another thread, while the one that opened the journal waits.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.text_factory = lambda text: text.decode(errors="replace")  # of a damaged file
    return database


def _crc(key: str, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key.encode()))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _salvaged(path: Path) -> sqlite3.Connection:
    """Set a damaged journal aside, and open a new one with all rows that can be read."""
    kept = path.with_name(f"{path.name}.damaged-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    fresh_path = path.with_name(f"{path.name}.salvaged")
    fresh_path.unlink(missing_ok=True)
    fresh = _connect(fresh_path)
    with contextlib.closing(_connect(path)) as damaged:
        damaged.text_factory = bytes
        damaged.execute("PRAGMA writable_schema = ON")  # else a file that is cut off has no rows at all
        fresh.executescript(SCHEMA + "BEGIN;")
        nums = {table: _copy_readable(damaged, fresh, table) for table in KEYS}
        fresh.execute("COMMIT")
    fresh.close()
    if not nums["replies"]:
        fresh_path.unlink()
        raise DataError(f"no answer in it can be read; {REMEDY}", path=path)
    for end in ("-wal", "-shm"):  # of the damaged file; closing it has merged them
        path.with_name(path.name + end).unlink(missing_ok=True)
    path.rename(kept)
    fresh_path.rename(path)
    opened = _connect(path)
    lost = "FROM attempts WHERE fault IS NULL AND key NOT IN (SELECT key FROM replies)"
    num_lost, usd = opened.execute(f"SELECT COUNT(*), TOTAL(reserved_usd) {lost}").fetchone()
    cost = f", which cost up to ${usd:.2f}" if usd else ""
    message = (
        "%s: damaged; %d answers can be read, others are asked again (%d known%s); the damaged file is %s"
    )
    logger.warning(message, path, nums["replies"], num_lost, cost, kept)
    return opened


def _copy_readable(damaged: sqlite3.Connection, fresh: sqlite3.Connection, table: str) -> int:
    """Copy the readable rows of a table, bisecting the ranges of keys that fail; return their number."""
    key = KEYS[table]
    num_columns = len(fresh.execute(f"PRAGMA table_info({table})").fetchall())
    num_copied = num_failed = 0
    ranges = collections.deque([(0, 16**KEY_DIGITS)])
    while ranges and num_failed < MAX_UNREADABLE_RANGES:
        low, high = ranges.popleft()
        bounds: list[int | str] = [low, high]
        if key == "key":  # hexadecimal, all before "g"
            bounds = [f"{each:0{KEY_DIGITS}x}" if each < 16**KEY_DIGITS else "g" for each in (low, high)]
        condition = f"{key} >= ? AND {key} < ?"
        try:
            rows = damaged.execute(f"SELECT * FROM {table} WHERE {condition}", bounds).fetchall()
        except sqlite3.DatabaseError:
            num_failed += 1
            middle = (low + high) // 2
            ranges += [(low, middle), (middle, high)] if low < middle < high else []
            continue
        for row in rows:
            with contextlib.suppress(sqlite3.IntegrityError, UnicodeDecodeError):
                values = [each.decode() if isinstance(each, bytes) else each for each in row]
                values += [None] * (num_columns - len(values))  # the journal of an earlier version has no crc
                marks = ",".join("?" * len(values))
                fresh.execute(f"INSERT INTO {table} VALUES ({marks})", values)
                num_copied += 1
    return num_copied


def _lock(path: Path) -> TextIO:
    """Lock the journal; the system unlocks it when the process ends, however it ends."""
    file = path.with_suffix(".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise JournalInUse(f"{path}: in use by {holder}; wait until it has finished, or stop it") from None
    except OSError as error:  # of a file system without locks
        file.close()
        found = f"cannot be locked ({error.strerror})"
        raise DataError(found, path=path, remedy="put the data root on a local disk") from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}")
    file.flush()
    return file


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise DiskFull(path, str(error), kept="all answers so far are saved") from None
        raise DataError(f"cannot be used as a journal ({error})", path=path) from None
    except sqlite3.DatabaseError as error:
        message = f"not a journal ({error}); {REMEDY}"
        if "malformed" in str(error):
            message = f"damaged ({error}); the same command keeps the answers that can be read"
        raise DataError(message, path=path) from None


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
