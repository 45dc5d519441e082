"""Reads the one object in a text that is no valid JSON, where its syntax alone is broken.

It walks through the object field by field, by the names that must stand in it, and takes a step only where
the text can be read in one way. Types and values are left to `answers`, which asks for this where strict
reading fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nlicot.data.rows import shown

# A brace with a field's name behind it, or an empty object: words around an answer hold neither.
_OBJECT = re.compile(r'\{\s*(?:\}|"[^"\\]*"\s*:)')
_NAME = re.compile(r'\s*"([^"\\]*)"\s*:\s*')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_COMMA = re.compile(r"\s*,?")
_BRACE = re.compile(r"\s*\}")
_ENTRY = re.compile(r'"\s*,\s*"[^"\\]*"\s*:')
_BEHIND_NUMBER = re.compile(r'\s*(?:[,}"]|\Z)')
_ESCAPE_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)


class Unparsable(Exception):
    """An answer that cannot be used; `kind` is one word for counting, `message` is told to the model."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


def mended(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the one object in a text, as far as they can be read without guessing.

    Args:
        properties: a JSON schema's, by field.

    Raises:
        Unparsable: of the kinds no_json, two_objects, wrong_type.
    """
    return _Object(text.rstrip().removesuffix("```"), properties).read()


class _Object:
    """One walk through a text; `at` is where it stands."""

    def __init__(self, text: str, properties: Mapping[str, Any]) -> None:
        self.text, self.properties = text, properties
        self.found: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        start = _OBJECT.search(self.text)
        if start is None:
            raise Unparsable("no_json", f"found no JSON object with the fields {', '.join(self.properties)}")
        self.at = start.start() + 1
        name = ""
        while not self._ended():
            opening = _NAME.match(self.text, self.at)
            if opening is None:
                raise Unparsable("no_json", f"found {shown(self.text[self.at :])}, expected a field's name")
            name = opening[1]
            if name in self.found and name in self.properties:
                raise _twice(name)
            self.at = opening.end()
            self.found[name] = self._value(name)
            comma = _COMMA.match(self.text, self.at)
            self.at = comma.end() if comma else self.at
        behind = self.text[self.at :]
        if _OBJECT.search(behind):
            raise Unparsable("two_objects", "found two JSON objects, expected one")
        # `..., "thought": "say "a"} b"}`: where a text comes last, a later quote may be its true end.
        if isinstance(self.found.get(name), str) and '"' in behind:
            raise _ambiguous(name)
        return self.found

    def _ended(self) -> bool:
        """Whether the object is over: at its brace, or, all fields being there, at the text's end."""
        brace = _BRACE.match(self.text, self.at)
        if brace:
            self.at = brace.end()
            return True
        if self.text[self.at :].strip():
            return False
        if all(name in self.found for name in self.properties):
            return True
        raise Unparsable("no_json", f"found the object cut off, expected {', '.join(self.properties)}")

    def _value(self, name: str) -> Any:
        if not self.text.startswith('"', self.at):
            return self._literal(name)
        whole = _STRING.match(self.text, self.at)
        if whole and self._closes(whole.end()):
            self.at = whole.end()
            return _unescaped(name, whole[1])
        options = self.properties.get(name, {}).get("enum", ())
        cut = self.text[self.at + 1 :].rstrip("} \n")
        if cut in map(str, options):  # of these few words it is known that nothing is missing but a quote
            self.at = len(self.text)
            return cut
        return self._quoting_text(name)

    def _literal(self, name: str) -> Any:
        """A number, true, null, a list or an object."""
        if not self.text[self.at :].strip():
            raise Unparsable("no_json", f"found the object cut off behind {name}, expected a value")
        try:
            value, end = json.JSONDecoder().raw_decode(self.text, self.at)
        except (ValueError, RecursionError):  # ValueError: no JSON, or a number too long to read
            end, value = -1, None
        if end < 0 or not _BEHIND_NUMBER.match(self.text, end):
            raise Unparsable("wrong_type", f"found {name} {shown(self.text[self.at :])}, expected one value")
        self.at = end
        return value

    def _closes(self, end: int) -> bool:
        """Whether what stands behind a quote makes it the end of a text: a brace, the end, another field."""
        known = "|".join(map(re.escape, self.properties))
        behind = re.compile(rf'\s*(?:,\s*"[^"\\]*"\s*:|"(?:{known})"\s*:|(?:,\s*)?(?:\}}|\Z))')
        return behind.match(self.text, end) is not None

    def _quoting_text(self, name: str) -> str:
        """A text with unescaped quotes in it, where there is but one place at which it can end."""
        start = self.at + 1
        open_names = [other for other in self.properties if other not in self.found and other != name]
        _check_once([name, *open_names], self.text[start:])
        names = "|".join(map(re.escape, open_names))
        end = re.compile(rf'"\s*(?:,\s*)?"(?:{names})"\s*:' if open_names else r'"\s*(?:,\s*)?\}')
        ends = [at for at in _quotes(self.text, start) if end.match(self.text, at)]
        if not ends:
            raise Unparsable("no_json", f"found no closing quote behind {name}, expected a whole JSON string")
        inside = self.text[start : ends[0]]
        # Quotes come in pairs; an entry inside means that the text ended before it.
        if (len(ends) > 1 and not open_names) or len(_quotes(inside, 0)) % 2 or _ENTRY.search(inside):
            raise _ambiguous(name)
        self.at = ends[0] + 1
        return _unescaped(name, _ESCAPE_OR_QUOTE.sub(lambda m: '\\"' if m[0] == '"' else m[0], inside))


def _quotes(text: str, start: int) -> list[int]:
    """Where quotes stand that no backslash escapes."""
    return [match.start() for match in _ESCAPE_OR_QUOTE.finditer(text, start) if match[0] == '"']


def _check_once(names: Iterable[str], behind: str) -> None:
    """Refuse a text behind the first of these names in which it stands again, or another stands twice."""
    for number, name in enumerate(names):
        if len(re.findall(rf'"{re.escape(name)}"\s*:', behind)) > (number > 0):
            raise _twice(name)


def _unescaped(name: str, inside: str) -> str:
    # JSON has no \' but models write it.
    inside = re.sub(r"\\(.)", lambda m: "'" if m[1] == "'" else m[0], inside, flags=re.DOTALL)
    try:
        text: str = json.loads(f'"{inside}"', strict=False)
    except ValueError:
        raise Unparsable("no_json", f"found an escape in {name} that JSON does not know") from None
    return text


def _twice(name: str) -> Unparsable:
    return Unparsable("two_objects", f"found the field {name} twice, expected one object")


def _ambiguous(name: str) -> Unparsable:
    return Unparsable(
        "no_json", f'found quotes in {name} that can be read in two ways, expected \\" inside it'
    )
