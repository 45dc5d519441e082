"""Render and strictly parse completions, segment by segment.

A completion is JSON with a fixed scaffold around a thought and a label:

    {"thought_process": "<thought>", "predicted_label": <label>}
    {"predicted_label": <label>}                                      without a thought
    {"predicted_label": <label>, "thought_process": "<thought>"}      with the label first
    {"draft_label": <label>, "thought_process": "<thought>", "predicted_label": <label>}
                                                                      with a draft of the label first

Training encodes the segments one by one, and decoding feeds the scaffold. A rendered completion parses back
to exactly its thought and label, whatever characters the thought contains.
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """The parts of a completion and their order."""

    THOUGHT_FIRST = "thought_first"
    LABEL_ONLY = "label_only"
    LABEL_FIRST = "label_first"
    DRAFT_FIRST = "draft_first"

    @property
    def parts(self) -> tuple[str | SegmentKind, ...]:
        """The texts of the scaffold, and between them the kinds of the segments that a model writes."""
        return _PARTS[self]

    @property
    def thinks(self) -> bool:
        """True if the completion has a thought."""
        return SegmentKind.THOUGHT in self.parts

    @property
    def thinks_before_label(self) -> bool:
        """True if the label follows from the thought."""
        return self.thinks and self.parts.index(SegmentKind.THOUGHT) < self.parts.index(SegmentKind.LABEL)


class SegmentKind(Enum):
    """The kind of a segment; losses are logged and weighted by it."""

    SCAFFOLD = "scaffold"
    THOUGHT = "thought"
    LABEL = "label"
    DRAFT = "draft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a completion that is encoded separately."""

    kind: SegmentKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A parsed completion.

    `thought_process` is None if it contains only a label, `draft` is None if it has no draft of the label.
    """

    thought_process: str | None
    label: int
    form: Form = Form.THOUGHT_FIRST
    draft: int | None = None


THOUGHT_OPENING = '{"thought_process": "'
THOUGHT_CLOSING = '", "predicted_label": '
LABEL_OPENING = '{"predicted_label": '
DRAFT_OPENING = '{"draft_label": '
LABEL_TO_THOUGHT = ', "thought_process": "'
THOUGHT_END = '"}'
CLOSING = "}"
_PARTS: dict[Form, tuple[str | SegmentKind, ...]] = {
    Form.THOUGHT_FIRST: (THOUGHT_OPENING, SegmentKind.THOUGHT, THOUGHT_CLOSING, SegmentKind.LABEL, CLOSING),
    Form.LABEL_ONLY: (LABEL_OPENING, SegmentKind.LABEL, CLOSING),
    Form.LABEL_FIRST: (LABEL_OPENING, SegmentKind.LABEL, LABEL_TO_THOUGHT, SegmentKind.THOUGHT, THOUGHT_END),
    Form.DRAFT_FIRST: (
        *(DRAFT_OPENING, SegmentKind.DRAFT, LABEL_TO_THOUGHT, SegmentKind.THOUGHT),
        *(THOUGHT_CLOSING, SegmentKind.LABEL, CLOSING),
    ),
}

# SentencePiece's symbol for a space, which decodes to one, and single surrogates.
_UNSAFE_IN_TOKENS = re.compile("[\u2581\ud800-\udfff]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
STEP = re.compile(r"(?:^|(?<=\s))step\s+\d+\s*[:.)]|^\s*\d+[.)]\s", re.IGNORECASE | re.MULTILINE)
"""What a step of a thought begins with."""


def segments(
    thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST, draft: int | None = None
) -> tuple[Segment, ...]:
    """Return the segments of a completion in order; without a thought, it has only the label in any form.

    `draft` is that of a form that has one, by default the label itself.
    """
    texts = {SegmentKind.LABEL: str(label), SegmentKind.DRAFT: str(label if draft is None else draft)}
    if thought_process is None:
        form = Form.LABEL_ONLY
    else:
        texts[SegmentKind.THOUGHT] = escape(thought_process)
    return tuple(
        Segment(kind=part, text=texts[part])
        if isinstance(part, SegmentKind)
        else Segment(kind=SegmentKind.SCAFFOLD, text=part)
        for part in form.parts
    )


def render(
    thought_process: str | None, label: int, form: Form = Form.THOUGHT_FIRST, draft: int | None = None
) -> str:
    r"""Return the completion's text; arguments are those of `segments`.

    >>> render('He said "no".', 0)
    '{"thought_process": "He said \\"no\\".", "predicted_label": 0}'
    """
    return "".join(segment.text for segment in segments(thought_process, label, form, draft))


def form_of(text: str) -> Form:
    """Return the form of a completion; `THOUGHT_FIRST` of a text that is none."""
    parsed = parse(text)
    return Form.THOUGHT_FIRST if parsed is None else parsed.form


def parse(text: str) -> Completion | None:
    """Parse a completion; return None if the text is not exactly one."""
    try:
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):  # ValueError: invalid JSON, or a number that is too long
        return None
    if not isinstance(found, tuple):  # an array of pairs would match below
        return None
    match found:
        case (("thought_process", str(thought)), ("predicted_label", int(label))) if _is_label(label):
            return Completion(thought_process=thought, label=label)
        case (("predicted_label", int(label)), ("thought_process", str(thought))) if _is_label(label):
            return Completion(thought_process=thought, label=label, form=Form.LABEL_FIRST)
        case (
            ("draft_label", int(draft)),
            ("thought_process", str(thought)),
            ("predicted_label", int(label)),
        ) if _is_label(draft) and _is_label(label):
            return Completion(thought_process=thought, label=label, form=Form.DRAFT_FIRST, draft=draft)
        case (("predicted_label", int(label)),) if _is_label(label):
            return Completion(thought_process=None, label=label, form=Form.LABEL_ONLY)
    return None


def _is_label(value: int) -> bool:
    return not isinstance(value, bool) and value in (0, 1)


def escape(thought_process: str) -> str:
    r"""Escape a thought for the inside of a JSON string.

    >>> escape('two\nlines')
    'two\\nlines'
    """
    escaped = json.dumps(thought_process, ensure_ascii=False)[1:-1]
    return _UNSAFE_IN_TOKENS.sub(lambda match: f"\\u{ord(match[0]):04x}", escaped)


def unescape(escaped: str) -> str:
    r"""Invert `escape`; return text that is not valid JSON unchanged.

    >>> unescape('say \\"hi\\"')
    'say "hi"'
    >>> unescape('an invalid \\x')
    'an invalid \\x'
    """
    try:
        thought: str = json.loads(f'"{escaped}"', strict=False)
    except json.JSONDecodeError:
        return escaped
    return thought


def sentences(thought_process: str) -> list[str]:
    """Split a thought after its sentence ends; the parts joined are the thought."""
    cuts = [match.end() for match in _SENTENCE_END.finditer(thought_process)]
    bounds = itertools.pairwise([0, *cuts, len(thought_process)])
    return [thought_process[start:end] for start, end in bounds if start < end]


def last_step(thought_process: str) -> str:
    """Return the text of the last "Step N", or of the last line that starts with a number; else a sentence.

    >>> last_step("Step 1: A dog is an animal. Step 2: So it moves.")
    'So it moves.'
    >>> last_step("A dog is an animal. So it moves.")
    'So it moves.'
    """
    steps = STEP.split(thought_process)
    parts = steps if len(steps) > 1 else sentences(thought_process)
    return next((part.strip() for part in reversed(parts) if part.strip()), thought_process)


def shortened(thought_process: str, fits: Callable[[str], bool]) -> str | None:
    """Return as many of the first sentences as fit, else of the first words; None if no word fits.

    >>> shortened("It is a dog. So it moves.", lambda text: len(text.split()) <= 5)
    'It is a dog.'
    >>> shortened("It is a dog. So it moves.", lambda text: len(text.split()) <= 2)
    'It is'
    """
    for parts in (sentences(thought_process), re.findall(r"\s*\S+", thought_process)):
        starts = ["".join(parts[:num]).rstrip() for num in range(1, len(parts) + 1)]
        if num_fitting := bisect_left(starts, True, key=lambda start: not fits(start)):
            return starts[num_fitting - 1]
    return None
