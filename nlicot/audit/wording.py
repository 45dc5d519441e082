"""What a thought says in words: its steps, the verdict at its end, and phrases that betray something.

Phrases are found by patterns, and only where they are plain: a thought that ends in a picture ("the kettle
is still cold") has no verdict here, and is left in peace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nlicot import completion

_STEP = re.compile(r"\bstep\s+\d+\s*[:.)]", re.IGNORECASE)
_WORD = re.compile(r"\w+")

FOLLOWS, NOT_FOLLOWS, CONFLICTS, FITS, SAYS_0, SAYS_1 = (
    "follows",
    "does not follow",
    "conflicts",
    "fits",
    "says label 0",
    "says label 1",
)
USUAL_LABEL = {FOLLOWS: 1, NOT_FOLLOWS: 0, CONFLICTS: 0, SAYS_0: 0, SAYS_1: 1}
"""What a verdict means on any data. That something merely `fits` is 1 on some data and 0 on other."""

_UP = r"""follows?|inferred|inferable|concluded|entail(?:s|ed)|implied|supported|established|confirmed
    |guaranteed|warranted|justified|drawn|true
    |(?:fair|reasonable|sensible|natural|safe)\ (?:inference|conclusion)"""
_DOWN = r"""contradict(?:s|ed|ion|ory)?|conflict(?:s|ed|ing)?|incompatible|inconsistent|unsupported|ruled\ out
    |false|fails"""
_FIT = r"fits?|compatible|consistent"
_VERDICT = re.compile(rf"\b(?:(?P<up>{_UP})|(?P<down>{_DOWN})|(?P<fit>{_FIT}))\b", re.IGNORECASE | re.VERBOSE)
_SAID_LABEL = re.compile(
    r"\b(?:predicted_)?(?:label|answer)\b['\"]?(?:\s+(?:is|of|must be|should be|to be))?"
    r"[\s:=]*['\"]?([01])\b",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"n't\b|\b(?:not|no|nothing|nor|neither|never|none|nobody|cannot|without|hardly|fails? to|too \w+ to)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[,;:.!?]|\b(?:and|but|so|yet|while|because|since|though|although|which)\b", re.IGNORECASE
)
# "Supplying and not supplying it conflict", "doing nothing conflicts": there the negation is part of a claim.
_NOT_OF_CONFLICT = re.compile(
    r"(?:n't|\b(?:not|never|hardly|cannot|without|no))(?:\s+\w+)?(?:\s+in)?\s*$"
    r"|^\s*(?:nothing|none|no|neither|nobody)\b",
    re.IGNORECASE,
)
_NOTHING_BEHIND = re.compile(r"^\s*(?:with\s+)?(?:nothing|none|neither|no)\b", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)(['\"])(?!\s)[^'\"]*?(?<!\s)\1(?!\w)")


def body(thought: str) -> str:
    """A thought without its last step, or without its last sentence where it has no steps.

    >>> body("Step 1: It rains. Step 2: So it follows.")
    'Step 1: It rains. '
    """
    return thought[: len(thought) - len(last_step(thought))]


def last_step(thought: str) -> str:
    """The step in which a thought comes to its end.

    >>> last_step("It rains. So it follows.")
    'So it follows.'
    """
    starts = [match.start() for match in _STEP.finditer(thought)]
    if len(starts) > 1:
        return thought[starts[-1] :]
    parts = completion.sentences(thought)
    return parts[-1] if len(parts) > 1 else thought if not starts else thought[starts[-1] :]


def verdict(thought: str) -> str | None:
    """Which verdict a thought ends with, the last one of its last step; None where it is not plain.

    >>> verdict("Step 1: A dog. Step 2: A cat is no dog, so the hypothesis does not follow.")
    'does not follow'
    >>> verdict("Step 1: A dog. Step 2: Nothing rules that out, so it fits.")
    'fits'
    """
    found = list(_verdicts(last_step(thought)))
    return found[-1] if found else None


def _verdicts(text: str) -> Iterator[str]:
    said = list(_SAID_LABEL.finditer(text))
    if said:  # a number needs no reading
        yield (SAYS_0, SAYS_1)[int(said[-1].group(1))]
        return
    text = _QUOTED.sub(lambda match: " " * len(match.group()), text)
    for match in _VERDICT.finditer(text):
        clause = _CLAUSE.split(text[: match.start()])[-1]
        if match["down"]:
            to_nothing = bool(_NOTHING_BEHIND.match(text[match.end() :]))
            yield FITS if to_nothing or _NOT_OF_CONFLICT.search(clause) else CONFLICTS
        elif len(_NOT.findall(clause)) % 2:
            yield NOT_FOLLOWS
        else:
            yield FOLLOWS if match["up"] else FITS


_EARLY = re.compile(
    r"""\b(?:
      label(?:s|led|ed)?
    | (?:no[ -])?entailment | entail(?:s|ed|ing)? | contradict(?:s|ed|ion|ory|ing)?
    | (?:hypothesis|claim|statement|it)\ (?:clearly\ |therefore\ |thus\ )?
      (?:follows|does\ not\ follow|doesn't\ follow|conflicts)
    | (?:hypothesis|claim|statement)\ (?:is|must\ be|can\ be|cannot\ be|can't\ be|is\ not)\ (?:\w+ly\ )?
      (?:true|false|correct|incorrect|supported|unsupported|inferred|implied|established|confirmed)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_BETRAYAL = {
    "a label that was given": re.compile(
        r"\b(?:true|correct|right|gold|given|expected|actual|intended|desired|reference|target)"
        r" (?:labels?|answers?|verdicts?)\b|\blabel(?:l?ed)?(?: is| as| of)? [01]\b",
        re.IGNORECASE,
    ),
    "an earlier attempt": re.compile(
        r"\b(?:first|earlier|initial|previous|prior|original)"
        r" (?:thoughts?|attempts?|answers?|reasoning|analysis|predictions?|labels?|verdicts?|judg\w+|"
        r"conclusions?|assessment)\b"
        r"|\b(?:initially|previously|at first) (?:thought|judged|concluded|labell?ed|assumed|predicted)\b"
        r"|\bre-?(?:consider|examin|read)ing (?:the|this|both|it)\b"
        r"|\b(?:up)?on reflection\b|\bin hindsight\b|\bat second (?:look|glance)\b",
        re.IGNORECASE,
    ),
    "an error": re.compile(
        r"\b(?:the|an|this|that|my|its|your|our) (?:error|mistake|misreading|oversight|flaw)s?\b"
        r"|\b(?:erroneous(?:ly)?|mistakenly|wrongly|incorrectly)\b"
        r"|\bcorrected (?:thought|reasoning|label|answer|reading)\b|\bcorrection of\b|\berror analysis\b",
        re.IGNORECASE,
    ),
}
_FILLERS = frozenset(
    _WORD.findall(
        """
        a an and are as at be been but by can could did do does for from had has have he her his i if in into
        is it its may might more must no nor not of on or our out she should so some such than that the their
        them then there these they this those to too was we were what when which while who will with would you
        your step steps premise hypothesis says say said states state stated claims claim claimed therefore
        thus hence also statement text according 1 2 3 4 5
        """
    )
)


def early_verdict(thought: str, own: str) -> str | None:
    """A word for a label in front of the last step; None where there is none, or the pair itself has it.

    >>> early_verdict("Step 1: It is contradicted. Step 2: So 0.", own="A dog.")
    'contradicted'
    """
    return _first_of_its_own(_EARLY, body(thought), own)


def betrayals(thought: str, own: str) -> list[str]:
    """What a reflection's improved thought betrays of how it came about.

    >>> betrayals("Step 1: The true label is 1, unlike the first thought.", own="A dog.")
    ['a label that was given', 'an earlier attempt']
    """
    text = _QUOTED.sub(" ", thought)
    return [what for what, pattern in _BETRAYAL.items() if _first_of_its_own(pattern, text, own)]


def _first_of_its_own(pattern: re.Pattern[str], text: str, own: str) -> str | None:
    """The first match whose last word is not one of the pair: a premise may speak of an error itself."""
    words = set(_WORD.findall(own.casefold()))
    for match in pattern.finditer(text):
        if _WORD.findall(match.group().casefold())[-1] not in words:
            return match.group()
    return None


def added_words(thought: str, hypothesis: str) -> set[str]:
    """The words with a meaning that a thought has beyond its hypothesis.

    >>> sorted(added_words("Step 1: The hypothesis says a dog barks loudly.", "A dog barks."))
    ['loudly']
    """
    said, given = (set(_WORD.findall(text.casefold())) for text in (thought, hypothesis))
    return said - given - _FILLERS
