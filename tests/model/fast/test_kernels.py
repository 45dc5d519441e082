"""Kernels compute the same compiled and eagerly; dropout drops with its probability."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nlicot.model.fast import kernels
from nlicot.model.fast.kernels import Dropout, seed_dropout

ROWS, WIDTH, VOCABULARY = 37, 24, 101


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    kernels.use_compiler(True)
    if not kernels.are_compiled():
        pytest.skip("torch.compile does not work here")
    yield
    kernels.use_compiler(False)


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def compiled_or_eager(request: pytest.FixtureRequest) -> None:
    if request.param:
        request.getfixturevalue("compiler")


def _arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(0)

    def array(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    x, weight = array(ROWS, WIDTH), array(WIDTH)
    scale = torch.rand(ROWS, 1) + 0.5
    logits, targets = array(ROWS, VOCABULARY), torch.randint(VOCABULARY, (ROWS,))
    return {
        "rms_norm": (x, weight, 1e-5),
        "rms_norm_backward": (array(ROWS, WIDTH), x, scale, weight),
        "gate": (x, array(ROWS, WIDTH)),
        "gate_backward": (array(ROWS, WIDTH), x, array(ROWS, WIDTH)),
        "dropout": (x, 12345, -678, 20_000),
        "add_dropout": (array(ROWS, WIDTH), x, 12345, -678, 20_000),
        "negative_log_likelihoods": (logits, targets),
        "logits_gradient": (logits, targets, logits.float().logsumexp(-1, keepdim=True)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(_arguments(torch.float32)))
@pytest.mark.usefixtures("compiler")
def test_a_compiled_kernel_matches_the_eager_function(name: str, dtype: torch.dtype) -> None:
    kernel = getattr(kernels, name)
    found = kernel(*_arguments(dtype)[name])
    eager = kernel.__wrapped__(*_arguments(dtype)[name])
    # In bfloat16 a compiled chain rounds once, at its end.
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("compiler")
def test_a_kernel_takes_any_number_of_tokens_without_recompiling() -> None:
    from torch._dynamo.utils import counters

    weight = torch.ones(WIDTH)
    for rows in (5, 9):
        kernels.rms_norm(torch.ones(rows, WIDTH), weight, 1e-5)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled
    for rows in range(10, 40):
        assert kernels.rms_norm(torch.ones(rows, WIDTH), weight, 1e-5)[0].shape == (rows, WIDTH)
    assert counters["stats"]["unique_graphs"] == compiled


def test_a_missing_compiler_is_reported_in_one_line() -> None:
    program = """
import logging, torch
logging.basicConfig()
from nlicot.model.fast import kernels
kernels.use_compiler(True)
assert not kernels.are_compiled()
assert kernels.gate(torch.ones(2), torch.ones(2)).shape == (2,)
"""
    environment = os.environ | {"CXX": "/nowhere/g++"}
    environment.pop("TORCHDYNAMO_DISABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "install g++" in done.stderr


# ------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.usefixtures("compiled_or_eager")
def test_dropout_has_its_probability_and_depends_only_on_the_seed(p: float) -> None:
    ones = torch.ones(300, 401)
    masks = []
    for micro_batch in (0, 0, 1):
        seed_dropout(7, 3, micro_batch, 0)
        masks.append(Dropout(p).apply(ones).bool())
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    for mask in masks:
        assert abs(float((~mask).float().mean()) - p) < 5 * deviation
    # Neither two micro-batches, nor two neighbours in a row or a column, are dropped together more often.
    for one, other in ((0, masks[2]), (1, masks[0]), (401, masks[0])):
        first, second = ~masks[0].flatten(), (~other.flatten()).roll(one)
        both = float((first & second).float().mean())
        assert both == pytest.approx(p**2, abs=5 * (p**2 / ones.numel()) ** 0.5)


@pytest.mark.usefixtures("compiled_or_eager")
def test_dropout_drops_the_same_entries_each_time() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.3)
    mask = dropout.apply(torch.ones(50, 60)).bool()
    x = torch.randn(50, 60)
    assert torch.equal(dropout.apply(x), torch.where(mask, x, 0))
    assert torch.equal(dropout.add_to(torch.ones(50, 60), x), 1 + torch.where(mask, x, 0))
    assert torch.equal(Dropout(0.0).apply(x), x)
