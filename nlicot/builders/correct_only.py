"""`correct_only`: the thoughts whose label is right."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class CorrectOnly(Builder):
    """Keeps the pairs that the teacher got right; the label is the true one, which it found itself."""

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """The thought, where its label is right."""
        if thought is None or not thought.correct:
            return None
        return Target(
            thought_process=thought.thought_process, label=thought.predicted_label, source="thought"
        )
