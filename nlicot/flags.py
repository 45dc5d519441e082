"""Values of command-line flags that several commands take, as `argparse` types."""

from __future__ import annotations

import argparse


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once.

    >>> names("train, dev,train")
    ('train', 'dev')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def count(text: str) -> int:
    """A whole number, 1 or more.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 1 or more")
    return int(text)
