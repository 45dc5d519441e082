"""`label_only`: no thought, every labelled pair; the baseline that says whether thinking pays."""

from typing import Any

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class LabelOnly(Builder):
    """The true label alone; needs no teacher.

    Args:
        only_with_thoughts: keep only the pairs that have a thought, to match an ablation's pairs.
        selection: `balance` and `seed`, as every builder has them.
    """

    thinks = False

    def __init__(self, only_with_thoughts: bool = False, **selection: Any) -> None:
        super().__init__(**selection)
        self.only_with_thoughts = only_with_thoughts

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """The true label of a labelled pair."""
        if example.label is None or (self.only_with_thoughts and thought is None):
            return None
        return Target(thought_process=None, label=example.label, source="label")
