"""Tests that run what nlicot writes in the libraries it is for; `make interop` runs them all."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

PIP = {
    "llama_cpp": "pip install -r requirements-export.txt",
    "lm_eval": "pip install lm-eval accelerate",
    "trl": "pip install trl",
}
"""Commands that install libraries that are no dependencies."""


def needs(module: str) -> pytest.MarkDecorator:
    """Skip a test if a library is not installed, with the command that installs it."""
    reason = f"{module} is not installed: {PIP[module]}"
    return pytest.mark.skipif(find_spec(module) is None, reason=reason)
