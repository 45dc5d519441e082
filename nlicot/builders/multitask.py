"""`multitask`: one row asks for the label only, another one for the thought; the prompts differ."""

from dataclasses import replace

from nlicot.builders.base import Target
from nlicot.builders.reflected import Reflected
from nlicot.completion import Form
from nlicot.records import Example


class Multitask(Reflected):
    """The true label of every labelled pair, and the text of `reflected` if there is one.

    Based on Distilling Step-by-Step (Hsieh et al. 2023, arXiv:2305.02301): every labelled pair contributes,
    with or without a thought. Prediction reads the label directly, or thinks on request.
    """

    def target_without_text(self, example: Example) -> Target | None:
        """Return only the label, of an unlabelled pair its soft label."""
        return Target.of_label(example)

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """Return the label only, then the thought if there is one."""
        if target.thought_process is None:
            return [(target, Form.LABEL_ONLY)]
        label_only = replace(target, thought_process=None, source="label")
        return [(label_only, Form.LABEL_ONLY), (target, Form.THOUGHT_FIRST)]
