"""The loss of supervised positions, split by what they are.

Only supervised positions reach the LM head, in chunks, so that no `[B, T, V]` array ever exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nlicot.model.encoding import TokenKind
from nlicot.model.lora import causal_lm
from nlicot.training.batches import MicroBatch

CHUNK_LOGITS = 64 * 2**20
"""Logits computed at once; 2^26 float32 are 256 MB."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class SegmentWeights:
    """How much a token of each segment weighs; all 1 is the plain token mean."""

    thought_weight: float = 1.0
    scaffold_weight: float = 1.0
    label_weight: float = 1.0

    def by_kind(self) -> Tensor:
        """`[4]`, by `TokenKind`."""
        return torch.tensor([0.0, self.scaffold_weight, self.thought_weight, self.label_weight])


def lm_head(model: Any) -> Any:
    """The matrix from hidden states to logits."""
    return causal_lm(model).lm_head


def hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """`[S, H]`: the last hidden state wherever a supervised token is predicted."""
    output = causal_lm(model).model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    selected: Tensor = output.flatten(0, 1).index_select(0, batch.positions)
    return selected


def token_losses(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """`[S]` float32 negative log-likelihoods of the supervised tokens, in nats, and their hidden states."""
    hidden = hidden_states(model, batch)
    head = lm_head(model)

    def chunk_losses(states: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), targets, reduction="none")

    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    losses = []
    for states, targets in zip(torch.split(hidden, size), torch.split(batch.targets, size), strict=True):
        if states.requires_grad and len(hidden) > size:
            losses.append(checkpoint(chunk_losses, states, targets, use_reentrant=False))
        else:
            losses.append(chunk_losses(states, targets))
    return torch.cat(losses), hidden


def num_right_labels(model: Any, batch: MicroBatch, hidden: Tensor, label_ids: tuple[int, int]) -> int:
    """How many labels of the batch the model prefers over the other one, given the true thought."""
    where = batch.kinds == TokenKind.LABEL
    logits = lm_head(model)(hidden[where])[:, list(label_ids)]
    return int((logits.argmax(-1) == (batch.targets[where] == label_ids[1]).long()).sum())


def sum_by_kind(losses: Tensor, kinds: Tensor) -> Tensor:
    """`[4]`: the losses summed by `TokenKind`."""
    sums = torch.zeros(len(TokenKind), dtype=torch.float64, device=losses.device)
    return sums.index_add(0, kinds, losses.detach().double())
