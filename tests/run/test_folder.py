"""A checkpoint's metadata: what it says about older versions, and which differences are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nlicot.completion import Form
from nlicot.errors import CheckpointError
from nlicot.model.loaded_model import resolve_model
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.run.folder import METADATA_KEY, CheckpointMetadata
from nlicot.settings import ModelSettings


@pytest.fixture(scope="module")
def metadata() -> CheckpointMetadata:
    """Metadata of the bundled model, which is found and not loaded."""
    resolved = resolve_model(ModelSettings(base="bundled"), on_sample=True)
    return CheckpointMetadata.of(resolved, StudentPrompts(), {Form.THOUGHT_FIRST})


def read(entry: dict[str, Any]) -> CheckpointMetadata:
    return CheckpointMetadata.from_checkpoint({METADATA_KEY: entry}, label="best.ckpt")


def test_forms_come_back_from_a_checkpoint(metadata: CheckpointMetadata) -> None:
    found = read({**metadata.to_dict(), "forms": ["label_only", "thought_first"]})
    assert found.forms == {Form.LABEL_ONLY, Form.THOUGHT_FIRST}
    found.check(metadata)
    assert read(metadata.to_dict()) == metadata


def test_checkpoint_of_an_older_version_says_whether_it_thinks(metadata: CheckpointMetadata) -> None:
    entry = metadata.to_dict()
    del entry["forms"], entry["prompts"]["label_first"]
    assert read({**entry, "thinks": False}).forms == {Form.LABEL_ONLY}
    assert read({**entry, "thinks": True}).forms == {Form.THOUGHT_FIRST}
    read({**entry, "thinks": False}).check(metadata)


def test_other_definitions_are_refused_with_both_values(metadata: CheckpointMetadata) -> None:
    prompts = StudentPrompts(definitions=LabelDefinitions(entailment="it fits"))
    here = dataclasses.replace(metadata, prompts=prompts.to_dict())
    with pytest.raises(
        CheckpointError, match=r"definitions: here .*it fits.*, in the checkpoint .*it follows"
    ) as refused:
        metadata.check(here)
    assert "thinking:" not in str(refused.value)


def test_another_base_or_tokenizer_is_refused_with_both_values(metadata: CheckpointMetadata) -> None:
    stored = read({**metadata.to_dict(), "base": "owner/other", "tokenizer_sha256": "0" * 64})
    with pytest.raises(
        CheckpointError, match="base: here 'bundled', in the checkpoint 'owner/other'"
    ) as refused:
        stored.check(metadata)
    assert f"in the checkpoint '{'0' * 64}'" in str(refused.value)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {METADATA_KEY: {"base": "bundled"}}])
def test_a_checkpoint_of_another_program_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^best.ckpt: not a checkpoint of nlicot"):
        CheckpointMetadata.from_checkpoint(content, label="best.ckpt")
