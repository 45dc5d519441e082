"""The student's prompts and the label definitions: the only place that words them.

A prompt is a template with the places `{premise}`, `{hypothesis}`, `{entailment}` and
`{no_entailment}`; the last two are filled with the label definitions, which belong to the data and
not to the program. Wrapping a prompt in a model's own markers is `model.prompt_format`'s work.

The instruction stands before the pair: what all prompts begin with alike goes through the model once for a
whole micro-batch, in training and in prediction.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from nlicot.completion import Form
from nlicot.errors import ConfigError

THINKING_TEMPLATE = """\
Does the hypothesis hold, given the premise? Answer 1 if {entailment}, 0 if {no_entailment}. \
Think in short steps first, then answer in JSON: \
{"thought_process": "...", "predicted_label": 0 or 1}

Premise: {premise}
Hypothesis: {hypothesis}"""

LABEL_ONLY_TEMPLATE = """\
Does the hypothesis hold, given the premise? Answer 1 if {entailment}, 0 if {no_entailment}. \
Answer in JSON: {"predicted_label": 0 or 1}

Premise: {premise}
Hypothesis: {hypothesis}"""

LABEL_FIRST_TEMPLATE = """\
Does the hypothesis hold, given the premise? Answer 1 if {entailment}, 0 if {no_entailment}. \
Answer first, then explain in short steps, in JSON: \
{"predicted_label": 0 or 1, "thought_process": "..."}

Premise: {premise}
Hypothesis: {hypothesis}"""

PLACES = ("premise", "hypothesis", "entailment", "no_entailment")
_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class LabelDefinitions:
    """What the labels mean on this data, worded to complete "answer 1 if ..., 0 if ..."."""

    entailment: str = "it follows from the premise for a careful reader with common sense"
    no_entailment: str = "it does not"


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class StudentPrompts:
    """The templates and the definitions that fill them.

    Args:
        thinking: asks for a thought and a label.
        label_only: asks for the label alone.
        label_first: asks for the label, then a thought.
        definitions: what the labels mean on this data.

    Raises:
        ConfigError: a template lacks its `{premise}` or `{hypothesis}` or has one twice.
    """

    thinking: str = THINKING_TEMPLATE
    label_only: str = LABEL_ONLY_TEMPLATE
    label_first: str = LABEL_FIRST_TEMPLATE
    definitions: LabelDefinitions = field(default_factory=LabelDefinitions)

    def __post_init__(self) -> None:
        for name in ("thinking", "label_only", "label_first"):
            found = _PLACE.findall(getattr(self, name))
            for place in ("premise", "hypothesis"):
                if found.count(place) != 1:
                    raise ConfigError(
                        f"data.prompts.{name}: found {{{place}}} {found.count(place)} times, expected once"
                    )

    def render(self, premise: str, hypothesis: str, *, form: Form = Form.THOUGHT_FIRST) -> str:
        """The prompt of one pair; braces in the texts stay what they are.

        >>> prompts = StudentPrompts(label_only="{premise} => {hypothesis}?")
        >>> prompts.render("{hypothesis}", "b", form=Form.LABEL_ONLY)
        '{hypothesis} => b?'
        """
        filling = {
            "premise": premise,
            "hypothesis": hypothesis,
            "entailment": self.definitions.entailment,
            "no_entailment": self.definitions.no_entailment,
        }
        template = {
            Form.THOUGHT_FIRST: self.thinking,
            Form.LABEL_ONLY: self.label_only,
            Form.LABEL_FIRST: self.label_first,
        }[form]
        return _PLACE.sub(lambda match: filling[match.group(1)], template)

    def to_dict(self) -> dict[str, Any]:
        """Everything that words a prompt, as it is kept in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> StudentPrompts:
        """The inverse of `to_dict`."""
        return cls(**{**stored, "definitions": LabelDefinitions(**stored["definitions"])})

    @property
    def sha256(self) -> str:
        """The hash that tells two sets of prompts apart."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
