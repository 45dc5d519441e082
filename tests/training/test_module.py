"""What the module refuses to decode with."""

from __future__ import annotations

import dataclasses

import pytest

from nlicot.completion import Form
from nlicot.errors import CheckpointError
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.training.module import CHECKPOINT_KEY, ThoughtTuner


@pytest.fixture
def tuner() -> ThoughtTuner:
    """A module that knows its base and has not loaded it."""
    found = ThoughtTuner(base="bundled")
    found.resolve_base(on_sample=True)
    return found


def entry_of(tuner: ThoughtTuner) -> dict[str, object]:
    checkpoint: dict[str, dict[str, object]] = {}
    tuner.on_save_checkpoint(checkpoint)
    return checkpoint[CHECKPOINT_KEY]


def test_an_entry_of_the_same_making_decides_whether_to_think(tuner: ThoughtTuner) -> None:
    tuner.take_over({**entry_of(tuner), "forms": ["label_only", "thought_first"]})
    assert tuner.forms == {Form.LABEL_ONLY, Form.THOUGHT_FIRST}


def test_checkpoint_of_an_older_version_says_whether_it_thinks(tuner: ThoughtTuner) -> None:
    entry = entry_of(tuner)
    del entry["forms"], entry["prompts"]["label_first"]
    tuner.take_over({**entry, "thinks": False})
    assert tuner.forms == {Form.LABEL_ONLY}


def test_other_definitions_are_refused_with_both_values(tuner: ThoughtTuner) -> None:
    stored = entry_of(tuner)
    tuner.prompts = dataclasses.replace(StudentPrompts(), definitions=LabelDefinitions(entailment="it fits"))
    with pytest.raises(
        CheckpointError, match=r"definitions: found .*it fits.*, expected .*it follows"
    ) as refused:
        tuner.take_over(stored)
    assert "thinking:" not in str(refused.value)


def test_another_base_or_tokenizer_is_refused_with_both_values(tuner: ThoughtTuner) -> None:
    stored = {**entry_of(tuner), "base": "owner/other", "tokenizer_sha256": "0" * 64}
    with pytest.raises(CheckpointError, match="base: found 'bundled', expected 'owner/other'") as refused:
        tuner.take_over(stored)
    assert f"expected '{'0' * 64}'" in str(refused.value)


def test_a_checkpoint_of_another_program_is_refused(tuner: ThoughtTuner) -> None:
    with pytest.raises(CheckpointError, match="found no nlicot entry"):
        tuner.on_load_checkpoint({"state_dict": {}})
