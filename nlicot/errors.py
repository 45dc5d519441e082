"""The tree of errors that a user can cause and mend.

    NlicotError                  one line for the user, exit code 2
    +-- DataError                a file's content: carries path:line, what was found, what was expected
    +-- ConfigError              a flag or a key of a config file
    +-- ModelError               a base model, tokenizer or device that cannot be used
    +-- CheckpointError          a run or checkpoint that does not fit what is asked of it

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
