"""The typed records that modules exchange, and their JSON form. Field names are the names on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

LABELS = (0, 1)
LABEL_NAMES = {0: "no entailment", 1: "entailment"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a teacher's answer."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The origin of a teacher's text; empty for texts written by hand."""

    backend: str = ""
    model: str = ""
    prompt_sha256: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    created_at: str = ""


NO_PROVENANCE = Provenance()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A premise/hypothesis pair; `label` is None if it is unknown, `p_entailment` is its soft label."""

    id: str
    premise: str
    hypothesis: str
    label: int | None = None
    phenomenon: str | None = None
    p_entailment: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A chain of thought and the label it arrives at, by a teacher that does not know the true label.

    `sample` numbers several thoughts of one pair; `round` is above 0 if the thought was regenerated after a
    low score.
    """

    id: str
    sample: int = 0
    round: int = 0
    premise: str
    hypothesis: str
    thought_process: str
    predicted_label: int
    relation: str | None = None
    true_label: int | None = None
    provenance: Provenance = NO_PROVENANCE

    @property
    def correct(self) -> bool:
        """True if the teacher found the true label; False if that is unknown."""
        return self.true_label is not None and self.predicted_label == self.true_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """A stronger teacher's correction of a wrong thought, which is `thought_process`."""

    id: str
    sample: int = 0
    round: int = 0
    premise: str
    hypothesis: str
    true_label: int
    thought_process: str
    error_analysis: str
    improved_thought_process: str
    reflected_label: int
    provenance: Provenance = NO_PROVENANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judge's score, 1 to 5, for a thought or a reflection; earlier versions left `text_sha256` out."""

    id: str
    sample: int = 0
    target: Literal["thought", "reflection"] = "thought"
    round: int = 0
    score: int
    text_sha256: str = ""
    analysis: str = ""
    provenance: Provenance = NO_PROVENANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """A prompt and the completion that the student should produce.

    `label` is the label inside the completion, which can be wrong under `unmodified`; `source` is `thought`,
    `reflection`, `label` or `soft label`. Variants are the same example with other samples of its pair,
    numbered one after the other: an epoch takes one of them. If `p_entailment` is given, the label's token is
    trained on both labels with these weights. If not `learns_draft`, the draft label is read, but not learnt.
    """

    id: str
    prompt: str
    completion: str
    label: int
    source: str
    variant: int = 0
    p_entailment: float | None = None
    learns_draft: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The tuned model's answer for one pair.

    `status` is `closed` (the thought ended by itself), `truncated` (it reached its token budget) or
    `label_only` (no thought was requested). `p_entailment` is in [0, 1]; with several votes it is their mean,
    and `agreement` is the proportion of votes whose own label is the predicted one. A label is 1 if its p is
    0.5 or more (`evaluation.metrics.entails`), unless a threshold was tuned. The draft is a label that was
    read before the thought, None for runs without one.
    """

    id: str
    predicted_label: int | None
    p_entailment: float | None
    thought_process: str | None
    status: str
    completion: str
    agreement: float | None = None
    draft_label: int | None = None
    draft_p_entailment: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without a usable answer."""

    id: str
    stage: str
    kind: str
    message: str
    attempts: int
    raw: str = ""


def content_id(premise: str, hypothesis: str) -> str:
    """Return the id of a pair without one: 12 hex digits of its content's SHA-256.

    >>> content_id("A dog runs.", "An animal moves.")
    'pair-3a39140c0fd4'
    """
    digest = hashlib.sha256(f"{premise}\x1f{hypothesis}".encode()).hexdigest()
    return f"pair-{digest[:12]}"


def to_json_dict(record: Any) -> dict[str, Any]:
    """Return a record's fields in order, without None, an empty provenance, and round 0.

    >>> to_json_dict(Example(id="a", premise="P", hypothesis="H", label=1))
    {'id': 'a', 'premise': 'P', 'hypothesis': 'H', 'label': 1}
    """
    # Not by dataclasses.asdict, which copies deeply: a teacher's run makes a thousand of these per second.
    fields = _fields(record)
    if (provenance := fields.pop("provenance", NO_PROVENANCE)) != NO_PROVENANCE:
        fields["provenance"] = _fields(provenance)
        if provenance.usage is not None:
            fields["provenance"]["usage"] = _fields(provenance.usage)
    if fields.get("round") == 0:
        del fields["round"]
    return {name: value for name, value in fields.items() if value is not None}


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
