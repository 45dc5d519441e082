"""Errors that the user can cause and fix; any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from pathlib import Path


class NlicotError(Exception):
    """An error the user can fix; the message is one line and says how."""

    exit_code = 2


class DataError(NlicotError):
    """A data file that cannot be used as it is: without `expected`, `found` is the whole message."""

    def __init__(
        self,
        found: str,
        expected: str = "",
        *,
        path: Path | str | None = None,
        line: int | None = None,
        remedy: str = "",
    ) -> None:
        self.path, self.line = path, line
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        text = f"found {found}, expected {expected}" if expected else found
        super().__init__(where + text + (f" ({remedy})" if remedy else ""))


class ConfigError(NlicotError):
    """A flag or configuration key that is unknown or does not fit the others."""


class ModelError(NlicotError):
    """A base model, tokenizer or device that cannot be used."""


class CheckpointError(NlicotError):
    """A checkpoint or run folder that is missing or does not match what is needed."""


class JournalInUse(NlicotError):
    """Another process uses the same journal; two would pay twice."""


class TeacherStopped(NlicotError):
    """A teacher run that stopped early. Answers so far are kept; rerunning the command resumes it."""


class TeacherRefused(TeacherStopped):
    """The server rejects all requests: key, payment, permission or an unknown model."""

    exit_code = 3


class BudgetReached(TeacherStopped):
    """The next request could cost more than the rest of the budget."""

    exit_code = 4


class DiskFull(TeacherStopped):
    """The journal cannot be written, so no more requests are sent."""

    exit_code = 5


class TeacherLopsided(TeacherStopped):
    """The answers miss one label: its definition does not fit the data; or both: the labels look reversed."""

    exit_code = 6


class NoAnswers(TeacherStopped):
    """No answers, or none that can be used, at the start or for long: the others would be as useless."""

    exit_code = 7
