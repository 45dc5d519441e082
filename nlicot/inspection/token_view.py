"""Cut an encoded example into pieces of text, each with its kind and whether it is trained on.

A piece is one token, or the few tokens that only together encode a character (an emoji, say).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlicot.model.encoding import EncodedExample, TokenKind
from nlicot.model.prompt_format import PromptFormat

KINDS = ("control", "prompt", "thought", "scaffold", "label")
"""Kinds of tokens; `control` are the model's own markers, BOS and EOS included."""
MAX_TOKENS_PER_CHARACTER = 8
_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The text of one or a few tokens; `supervised` if the loss counts them."""

    ids: tuple[int, ...]
    text: str
    kind: str
    supervised: bool


def pieces_of(prompt_format: PromptFormat, encoded: EncodedExample) -> list[Piece]:
    """Return all tokens of an example in order, as pieces."""
    ids, kinds = encoded.input_ids, encoded.kinds
    control = prompt_format.special_ids | {prompt_format.eos_id}
    found: list[Piece] = []
    start = 0
    while start < len(ids):
        kind = TokenKind(kinds[start])
        supervised = kind is not TokenKind.PROMPT
        if ids[start] in control:
            text = prompt_format.control_text(ids[start])
            found.append(Piece(ids=(ids[start],), text=text, kind="control", supervised=supervised))
            start += 1
            continue
        stop = start + 1
        while stop < len(ids) and kinds[stop] == kind and ids[stop] not in control:
            stop += 1
        stop = start + _num_tokens(prompt_format, ids[start : min(stop, start + MAX_TOKENS_PER_CHARACTER)])
        text = prompt_format.decode_inner(ids[start:stop])
        found.append(
            Piece(ids=tuple(ids[start:stop]), text=text, kind=kind.name.lower(), supervised=supervised)
        )
        start = stop
    return found


def _num_tokens(prompt_format: PromptFormat, ids: Sequence[int]) -> int:
    """Return how many of these tokens the first one's characters need to be complete, or one."""
    for num in range(1, len(ids) + 1):
        if _BROKEN not in prompt_format.decode_inner(ids[:num]):
            return num
    return 1
