"""The words of a text, as audits and baselines compare them."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    r"""Return runs of letters, digits and underscores, with their combining marks.

    Python's `\w` leaves out marks, such as the vowel signs of Hindi and Thai.

    >>> words_of("The dog's asleep!"), words_of("दिन है।")
    (['The', 'dog', 's', 'asleep'], ['दिन', 'है'])
    """
    if text.isascii():
        return _WORD.findall(text)
    return "".join(each if _is_in_word(each) else " " for each in text).split()


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
