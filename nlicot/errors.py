"""The tree of errors that a user can cause and mend.

    NlicotError                  one line for the user, exit code 2
    +-- DataError                a file's content: carries path:line, what was found, what was expected
    +-- ConfigError              a flag or a key of a config file
    +-- ModelError               a base model, tokenizer or device that cannot be used
    +-- CheckpointError          a run or checkpoint that does not fit what is asked of it
    +-- JournalInUse             another process works on the same teacher journal
    +-- TeacherStopped           a teacher run that stopped early; all answers are kept, each has an exit code
        +-- TeacherRefused       3: key, payment, permission or model
        +-- BudgetReached        4: the next request could have passed the cap
        +-- DiskFull             5: the journal cannot be written
        +-- TeacherLopsided      6: the probe found labels that do not fit the data
        +-- NoAnswers            7: the first requests all stayed without an answer

Whatever is not an NlicotError is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class NlicotError(Exception):
    """A mistake that the user can mend; its text is one line and says how."""

    exit_code = 2


class DataError(NlicotError):
    """A data file that cannot be used as it is.

    Args:
        found: what stands there.
        expected: what should stand there.
        path: the file.
        line: 1-based line of the file, where one line is to blame.
        remedy: what to do next.
    """

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
        text = f"{where}found {found}" if expected else f"{where}{found}"
        if expected:
            text += f", expected {expected}"
        super().__init__(text + (f" ({remedy})" if remedy else ""))


class ConfigError(NlicotError):
    """A flag or configuration key that is unknown or does not fit the others."""


class ModelError(NlicotError):
    """A base model, tokenizer or device that cannot be used."""


class CheckpointError(NlicotError):
    """A checkpoint or run folder that is missing or does not fit what is asked of it."""


class JournalInUse(NlicotError):
    """Another process works on the same journal; two would pay twice."""


class TeacherStopped(NlicotError):
    """A teacher run that ended before its end; what was answered is kept, the same command goes on."""


class TeacherRefused(TeacherStopped):
    """The server takes no request: key, payment, permission or an unknown model."""

    exit_code = 3


class BudgetReached(TeacherStopped):
    """The next request could have cost more than is left of the budget."""

    exit_code = 4


class DiskFull(TeacherStopped):
    """The journal cannot be written, so nothing more is asked."""

    exit_code = 5


class TeacherLopsided(TeacherStopped):
    """The first answers find one label and miss the other: the definitions do not fit the data."""

    exit_code = 6


class NoAnswers(TeacherStopped):
    """The first requests were all rejected, or stayed without an answer; the others would too."""

    exit_code = 7
