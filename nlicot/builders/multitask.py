"""`multitask`: one row asks for the label at once, another for the thought, told apart by the prompt."""

from dataclasses import replace

from nlicot.builders.base import Target
from nlicot.builders.reflected import Reflected
from nlicot.completion import Form
from nlicot.records import Example, Reflection, Thought


class Multitask(Reflected):
    """Every labelled pair's true label, and the text of `reflected` where there is one.

    After Distilling Step-by-Step (Hsieh et al. 2023, arXiv:2305.02301), so that every labelled pair teaches,
    with a thought or without. Prediction reads the label at once, or thinks where it is asked to.
    """

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """The target of `reflected`, else the true label alone."""
        found = super().target(example, thought, reflection)
        if found is not None or example.label is None:
            return found
        return Target(thought_process=None, label=example.label, source="label")

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """The label alone, then the thought where there is one."""
        at_once = (replace(target, thought_process=None, source="label"), Form.LABEL_ONLY)
        return [at_once] if target.thought_process is None else [at_once, (target, Form.THOUGHT_FIRST)]
