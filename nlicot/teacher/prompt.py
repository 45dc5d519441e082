"""The teacher's prompts: the files that ship or the user's own, filled with the meaning of the labels.

A prompt file has a `system` and a `user` text with placeholders in braces, and may have `definitions`.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from nlicot.config_files import hint, read_yaml
from nlicot.data.rows import shown
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, fold_definitions
from nlicot.teacher.backends.base import Message

PROMPTS_FOLDER = Path(__file__).with_name("prompts")
RELATIONS = ("entailment", "neutral", "contradiction")
DEFINITIONS = ("entailment", "no_entailment")
FILE_KEYS = ("system", "user", "definitions")


class PromptType(StrEnum):
    """The kind of answer that a prompt asks for; also the name of its file."""

    INITIAL_GENERATION = "initial_generation"
    RELATION = "relation"
    REFLECTION = "reflection"
    SCORING = "scoring"
    REGENERATION = "regeneration"
    REFLECTION_REGENERATION = "reflection_regeneration"


STAGE_PROMPTS = {
    "generate": (PromptType.INITIAL_GENERATION,),
    "reflect": (PromptType.REFLECTION,),
    "score": (PromptType.SCORING, PromptType.REGENERATION, PromptType.REFLECTION_REGENERATION),
}
"""The prompts of each stage, that of the first question first; `generate` may use `relation` instead."""
_PAIR = ("premise", "hypothesis")
_JUDGED = (*_PAIR, "true_label", "predicted_label", "thought_process")
REQUIRED: dict[PromptType, tuple[str, ...]] = {
    PromptType.INITIAL_GENERATION: _PAIR,
    PromptType.RELATION: _PAIR,
    PromptType.REFLECTION: (*_PAIR, "true_label", "thought_process"),
    PromptType.SCORING: (*_PAIR, "thought_process"),
    PromptType.REGENERATION: (*_PAIR, "thought_process", "analysis"),
    PromptType.REFLECTION_REGENERATION: (*_PAIR, "true_label", "thought_process", "analysis"),
}
"""Placeholders that a prompt must have."""
ALLOWED: dict[PromptType, tuple[str, ...]] = {
    PromptType.INITIAL_GENERATION: _PAIR,
    PromptType.RELATION: _PAIR,
    PromptType.REFLECTION: _JUDGED,
    PromptType.SCORING: _JUDGED,
    PromptType.REGENERATION: (*_PAIR, "predicted_label", "thought_process", "score", "analysis"),
    PromptType.REFLECTION_REGENERATION: (*_JUDGED, "score", "analysis"),
}
"""Placeholders that a prompt may have; those of the definitions are allowed in every type."""
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt:
    """One prompt, with the label definitions that fill it."""

    type: PromptType
    system: str
    user: str
    definitions: LabelDefinitions = field(default_factory=LabelDefinitions)

    def render(self, **texts: str) -> tuple[Message, ...]:
        """Fill the placeholders; braces inside the texts stay as they are."""
        texts |= vars(self.definitions)
        for name in _PLACEHOLDER.findall(self.system + self.user):
            if name in ALLOWED[self.type] and name not in texts:
                raise ValueError(f"no text for {{{name}}} in the prompt {self.type}")
        system, user = (
            _PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), template)
            for template in (self.system, self.user)
        )
        messages = (Message(role="system", content=system), Message(role="user", content=user))
        return messages if system else messages[1:]

    @cached_property
    def sha256(self) -> str:
        """Hash of all that words the prompt; stored in every record made with it."""
        content = [self.type.value, self.system, self.user, asdict(self.definitions)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_prompt(
    prompt_type: PromptType, path: Path | None = None, definitions: LabelDefinitions | None = None
) -> TeacherPrompt:
    """Load a prompt from the user's file, or the one that ships; `definitions` win over those in the file."""
    path = path or PROMPTS_FOLDER / f"{prompt_type.value}.yaml"
    content = read_yaml(path, label=str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {shown(content)}, expected the keys {', '.join(FILE_KEYS)}")
    for key in map(str, content):
        if key not in FILE_KEYS:
            raise ConfigError(f"{_line_of(path, f'{key}:')}: unknown key {key!r} ({hint(key, FILE_KEYS)})")
    texts = {}
    for name in ("system", "user"):
        text = content.get(name) or ""
        if not isinstance(text, str):
            raise ConfigError(f"{_line_of(path, f'{name}:')}: found {name} {shown(text)}, expected text")
        texts[name] = text.strip()
    if not texts["user"]:
        raise ConfigError(f"{path}: the key user is missing: it holds the text that asks for an answer")
    found = set(_PLACEHOLDER.findall(f"{texts['system']}\n{texts['user']}"))
    if missing := [f"{{{name}}}" for name in REQUIRED[prompt_type] if name not in found]:
        raise ConfigError(f"{path}: {' and '.join(missing)} missing, expected in system or user")
    known = (*ALLOWED[prompt_type], *DEFINITIONS)
    for name in sorted(found - set(known)):
        line, advice = _line_of(path, f"{{{name}}}"), hint(name, known)
        raise ConfigError(f"{line}: {prompt_type.value} has no placeholder {{{name}}} ({advice})")
    if definitions is None and content.get("definitions") is not None:
        label = _line_of(path, "definitions:")
        definitions = LabelDefinitions(**fold_definitions(content["definitions"], label=label))
    unused = [f"{{{name}}}" for name in DEFINITIONS if name not in found]
    # A prompt for relations may ignore the definitions: relations mean the same on any data.
    if definitions is not None and unused and prompt_type is not PromptType.RELATION:
        raise ConfigError(
            f"{path}: the label definitions would have no effect without {' and '.join(unused)} "
            "(add the placeholders, or drop the definitions)"
        )
    return TeacherPrompt(type=prompt_type, definitions=definitions or LabelDefinitions(), **texts)


def _line_of(path: Path, words: str) -> str:
    """Return `path:line` of the first line, comments left out, with these words."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if words in line and not line.lstrip().startswith("#"):
            return f"{path}:{number}"
    return str(path)
