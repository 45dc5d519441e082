"""Sums over the ranks of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def add_up_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """One sum over ranks for all gradients; a rank without a share of the window adds zeros."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        parameter.grad = part.view_as(parameter)


def sum_over_ranks(values: Tensor, device: torch.device) -> None:
    """Sum values over ranks in place; the collective runs on `device`."""
    moved = values.to(device)
    dist.all_reduce(moved)
    values.copy_(moved)
