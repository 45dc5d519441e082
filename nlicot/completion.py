"""The completion's segments: rendering and strict parsing, one beside the other.

A completion is JSON with a fixed scaffold around a thought and a label:

    {"thought_process": "<thought>", "predicted_label": <label>}
    {"predicted_label": <label>}                                      where no thought is asked for
    {"predicted_label": <label>, "thought_process": "<thought>"}      where the label comes first

Training encodes the segments one by one and decoding feeds the scaffold, so both take it from here.
Rendered, a completion parses back to the very thought and label, whatever the thought holds.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """What a completion holds, in which order."""

    THOUGHT_FIRST = "thought_first"
    LABEL_ONLY = "label_only"
    LABEL_FIRST = "label_first"


class SegmentKind(Enum):
    """What a stretch of a completion is; losses are logged and weighted by it."""

    SCAFFOLD = "scaffold"
    THOUGHT = "thought"
    LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a completion that is encoded on its own."""

    kind: SegmentKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A parsed completion; `thought_process` is None where it held a label alone."""

    thought_process: str | None
    label: int
    form: Form = Form.THOUGHT_FIRST


THOUGHT_OPENING = '{"thought_process": "'
THOUGHT_CLOSING = '", "predicted_label": '
LABEL_OPENING = '{"predicted_label": '
LABEL_TO_THOUGHT = ', "thought_process": "'
THOUGHT_END = '"}'
CLOSING = "}"

# SentencePiece's own sign for a space, which it decodes to one, and halves of a surrogate pair.
_UNSAFE_IN_TOKENS = re.compile("[\u2581\ud800-\udfff]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


def segments(thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST) -> tuple[Segment, ...]:
    """The stretches of a completion in order; without a thought it is the label alone in any form.

    >>> [segment.text for segment in segments(None, 1)]
    ['{"predicted_label": ', '1', '}']
    """

    def scaffold(text: str) -> Segment:
        return Segment(kind=SegmentKind.SCAFFOLD, text=text)

    said = Segment(kind=SegmentKind.LABEL, text=str(label))
    if thought_process is None or form is Form.LABEL_ONLY:
        return scaffold(LABEL_OPENING), said, scaffold(CLOSING)
    thought = Segment(kind=SegmentKind.THOUGHT, text=escape(thought_process))
    if form is Form.LABEL_FIRST:
        return scaffold(LABEL_OPENING), said, scaffold(LABEL_TO_THOUGHT), thought, scaffold(THOUGHT_END)
    return scaffold(THOUGHT_OPENING), thought, scaffold(THOUGHT_CLOSING), said, scaffold(CLOSING)


def render(thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST) -> str:
    r"""The completion's text.

    >>> render('He said "no".', 0)
    '{"thought_process": "He said \\"no\\".", "predicted_label": 0}'
    """
    return "".join(segment.text for segment in segments(thought_process, label, form))


def parse(text: str) -> Completion | None:
    """The thought and label of a completion, or None where it is not exactly one; never a guess.

    >>> parse('{"thought_process": "Step 1.", "predicted_label": 1}')
    Completion(thought_process='Step 1.', label=1, form=<Form.THOUGHT_FIRST: 'thought_first'>)
    >>> parse('{"thought_process": "Step 1.", "predicted_label": 2}') is None
    True
    """
    try:
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number too long to read
        return None
    if not isinstance(found, tuple):  # an array of pairs would match below
        return None
    match found:
        case (("thought_process", str(thought)), ("predicted_label", int(label))) if _is_label(label):
            return Completion(thought_process=thought, label=label)
        case (("predicted_label", int(label)), ("thought_process", str(thought))) if _is_label(label):
            return Completion(thought_process=thought, label=label, form=Form.LABEL_FIRST)
        case (("predicted_label", int(label)),) if _is_label(label):
            return Completion(thought_process=None, label=label, form=Form.LABEL_ONLY)
    return None


def _is_label(value: int) -> bool:
    return not isinstance(value, bool) and value in (0, 1)


def escape(thought_process: str) -> str:
    r"""A thought as it stands between the quotes of its JSON string.

    >>> escape('two\nlines')
    'two\\nlines'
    """
    escaped = json.dumps(thought_process, ensure_ascii=False)[1:-1]
    return _UNSAFE_IN_TOKENS.sub(lambda match: f"\\u{ord(match[0]):04x}", escaped)


def unescape(escaped: str) -> str:
    r"""The inverse of `escape`; text that is not valid JSON inside stays as it is.

    >>> unescape('say \\"hi\\"')
    'say "hi"'
    >>> unescape('a lone \\x')
    'a lone \\x'
    """
    try:
        thought: str = json.loads(f'"{escaped}"', strict=False)
    except json.JSONDecodeError:
        return escaped
    return thought


def sentences(thought_process: str) -> list[str]:
    """A thought cut behind its sentence ends; joined, the parts are the thought again.

    >>> sentences("Step 1: It rains. Step 2: So it is wet.")
    ['Step 1: It rains. ', 'Step 2: So it is wet.']
    """
    cuts = [match.end() for match in _SENTENCE_END.finditer(thought_process)]
    bounds = [0, *cuts, len(thought_process)]
    parts = [thought_process[a:b] for a, b in itertools.pairwise(bounds)]
    return [part for part in parts if part]
