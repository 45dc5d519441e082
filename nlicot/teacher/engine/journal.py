"""A stage's state on disk: requests, replies, and the outcome of each task, in one SQLite file.

An attempt is committed before it is sent, and a reply before it is parsed: a killed process loses at most
what was in flight. Outcomes (`finals`) can all be recomputed from the replies.
"""

import contextlib
import datetime
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from nlicot.errors import DataError, DiskFull, JournalInUse
from nlicot.teacher.backends.base import Fault, Reply, Request, writable

T = TypeVar("T")

# NORMAL: a commit survives the death of the process; a power failure may lose the last moments. The log is
# merged into the file every 64 MB: that waits for the disk, and every request waits with it.
PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=16000;"
SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, pair TEXT NOT NULL, model TEXT NOT NULL, job TEXT NOT NULL,
    started_at REAL NOT NULL, reserved_usd REAL NOT NULL DEFAULT 0,
    fault TEXT, message TEXT, possibly_paid INTEGER, raw TEXT
);
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, job TEXT NOT NULL, content TEXT NOT NULL, cost_usd REAL, received_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS finals (
    key TEXT PRIMARY KEY, ok INTEGER NOT NULL, correct INTEGER, content TEXT NOT NULL
) WITHOUT ROWID;
"""
OUTCOMES_PER_WRITE = 256


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
            opened.enter_context(_lock(path))
            # In a notebook requests run in another thread, while the one that opened the journal waits.
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            opened.callback(self._database.close)
            with _disk_errors(path):
                self._database.executescript(PRAGMAS + SCHEMA)
                self.interrupted = self._close_interrupted(interrupted_are_paid)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._opened:
            self.flush()

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
        self._write(
            "INSERT OR REPLACE INTO replies VALUES (?,?,?,?,?)",
            (key, self.job, reply.to_json(), cost_usd, time.time()),
        )

    def save_fault(self, attempt: int, fault: Fault) -> None:
        """Record the fault in which an attempt ended."""
        self._write(
            "UPDATE attempts SET fault = ?, message = ?, possibly_paid = ?, raw = ? WHERE number = ?",
            (fault.kind, writable(fault.message), int(fault.possibly_paid), writable(fault.raw), attempt),
        )

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        with _disk_errors(self.path):
            return self._database.execute(statement, values).lastrowid or 0

    def reply(self, key: str) -> Reply | None:
        """Return the reply to an equal request, from this run or an earlier one."""
        row = self._database.execute("SELECT content FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def spent_usd(self) -> float:
        """Return what this job has cost: its replies, and the reservations of attempts possibly paid."""
        replies = "SELECT TOTAL(cost_usd) FROM replies WHERE job = :job"
        lost = "SELECT TOTAL(reserved_usd) FROM attempts WHERE job = :job AND possibly_paid = 1"
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
        rows = [(key, int(one.ok), one.correct, json.dumps(one.rows)) for key, one in unwritten]
        with _disk_errors(self.path), self._database:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO finals VALUES (?,?,?,?)", rows)
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
        return self._database.execute(query, (json.dumps(keys),))

    def discard_outcomes(self, *, failed_only: bool) -> None:
        """Discard outcomes so that they are recomputed from the replies, which stay.

        With `failed_only`, the replies of failed tasks are set aside as well: those requests are sent again.
        """
        self.flush()
        if not failed_only:
            self._database.execute("DELETE FROM finals")
            return
        failed = "SELECT value FROM finals, json_each(content, '$[0].reply_keys') WHERE NOT ok"
        with _disk_errors(self.path), self._database:
            self._database.execute("BEGIN")
            # Attempts move with their replies: without one they would count as sent and never answered.
            self._database.execute(
                "UPDATE attempts SET key = key || '/failed-' ||"
                " (SELECT CAST(received_at AS TEXT) FROM replies WHERE replies.key = attempts.key)"
                f" WHERE key IN ({failed}) AND key IN (SELECT key FROM replies)"
            )
            renamed = "UPDATE replies SET key = key || '/failed-' || CAST(received_at AS TEXT)"
            self._database.execute(f"{renamed} WHERE key IN ({failed})")
            self._database.execute("DELETE FROM finals WHERE NOT ok")

    def export(self) -> Iterator[dict[str, Any]]:
        """Iterate over all rows as JSON objects, by table: `attempts`, `replies`, `finals`."""
        for table in ("attempts", "replies", "finals"):
            cursor = self._database.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                fields = dict(zip(names, row, strict=True))
                if "content" in fields:
                    fields["content"] = json.loads(fields["content"])
                yield {"table": table, **fields}


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
    file.truncate(0)
    file.write(f"process {os.getpid()}, since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}")
    file.flush()
    return file


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error) and "disk I/O" not in str(error):
            raise
        raise disk_full(path, str(error)) from None
    except sqlite3.DatabaseError as error:
        message = f"not a journal ({error}); move the file away to start a new one"
        raise DataError(message, path=path) from None


def disk_full(path: Path, reason: str | None) -> DiskFull:
    """Return the error of a file that cannot be written."""
    remedy = "free some disk space and run the same command again"
    return DiskFull(f"{path}: cannot be written ({reason}); all answers so far are saved, {remedy}")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
