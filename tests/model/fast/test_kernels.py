"""Kernels compute the same compiled and eagerly; dropout drops with its probability."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from nlicot.model.fast import kernels
from nlicot.model.fast.kernels import Dropout, seed_dropout

ROWS, WIDTH, VOCABULARY = 37, 24, 101


def _arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(0)

    def array(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    x, weight = array(ROWS, WIDTH), array(WIDTH)
    scale = torch.rand(ROWS, 1) + 0.5
    logits, targets = array(ROWS, VOCABULARY), torch.randint(VOCABULARY, (ROWS,))
    return {
        "rms_norm": (x, weight, 1e-5),
        "rms_norm_backward": (array(ROWS, WIDTH), x, scale, weight, array(ROWS, WIDTH)),
        "rotate": (array(ROWS, 3, 8), array(ROWS, 1, 8), array(ROWS, 8), array(ROWS, 8)),
        "rotate_backward": (array(ROWS, 3, 8), array(ROWS, 1, 8), array(ROWS, 8), array(ROWS, 8)),
        "gate": (array(ROWS, 2 * WIDTH),),
        "gate_backward": (array(ROWS, WIDTH), array(ROWS, 2 * WIDTH)),
        "dropout": (x, [12345, -678, 9, 10], 20_000, 3),
        "add_dropout": (array(ROWS, WIDTH), [x, 2 * x, 3 * x], [12345, -678, 9, 10], 20_000),
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
assert kernels.gate(torch.ones(2, 4)).shape == (2, 2)
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
        found = Dropout(p, 3).apply(ones)
        masks.append(found[0].bool())
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    for mask in masks:
        assert abs(float((~mask).float().mean()) - p) < 5 * deviation
    # Neither two micro-batches, nor two masks, nor two neighbours in a row or a column, are dropped together
    # more often.
    others = [each.bool() for each in found[1:]]
    pairs = [(0, masks[0], masks[2]), (1, masks[0], masks[0]), (401, masks[0], masks[0])]
    pairs += [(0, masks[2], others[0]), (0, masks[2], others[1]), (0, *others)]
    for distance, one, other in pairs:
        first, second = ~one.flatten(), (~other.flatten()).roll(distance)
        both = float((first & second).float().mean())
        assert both == pytest.approx(p**2, abs=5 * (p**2 / ones.numel()) ** 0.5)


@pytest.mark.usefixtures("compiled_or_eager")
def test_dropout_drops_the_same_entries_each_time() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.3, 3)
    masks = [each.bool() for each in dropout.apply(torch.ones(50, 60))]
    x = torch.randn(50, 60)
    kept = [torch.where(mask, x, 0) for mask in masks]
    assert all(torch.equal(*each) for each in zip(dropout.apply(x), kept, strict=True))
    torch.testing.assert_close(dropout.add_to(torch.ones(50, 60), [x, x, x]), 1 + sum(kept))
    assert all(torch.equal(each, x) for each in Dropout(0.0, 2).apply(x))
