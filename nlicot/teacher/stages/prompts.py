"""The teacher's prompts: files that a person may replace, and the label definitions that fill them.

A prompt file has a `system` and a `user` text with places in braces, and may bring its own `definitions`.
Whatever words a prompt is part of its hash, which stands in every record made with it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from nlicot.data.rows import shown
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions
from nlicot.teacher.backends.base import Message
from nlicot.yaml_files import hint, read_yaml

FOLDER = Path(__file__).parents[1] / "prompts"
RELATIONS = ("entailment", "neutral", "contradiction")


class PromptType(StrEnum):
    """What a prompt asks for; also the name of its file."""

    INITIAL_GENERATION = "initial_generation"
    RELATION = "relation"
    REFLECTION = "reflection"
    SCORING = "scoring"
    REGENERATION = "regeneration"
    REFLECTION_REGENERATION = "reflection_regeneration"


_PAIR = ("premise", "hypothesis")
_JUDGED = (*_PAIR, "true_label", "predicted_label", "thought_process")
# What must stand in a prompt, and what else may.
REQUIRED: dict[PromptType, tuple[str, ...]] = {
    PromptType.INITIAL_GENERATION: _PAIR,
    PromptType.RELATION: _PAIR,
    PromptType.REFLECTION: (*_PAIR, "true_label", "thought_process"),
    PromptType.SCORING: (*_PAIR, "thought_process"),
    PromptType.REGENERATION: (*_PAIR, "thought_process", "analysis"),
    PromptType.REFLECTION_REGENERATION: (*_PAIR, "true_label", "thought_process", "analysis"),
}
ALLOWED: dict[PromptType, tuple[str, ...]] = {
    PromptType.INITIAL_GENERATION: _PAIR,
    PromptType.RELATION: _PAIR,
    PromptType.REFLECTION: _JUDGED,
    PromptType.SCORING: _JUDGED,
    PromptType.REGENERATION: (*_PAIR, "predicted_label", "thought_process", "score", "analysis"),
    PromptType.REFLECTION_REGENERATION: (*_JUDGED, "score", "analysis"),
}
DEFINITIONS = ("entailment", "no_entailment")
_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt:
    """One prompt, with the label definitions that fill it."""

    type: PromptType
    system: str
    user: str
    definitions: LabelDefinitions = field(default_factory=LabelDefinitions)

    def render(self, **places: str) -> tuple[Message, ...]:
        """The conversation that asks for one answer; braces inside the texts stay what they are.

        >>> prompt = TeacherPrompt(type=PromptType.RELATION, system="", user="{premise}|{hypothesis}")
        >>> prompt.render(premise="{hypothesis}", hypothesis="b")[0].content
        '{hypothesis}|b'

        Raises:
            ValueError: a place of this type stands in the prompt and has no text.
        """
        filling = {**places, **vars(self.definitions)}
        for place in self._places:
            if place not in filling:
                raise ValueError(f"found no text for {{{place}}}, which stands in the prompt {self.type}")
        system, user = (_filled(template, filling) for template in (self.system, self.user))
        asked = Message(role="user", content=user)
        return (Message(role="system", content=system), asked) if system else (asked,)

    @cached_property
    def _places(self) -> list[str]:
        """The places of this type that stand in the prompt; found once, for render fills thousands."""
        return [place for place in _PLACE.findall(self.system + self.user) if place in ALLOWED[self.type]]

    @cached_property
    def sha256(self) -> str:
        """The hash of all that words the prompt."""
        content = [self.type.value, self.system, self.user, asdict(self.definitions)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _filled(template: str, filling: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: filling.get(match.group(1), match.group(0)), template)


def load_prompt(
    prompt_type: PromptType, path: Path | None = None, definitions: LabelDefinitions | None = None
) -> TeacherPrompt:
    """A prompt from its file, or from the one that ships.

    Args:
        path: a file of the user's own.
        definitions: what the labels mean on this data; wins over those in the file.

    Raises:
        ConfigError: the file cannot be read, has an unknown key or place, lacks a place, or would leave
            definitions without effect.
    """
    where = path or FOLDER / f"{prompt_type.value}.yaml"
    content = _read(where, ("system", "user", "definitions"))
    texts = {}
    for name in ("system", "user"):
        text = content.get(name) or ""
        if not isinstance(text, str):
            raise ConfigError(f"{_at(where, f'{name}:')}: found {name} {shown(text)}, expected a text")
        texts[name] = text.strip()
    if not texts["user"]:
        raise ConfigError(f"{where}: found no user, expected the text that asks for an answer")
    found = set(_PLACE.findall(f"{texts['system']}\n{texts['user']}"))
    _check_places(where, prompt_type, found)
    own = content.get("definitions")
    if definitions is None and own is not None:
        definitions = _definitions(where, own)
    if definitions is not None:
        _check_effect(where, prompt_type, found)
    return TeacherPrompt(type=prompt_type, definitions=definitions or LabelDefinitions(), **texts)


def _check_places(where: Path, prompt_type: PromptType, found: set[str]) -> None:
    missing = [f"{{{place}}}" for place in REQUIRED[prompt_type] if place not in found]
    if missing:
        raise ConfigError(f"{where}: found no {' and no '.join(missing)}, expected each in system or user")
    known = (*ALLOWED[prompt_type], *DEFINITIONS)
    for place in sorted(found - set(known)):
        near = difflib.get_close_matches(place, known, n=1)
        meant = f"did you mean {{{near[0]}}}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(
            f"{_at(where, f'{{{place}}}')}: found the place {{{place}}}, expected one that "
            f"{prompt_type.value} has ({meant})"
        )


def _check_effect(where: Path, prompt_type: PromptType, found: set[str]) -> None:
    """Refuse definitions that the prompt would drop; the relations mean the same on any data."""
    missing = [f"{{{place}}}" for place in DEFINITIONS if place not in found]
    if missing and prompt_type is not PromptType.RELATION:
        raise ConfigError(
            f"{where}: found label definitions but no {' and no '.join(missing)}, expected the places that "
            "they fill (add them, or leave the definitions out)"
        )


def load_definitions(path: Path) -> LabelDefinitions:
    """What the labels mean on a person's data: a YAML file with `entailment` and `no_entailment`.

    Raises:
        ConfigError: the file cannot be read, lacks one of them, or has an unknown key.
    """
    content = _read(path, (*DEFINITIONS, "relation_map"))
    return _definitions(path, {name: content.get(name) for name in DEFINITIONS})


def _definitions(where: Path, content: Any) -> LabelDefinitions:
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: found definitions {shown(content)}, expected {' and '.join(DEFINITIONS)}"
        )
    _check_keys(where, content, DEFINITIONS)
    for name in DEFINITIONS:
        text = content.get(name)
        if not isinstance(text, str) or not text.strip(" .\n\t"):
            label = 1 - DEFINITIONS.index(name)
            raise ConfigError(
                f"{where}: found {name} {shown(text)}, expected words that complete 'answer {label} if ...'"
            )
    # Folded to one line without a full stop, as it stands in the middle of a sentence.
    return LabelDefinitions(**{name: " ".join(content[name].split()).rstrip(".") for name in DEFINITIONS})


def load_relation_map(path: Path) -> dict[str, int] | None:
    """The label that each relation means on this data, where the definitions' file says so.

    Raises:
        ConfigError: a relation is missing, unknown, or has no label 0 or 1.
    """
    found = _read(path, (*DEFINITIONS, "relation_map")).get("relation_map")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found relation_map {shown(found)}, expected a label for each relation")
    return check_relation_map({str(name): label for name, label in found.items()}, where=str(path))


def check_relation_map(relation_map: Mapping[str, Any], *, where: str) -> dict[str, int]:
    """A complete map from the three relations to labels.

    Raises:
        ConfigError: it is not.
    """
    complete = set(relation_map) == set(RELATIONS)
    if not complete or not all(type(label) is int and label in (0, 1) for label in relation_map.values()):
        raise ConfigError(
            f"{where}: found the relation map {dict(relation_map)}, expected 0 or 1 for each of "
            f"{', '.join(RELATIONS)}"
        )
    return dict(relation_map)


def _read(path: Path, known: tuple[str, ...]) -> dict[str, Any]:
    content = read_yaml(path, label=str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {shown(content)}, expected the keys {', '.join(known)}")
    _check_keys(path, content, known)
    return content


def _check_keys(where: Path, content: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in map(str, content):
        if key not in known:
            raise ConfigError(
                f"{_at(where, f'{key}:')}: found the key {key!r}, expected a known one ({hint(key, known)})"
            )


def _at(path: Path, words: str) -> str:
    """`path:line` of the first line, comments left out, that holds these words."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if words in line and not line.lstrip().startswith("#"):
            return f"{path}:{number}"
    return str(path)
