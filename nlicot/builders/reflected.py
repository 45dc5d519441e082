"""`reflected`: the right thoughts, and the reflection of every wrong one. The primary recipe."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class Reflected(Builder):
    """Every pair that has a right text; the label is always the true one.

    A wrong thought without a reflection leaves its pair out.
    """

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """The thought where it is right, else the improved thought of its reflection."""
        if thought is not None and thought.correct:
            return Target(
                thought_process=thought.thought_process, label=thought.predicted_label, source="thought"
            )
        if reflection is not None:
            return Target(
                thought_process=reflection.improved_thought_process,
                label=reflection.reflected_label,
                source="reflection",
            )
        return None
