"""A stage's memory on disk: what was asked, what came back, and what was made of it.

One SQLite file for each stage (write-ahead log). A row says that a request is about to be sent, before it
is; a reply is committed before anybody parses it. So a killed process loses at most what was in flight,
and asking the same again is answered from here. `finals` only spares the work of parsing again: whatever
stands there can be made anew from the replies.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from nlicot.errors import DataError, DiskFull, JournalInUse
from nlicot.teacher.backends.base import Fault, Reply, Request, writable

# NORMAL: a commit survives the death of the process; power loss may cost the last moments. The log is folded
# into the file every 64 MB: that waits for the disk, and all requests with it.
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
WRITE_FINALS_AT_ONCE = 256
KEYS_IN_A_QUERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task: records as JSON objects, or one failure where `ok` is false.

    `correct` says whether the teacher's label is the true one, where both exist.
    """

    ok: bool
    correct: bool | None
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedRequest:
    """A request that was sent, or about to be, when an earlier process ended: perhaps paid, not answered."""

    key: str
    pair: str
    model: str
    started_at: float


class Journal:
    """The journal of one stage; a context manager, and held by one process at a time.

    Args:
        path: the SQLite file; made with its folder where it is missing.
        job: names what is being run, so that a budget counts what earlier starts of the same run spent.
        interrupted_are_paid: whether a request that was in flight when a run ended may be paid for again;
            one in a batch job is not, for the job is found again.

    Raises:
        JournalInUse: another process holds it.
        DataError: the file is no journal.
        DiskFull: it cannot be written.
    """

    def __init__(self, path: Path, *, job: str = "", interrupted_are_paid: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.job, self._interrupted_are_paid = path, job, interrupted_are_paid
        self._lock = _locked(path)
        # A notebook's run asks from a thread of its own, while the one that opened the journal waits.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._unwritten: dict[str, Outcome] = {}
        try:
            with _disk_full_is_told(path):
                self._database.executescript(PRAGMAS + SCHEMA)
                self.interrupted = self._close_open_intents()
        except BaseException:
            self._database.close()
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left, and let the next process in."""
        try:
            self.flush()
        finally:
            self._database.close()
            self._lock.close()

    def _close_open_intents(self) -> list[InterruptedRequest]:
        """What a killed process left open, each listed once and from now on on record as interrupted."""
        rows = self._database.execute(
            "SELECT key, pair, model, started_at FROM attempts WHERE fault IS NULL"
            " AND key NOT IN (SELECT key FROM replies) ORDER BY number"
        ).fetchall()
        self._database.execute(
            "UPDATE attempts SET fault = 'interrupted', possibly_paid = ? WHERE fault IS NULL"
            " AND key NOT IN (SELECT key FROM replies)",
            (int(self._interrupted_are_paid),),
        )
        return [
            InterruptedRequest(key=key, pair=pair, model=model, started_at=started)
            for key, pair, model, started in rows
        ]

    # ------------------------------------------------------------- asking

    def start_attempt(self, key: str, request: Request, pair: str, reserved_usd: float) -> int:
        """Note, before sending, that a request is sent; returns the attempt's number."""
        with _disk_full_is_told(self.path):
            cursor = self._database.execute(
                "INSERT INTO attempts (key, pair, model, job, started_at, reserved_usd) VALUES (?,?,?,?,?,?)",
                (key, pair, request.model, self.job, time.time(), reserved_usd),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def save_reply(self, key: str, reply: Reply, cost_usd: float | None) -> None:
        """Commit a reply; only then may it be parsed."""
        with _disk_full_is_told(self.path):
            self._database.execute(
                "INSERT OR REPLACE INTO replies VALUES (?,?,?,?,?)",
                (key, self.job, reply.to_json(), cost_usd, time.time()),
            )

    def save_fault(self, attempt: int, fault: Fault) -> None:
        """Note what an attempt ended in instead of a reply."""
        with _disk_full_is_told(self.path):
            self._database.execute(
                "UPDATE attempts SET fault = ?, message = ?, possibly_paid = ?, raw = ? WHERE number = ?",
                (fault.kind, writable(fault.message), int(fault.possibly_paid), writable(fault.raw), attempt),
            )

    def reply(self, key: str) -> Reply | None:
        """The reply that an equal request brought, now or in an earlier run."""
        row = self._database.execute("SELECT content FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Reply.from_json(row[0])

    def spent_usd(self) -> float:
        """What this job has cost so far: its replies, and what was reserved for attempts perhaps paid."""
        (replies,) = self._database.execute(
            "SELECT TOTAL(cost_usd) FROM replies WHERE job = ?", (self.job,)
        ).fetchone()
        (lost,) = self._database.execute(
            "SELECT TOTAL(reserved_usd) FROM attempts WHERE job = ? AND possibly_paid = 1", (self.job,)
        ).fetchone()
        return float(replies + lost)

    # ------------------------------------------------------------- finals

    def save_outcome(self, key: str, final: Outcome) -> None:
        """Note what became of a task; written with the next ones."""
        self._unwritten[key] = final
        if len(self._unwritten) >= WRITE_FINALS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Commit the finals that wait."""
        rows = [
            (key, int(final.ok), final.correct, json.dumps(final.rows))
            for key, final in self._unwritten.items()
        ]
        with _disk_full_is_told(self.path), self._database:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO finals VALUES (?,?,?,?)", rows)
        self._unwritten.clear()

    def outcomes(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """The finals of those `keys` that have one."""
        self.flush()
        found = {}
        for row in self._select("key, ok, correct, content", keys):
            key, ok, correct, content = row
            found[key] = Outcome(
                ok=bool(ok), correct=None if correct is None else bool(correct), rows=json.loads(content)
            )
        return found

    def statuses(self, keys: Sequence[str]) -> dict[str, tuple[bool, bool | None]]:
        """Of those `keys` that have a final: whether it is usable, and whether correct."""
        return {
            key: (bool(ok), None if correct is None else bool(correct))
            for key, ok, correct in self._select("key, ok, correct", keys)
        }

    def _select(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), KEYS_IN_A_QUERY):
            part = keys[start : start + KEYS_IN_A_QUERY]
            places = ",".join("?" * len(part))
            yield from self._database.execute(f"SELECT {columns} FROM finals WHERE key IN ({places})", part)

    def discard_outcomes(self, *, failed_only: bool) -> None:
        """Forget what was made of replies, so that it is made again; the replies stay.

        With `failed_only`, the replies of failed tasks are put aside too, so that those are asked again.
        """
        self.flush()
        if not failed_only:
            self._database.execute("DELETE FROM finals")
            return
        failed = "SELECT value FROM finals, json_each(content, '$[0].reply_keys') WHERE NOT ok"
        with _disk_full_is_told(self.path), self._database:
            self._database.execute("BEGIN")
            # The attempts go with their replies: without one they would pass for sent and never answered.
            self._database.execute(
                "UPDATE attempts SET key = key || '/failed-' ||"
                " (SELECT CAST(received_at AS TEXT) FROM replies WHERE replies.key = attempts.key)"
                f" WHERE key IN ({failed}) AND key IN (SELECT key FROM replies)"
            )
            self._database.execute(
                "UPDATE replies SET key = key || '/failed-' || CAST(received_at AS TEXT)"
                f" WHERE key IN ({failed})"
            )
            self._database.execute("DELETE FROM finals WHERE NOT ok")

    # ------------------------------------------------------------- export

    def export(self) -> Iterator[dict[str, Any]]:
        """Everything in the journal as JSON objects, by table: `attempts`, `replies`, `finals`."""
        for table in ("attempts", "replies", "finals"):
            cursor = self._database.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                fields = dict(zip(names, row, strict=True))
                if "content" in fields:
                    fields["content"] = json.loads(fields["content"])
                yield {"table": table, **fields}


def _locked(path: Path) -> TextIO:
    """The journal's lock file, held; the system lets go of it when the process ends, however it ends."""
    file = path.with_suffix(".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise JournalInUse(
            f"{path}: found it in use by {holder}, expected one process at a time (wait for it, or stop it)"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}")
    file.flush()
    return file


@contextlib.contextmanager
def _disk_full_is_told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise DiskFull(
                f"{path}: cannot be written ({error}); what was answered so far is kept, "
                "free some space and start the same command again"
            ) from None
        raise
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"no journal ({error})", "an SQLite file", path=path, remedy="move it away to start anew"
        ) from None
