"""Errors that the user can cause and fix; any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import errno
from pathlib import Path
from signal import Signals

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk without space, of a quota, and of a limit on the size of files."""


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


class ExportError(NlicotError):
    """A model that cannot be written in a format, or that predicts otherwise after it was written."""


class JournalInUse(NlicotError):
    """Another process uses the same journal; two would pay twice."""


class StoppedEarly(NlicotError):
    """A command that stopped early. What it did so far is kept; the message says how to continue."""


class Interrupted(StoppedEarly):
    """A signal such as that of Ctrl-C stopped a command; the exit code is that of the signal."""

    def __init__(self, message: str, signum: Signals) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class RunsUnfinished(StoppedEarly):
    """A sweep ended with runs that failed, or for which its time was too short."""

    exit_code = 8


class DiskFull(StoppedEarly):
    """A file cannot be written, since its disk is full or has a quota; `way` says how to continue."""

    exit_code = 5

    def __init__(
        self,
        path: Path | str,
        reason: str | None,
        *,
        kept: str = "nothing that was finished is lost",
        way: str = "run the same command again",
    ) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: cannot be written ({reason}); {kept}, free some disk space and {way}")


class ServerRefused(StoppedEarly):
    """The server rejects all requests: key, payment, permission or an unknown model."""

    exit_code = 3


class BudgetReached(StoppedEarly):
    """The next request could cost more than the rest of the budget."""

    exit_code = 4


class TeacherLopsided(StoppedEarly):
    """The answers miss one label: its definition does not fit the data; or both: the labels look reversed."""

    exit_code = 6


class NoAnswers(StoppedEarly):
    """No answers, or none that can be used, at the start or for long: the others would be as useless."""

    exit_code = 7


class LostProcess(StoppedEarly):
    """Another of the processes that train or predict together ended, so this one cannot go on."""

    exit_code = 9
