"""Decides when a teacher is useless: it lets tasks start, notes how they end, and returns a reason to stop.

Until an answer could be read, only a few tasks are let in, and if all of them fail the run stops: a teacher
that never gives a usable answer costs ten pairs, not the whole file. So does a long run of failures later.
The scheduler sends the requests, and stops. A topic is "" for the questions that tasks begin with.
"""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping

from nlicot.errors import NoAnswers
from nlicot.records import Failure
from nlicot.teacher.backends.base import Backend, runs_jobs
from nlicot.teacher.engine.rate_limiter import RetryPolicy

MAX_ANSWER_SHOWN = 160
WRONG_LABEL = "wrong_label"  # the kind of failure whose answer could be read
REFUSED = ("content_filter", "refusal", "safety", "recitation", "prohibited_content", "blocklist")
SAME_COMMAND = "check the server, and run the same command to continue"
REMEDIES = {
    "truncated": "raise --max_tokens, or use another --model",
    WRONG_LABEL: "compare the labels with --label_map and --definitions, or use another --model",
    "broken_envelope": "check --server_url: this is not a chat completion",
    **dict.fromkeys(("context_length", "http_413"), "shorten the texts, or use another --model"),
    **dict.fromkeys(("http_400", "http_422"), "use another --model or --request_field"),
} | dict.fromkeys(REFUSED, "name another model in --next_models, or use another --model")
OTHER_REMEDY = "use another --model or --prompt, or a server that enforces JSON (response_format)"
REWRITE_REMEDY = "name other models in --regenerate_with, or set --rounds 0"


class StoppingRule:
    """Counts what failed since the last usable answer, over all phases of a run."""

    def __init__(self, backend: Backend, policy: RetryPolicy, *, concurrency: int) -> None:
        self._server, self._policy, self._concurrency = backend.server or backend.name, policy, concurrency
        self._runs_jobs = runs_jobs(backend)
        limits = (policy.max_unreadable_at_start, policy.batch_max_unreadable_at_start)
        self._start_limit = limits[self._runs_jobs]
        self._failures: defaultdict[str, dict[str, Failure]] = defaultdict(dict)  # by topic and task
        self._could_read: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)  # ever, by topic
        self._unanswered: dict[str, Failure] = {}  # by task
        self._num_unanswered_in_a_row = 0  # since the server's last sign of life
        self._num_unanswered_at_start = self._num_let_in = self._num_in_progress = self._num_waiting = 0
        self._any_answered = self._any_usable = False
        self._rounds: defaultdict[str, asyncio.Future[bool]] = defaultdict(asyncio.Future)  # by topic
        self._round_check: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a task may start; leave once its end was noted."""
        if self._num_let_in >= self._start_limit:
            await self._could_read[""].wait()
        self._num_let_in += 1
        self._num_in_progress += 1
        try:
            yield
        finally:
            self._num_in_progress -= 1
            self._check_round_later()

    def note_answered(self) -> None:
        """Note that the server replied to a request."""
        self._any_answered = True
        self._num_unanswered_in_a_row = 0

    def note_read(self, topic: str, is_usable: bool) -> None:
        """Note an answer that could be read; a usable one ends a row of failures."""
        if is_usable:
            self._failures[topic].clear()
        self._could_read[topic].set()
        if topic in self._rounds:
            self._rounds.pop(topic).set_result(True)

    def note_usable(self, *, is_known: bool = False) -> None:
        """Note a usable outcome; one of an earlier phase or run does not end a row of failures."""
        self._any_usable = True
        self.note_read("", is_usable=not is_known)

    def note_failure(self, topic: str, key: str, failure: Failure) -> NoAnswers | None:
        """Note a question without a usable answer."""
        self._failures[topic][key] = failure
        return self._reason(topic, self._start_limit)

    def note_unanswered(self, key: str, failure: Failure, *, is_rejected: bool) -> NoAnswers | None:
        """Note a task that failed because a request got no reply."""
        self._unanswered[key] = failure
        self._num_unanswered_in_a_row = 0 if is_rejected else self._num_unanswered_in_a_row + 1
        # When a run continues, the few requests that the server rejects come first: the rest may pass.
        if not (self._any_answered or (self._any_usable and is_rejected)):
            self._num_unanswered_at_start += 1
            if (num := self._num_unanswered_at_start) == self._policy.max_unanswered_at_start:
                message = f"none of the first {num} requests was answered: {failure.message}"
                return NoAnswers(f"{self._server}: {message}; {REMEDIES.get(failure.kind, SAME_COMMAND)}")
        # Rejections are about one text and cost nothing; a job lists its errors in a row, after its answers.
        if self._could_read[""].is_set() and (self._runs_jobs or is_rejected):
            return None
        self._failures[""][key] = failure
        return self._reason("", self._start_limit)

    def note_failed_earlier(self, failures: Mapping[str, Failure]) -> NoAnswers | None:
        """Count failures in the journal, so that the same command does not pay for as many again."""
        if self._any_usable:
            return None
        self._num_let_in += len(failures.keys() - self._failures[""].keys())
        self._failures[""] |= failures
        if any(failure.kind == WRONG_LABEL for failure in failures.values()):
            self.note_read("", is_usable=False)
        return self._reason("", self._policy.max_unreadable_at_start)

    @property
    def ended_unanswered(self) -> bool:
        """True if the last requests got no reply; a job lists those last that failed."""
        return self._num_unanswered_in_a_row > 0 and not self._runs_jobs

    def result(self, *, is_dead: bool) -> NoAnswers | None:
        """Return a reason if all tasks failed, or if the server died: what it answered is not an output.

        `is_dead`: the server does not answer now.
        """
        self._failures[""] |= self._unanswered
        if self._failures[""] and not self._any_usable:
            return self._reason("")
        num, limit = self._num_unanswered_in_a_row, self._policy.min_unanswered_at_end
        if not self.ended_unanswered or not (is_dead or num >= max(limit, self._concurrency)):
            return None
        last = list(self._unanswered.values())[-1]
        pairs = "pair" if num == 1 else f"{num} pairs"
        message = f"the last {pairs} got no answer ({last.kind}): {last.message}"
        return NoAnswers(f"{self._server}: {message}; no output was written; {SAME_COMMAND}")

    def _reason(self, topic: str, start_limit: int | None = None) -> NoAnswers | None:
        """Return None below the limits, or the commonest complaint, one answer, and what to change."""
        failures, could_read = self._failures[topic], self._could_read[topic].is_set()
        kind, num = Counter(failure.kind for failure in failures.values()).most_common(1)[0]
        example = next(failure for failure in failures.values() if failure.kind == kind)
        is_unanswered, limit = example in self._unanswered.values(), self._policy.max_failures_in_a_row
        if is_unanswered:  # a short outage fails all that is in flight, and should not end a night's run
            limit = max(limit, 2 * self._concurrency)
        if start_limit and (num < limit if could_read else len(failures) < start_limit):
            return None
        noun = "rewrites" if topic else "pairs" if could_read else "answers"
        found = f"{num} {noun} in a row failed as {kind}"
        if not could_read:
            found = f"0 of {len(failures)} {noun} could be read, most often {kind} ({num})"
        if not (self._any_answered or self._unanswered):
            found += ", in an earlier run; nothing was sent now"
        raw = example.raw if len(example.raw) <= MAX_ANSWER_SHOWN else f"{example.raw[:MAX_ANSWER_SHOWN]}…"
        answer = f"; pair {example.id} got {raw!r}" if raw else f", as for pair {example.id}"
        remedy = f"{REMEDIES.get(kind, OTHER_REMEDY)}; --retry_failures asks again"
        if topic:  # the texts before a rewrite were saved, so no pair has failed
            remedy = REWRITE_REMEDY
        elif is_unanswered:
            remedy = REMEDIES.get(kind, SAME_COMMAND)
        return NoAnswers(f"{self._server}: {found}: {example.message}{answer}; {remedy}")

    async def may_ask_again(self, topic: str) -> bool:
        """Wait for a readable answer of a job; False if there is none: the next job takes hours, too."""
        if not self._runs_jobs or self._could_read[topic].is_set():
            return True
        self._num_waiting += 1
        self._check_round_later()
        try:
            return await asyncio.shield(self._rounds[topic])
        finally:
            self._num_waiting -= 1

    def _check_round_later(self) -> None:
        if self._round_check is not None:
            self._round_check.cancel()
        if self._num_waiting:  # answers in the journal come at once, before other tasks have started
            loop = asyncio.get_running_loop()
            self._round_check = loop.call_later(self._policy.batch_quiet_s, self._check_round)

    def _check_round(self) -> None:
        if self._num_waiting == self._num_in_progress:
            for topic in list(self._rounds):
                self._rounds.pop(topic).set_result(self._num_waiting < self._policy.max_unreadable_at_start)
