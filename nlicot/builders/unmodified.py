"""`unmodified`: every thought as it is, with its own label."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class Unmodified(Builder):
    """Plain distillation: the label is the teacher's, right or wrong."""

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the thought with the label that it arrived at."""
        return None if thought is None else Target.of_thought(thought)
