"""What a teacher must answer, and reading it: strictly first, then with its syntax mended, never guessed at.

Mending touches syntax alone and is flagged: fences and words around the object, a trailing or missing
comma, a raw line break or an unescaped quote inside a text, a missing last brace. No content is made up: a
text that was cut off stays unreadable, two objects are one too many, and what could be read in two ways is
not read at all. The walk through broken syntax is `mending`'s work; this module says what must come of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlicot.data.rows import shown
from nlicot.teacher.answers.json_repair import Unparsable, mended
from nlicot.teacher.backends.base import AnswerSchema
from nlicot.teacher.stages.prompts import RELATIONS, PromptType

__all__ = ["SCHEMAS", "Answer", "Unparsable", "parse_answer"]


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


# The strict modes of Mistral and OpenAI want every property in `required` and none besides, and servers
# differ in the keywords that they take (minLength, pattern ...): `type` and `enum` pass everywhere, and
# whatever else an answer must be is checked below.
_TEXT = {"type": "string"}
_LABEL = {"type": "integer", "enum": [0, 1]}
_THOUGHT = _schema("thought", thought_process=_TEXT, predicted_label=_LABEL)
_REFLECTION = _schema(
    "reflection", error_analysis=_TEXT, improved_thought_process=_TEXT, reflected_label=_LABEL
)
# Thinking comes before the label, and the analysis before the score: a model that must commit itself first
# only finds reasons afterwards.
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
    """An answer's fields, and whether its syntax had to be mended."""

    fields: dict[str, str | int]
    repaired: bool


def parse_answer(text: str, prompt_type: PromptType) -> Answer:
    """The fields that a prompt of this type asks for; others beside them are passed over.

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
        found = mended(text, properties)
    fields: dict[str, str | int] = {}
    for name, expected in properties.items():
        if name not in found:
            raise Unparsable("missing_field", f"found no field {name}, expected {', '.join(properties)}")
        value, changed = _checked(name, found[name], expected)
        fields[name] = value
        repaired = repaired or changed
    return Answer(fields=fields, repaired=repaired)


def _strict(text: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """The object that the text is; None where it is not exactly one."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number too long to read
        return None
    if not isinstance(pairs, tuple):
        return None
    names = [name for name, _ in pairs]
    for name in properties:
        if names.count(name) > 1:
            raise Unparsable("two_objects", f"found the field {name} twice, expected one object")
    return dict(pairs)


def _checked(name: str, value: Any, expected: Mapping[str, Any]) -> tuple[str | int, bool]:
    """The value as it must be, and whether its type had to be mended."""
    options = expected.get("enum")
    if options is None:
        return _text(name, value), False
    if expected["type"] == "string":
        return _name(name, value, options)
    return _number(name, value, options)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Unparsable("wrong_type", f"found {name} {shown(value)}, expected a text")
    if _UNWRITABLE.search(value):
        raise Unparsable("wrong_type", f"found characters in {name} that no text file can hold")
    # Dots, dashes and invisible characters alone are no thought either.
    if not any(map(str.isalnum, value)):
        raise Unparsable("empty_text", f"found {name} without a word, expected a text")
    return value.strip()


def _number(name: str, value: Any, options: list[int]) -> tuple[int, bool]:
    changed = isinstance(value, str) and _INTEGER.fullmatch(value.strip()) is not None
    number = int(value) if changed else value
    if type(number) is not int:
        raise Unparsable("wrong_type", f"found {name} {shown(value)}, expected one of {options}")
    if number not in options:
        raise Unparsable("label_outside", f"found {name} {shown(value)}, expected one of {options}")
    return number, changed


def _name(name: str, value: Any, options: list[str]) -> tuple[str, bool]:
    expected = ", ".join(options)
    if not isinstance(value, str):
        raise Unparsable("wrong_type", f"found {name} {shown(value)}, expected one of {expected}")
    spelt = value.strip().casefold()
    if spelt not in options:
        raise Unparsable("label_outside", f"found {name} {shown(value)}, expected one of {expected}")
    return spelt, spelt != value
