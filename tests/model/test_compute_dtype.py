"""bfloat16 where the machine multiplies it, else float32; Lightning computes in the same."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from nlicot.model.compute_dtype import compute_dtype
from nlicot.run.config import CommandLine
from nlicot.run.folder import RECIPE


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_what_is_asked_for_is_taken(name: str) -> None:
    assert compute_dtype(name) == name


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "arm_bf16", "expected"),
    [
        ("x86_64", True, False, False, "bfloat16"),
        ("x86_64", False, True, False, "bfloat16"),
        # AVX512 alone: torch says that it supports bfloat16, and converts.
        ("x86_64", False, False, True, "float32"),
        ("aarch64", False, False, True, "bfloat16"),
        ("aarch64", False, False, False, "float32"),
    ],
)
def test_auto_follows_the_processor(
    machine: str, avx512_bf16: bool, amx: bool, arm_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: arm_bf16, raising=False)
    assert compute_dtype() == expected


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (["--model.dtype=float32"], "32-true"),
        (["--model.dtype=bfloat16"], "bf16-mixed"),
        (["--model.dtype=bfloat16", "--trainer.precision=32-true"], "32-true"),
    ],
)
def test_the_trainer_follows_unless_it_is_told_otherwise(
    flags: list[str], precision: str, tmp_path: Path
) -> None:
    cli = CommandLine("fit", [*flags, "--trainer.accelerator=cpu"], RECIPE)
    assert cli.make_trainer(logger=False, default_root_dir=str(tmp_path)).precision == precision
