"""A failed allocation is one line with what to do; other errors pass."""

from __future__ import annotations

import pytest
import torch

from nlicot.errors import ConfigError
from nlicot.model.fast.heap import memory_for


def test_failed_allocation_names_the_work_and_the_remedy() -> None:
    with (
        pytest.raises(ConfigError, match=r"^not enough memory for 5 rows; use 2$"),
        memory_for("5 rows", remedy=lambda: "use 2"),
    ):
        torch.empty(1 << 55)


def test_other_errors_of_torch_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="must match the size"),
        memory_for("5 rows", remedy=lambda: "use 2"),
    ):
        torch.ones(2) + torch.ones(3)
