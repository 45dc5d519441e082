"""Mistral's API; its chat completions have OpenAI's form, with Mistral's parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nlicot.teacher.backends.openai import OpenAIBackend


class MistralBackend(OpenAIBackend):
    """Sends requests to Mistral's API."""

    name = "mistral"
    parameter_names: ClassVar[Mapping[str, str]] = {}
    constant_fields: ClassVar[Mapping[str, Any]] = {"stream": False}  # as Mistral's SDK does
