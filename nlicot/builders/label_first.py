"""`label_first`: the label, then a thought that explains it."""

from nlicot.builders.base import Target
from nlicot.builders.reflected import Reflected
from nlicot.completion import Form


class LabelFirst(Reflected):
    """The pairs and texts of `reflected`, the true label first: a thought cannot lead it astray.

    Prediction reads the label at once; the thought is written only where it is asked for.
    """

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """One row, its label first."""
        return [(target, Form.LABEL_FIRST)]
