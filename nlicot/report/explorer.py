"""The predictions as the page's explorer reads them: JSON inside a script element.

What it shows and how is `template/explorer.js`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nlicot.records import LABEL_NAMES
from nlicot.report.read_runs import Answered

_UNSAFE = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def explorer_content(answers: Mapping[str, Sequence[Answered]]) -> dict[str, Any]:
    """Pairs once, and what each run said of them, column by column, which is half as long as row by row.

    Args:
        answers: each run's, on the same pairs in the same order.
    """
    pairs = next(iter(answers.values()))
    return {
        "labels": [LABEL_NAMES[0], LABEL_NAMES[1]],
        "pairs": {
            "id": [pair.id for pair in pairs],
            "premise": [pair.premise or "" for pair in pairs],
            "hypothesis": [pair.hypothesis or "" for pair in pairs],
            "phenomenon": [pair.phenomenon for pair in pairs],
            "label": [pair.true_label for pair in pairs],
        },
        "runs": [
            {
                "name": name,
                "label": [answer.predicted_label for answer in found],
                "p": [
                    None if answer.p_entailment is None else round(answer.p_entailment, 4) for answer in found
                ],
                "thought": [answer.thought_process for answer in found],
                "status": [answer.status for answer in found],
            }
            for name, found in answers.items()
        ],
    }


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, 4)


def as_script_content(content: Any) -> str:
    r"""JSON that nothing within can end a script element with, whatever texts it holds.

    >>> as_script_content({"premise": "</script><b>"})
    '{"premise":"\\u003c/script\\u003e\\u003cb\\u003e"}'
    """
    written = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # These characters stand in JSON's strings alone, where an escape means the same.
    return written.translate({ord(character): escape for character, escape in _UNSAFE.items()})
