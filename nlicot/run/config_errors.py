"""Parses a command line so that every mistake in it is told at once, with the nearest valid name.

jsonargparse stops at the first mistake. Here each one is noted, taken out of the arguments, and the
rest parsed again, until nothing is left to complain about.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nlicot.errors import ConfigError

_NAMED_KEYS = (
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.\-]+)'"),
    re.compile(r"Parser key \"(?P<key>[\w.]+)\""),
    re.compile(r"[Kk]ey [\"'](?P<key>[\w.\-]+)[\"']"),
    re.compile(r"[Oo]ption '?(?:--)?(?P<key>[\w.\-]+)'? is not accepted"),
    re.compile(r"argument --(?P<key>[\w.\-]+)"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<key>[\w.\-]+)"),
)
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
MOST_ERRORS = 20


def parse_all(parser: Any, args: Sequence[str]) -> Any:
    """What `parser.parse_args(args)` gives.

    Raises:
        ConfigError: one line with everything that is wrong in flags and `--config` files.
    """
    remaining = _with_inline_configs(args)
    problems: list[str] = []
    while len(problems) < MOST_ERRORS:
        try:
            found = parser.parse_args(remaining)
        except (argparse.ArgumentError, TypeError, KeyError) as error:
            message = " ".join(str(error).split())
            key = _key_of(message)
            shorter = None if key is None else _without(remaining, key)
            problems.append(_worded(message, key, parser))
            if shorter is None or shorter == remaining:
                break
            remaining = shorter
        else:
            if not problems:
                return found
            break
    raise ConfigError("; ".join(problems))


def read_config(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*.yaml"))
        there = f"one of {', '.join(near)}" if near else "a YAML file"
        raise ConfigError(f"--config {path}: found no such file, expected {there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: found it unreadable ({error}), expected a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: found {getattr(error, 'problem', error)}, expected YAML") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path}: found {type(loaded).__name__}, expected keys such as model, data, trainer"
        )
    return loaded


def _with_inline_configs(args: Sequence[str]) -> list[str]:
    """Each `--config FILE` as `--config=<its content as JSON>`, so that keys can be taken out of it."""
    inlined: list[str] = []
    waiting = False
    for arg in args:
        if waiting:
            inlined.append("--config=" + json.dumps(read_config(Path(arg).expanduser())))
            waiting = False
        elif arg in ("--config", "-c"):
            waiting = True
        elif arg.startswith("--config="):
            inlined.append("--config=" + json.dumps(read_config(Path(arg.partition("=")[2]).expanduser())))
        else:
            inlined.append(arg)
    if waiting:
        raise ConfigError("--config: found nothing behind it, expected a file")
    return inlined


def _key_of(message: str) -> str | None:
    for pattern in _NAMED_KEYS:
        found = pattern.search(message)
        if found:
            group = found.groupdict().get("group")
            return f"{group}.{found['key']}" if group else found["key"]
    return None


def _without(args: list[str], key: str) -> list[str] | None:
    """The arguments without a key, be it a flag or in an inline config; None where it is nowhere."""
    left: list[str] = []
    removed = False
    index = 0
    while index < len(args):
        arg = args[index]
        if arg.startswith("--config="):
            content = json.loads(arg.partition("=")[2])
            removed |= _pop(content, key)
            left.append("--config=" + json.dumps(content))
        elif arg.startswith(f"--{key}="):
            removed = True
        elif arg == f"--{key}":
            removed = True
            if index + 1 < len(args) and not args[index + 1].startswith("--"):
                index += 1
        else:
            left.append(arg)
        index += 1
    return left if removed else None


def _pop(content: dict[str, Any], key: str) -> bool:
    """Remove a dotted key, or one whose dotted path ends with it."""
    head, _, rest = key.partition(".")
    if head in content:
        if not rest:
            del content[head]
            return True
        inner = content[head]
        return isinstance(inner, dict) and _pop(inner, rest)
    return any(_pop(inner, key) for inner in content.values() if isinstance(inner, dict))


def _worded(message: str, key: str | None, parser: Any) -> str:
    known = sorted(_known_keys(parser))
    unknown = key is not None and key not in known and not any(name.startswith(f"{key}.") for name in known)
    if not unknown:
        return _worded_type(message, key)
    assert key is not None
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(
        key.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1
    )
    remedy = f"; did you mean {near[0]}?" if near else ""
    return f"--{key}: found an unknown key{remedy}"


def _worded_type(message: str, key: str | None) -> str:
    """A type error in the house's words, where its parts can be told."""
    value = re.search(r"(?:Got|Given) value: (?P<value>.*)$", message)
    kinds = list(dict.fromkeys(re.findall(r"Expected an? (.+?)(?= - |\.? (?:Got|Given) |$)", message)))
    if key is None or value is None or not kinds:
        return message
    names = " or ".join("none" if "NoneType" in kind else _CLASS.sub(r"\1", kind) for kind in kinds)
    return f"--{key}: found {value['value']!r}, expected {names}"


def _known_keys(parser: Any) -> set[str]:
    return {action.dest for action in parser._actions if action.dest not in (argparse.SUPPRESS, "help")}
