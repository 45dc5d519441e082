"""`unmodified`: every thought as it came, its own label included."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class Unmodified(Builder):
    """What distilling the teacher blindly would give; the label is the teacher's, right or wrong."""

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """The thought with the label that it arrived at."""
        if thought is None:
            return None
        return Target(
            thought_process=thought.thought_process, label=thought.predicted_label, source="thought"
        )
