"""`correct_only`: thoughts with the correct label."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class CorrectOnly(Builder):
    """Keeps the pairs that the teacher got right."""

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the thought if its label is correct."""
        return Target.of_thought(thought) if thought is not None and thought.correct else None
