"""The adapter's gradients: zeros to begin with, and their sum over the ranks of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import Parameter


def clear_gradients(parameters: list[Parameter]) -> None:
    """Zeros to add to.

    Made before the activations: among them, they would break the memory that these leave into pieces.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()


def add_up_gradients(parameters: list[Parameter]) -> None:
    """One sum over ranks for all gradients; those of `clear_gradients` are never None."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        parameter.grad = part.view_as(parameter)
