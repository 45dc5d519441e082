"""The task file for lm-evaluation-harness; tests/export/test_interop.py runs it there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlicot.completion import Form, render
from nlicot.export.lm_eval_task import lm_eval_task
from nlicot.model.base_model import resolve
from nlicot.model.prompt_format import PromptFormat, load_prompt_format
from nlicot.prompts import StudentPrompts
from tests.small_tokenizers import TEMPLATES, like_sentencepiece, write_chat_model


@pytest.fixture(scope="module")
def bundled() -> PromptFormat:
    return load_prompt_format(resolve("bundled").folder)


def task(form: Form, prompt_format: PromptFormat) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(lm_eval_task(StudentPrompts(), form, prompt_format, 50) or "")
    return found


@pytest.mark.parametrize("form", [Form.LABEL_ONLY, Form.LABEL_FIRST])
def test_a_label_is_chosen_after_its_scaffold(form: Form, bundled: PromptFormat) -> None:
    found = task(form, bundled)
    assert found["output_type"] == "multiple_choice"
    assert [choice + "}" for choice in found["doc_to_choice"]] == [render(None, label) for label in (0, 1)]
    prompt = found["doc_to_text"].replace("{{premise}}", "A.").replace("{{hypothesis}}", "B.")
    assert prompt == StudentPrompts().render("A.", "B.", form=form)


@pytest.mark.parametrize("form", [Form.THOUGHT_FIRST, Form.DRAFT_FIRST])
def test_a_thought_is_generated_and_its_label_searched(form: Form, bundled: PromptFormat) -> None:
    found = task(form, bundled)
    assert found["output_type"] == "generate_until"
    (steps,) = found["filter_list"]
    answer = render("So it is. ", 1, form, 0)
    assert re.findall(steps["filter"][0]["regex_pattern"], answer) == ["1"]
    num_tokens = len(bundled.encode_segment(render("", 1, form), first=True))
    assert found["generation_kwargs"]["max_gen_toks"] >= 50 + num_tokens


def test_there_is_no_task_if_a_blank_and_a_label_are_one_token(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "base", like_sentencepiece("first"), TEMPLATES["instruct"])
    prompt_format = load_prompt_format(folder)
    assert lm_eval_task(StudentPrompts(), Form.LABEL_ONLY, prompt_format, 50) is None
    assert lm_eval_task(StudentPrompts(), Form.THOUGHT_FIRST, prompt_format, 50)
