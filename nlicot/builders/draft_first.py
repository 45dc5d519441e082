"""`draft_first`: a draft of the label, a thought that may correct it, then the label."""

import random
from dataclasses import replace
from typing import Any

from nlicot.builders.base import Target, check_arguments
from nlicot.builders.reflected import Reflected
from nlicot.command_line import Proportion
from nlicot.completion import Form
from nlicot.records import Example, Reflection, Thought


class DraftFirst(Reflected):
    """The pairs and texts of `reflected` after a draft, so that a thought can use what is known before it.

    Prediction reads the draft as `label_only` reads a label, feeds it, thinks, and reads the label.

    Args:
        false_drafts: proportion of the pairs, by their ids, whose draft is the wrong label. It is not learnt,
            and the thought has to correct it.
        train_draft: learn the drafts that are right; false: they are only read, too.
    """

    def __init__(self, false_drafts: Proportion = 0.0, train_draft: bool = True, **selection: Any) -> None:
        super().__init__(**selection)
        check_arguments(DraftFirst.__init__, {"false_drafts": false_drafts})
        self.false_drafts = false_drafts
        self.train_draft = train_draft

    def target(
        self, example: Example, thought: Thought | None, reflection: Reflection | None
    ) -> Target | None:
        """Return the target of `reflected`, with a draft."""
        target = super().target(example, thought, reflection)
        if target is None:
            return None
        is_false = random.Random(f"{self.seed}/{example.id}").random() < self.false_drafts
        draft = 1 - target.label if is_false else target.label
        return replace(target, draft=draft, learns_draft=self.train_draft and not is_false)

    def rows(self, target: Target) -> list[tuple[Target, Form]]:
        """Return one row with the draft first."""
        return [(target, Form.DRAFT_FIRST)]
