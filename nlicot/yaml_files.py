"""Read YAML files that users write: settings, prompts, label definitions, prices."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nlicot.errors import ConfigError


def read_yaml(path: Path, *, label: str, loader: type = yaml.SafeLoader) -> Any:
    """Read a YAML file.

    Args:
        label: how error messages name the file: its path, with the flag that named it if there is one.
        loader: `yaml.BaseLoader` leaves every scalar as text.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: not valid UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "the syntax is wrong"
        raise ConfigError(f"{label}{line}: not valid YAML: {problem}") from None


def hint(name: str, known: Sequence[str]) -> str:
    """Suggest what an unknown name may have meant.

    >>> hint("sytem", ["system", "user"]), hint("x", ["system", "user"])
    ('did you mean system?', 'available: system, user')
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"available: {', '.join(known)}"
