"""Read the one object in a text that is not valid JSON, if only its syntax is broken.

It walks through the object field by field, by the names that must be in it, and takes a step only if the text
can be read in one way. Types and values are left to `schema`, which calls this after strict parsing fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nlicot.data.rows import shown

# A brace followed by a field's name, or an empty object: words around an answer hold neither.
_OBJECT = re.compile(r'\{\s*(?:\}|"[^"\\]*"\s*:)')
_NAME = re.compile(r'\s*"([^"\\]*)"\s*:\s*')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_COMMA = re.compile(r"\s*,?")
_BRACE = re.compile(r"\s*\}")
_ENTRY = re.compile(r'"\s*,\s*"[^"\\]*"\s*:')
_AFTER_LITERAL = re.compile(r'\s*(?:[,}"]|\Z)')
_ESCAPE_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)


class Unparsable(Exception):
    """An answer that cannot be used.

    Args:
        kind: one word for counting.
        message: goes back to the model, so it is part of the next request's key in the journal: keep the
            wording, or answers that were paid for are not found again.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


def field_twice(name: str) -> Unparsable:
    """Return the error for a duplicate field."""
    return Unparsable("two_objects", f"found the field {name} twice, expected one object")


def repair(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields of the one object in a text that can be read without guessing.

    Args:
        properties: the JSON schema's, by field.

    Raises:
        Unparsable: of the kinds no_json, two_objects, wrong_type.
    """
    return _ObjectReader(text.rstrip().removesuffix("```"), properties).read()


class _ObjectReader:
    """Reads a text once; `position` is the next character to read."""

    def __init__(self, text: str, properties: Mapping[str, Any]) -> None:
        self.text, self.properties = text, properties
        self.fields: dict[str, Any] = {}
        known = "|".join(map(re.escape, properties))
        # After the closing quote of a text: another field, a brace or the end.
        self._after_text = re.compile(rf'\s*(?:,\s*"[^"\\]*"\s*:|"(?:{known})"\s*:|(?:,\s*)?(?:\}}|\Z))')

    def read(self) -> dict[str, Any]:
        start = _OBJECT.search(self.text)
        if start is None:
            raise Unparsable("no_json", f"found no JSON object with the fields {', '.join(self.properties)}")
        self.position = start.start() + 1
        name = ""
        while not self._at_end():
            opening = _NAME.match(self.text, self.position)
            if opening is None:
                raise Unparsable("no_json", f"found {shown(self._rest())}, expected a field's name")
            name = opening[1]
            if name in self.fields and name in self.properties:
                raise field_twice(name)
            self.position = opening.end()
            self.fields[name] = self._value(name)
            comma = _COMMA.match(self.text, self.position)
            self.position = comma.end() if comma else self.position
        if _OBJECT.search(self._rest()):
            raise Unparsable("two_objects", "found two JSON objects, expected one")
        # `..., "thought": "say "a"} b"}`: if a text comes last, a later quote may be its true end.
        if isinstance(self.fields.get(name), str) and '"' in self._rest():
            raise _ambiguous(name)
        return self.fields

    def _rest(self) -> str:
        return self.text[self.position :]

    def _at_end(self) -> bool:
        """The object ends at its brace, or at the text's end if it has all fields."""
        brace = _BRACE.match(self.text, self.position)
        if brace:
            self.position = brace.end()
            return True
        if self._rest().strip():
            return False
        if all(name in self.fields for name in self.properties):
            return True
        raise Unparsable("no_json", f"found the object cut off, expected {', '.join(self.properties)}")

    def _value(self, name: str) -> Any:
        if not self.text.startswith('"', self.position):
            return self._literal(name)
        whole = _STRING.match(self.text, self.position)
        if whole and self._after_text.match(self.text, whole.end()):
            self.position = whole.end()
            return _unescaped(name, whole[1])
        options = self.properties.get(name, {}).get("enum", ())
        truncated = self.text[self.position + 1 :].rstrip("} \n")
        if truncated in map(str, options):  # a known word, so only the closing quote is missing
            self.position = len(self.text)
            return truncated
        return self._text_with_quotes(name)

    def _literal(self, name: str) -> Any:
        """Read a number, true, null, a list or an object."""
        if not self._rest().strip():
            raise Unparsable("no_json", f"found the object cut off behind {name}, expected a value")
        try:
            value, end = json.JSONDecoder().raw_decode(self.text, self.position)
        except (ValueError, RecursionError):  # ValueError: not JSON, or a number too long to read
            end, value = -1, None
        if end < 0 or not _AFTER_LITERAL.match(self.text, end):
            raise Unparsable("wrong_type", f"found {name} {shown(self._rest())}, expected one value")
        self.position = end
        return value

    def _text_with_quotes(self, name: str) -> str:
        """Read a text with unescaped quotes in it, if there is only one place at which it can end."""
        start = self.position + 1
        later_names = [other for other in self.properties if other not in self.fields and other != name]
        for number, other in enumerate([name, *later_names]):
            num_found = len(re.findall(rf'"{re.escape(other)}"\s*:', self.text[start:]))
            if num_found > (number > 0):  # its own name again, or a later one twice
                raise field_twice(other)
        names = "|".join(map(re.escape, later_names))
        end = re.compile(rf'"\s*(?:,\s*)?"(?:{names})"\s*:' if later_names else r'"\s*(?:,\s*)?\}')
        ends = [position for position in _quotes(self.text, start) if end.match(self.text, position)]
        if not ends:
            raise Unparsable("no_json", f"found no closing quote behind {name}, expected a whole JSON string")
        inside = self.text[start : ends[0]]
        # Quotes come in pairs; an entry inside means that the text ended before it.
        if (len(ends) > 1 and not later_names) or len(_quotes(inside, 0)) % 2 or _ENTRY.search(inside):
            raise _ambiguous(name)
        self.position = ends[0] + 1
        return _unescaped(name, _ESCAPE_OR_QUOTE.sub(lambda m: '\\"' if m[0] == '"' else m[0], inside))


def _quotes(text: str, start: int) -> list[int]:
    """Return the positions of quotes that no backslash escapes."""
    return [match.start() for match in _ESCAPE_OR_QUOTE.finditer(text, start) if match[0] == '"']


def _unescaped(name: str, inside: str) -> str:
    # JSON has no \' but models write it.
    inside = re.sub(r"\\(.)", lambda m: "'" if m[1] == "'" else m[0], inside, flags=re.DOTALL)
    try:
        text: str = json.loads(f'"{inside}"', strict=False)
    except ValueError:
        raise Unparsable("no_json", f"found an escape in {name} that JSON does not know") from None
    return text


def _ambiguous(name: str) -> Unparsable:
    return Unparsable(
        "no_json", f'found quotes in {name} that can be read in two ways, expected \\" inside it'
    )
