"""A run's folder and its checkpoints' metadata: older versions, refused differences, who may train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nlicot.completion import Form
from nlicot.errors import CheckpointError
from nlicot.model.loaded_model import resolve_model
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.run.folder import METADATA_KEY, CheckpointMetadata, hold_run, never_trained
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


# ------------------------------------------------------- the folder of a fit


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        hold_run(tmp_path, is_new=False),
        pytest.raises(CheckpointError, match=f"{tmp_path}: another process trains this run"),
        hold_run(tmp_path, is_new=False),
    ):
        raise AssertionError
    with hold_run(tmp_path, is_new=False):
        pass


@pytest.mark.parametrize(("is_new", "files", "remains"), [
    (True, ["config.yaml", "fit.json", "events.out.tfevents.1"], False),
    (True, ["config.yaml", "last.ckpt"], True),
    (False, ["config.yaml"], True),
])  # fmt: skip
def test_only_a_new_folder_without_a_saved_step_is_removed(
    is_new: bool, files: list[str], remains: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("")
    with pytest.raises(KeyboardInterrupt), hold_run(folder, is_new=is_new):
        raise KeyboardInterrupt
    assert folder.exists() == remains


def test_a_folder_of_something_else_was_trained_for_all_we_know(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert never_trained(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert not never_trained(tmp_path)
    assert not never_trained(tmp_path / "notes.txt")
