"""Find and read YAML files: the configs that come with nlicot (with the sample data), and the user's.

`pyproject.toml` puts `configs/` and `data/sample/` of the repository into an installed package as
`nlicot/shipped/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlicot.errors import ConfigError

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "shipped"
CONFIGS = _INSTALLED / "configs" if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
SAMPLE = _INSTALLED / "sample" if _INSTALLED.is_dir() else _PACKAGE.parent / "data" / "sample"
RECIPE = CONFIGS / "recipe.yaml"
TEACHER_RECIPE = CONFIGS / "teacher.yaml"

OLD_NAMES = {
    "data.root": "root",
    "data.label_map": "label_map",
    "data.columns": "columns",
    "data.delimiter": "delimiter",
    "data.definitions": "definitions",
    "entailment": "definitions.entailment",
    "no_entailment": "definitions.no_entailment",
    "from": "start_from",
    "votes": "model.decoding.votes",
    "think": "model.decoding.think",
    "data.share_beginning": "data.share_prefix",
    "model.warmup_share": "model.warmup_ratio",
}
"""Earlier and shorter names of settings, still read in flags and in the config.yaml of older runs."""


def find_config(path: Path) -> Path:
    """Return the file itself if it exists, else the shipped one of the same name under `configs/`."""
    path = path.expanduser()
    shipped = CONFIGS.joinpath(*path.parts[1:])
    return shipped if not path.exists() and path.parts[:1] == ("configs",) and shipped.exists() else path


def read_yaml(path: Path, *, label: str, loader: type = yaml.SafeLoader) -> Any:
    """Read a YAML file; `label` names it in messages: its path, after the flag that named it if any."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{label}: not valid UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "the syntax is wrong"
        raise ConfigError(f"{label}{line}: not valid YAML: {problem}") from None
    except ValueError as error:  # such as of the date 2026-02-30
        raise ConfigError(f"{label}: not valid YAML: {error}") from None


def read_settings(path: Path, *, flag: str = "--config ") -> dict[str, Any]:
    """Read a YAML file of settings, under their present names; `flag` is what names it in messages.

    A scalar stays text until the type of its setting decides: a run named `5e-4` is a name, a learning rate
    of `5e-4` a number.
    """
    found = find_config(path)
    if not found.exists():
        others = ", ".join(sorted(other.name for other in found.parent.glob("*.yaml")))
        remedy = f"there: {others}" if others else "there is no YAML file in that folder"
        if shipped := next((each for each in CONFIGS.rglob("*.yaml") if each.stem == path.stem), None):
            remedy = f"did you mean configs/{shipped.relative_to(CONFIGS)}?"
        raise ConfigError(f"{flag}{path}: no such file ({remedy})")
    content = read_yaml(found, label=f"{flag}{path}", loader=yaml.BaseLoader)
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{flag}{path}: expected keys with values, such as `root: data`")
    return renamed(with_nulls(content))


def with_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn the text `null` into None, because a type could not distinguish it from a name."""
    return {
        key: with_nulls(value) if isinstance(value, dict) else None if value == "null" else value
        for key, value in settings.items()
    }


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under their present names.

    >>> renamed({"data": {"root": "mine", "seed": 1}})
    {'root': 'mine', 'data': {'seed': 1}}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found = merged(found, nested(key, value))
    for old, new in OLD_NAMES.items():
        group, _, last = old.rpartition(".")
        parent = found.get(group) if group else found
        if isinstance(parent, dict) and last in parent:
            value = parent[last]
            others = {name: each for name, each in parent.items() if name != last}
            found = {**found, group: others} if group else others
            if value not in (None, "null") or not group:
                found = merged(nested(new, value), found)
    return found


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return a dotted name's value as nested settings."""
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what is below a name; empty if that is missing, or something else in a damaged file."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def merged(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others over them; one that names a class replaces the earlier value."""
    found = dict(settings)
    for key, value in others.items():
        mine = found.get(key)
        if isinstance(mine, Mapping) and value == "":  # a key of which only the name is left
            continue
        if isinstance(mine, Mapping) and isinstance(value, Mapping) and "class_path" not in value:
            value = merged(mine, value)
        found[key] = value
    return found


def present_name(name: str) -> str:
    """Return the present name of a setting."""
    for old, new in OLD_NAMES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def hint(name: str, known: Sequence[str]) -> str:
    """Suggest what an unknown name may have meant."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"available: {', '.join(known)}"
