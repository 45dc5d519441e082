"""`label_only`: every labelled pair without a thought; the baseline that shows whether thinking helps."""

from typing import Any

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class LabelOnly(Builder):
    """Only the label, true or soft; needs no teacher.

    Args:
        only_with_thoughts: keep only the pairs that have a thought, to match the pairs of an ablation.
    """

    thinks = False

    def __init__(self, only_with_thoughts: bool = False, **selection: Any) -> None:
        super().__init__(**selection)
        self.only_with_thoughts = only_with_thoughts

    def needed_texts(self, split: str) -> list[str]:
        """Return the kinds of texts that a split must have: thoughts, to know which pairs have one."""
        return ["thoughts"] * self.only_with_thoughts

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the label of a pair that has one."""
        return None if self.only_with_thoughts and thought is None else Target.of_label(example)
