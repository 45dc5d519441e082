"""The student's prompts and the label definitions.

A prompt is a template with the placeholders `{premise}`, `{hypothesis}`, `{entailment}` and
`{no_entailment}`; `model.prompt_format` adds a model's own markers. The instruction comes before the pair:
the prefix that all prompts share goes through the model once per micro-batch, in training and in prediction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nlicot.completion import Form
from nlicot.config_files import hint, read_yaml
from nlicot.errors import ConfigError

_TEMPLATE = """\
Does the hypothesis hold, given the premise? Answer 1 if {entailment}, 0 if {no_entailment}. [task]

Premise: {premise}
Hypothesis: {hypothesis}"""
THINKING_TEMPLATE = _TEMPLATE.replace(
    "[task]",
    'Think in short steps first, then answer in JSON: {"thought_process": "...", "predicted_label": 0 or 1}',
)
LABEL_ONLY_TEMPLATE = _TEMPLATE.replace("[task]", 'Answer in JSON: {"predicted_label": 0 or 1}')
LABEL_FIRST_TEMPLATE = _TEMPLATE.replace(
    "[task]",
    "Answer first, then explain in short steps, in JSON: "
    '{"predicted_label": 0 or 1, "thought_process": "..."}',
)
DRAFT_FIRST_TEMPLATE = _TEMPLATE.replace(
    "[task]",
    "Draft an answer, think in short steps whether it is right, then answer, in JSON: "
    '{"draft_label": 0 or 1, "thought_process": "...", "predicted_label": 0 or 1}',
)
_PLACEHOLDER = re.compile(r"\{(premise|hypothesis|entailment|no_entailment)\}")
_EXPECTED = {
    "entailment": "text that completes 'Answer 1 if ...'",
    "no_entailment": "text that completes 'Answer 0 if ...'",
}


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class LabelDefinitions:
    """The meaning of the labels on this data; each text completes "answer 1 if ..., 0 if ..."."""

    entailment: str = "it follows from the premise for a careful reader with common sense"
    no_entailment: str = "it does not"

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            if _is_blank(text):
                raise ConfigError(f"definitions.{name}: found {text!r}, expected {_EXPECTED[name]}")


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class StudentPrompts:
    """The templates and the definitions that fill them.

    Args:
        thinking: asks for a thought, then the label.
        label_only: asks for the label only.
        label_first: asks for the label, then a thought.
        draft_first: asks for a draft of the label, a thought, then the label.
        definitions: the meaning of the labels on this data.
    """

    thinking: str = THINKING_TEMPLATE
    label_only: str = LABEL_ONLY_TEMPLATE
    label_first: str = LABEL_FIRST_TEMPLATE
    draft_first: str = DRAFT_FIRST_TEMPLATE
    definitions: LabelDefinitions = field(default_factory=LabelDefinitions)

    def __post_init__(self) -> None:
        for name, template in self.templates.items():
            found = _PLACEHOLDER.findall(template)
            for placeholder in ("premise", "hypothesis"):
                if (num := found.count(placeholder)) != 1:
                    count = f"{{{placeholder}}} {num} times"
                    raise ConfigError(f"data.prompts.{name}: found {count}, expected once")

    @property
    def templates(self) -> dict[str, str]:
        """The templates by their names."""
        return {name: text for name, text in vars(self).items() if name != "definitions"}

    def render(self, premise: str, hypothesis: str, *, form: Form = Form.THOUGHT_FIRST) -> str:
        """Render the prompt of one pair; braces in the texts are kept.

        >>> prompts = StudentPrompts(label_only="{premise} => {hypothesis}?")
        >>> prompts.render("{hypothesis}", "b", form=Form.LABEL_ONLY)
        '{hypothesis} => b?'
        """
        template = {
            Form.THOUGHT_FIRST: self.thinking,
            Form.LABEL_ONLY: self.label_only,
            Form.LABEL_FIRST: self.label_first,
            Form.DRAFT_FIRST: self.draft_first,
        }[form]
        values = {"premise": premise, "hypothesis": hypothesis, **vars(self.definitions)}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)

    def to_dict(self) -> dict[str, Any]:
        """Return templates and definitions, as a checkpoint stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> StudentPrompts:
        """Load the result of `to_dict`."""
        return cls(**{**stored, "definitions": LabelDefinitions(**stored["definitions"])})

    @property
    def sha256(self) -> str:
        """A hash of templates and definitions."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read_definitions(path: Path) -> dict[str, str]:
    """Read label definitions from a YAML file, which may also hold the teacher's `relation_map`."""
    label = f"--definitions {path}"
    return fold_definitions(read_yaml(path, label=label), label=label, other_keys=("relation_map",))


def fold_definitions(content: Any, *, label: str, other_keys: Sequence[str] = ()) -> dict[str, str]:
    """Check definitions, and fold each to one line without a full stop: it becomes part of a sentence."""
    names = tuple(_EXPECTED)
    if not isinstance(content, dict):
        raise ConfigError(f"{label}: expected the keys {' and '.join(names)}")
    known = (*names, *other_keys)
    for key in content:
        if key not in known:
            raise ConfigError(f"{label}: unknown key {key!r}; {hint(str(key), known)}")
    for name in names:
        if _is_blank(content.get(name)):
            raise ConfigError(f"{label}: found no text for {name}, expected {_EXPECTED[name]}")
    return {name: " ".join(content[name].split()).rstrip(".") for name in names}


def folded(definitions: LabelDefinitions) -> LabelDefinitions:
    """Return definitions as they are if they come from a file: see `fold_definitions`."""
    return LabelDefinitions(**fold_definitions(asdict(definitions), label="--definitions"))


def _is_blank(text: object) -> bool:
    return not isinstance(text, str) or not text.strip(" .\n\t")
