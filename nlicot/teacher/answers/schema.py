"""The fields that a teacher's answer must have, and its parser: strict first, then with the syntax repaired.

Repair touches only syntax and is flagged: fences and words around the object, a trailing or missing comma, a
raw line break or an unescaped quote inside a text, a missing last brace. No content is invented: a truncated
answer stays unreadable, two objects are one too many, and text that can be read in two ways is refused.
`json_repair` does the repair; this module checks the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlicot.data.rows import shown
from nlicot.teacher.answers.json_repair import Unparsable, field_twice, repair
from nlicot.teacher.backends.base import AnswerSchema
from nlicot.teacher.stages.prompts import RELATIONS, PromptType


def _schema(name: str, **fields: dict[str, Any]) -> AnswerSchema:
    return AnswerSchema(
        name=name,
        schema={
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        },
    )


# The strict modes of Mistral and OpenAI want exactly the properties in `required`, and servers differ in the
# keywords that they accept (minLength, pattern ...): `type` and `enum` work everywhere.
_TEXT = {"type": "string"}
_LABEL = {"type": "integer", "enum": [0, 1]}
_THOUGHT = _schema("thought", thought_process=_TEXT, predicted_label=_LABEL)
_REFLECTION = _schema(
    "reflection", error_analysis=_TEXT, improved_thought_process=_TEXT, reflected_label=_LABEL
)
# Thinking comes before the label, and the analysis before the score: a model that commits itself first only
# rationalises afterwards.
SCHEMAS: dict[PromptType, AnswerSchema] = {
    PromptType.INITIAL_GENERATION: _THOUGHT,
    PromptType.RELATION: _schema(
        "relation", thought_process=_TEXT, relation={"type": "string", "enum": list(RELATIONS)}
    ),
    PromptType.REFLECTION: _REFLECTION,
    PromptType.SCORING: _schema("score", analysis=_TEXT, score={"type": "integer", "enum": [1, 2, 3, 4, 5]}),
    PromptType.REGENERATION: _THOUGHT,
    PromptType.REFLECTION_REGENERATION: _REFLECTION,
}

_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer's fields, and whether its syntax had to be repaired."""

    fields: dict[str, Any]
    repaired: bool


def parse_answer(text: str, prompt_type: PromptType) -> Answer:
    """Return the fields that a prompt of this type asks for; ignore others.

    >>> parse_answer('```json\\n{"analysis": "Sound.", "score": 5,}\\n```', PromptType.SCORING)
    Answer(fields={'analysis': 'Sound.', 'score': 5}, repaired=True)

    Raises:
        Unparsable: of the kinds whitespace, no_json, two_objects, missing_field, wrong_type,
            label_outside, empty_text.
    """
    if not text.strip():
        raise Unparsable("whitespace", "found only blanks, expected a JSON object")
    properties: Mapping[str, Any] = SCHEMAS[prompt_type].schema["properties"]
    found = _strict(text, properties)
    repaired = found is None
    if found is None:
        found = repair(text, properties)
    fields: dict[str, Any] = {}
    for name, schema in properties.items():
        if name not in found:
            raise Unparsable("missing_field", f"found no field {name}, expected {', '.join(properties)}")
        value = found[name]
        if "enum" in schema:
            fields[name] = _option(name, value, schema["enum"])
            repaired = repaired or fields[name] != value
        else:
            fields[name] = _text(name, value)
    return Answer(fields=fields, repaired=repaired)


def _strict(text: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object that the text is; None if it is not exactly one."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number too long to read
        return None
    if not isinstance(pairs, tuple):
        return None
    names = [name for name, _ in pairs]
    for name in properties:
        if names.count(name) > 1:
            raise field_twice(name)
    return dict(pairs)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Unparsable("wrong_type", f"found {name} {shown(value)}, expected a text")
    if _UNWRITABLE.search(value):
        raise Unparsable("wrong_type", f"found characters in {name} that no text file can hold")
    # Dots, dashes and invisible characters are not a thought either.
    if not any(map(str.isalnum, value)):
        raise Unparsable("empty_text", f"found {name} without a word, expected a text")
    return value.strip()


def _option(name: str, value: Any, options: list[Any]) -> Any:
    """Return the value as one of the options; numbers in quotes and other spellings of words are accepted."""
    kind: type = type(options[0])
    expected = ", ".join(options) if kind is str else str(options)
    option = value.strip().casefold() if isinstance(value, str) else value
    if kind is int and isinstance(option, str) and _INTEGER.fullmatch(option):
        option = int(option)
    if type(option) is not kind:
        raise Unparsable("wrong_type", f"found {name} {shown(value)}, expected one of {expected}")
    if option not in options:
        raise Unparsable("label_outside", f"found {name} {shown(value)}, expected one of {expected}")
    return option
