"""`multitask`: one row asks for the label only, another one for the thought; the prompts differ."""

from dataclasses import replace

from nlicot.builders.base import Target
from nlicot.builders.reflected import Reflected
from nlicot.completion import Form
from nlicot.records import Example, Reflection, Thought


class Multitask(Reflected):
    """The true label of every labelled pair, and the text of `reflected` if there is one.

    Based on Distilling Step-by-Step (Hsieh et al. 2023, arXiv:2305.02301): every labelled pair contributes,
    with or without a thought. Prediction reads the label directly, or thinks on request.
    """

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the target of `reflected`, otherwise only the true label."""
        found = super().target(example, thought, reflection)
        if found is not None or example.label is None:
            return found
        return Target(thought_process=None, label=example.label, source="label")

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """Return the label only, then the thought if there is one."""
        label_only = (replace(target, thought_process=None, source="label"), Form.LABEL_ONLY)
        return [label_only] if target.thought_process is None else [label_only, (target, Form.THOUGHT_FIRST)]
