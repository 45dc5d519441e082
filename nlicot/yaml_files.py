"""Reads the YAML files of a person's own: settings, prompts, definitions, prices; wrong keys get a hint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nlicot.errors import ConfigError


def read_yaml(path: Path, *, told_as: str) -> Any:
    """What a YAML file holds.

    Args:
        told_as: what error messages call the file: its path, with the flag that named it where there is one.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{told_as}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{told_as}: found bytes that are no UTF-8, expected a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "no valid YAML"
        raise ConfigError(f"{told_as}{line}: found {problem}, expected YAML") from None


def hint(name: str, known: Sequence[str]) -> str:
    """What an unknown name may have meant.

    >>> hint("sytem", ["system", "user"]), hint("x", ["system", "user"])
    ('did you mean system?', 'there are: system, user')
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
