"""`messages.txt` lists every refusal before the restructuring with what replaces it today, and all new ones.

A reworded refusal needs a look at `messages.txt`: `--update-golden` puts the closest present text there
and lists the rest under `new`; texts for which there is none remain, and the test names them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from tests.golden.messages import messages

GOLDEN = Path(__file__).parent
TABLE = GOLDEN / "messages.txt"
RENEW = "renew: python -m pytest tests/golden/test_messages.py --update-golden, then read the diff"
PRESENT = ("same", "after", "new")


def rows(*kinds: str) -> set[str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    split = [line.split(":", 1) for line in lines if line and not line.startswith("#")]
    return {text.strip() for kind, text in split if kind in kinds}


def present_messages() -> set[str]:
    return set(messages(GOLDEN.parents[1] / "nlicot"))


def test_messages_every_refusal_before_has_a_row_that_says_what_became_of_it():
    before = set((GOLDEN / "messages_before.txt").read_text(encoding="utf-8").splitlines())
    assert before == rows("same", "before")
    blocks = TABLE.read_text(encoding="utf-8").split("\n\n")
    reworded = [block for block in blocks if "before:" in block]
    assert all("after:" in block or "gone:" in block for block in reworded)


def test_messages_every_refusal_of_today_is_listed_and_no_other(update_golden: bool):
    today = present_messages()
    if update_golden:
        renew(today)
    listed = rows(*PRESENT)
    assert not (lost := listed - today), f"no code refuses with these any more; {RENEW}\n{shown(lost)}"
    assert not (unlisted := today - listed), f"not in {TABLE.name}; {RENEW}\n{shown(unlisted)}"


def shown(texts: Iterable[str]) -> str:
    return "\n".join(sorted(texts))


def renew(today: set[str]) -> None:
    """Replace texts that are gone by the closest unlisted ones, and list the others as new."""
    listed = rows(*PRESENT)
    unlisted, successor = today - listed, {}
    for text in sorted(listed - today):
        if near := difflib.get_close_matches(text, unlisted, n=1):
            successor[text] = near[0]
            unlisted.discard(near[0])
    lines = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        kind, _, text = line.partition(":")
        text = text.strip()
        if kind in PRESENT and text in successor:
            lines += [f"before: {text}", f"after:  {successor[text]}"] if kind == "same" else []
            lines += [f"{kind + ':':<8}{successor[text]}"] if kind != "same" else []
        else:
            lines.append(line)
    lines += [f"new:    {text}" for text in sorted(unlisted)]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
