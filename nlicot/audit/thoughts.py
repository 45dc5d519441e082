"""Check the wording of thoughts and reflections, in English.

Thoughts should not contradict their own label, name a verdict early, or be the same for several pairs. A
reflection's improved thought should read like a first thought: a student that learns to mention a true label,
an earlier attempt or an error mentions things it will never have.

Phrases are found by patterns, and only if they are plain: a thought that ends in a picture ("the kettle is
still cold") has no verdict here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nlicot import completion
from nlicot.audit.findings import Finding, Section, full_id, unique
from nlicot.audit.inputs import AuditData
from nlicot.audit.minhash import normalised
from nlicot.records import LABELS, Reflection, Thought
from nlicot.text_tables import Table, counted, percent

MANY, MANY_EARLY = 0.05, 0.2
MIN_ADDED_WORDS = 4
"""A thought with fewer words of its own cannot contain an argument."""
MIN_USES, NEARLY_ALL = 20, 0.95
_WORD = re.compile(r"\w+")

# ---------------------------------------------------------------- steps and verdicts

_STEP = re.compile(r"\bstep\s+\d+\s*[:.)]", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)(['\"])(?!\s)[^'\"]*?(?<!\s)\1(?!\w)")
FOLLOWS, NOT_FOLLOWS, CONFLICTS, FITS = "follows", "does not follow", "conflicts", "fits"
SAYS = ("says label 0", "says label 1")
USUAL_LABEL = {FOLLOWS: 1, NOT_FOLLOWS: 0, CONFLICTS: 0, SAYS[0]: 0, SAYS[1]: 1}
"""The meaning of a verdict in any data; `FITS` means 1 in some data and 0 in other."""
_VERDICT = re.compile(
    r"""\b(?:
      (?P<up>follows?|inferred|inferable|concluded|entail(?:s|ed)|implied|supported|established|confirmed
        |guaranteed|warranted|justified|drawn|true
        |(?:fair|reasonable|sensible|natural|safe)\ (?:inference|conclusion))
    | (?P<down>contradict(?:s|ed|ion|ory)?|conflict(?:s|ed|ing)?|incompatible|inconsistent|unsupported
        |ruled\ out|false|fails)
    | (?P<fit>fits?|compatible|consistent)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
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
# In "supplying and not supplying it conflict" and "doing nothing conflicts" the negation is part of a claim.
_NEGATED_CONFLICT = re.compile(
    r"(?:n't|\b(?:not|never|hardly|cannot|without|no))(?:\s+\w+)?(?:\s+in)?\s*$"
    r"|^\s*(?:nothing|none|no|neither|nobody)\b",
    re.IGNORECASE,
)
_WITH_NOTHING = re.compile(r"^\s*(?:with\s+)?(?:nothing|none|neither|no)\b", re.IGNORECASE)


def last_step(thought: str) -> str:
    """Return the last step, or the last sentence of a thought without steps.

    >>> last_step("It rains. So it follows.")
    'So it follows.'
    """
    starts = [match.start() for match in _STEP.finditer(thought)]
    if len(starts) > 1:
        return thought[starts[-1] :]
    parts = completion.sentences(thought)
    return parts[-1] if len(parts) > 1 else thought if not starts else thought[starts[-1] :]


def without_last_step(thought: str) -> str:
    """Return a thought up to its last step.

    >>> without_last_step("Step 1: It rains. Step 2: So it follows.")
    'Step 1: It rains. '
    """
    return thought[: len(thought) - len(last_step(thought))]


def verdict(thought: str) -> str | None:
    """Return the last verdict of the last step, or None if there is no plain one.

    >>> verdict("Step 1: A dog. Step 2: A cat is not a dog, so the hypothesis does not follow.")
    'does not follow'
    >>> verdict("Step 1: A dog. Step 2: Nothing rules that out, so it fits.")
    'fits'
    """
    found = list(_verdicts(last_step(thought)))
    return found[-1] if found else None


def _verdicts(text: str) -> Iterator[str]:
    labels = _SAID_LABEL.findall(text)
    if labels:  # a number is unambiguous
        yield SAYS[int(labels[-1])]
        return
    text = _QUOTED.sub(lambda match: " " * len(match.group()), text)
    for match in _VERDICT.finditer(text):
        clause = _CLAUSE.split(text[: match.start()])[-1]
        if match["down"]:
            negated = _WITH_NOTHING.match(text[match.end() :]) or _NEGATED_CONFLICT.search(clause)
            yield FITS if negated else CONFLICTS
        elif len(_NOT.findall(clause)) % 2:
            yield NOT_FOLLOWS
        else:
            yield FOLLOWS if match["up"] else FITS


def verdict_labels(verdicts: Sequence[str | None], labels: Sequence[int]) -> Mapping[str, int]:
    """Return the label that each verdict means in these data, for verdicts with a clear meaning.

    With unusual label definitions most thoughts that end in "does not follow" may rightly have label 1; then
    the phrase proves nothing. `FITS` counts only if nearly all thoughts that use it have one label.
    """
    counts = Counter(zip(verdicts, labels, strict=True))
    found = {
        said: usual
        for said, usual in USUAL_LABEL.items()
        if counts[said, usual] >= counts[said, 1 - usual] or counts[said, 1 - usual] < MIN_USES
    }
    num = sum(counts[FITS, label] for label in LABELS)
    likelier = max(LABELS, key=lambda label: counts[FITS, label])
    if num >= MIN_USES and counts[FITS, likelier] >= NEARLY_ALL * num:
        found[FITS] = likelier
    return found


# ---------------------------------------------------------------- phrases

_EARLY_VERDICT = re.compile(
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
_MENTIONS = {
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
_FUNCTION_WORDS = frozenset(
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


def early_verdict(thought: str, pair: str) -> str | None:
    """Return a word for a label before the last step, unless it is one of the pair's own.

    >>> early_verdict("Step 1: It is contradicted. Step 2: So 0.", pair="A dog.")
    'contradicted'
    """
    return _first_match(_EARLY_VERDICT, without_last_step(thought), pair)


def reflection_phrases(thought: str, pair: str) -> list[str]:
    """Return what an improved thought mentions that a first thought cannot know.

    >>> reflection_phrases("Step 1: The true label is 1, unlike the first thought.", pair="A dog.")
    ['a label that was given', 'an earlier attempt']
    """
    text = _QUOTED.sub(" ", thought)
    return [what for what, pattern in _MENTIONS.items() if _first_match(pattern, text, pair)]


def _first_match(pattern: re.Pattern[str], text: str, pair: str) -> str | None:
    """The first match whose last word is not in the pair: a premise may speak of an error itself."""
    words = set(_WORD.findall(pair.casefold()))
    for match in pattern.finditer(text):
        if _WORD.findall(match.group().casefold())[-1] not in words:
            return match.group()
    return None


def added_words(thought: str, hypothesis: str) -> set[str]:
    """Return the content words of a thought that are not in its hypothesis.

    >>> sorted(added_words("Step 1: The hypothesis says a dog barks loudly.", "A dog barks."))
    ['loudly']
    """
    own, given = (set(_WORD.findall(text.casefold())) for text in (thought, hypothesis))
    return own - given - _FUNCTION_WORDS


# ---------------------------------------------------------------- the checks

_Located = tuple[str, Thought] | tuple[str, Reflection]


def check_thoughts(data: AuditData) -> Section | None:
    """Compare each thought's verdict with its label; look for early verdicts and repeated thoughts."""
    thoughts = [(split.name, thought) for split in data.splits for thought in split.thoughts]
    if not thoughts:
        return None
    verdicts = [verdict(thought.thought_process) for _, thought in thoughts]
    labels = [thought.predicted_label for _, thought in thoughts]
    meaning = verdict_labels(verdicts, labels)
    against = [
        (split, thought)
        for (split, thought), said in zip(thoughts, verdicts, strict=True)
        if said is not None and meaning.get(said, thought.predicted_label) != thought.predicted_label
    ]
    early = [
        (split, thought)
        for split, thought in thoughts
        if early_verdict(thought.thought_process, f"{thought.premise} {thought.hypothesis}")
    ]
    num = len(thoughts)
    counts = Counter(zip(verdicts, labels, strict=True))
    by_verdict = {said: {str(label): counts[said, label] for label in LABELS} for said in set(verdicts)}
    rows = [
        (said or "(no plain verdict)", *map(str, by_verdict.get(said, {"0": 0, "1": 0}).values()))
        for said in (*sorted(filter(None, by_verdict)), None)
    ]
    return Section(
        name="thoughts",
        title="Thoughts",
        summary=f"{num} thoughts: {num - counts[None, 0] - counts[None, 1]} end in a plain verdict, "
        f"{len(against)} against their own label; {len(early)} give a verdict before their last step",
        findings=(
            *_finding(
                against,
                num,
                name="thought against its own label",
                noun="thought",
                what="argue for one label and give the other",
                advice="read them; generate these pairs again (`generate --ids ... --overwrite`), or have "
                "`score` mark them and set --data.builder.min_score",
            ),
            *_finding(
                early,
                num,
                name="verdict before the last step",
                noun="thought",
                what="use a word for a label before their last step",
                advice="a thought that starts with its verdict only argues for it: ask for steps that leave "
                "it open, as the shipped prompt does",
                severities=("warning", "note"),
                threshold=MANY_EARLY,
            ),
            *_finding(
                _repeated(thoughts),
                num,
                name="one thought for several pairs",
                noun="thought",
                what="are word for word the thought of another pair too",
                advice="generate these pairs again: such a text was written without reading",
            ),
        ),
        tables=(
            Table(
                title="verdicts by label",
                header=("the last step says", "label 0", "label 1"),
                rows=tuple(rows),
            ),
        ),
        figures={
            "num": num,
            "num_contradicting": len(against),
            "num_early": len(early),
            "verdicts": {said or "none": by_verdict[said] for said in dict.fromkeys(verdicts)},
        },
    )


def _repeated(thoughts: Sequence[tuple[str, Thought]]) -> list[tuple[str, Thought]]:
    """Thoughts that pairs of different words share: the teacher did not read them."""
    pairs_of: dict[str, dict[tuple[str, str], list[tuple[str, Thought]]]] = {}
    for split, thought in thoughts:
        pair = (normalised(thought.premise), normalised(thought.hypothesis))
        pairs = pairs_of.setdefault(normalised(thought.thought_process), {})
        pairs.setdefault(pair, []).append((split, thought))
    return [each for pairs in pairs_of.values() if len(pairs) > 1 for same in pairs.values() for each in same]


def check_reflections(data: AuditData) -> Section | None:
    """Look at the improved thought of each reflection, which is what a student learns."""
    reflections = [(split.name, reflection) for split in data.splits for reflection in split.reflections]
    if not reflections:
        return None
    mentioning, repeating = [], []
    by_kind: Counter[str] = Counter()
    for split, reflection in reflections:
        text = reflection.improved_thought_process
        if kinds := reflection_phrases(text, f"{reflection.premise} {reflection.hypothesis}"):
            mentioning.append((split, reflection))
            by_kind.update(kinds)
        if len(added_words(text, reflection.hypothesis)) < MIN_ADDED_WORDS:
            repeating.append((split, reflection))
    num = len(reflections)
    rows = tuple((kind, str(count)) for kind, count in by_kind.most_common())
    kinds_text = ", ".join(f"{kind}: {count}" for kind, count in by_kind.most_common())
    return Section(
        name="reflections",
        title="Reflections",
        summary=f"{num} reflections: {len(mentioning)} give themselves away, "
        f"{len(repeating)} hardly say more than their hypothesis",
        findings=(
            *_finding(
                mentioning,
                num,
                name="reflection gives itself away",
                noun="reflection",
                what=f"mention what a first thought cannot know ({kinds_text})",
                advice="generate these again (`reflect --ids ... --overwrite`), or have `score` mark them "
                "and set --data.builder.min_score",
                by_kind=dict(by_kind),
            ),
            *_finding(
                repeating,
                num,
                name="reflection repeats the hypothesis",
                noun="reflection",
                what=f"have fewer than {MIN_ADDED_WORDS} content words beyond their hypothesis",
                advice="generate these again: they assert the label and teach nothing",
            ),
        ),
        tables=(Table(title="they mention", header=("what", "reflections"), rows=rows),) if rows else (),
        figures={"num": num, "num_betraying": len(mentioning), "num_repeating": len(repeating)},
    )


def _finding(
    found: Sequence[_Located],
    num: int,
    *,
    name: str,
    noun: str,
    what: str,
    advice: str,
    severities: tuple[str, str] = ("error", "warning"),
    threshold: float = MANY,
    **figures: Any,
) -> Iterator[Finding]:
    """Return a finding if any texts were found; its severity is the first from `threshold` on."""
    if not found:
        return
    proportion = len(found) / num
    yield Finding(
        name=name,
        severity=severities[0] if proportion >= threshold else severities[1],
        summary=f"{len(found)} of {counted(num, noun)} ({percent(proportion)}) {what}",
        advice=advice,
        ids=unique(full_id(split, text.id) for split, text in found),
        figures={"share": proportion, "num": len(found), **figures},
    )
