"""A teacher's answers: their fields, their parser, and how one question is asked until its answer is valid.

Strict JSON comes first. Repair touches only syntax, and is flagged; no content is invented, and text that can
be read in two ways is refused.
"""

import contextlib
import datetime
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlicot.data.rows import binary_label, shown
from nlicot.records import LABELS, Failure, Provenance
from nlicot.servers.faults import writable
from nlicot.teacher.backends.base import AnswerSchema, Message, Reply, Request
from nlicot.teacher.engine.scheduler import NotAgain
from nlicot.teacher.engine.stopping_rule import REFUSED, WRONG_LABEL
from nlicot.teacher.prompt import RELATIONS, PromptType

MAX_COMPLAINTS = 2
TRUNCATION_FACTOR = 2  # growth of the token budget after a truncated answer


def _schema(name: str, **fields: dict[str, Any]) -> AnswerSchema:
    required = {"type": "object", "properties": fields, "required": list(fields)}
    return AnswerSchema(name=name, schema={**required, "additionalProperties": False})


# The strict modes of Mistral and OpenAI want exactly the properties in `required`, and servers differ in the
# keywords that they accept (minLength, pattern ...): `type` and `enum` work everywhere.
_TEXT: dict[str, Any] = {"type": "string"}
_LABEL: dict[str, Any] = {"type": "integer", "enum": [0, 1]}
# Thinking comes before the label, and the analysis before the score: a model that commits itself first only
# rationalises afterwards.
_THOUGHT = _schema("thought", thought_process=_TEXT, predicted_label=_LABEL)
_REFLECTED = {"error_analysis": _TEXT, "improved_thought_process": _TEXT, "reflected_label": _LABEL}
_REFLECTION = _schema("reflection", **_REFLECTED)
_RELATION = {"type": "string", "enum": list(RELATIONS)}
SCHEMAS: dict[PromptType, AnswerSchema] = {
    PromptType.INITIAL_GENERATION: _THOUGHT,
    PromptType.RELATION: _schema("relation", thought_process=_TEXT, relation=_RELATION),
    PromptType.REFLECTION: _REFLECTION,
    PromptType.SCORING: _schema("score", analysis=_TEXT, score={"type": "integer", "enum": [1, 2, 3, 4, 5]}),
    PromptType.REGENERATION: _THOUGHT,
    PromptType.REFLECTION_REGENERATION: _REFLECTION,
}
# finish_reason of other servers is in another case, or another word: Mistral, Gemini, Azure, Anthropic.
OUT_OF_TOKENS = ("length", "model_length", "max_tokens")
_TAG = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reason)"
_REASONING_STARTS = re.compile(
    rf"<{_TAG}>|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷|<\|channel\|>analysis<\|message\|>",
    re.I,
)
_REASONING_ENDS = re.compile(
    rf"</{_TAG}>|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|◁/think▷|<\|channel\|>final<\|message\|>",
    re.I,
)

_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,8})(?:\.0)?")
# A brace followed by a field's name, or an empty object: words around an answer hold neither.
_OBJECT = re.compile(r'\{\s*(?:\}|"[^"\\]*"\s*:)')
_NAME = re.compile(r'\s*"([^"\\]*)"\s*:\s*')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_BLANKS = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_COMMA = re.compile(r"\s*,?")
_BRACE = re.compile(r"\s*\}")
_ENTRY = re.compile(r'"\s*,\s*"[^"\\]*"\s*:')
_AFTER_LITERAL = re.compile(r'\s*(?:[,}"]|\Z)')
_ESCAPE_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)


class Unparsable(Exception):
    """An answer that cannot be used; `kind` is one word for counting.

    The message goes back to the model, so it is part of the next request's key in the journal: with another
    wording, answers that were paid for are not found again.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer's fields, and whether its syntax had to be repaired."""

    fields: dict[str, Any]
    repaired: bool


def without_reasoning(text: str) -> str:
    """Cut off a reasoning block before the answer, and all of a text whose block does not end.

    Many chat templates open the block in the prompt, so the text may start inside it.

    >>> without_reasoning('<think>{"a": 1}? No.</think>{"a": 2}'), without_reasoning("<think>{")
    ('{"a": 2}', '')
    """
    first, start = _blanks_end(text, 0), _REASONING_STARTS.search(text)
    position = first
    while (end := _REASONING_ENDS.search(text, position)) or start:
        with contextlib.suppress(ValueError, RecursionError):
            is_object = text.startswith("{", position)
            if is_object and _blanks_end(text, _DECODER.raw_decode(text, position)[1]) == len(text):
                break  # the tag is inside an answer
        is_block = start is not None and (end is None or start.start() < end.start())
        if is_block and start and _OBJECT.search(text, position, start.start()):
            break  # the block follows the answer
        position = _blanks_end(text, end.end()) if end else len(text)
        if start and start.start() < position:
            start = _REASONING_STARTS.search(text, position)
    return text[position:] if position > first else text  # unchanged: it may be part of a journal's key


def _blanks_end(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position


def parse_answer(text: str, prompt_type: PromptType) -> Answer:
    """Return the fields that a prompt of this type asks for, ignoring others; may raise `Unparsable`."""
    if not text.strip():
        raise Unparsable("whitespace", "found only blanks, expected a JSON object")
    properties: Mapping[str, Any] = SCHEMAS[prompt_type].schema["properties"]
    found = _strict(text, properties)
    repaired = found is None
    if found is None:
        found = _ObjectReader(text.rstrip().removesuffix("```"), properties).read()
    fields: dict[str, Any] = {}
    for name, schema in properties.items():
        if name not in found:
            raise Unparsable("missing_field", f"found no field {name}, expected {', '.join(properties)}")
        if "enum" in schema:
            fields[name] = _option(name, found[name], schema["enum"])
            # True == 1 == 1.0
            repaired = repaired or repr(fields[name]) != repr(found[name])
        else:
            fields[name] = _text(name, found[name])
    return Answer(fields=fields, repaired=repaired)


def _strict(text: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object that the text is; None if it is not exactly one."""
    pairs = None
    with contextlib.suppress(ValueError, RecursionError):  # not JSON, or a number too long to read
        pairs = json.loads(text, object_pairs_hook=tuple)
    if not isinstance(pairs, tuple):
        return None
    for name in properties:
        if [each for each, _ in pairs].count(name) > 1:
            raise _field_twice(name)
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
    """Return the value as one of the options; other spellings of words and whole numbers are accepted."""
    if options == list(LABELS) and (label := binary_label(value)) is not None:
        return label
    kind: type = type(options[0])
    option = value.strip().casefold() if isinstance(value, str) else value
    if kind is int and isinstance(option, str) and (digits := _INTEGER.fullmatch(option)):
        option = int(digits[1])
    elif kind is int and isinstance(option, float) and option.is_integer():
        option = int(option)
    if type(option) is kind and option in options:
        return option
    expected = ", ".join(options) if kind is str else str(options)
    problem = "label_outside" if type(option) is kind else "wrong_type"
    raise Unparsable(problem, f"found {name} {shown(value)}, expected one of {expected}")


def _field_twice(name: str) -> Unparsable:
    return Unparsable("two_objects", f"found the field {name} twice, expected one object")


class _ObjectReader:
    """Reads the one object in a text, field by field; `position` is the next character to read."""

    def __init__(self, text: str, properties: Mapping[str, Any]) -> None:
        self.text, self.properties = text, properties
        self.fields: dict[str, Any] = {}
        known = "|".join(map(re.escape, properties))
        # After the closing quote of a text: another field, a brace or the end.
        self._after_text = re.compile(rf'\s*(?:,\s*"[^"\\]*"\s*:|"(?:{known})"\s*:|(?:,\s*)?(?:\}}|\Z))')

    def read(self) -> dict[str, Any]:
        if (start := _OBJECT.search(self.text)) is None:
            raise Unparsable("no_json", f"found no JSON object with the fields {', '.join(self.properties)}")
        self.position = start.start() + 1
        name = ""
        while not self._at_end():
            if (opening := _NAME.match(self.text, self.position)) is None:
                raise Unparsable("no_json", f"found {shown(self._rest())}, expected a field's name")
            name = opening[1]
            if name in self.fields and name in self.properties:
                raise _field_twice(name)
            self.position = opening.end()
            self.fields[name] = self._value(name)
            if comma := _COMMA.match(self.text, self.position):
                self.position = comma.end()
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
        if brace := _BRACE.match(self.text, self.position):
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
            raise Unparsable("no_json", f"found the object cut off after {name}, expected a value")
        value, end = None, -1
        with contextlib.suppress(ValueError, RecursionError):
            value, end = json.JSONDecoder().raw_decode(self.text, self.position)
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
                raise _field_twice(other)
        names = "|".join(map(re.escape, later_names))
        end = re.compile(rf'"\s*(?:,\s*)?"(?:{names})"\s*:' if later_names else r'"\s*(?:,\s*)?\}')
        ends = [position for position in _quotes(self.text, start) if end.match(self.text, position)]
        if not ends:
            raise Unparsable("no_json", f"found no closing quote after {name}, expected a whole JSON string")
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
        return str(json.loads(f'"{inside}"', strict=False))
    except ValueError:
        raise Unparsable("no_json", f"found an escape in {name} that JSON does not know") from None


def _ambiguous(name: str) -> Unparsable:
    message = f'found quotes in {name} that can be read in two ways, expected \\" inside it'
    return Unparsable("no_json", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidAnswer:
    """A parsed answer, the request that brought it, and its reply."""

    answer: Answer
    request: Request
    reply: Reply

    def provenance(self, prompt_sha256: str) -> Provenance:
        """Return where the answer comes from, for its record."""
        flags = {"repaired": self.answer.repaired, "salvaged": self.reply.salvaged}
        more: dict[str, Any] = {name: True for name, is_set in flags.items() if is_set}
        if self.request.fields:
            more["request_fields"] = dict(self.request.fields)
        # The server's own time, so that a run that was killed and resumed writes the same file.
        created_at = ""
        with contextlib.suppress(ValueError, OverflowError, OSError):  # a number that is not a time
            if self.reply.created is not None:
                created_at = datetime.datetime.fromtimestamp(self.reply.created, datetime.UTC).isoformat()
        return Provenance(
            backend=self.request.backend,
            model=self.request.model,
            prompt_sha256=prompt_sha256,
            params={**self.request.params, **more},
            usage=self.reply.usage,
            created_at=created_at,
        )


class NoValidAnswer(Exception):
    """No model gave a valid answer; `problem` and `raw` are those of the last one."""

    def __init__(self, problem: Unparsable, attempts: int, raw: str) -> None:
        super().__init__(str(problem))
        self.problem, self.attempts, self.raw = problem, attempts, raw

    def failure(self, *, pair: str, stage: str) -> Failure:
        """Return the record of the failure."""
        kind, message, raw = self.problem.kind, writable(self.problem.message), writable(self.raw)
        return Failure(id=pair, stage=stage, kind=kind, message=message, attempts=self.attempts, raw=raw)


async def ask_until_valid(
    ask: Callable[[Request], Awaitable[Reply]],
    request: Request,
    prompt_type: PromptType,
    *,
    next_models: Sequence[str] = (),
    true_label: int | None = None,
    note_read: Callable[[Request, bool], None] = lambda request, is_usable: None,
) -> ValidAnswer:
    """Ask `request`'s model, then each of `next_models`, until an answer is valid.

    An unusable answer is shown to the model with its problem, twice; one that ran out of tokens is asked for
    once more with more. One that a filter or the model refused goes to the next model at once, as does a
    `reflected_label` other than `true_label`: it is an opinion. `note_read` gets each answer that could be
    read, and whether it is usable. Raises `NoValidAnswer` if no model gave one, or `ask` raised `NotAgain`.
    """
    num_asked, problem = 0, Unparsable("no_answer", "the model was not asked")
    for model in (request.model, *next_models):
        # The request itself for its own model: it has computed its key.
        current = request if model == request.model else replace(request, model=model)
        num_complaints, is_enlarged = 0, False
        while True:
            try:
                reply = await ask(current)
            except NotAgain:
                raise NoValidAnswer(problem, num_asked, reply.text) from None
            num_asked += 1
            text, finish_reason = without_reasoning(reply.text), reply.finish_reason.casefold()
            is_refused = finish_reason in REFUSED
            if not is_refused and (finish_reason in OUT_OF_TOKENS or not text.strip()):
                problem = _truncated(current, reply)
                if is_enlarged:
                    break
                current, is_enlarged = _with_more_tokens(current), True
                continue
            try:
                answer = parse_answer(text, prompt_type)
            except Unparsable as unparsable:
                problem = unparsable
                if is_refused:
                    said = f": {shown(text.strip())}" if text.strip() else ""
                    problem = Unparsable(
                        finish_reason, f"the model or a filter refused ({finish_reason}){said}"
                    )
                if is_refused or num_complaints == MAX_COMPLAINTS:
                    break
                current, num_complaints = _with_complaint(current, text, problem), num_complaints + 1
                continue
            label = answer.fields.get("reflected_label")
            is_usable = true_label in (None, label)
            note_read(current, is_usable)
            if is_usable:
                return ValidAnswer(answer=answer, request=current, reply=reply)
            problem = Unparsable(WRONG_LABEL, f"found reflected_label {label}, expected {true_label}")
            break
    raise NoValidAnswer(problem, num_asked, reply.text)


def _truncated(request: Request, reply: Reply) -> Unparsable:
    if reply.finish_reason.casefold() in OUT_OF_TOKENS:
        num_tokens = request.params.get("max_tokens", "all")
        message = f"the answer ran out of its {num_tokens} tokens: raise --max_tokens (reasoning counts, too)"
    else:
        message = f"the answer is empty, or only reasoning ({reply.finish_reason}); try a larger --max_tokens"
    return Unparsable("truncated", message)


def _with_more_tokens(request: Request) -> Request:
    if (budget := request.params.get("max_tokens")) is None:  # nothing to enlarge, so draw another answer
        changed = {"random_seed": int(request.params.get("random_seed") or 0) + 1}
    else:
        changed = {"max_tokens": TRUNCATION_FACTOR * int(budget)}
    return replace(request, params={**request.params, **changed})


def _with_complaint(request: Request, text: str, problem: Unparsable) -> Request:
    # Part of the request, so of its key in the journal: other words would pay for old answers again.
    complaint = (
        f"That could not be used: {problem.message}. "
        "Answer once more, with nothing but the one JSON object that was asked for."
    )
    turns = (Message(role="assistant", content=writable(text)), Message(role="user", content=complaint))
    return replace(request, messages=request.messages + turns)
