"""The journal: replies survive a kill, and only one process at a time writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from nlicot.errors import DataError, DiskFull, JournalInUse
from nlicot.records import Usage
from nlicot.servers.faults import Fault
from nlicot.teacher.backends.base import AnswerSchema, Message, Reply, Request
from nlicot.teacher.engine.journal import Journal, Outcome, in_chunks

REPLY = Reply(
    text='{"predicted_label": 1}  „ja“ \u2028 \U0001f600',
    finish_reason="stop",
    usage=Usage(prompt_tokens=12, completion_tokens=3),
    raw='{"choices": []}\n',
    headers={"x-request-id": "7"},
    latency_s=0.25,
    salvaged=True,
)


def request(text: str = "plums", model: str = "teacher") -> Request:
    return Request(
        stage="generate",
        backend="openai",
        server="http://localhost:8000",
        model=model,
        messages=(Message(role="user", content=text),),
        params={},
        schema=AnswerSchema(name="thought", schema={}),
    )


def reply(text: str = "yes") -> Reply:
    return Reply(text=text, finish_reason="stop", usage=None, raw="")


def thought(text: str, *, correct: bool | None = True) -> Outcome:
    return Outcome(ok=True, correct=correct, rows=[{"id": "a", "thought_process": text}])


def failure(*reply_keys: str) -> Outcome:
    return Outcome(
        ok=False, correct=None, rows=[{"id": "a", "kind": "no_json", "reply_keys": list(reply_keys)}]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "generate.sqlite"


# ------------------------------------------------------------------ replies


def test_a_reply_is_read_back_unchanged_by_this_process_and_the_next(path: Path) -> None:
    bare = Reply(text="", finish_reason="length", usage=None, raw="")
    with Journal(path) as journal:
        journal.save_reply("k", REPLY, 0.01)
        journal.save_reply("bare", bare, None)

        assert journal.reply("k") == REPLY
        assert journal.reply("other") is None
    with Journal(path) as journal:
        assert journal.reply("k") == REPLY
        assert journal.reply("bare") == bare


def test_an_unanswered_request_is_listed_once_as_interrupted(path: Path) -> None:
    with Journal(path) as journal:
        for key, pair in (("answered", "a"), ("lost", "b"), ("refused", "c"), ("lost-too", "d")):
            attempt = journal.start_attempt(key, request(), pair, 0.5)
            if key == "answered":
                journal.save_reply(key, REPLY, 0.1)
            if key == "refused":
                journal.save_fault(attempt, Fault("http_503", "busy"))
        assert journal.interrupted == []

    with Journal(path) as journal:
        first, second = journal.interrupted
        assert first == ("lost", "b")
        assert second == ("lost-too", "d")
    with Journal(path) as journal:
        assert journal.interrupted == []


def test_an_interrupted_request_that_is_answered_later_is_not_listed_again(path: Path) -> None:
    with Journal(path) as journal:
        journal.start_attempt("k", request(), "a", 0.5)
    with Journal(path) as journal:
        journal.start_attempt("k", request(), "a", 0.5)
        journal.save_reply("k", REPLY, 0.1)
    with Journal(path) as journal:
        assert journal.interrupted == []


# ------------------------------------------------------------------ one process at a time

HOLDER = """
import sys, time
from pathlib import Path
from nlicot.teacher.engine.journal import Journal
from tests.teacher.engine.test_journal import REPLY, request
journal = Journal(Path(sys.argv[1]))
journal.save_reply("answered", REPLY, 0.1)
journal.start_attempt("in flight", request(), "a", 0.5)
print("holds it", flush=True)
time.sleep(600)
"""


@contextmanager
def another_process_holds(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with one answered request and one in flight, which runs until it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert _line_of(holder.stdout) == b"holds it\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def _line_of(stream: IO[bytes] | None) -> bytes:
    assert stream is not None
    return stream.readline()


def test_a_second_process_is_refused_and_the_message_names_the_first(path: Path) -> None:
    with another_process_holds(path) as holder, pytest.raises(JournalInUse) as refused:
        Journal(path)

    assert str(refused.value).startswith(f"{path}: in use by process {holder.pid}, since 2")
    assert "\n" not in str(refused.value)


def test_a_refused_process_does_not_change_the_recorded_holder(path: Path) -> None:
    with another_process_holds(path) as holder:
        for _ in range(2):
            with pytest.raises(JournalInUse, match=f"process {holder.pid},"):
                Journal(path)


def test_a_killed_process_unlocks_the_journal_and_its_replies_stay(path: Path) -> None:
    with another_process_holds(path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()

        with Journal(path) as journal:
            assert journal.reply("answered") == REPLY
            assert [key for key, _ in journal.interrupted] == ["in flight"]


def test_the_next_holder_replaces_a_longer_entry(path: Path) -> None:
    path.parent.mkdir()
    path.with_suffix(".lock").write_text("process 123456789, since long before, with a longer name\n")

    with Journal(path), pytest.raises(JournalInUse) as refused:
        Journal(path)

    assert f"in use by process {os.getpid()}, since 2" in str(refused.value)
    assert "longer" not in str(refused.value)


def test_the_same_process_can_reopen_a_closed_journal(path: Path) -> None:
    for _ in range(2):
        with Journal(path):
            pass


def test_a_file_that_is_not_a_journal_is_refused_and_not_locked(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("pairs, not a journal. " * 100)

    for _ in range(2):  # the lock was released
        with pytest.raises(DataError) as refused:
            Journal(path)
        assert str(refused.value) == (
            f"{path}: not a journal (file is not a database); restore a copy, or move it away to pay for all "
            "answers again"
        )


# ------------------------------------------------------------------ outcomes


def test_outcomes_are_found_by_key_before_and_after_they_are_written(path: Path) -> None:
    saved = {"right": thought("x"), "wrong": thought("y", correct=False), "?": thought("z", correct=None)}
    with Journal(path) as journal:
        for key, outcome in saved.items():
            journal.save_outcome(key, outcome)
        journal.save_outcome("failed", failure())

        assert journal.outcomes(["right", "wrong", "?", "unknown"]) == saved
    with Journal(path) as journal:
        assert journal.outcomes(["wrong", "failed"]) == {"wrong": saved["wrong"], "failed": failure()}
        assert journal.statuses(["right", "wrong", "?", "failed", "unknown"]) == {
            "right": (True, True),
            "wrong": (True, False),
            "?": (True, None),
            "failed": (False, None),
        }


def test_more_keys_than_fit_one_query_are_all_found(path: Path) -> None:
    keys = [f"k{number}" for number in range(1300)]
    with Journal(path) as journal:
        for key in keys:
            journal.save_outcome(key, thought(key))

        assert list(journal.statuses(keys)) != []
        assert {
            key: outcome.rows[0]["thought_process"] for key, outcome in journal.outcomes(keys).items()
        } == {key: key for key in keys}


def test_the_last_outcome_of_a_key_counts(path: Path) -> None:
    with Journal(path) as journal:
        journal.save_outcome("k", failure())
        journal.flush()
        journal.save_outcome("k", thought("x"))

        assert journal.outcomes(["k"]) == {"k": thought("x")}


def test_discarding_outcomes_keeps_the_replies(path: Path) -> None:
    with Journal(path) as journal:
        journal.save_reply("r", REPLY, 0.1)
        journal.save_outcome("written", failure("r"))
        journal.flush()
        journal.save_outcome("waiting", thought("x"))

        journal.discard_outcomes(failed_only=False)

        assert journal.outcomes(["written", "waiting"]) == {}
        assert journal.reply("r") == REPLY


def test_retrying_failures_sets_only_their_replies_aside(path: Path) -> None:
    with Journal(path, job="train") as journal:
        for key in ("good", "bad", "worse"):
            journal.start_attempt(key, request(key), "a", 0.5)
            journal.save_reply(key, reply(key), 0.1)
        journal.save_outcome("usable", thought("x"))
        journal.save_outcome("failed", failure("bad", "worse", "never answered"))
        journal.save_outcome("its twin", failure("bad"))

        journal.discard_outcomes(failed_only=True)

        assert journal.outcomes(["usable", "failed", "its twin"]) == {"usable": thought("x")}
        assert journal.reply("good") == reply("good")
        assert (journal.reply("bad"), journal.reply("worse")) == (None, None)
        assert journal.spent_usd() == pytest.approx(0.3), "spending is not reduced"
        texts = [row["content"]["text"] for row in journal.export() if row["table"] == "replies"]
        assert sorted(texts) == ["bad", "good", "worse"]
    with Journal(path, job="train") as journal:
        assert journal.interrupted == [], "replies set aside were received"
        assert journal.spent_usd() == pytest.approx(0.3)


def test_a_retried_failure_can_fail_and_be_retried_again(path: Path) -> None:
    with Journal(path, job="train") as journal:
        for text in ("first", "second"):
            journal.start_attempt("r", request(), "a", 0.5)
            journal.save_reply("r", reply(text), 0.1)
            journal.save_outcome("k", failure("r"))
            journal.discard_outcomes(failed_only=True)
        journal.start_attempt("r", request(), "a", 0.5)
        journal.save_reply("r", reply("third"), 0.1)

        assert journal.reply("r") == reply("third")
        assert journal.spent_usd() == pytest.approx(0.3)


# ------------------------------------------------------------------ dollars


def test_spending_includes_replies_and_possibly_paid_attempts(path: Path) -> None:
    with Journal(path, job="train") as journal:
        journal.save_reply("a", REPLY, 0.25)
        journal.save_reply("of unknown price", REPLY, None)
        timed_out = journal.start_attempt("b", request(), "b", 2.0)
        journal.save_fault(timed_out, Fault("timeout", "120 s", possibly_paid=True))
        refused = journal.start_attempt("c", request(), "c", 4.0)
        journal.save_fault(refused, Fault("http_503", "busy"))
        journal.start_attempt("in flight", request(), "d", 8.0)

        assert journal.spent_usd() == 2.25
    with Journal(path, job="train") as journal:
        assert journal.spent_usd() == 10.25, "a request in flight when the process ended may be paid"


def test_spending_of_other_jobs_is_not_counted(path: Path) -> None:
    with Journal(path, job="train") as journal:
        journal.save_reply("a", REPLY, 0.25)
        journal.start_attempt("lost", request(), "b", 8.0)
    with Journal(path, job="dev") as journal:
        assert journal.spent_usd() == 0.0
        journal.save_reply("b", REPLY, 0.5)
        assert journal.spent_usd() == 0.5
    with Journal(path, job="train") as journal:
        assert journal.spent_usd() == 8.25


# ------------------------------------------------------------------ export, disk


def test_the_whole_journal_is_exported_as_json_objects(path: Path) -> None:
    with Journal(path, job="train") as journal:
        attempt = journal.start_attempt("k", request(model="stronger"), "pair-1", 0.5)
        journal.save_fault(attempt, Fault("http_503", "busy", raw="<html>"))
        journal.save_reply("k", REPLY, 0.25)
        journal.save_outcome("t", thought("x"))
        journal.flush()

        attempted, replied, made = journal.export()

    assert attempted.pop("started_at") > 0
    assert replied.pop("received_at") > 0
    assert attempted == {
        "table": "attempts",
        "number": attempt,
        "key": "k",
        "pair": "pair-1",
        "model": "stronger",
        "job": "train",
        "reserved_usd": 0.5,
        "fault": "http_503",
        "message": "busy",
        "possibly_paid": 0,
        "raw": "<html>",
    }
    assert replied["content"]["text"] == REPLY.text
    assert (replied["table"], replied["key"], replied["cost_usd"]) == ("replies", "k", 0.25)
    assert made == {"table": "finals", "key": "t", "ok": 1, "correct": 1, "content": thought("x").rows}


@contextmanager
def no_file_grows_beyond(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_saved_replies_stay(path: Path) -> None:
    long = reply("long " * 100_000)
    with Journal(path) as journal:
        journal.save_reply("before", REPLY, 0.1)
        with no_file_grows_beyond(400_000):
            with pytest.raises(
                DiskFull, match=rf"^{path}: cannot be written \(.*\); all answers so far are saved"
            ):
                journal.save_reply("too long", long, 0.1)
            journal.save_outcome("t", Outcome(ok=True, correct=None, rows=[{"text": long.text}]))
            for _ in range(2):
                with pytest.raises(DiskFull):
                    journal.flush()
        assert journal.reply("before") == REPLY
        assert journal.reply("too long") is None
    with Journal(path) as journal:  # there was room again when it was closed
        assert journal.outcomes(["t"])["t"].rows == [{"text": long.text}]


def test_a_full_disk_is_reported_when_outcomes_are_discarded(path: Path) -> None:
    with Journal(path) as journal:
        journal.save_outcome("t", failure())
        journal.flush()
        for failed_only in (False, True):
            with no_file_grows_beyond(0), pytest.raises(DiskFull, match="all answers so far are saved"):
                journal.discard_outcomes(failed_only=failed_only)
        assert journal.outcomes(["t"]) == {"t": failure()}


def test_all_chunks_but_the_last_are_full() -> None:
    assert list(in_chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_chunks([], 2)) == []


@pytest.mark.parametrize(("interrupted_are_paid", "spent"), [(True, 0.25), (False, 0.0)])
def test_interrupted_requests_count_as_spent_unless_they_are_in_a_job(
    tmp_path: Path, interrupted_are_paid: bool, spent: float
) -> None:
    path = tmp_path / "generate.sqlite"
    with Journal(path, job="j") as journal:
        journal.start_attempt("k", request(), "p", 0.25)
    with Journal(path, job="j", interrupted_are_paid=interrupted_are_paid) as journal:
        assert journal.spent_usd() == spent


# ------------------------------------------------------------------- damage


@pytest.fixture
def many(path: Path) -> list[str]:
    """The keys of 200 answered requests in a journal."""
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(200)]
    with Journal(path, job="j") as journal:
        for key in keys:
            journal.start_attempt(key, request(), "p", 0.01)
            journal.save_reply(key, REPLY, 0.01)
            journal.save_outcome(outcome_key(key), thought("text " * 40))
    return keys


def outcome_key(key: str) -> str:
    """Return the key of a task, as the stages make it from that of its first request."""
    return f"{key}/p/1"


def replies_of(path: Path, keys: list[str]) -> list[Reply | None]:
    with Journal(path, job="j") as journal:
        list(journal.export())
        return [journal.reply(key) for key in keys]


def test_a_damaged_page_costs_the_answers_on_it(
    path: Path, many: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(many[100].encode() + b"j{") // 4096 * 4096  # of the row, not of an index
    content[place : place + 4096] = bytes(4096)
    path.write_bytes(content)
    found = replies_of(path, many)
    assert set(map(repr, found)) == {repr(REPLY), "None"}
    num_lost = found.count(None)
    assert 0 < num_lost < 20
    assert f"{200 - num_lost} answers can be read, others are asked again" in caplog.text
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    caplog.clear()
    assert replies_of(path, many) == found
    assert caplog.text == ""


def test_a_journal_that_is_cut_off_keeps_answers(path: Path, many: list[str]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: 3 * len(content) // 4])
    found = replies_of(path, many)
    assert set(map(repr, found)) <= {repr(REPLY), "None"}
    assert found.count(REPLY) > 20


def test_an_answer_that_cannot_be_read_is_asked_again(
    path: Path, many: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(many[7].encode() + b"j{", many[7].encode() + b"j[", 1))
    assert path.read_bytes() != content
    assert [key for key, reply in zip(many, replies_of(path, many), strict=True) if not reply] == [many[7]]
    assert "1 answers cannot be read; they are asked again" in caplog.text


def test_a_changed_letter_of_an_answer_is_noticed(
    path: Path, many: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = path.read_bytes()
    place = content.index(b'"', content.index(many[7].encode() + b"j{")) + 1
    path.write_bytes(content[:place] + b"~" + content[place + 1 :])
    assert [key for key, reply in zip(many, replies_of(path, many), strict=True) if not reply] == [many[7]]
    assert "1 answers cannot be read; they are asked again" in caplog.text


@pytest.mark.parametrize("content", ["{", "{}"], ids=["found on opening", "found on reading"])
def test_an_answer_that_cannot_be_read_is_neither_in_flight_nor_paid_twice(
    path: Path, many: list[str], content: str
) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        changed = "UPDATE replies SET content = ?, crc = NULL WHERE key = ?"
        database.execute(changed, (content, many[7]))
    for _ in range(2):
        with Journal(path, job="j") as journal:
            assert journal.interrupted == []
            assert journal.reply(many[7]) is None
            assert journal.spent_usd() == pytest.approx(200 * 0.01)


def test_a_changed_letter_of_an_outcome_makes_it_missing(path: Path, many: list[str]) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"text text", b"next text", 1))
    with Journal(path, job="j") as journal:
        assert len(journal.outcomes(list(map(outcome_key, many)))) == len(many) - 1


def test_a_journal_of_an_earlier_version_has_no_checksums_to_compare(
    path: Path, many: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        for table in ("replies", "finals"):
            database.execute(f"ALTER TABLE {table} DROP COLUMN crc")
    copy = path.with_name("damaged.sqlite")
    shutil.copy(path, copy)
    assert replies_of(path, many) == [REPLY] * len(many)
    assert caplog.text == ""

    content = copy.read_bytes()
    copy.write_bytes(content[: 3 * len(content) // 4])
    found = replies_of(copy, many)
    assert set(map(repr, found)) <= {repr(REPLY), "None"}
    assert found.count(REPLY) > 20


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be used as a journal"):
        Journal(path)
