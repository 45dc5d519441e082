"""Sums over the ranks of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor, device: torch.device) -> None:
    """Sum values over ranks in place; the collective runs on `device`."""
    moved = values.to(device)
    dist.all_reduce(moved)
    values.copy_(moved)
