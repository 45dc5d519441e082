"""`reflected`: correct thoughts, and the reflections on wrong ones. The primary recipe."""

from nlicot.builders.base import Builder, Target
from nlicot.records import Example, Reflection, Thought


class Reflected(Builder):
    """Every pair with a correct text; a wrong thought without a reflection leaves its pair out."""

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the thought if it is correct, otherwise the improved thought of its reflection."""
        if thought is not None and thought.correct:
            return Target.of_thought(thought)
        if reflection is None:
            return None
        return Target(
            thought_process=reflection.improved_thought_process,
            label=reflection.reflected_label,
            source="reflection",
        )
