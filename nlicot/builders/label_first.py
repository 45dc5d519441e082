"""`label_first`: the label, then a thought that explains it."""

from nlicot.builders.base import Target
from nlicot.builders.reflected import Reflected
from nlicot.completion import Form


class LabelFirst(Reflected):
    """The pairs and texts of `reflected` with the label first, so that a thought cannot mislead it.

    Prediction reads the label directly; the thought is generated only on request.
    """

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """Return one row with the label first."""
        return [(target, Form.LABEL_FIRST)]
