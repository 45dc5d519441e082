"""The loss at supervised positions, split by the kind of token.

Only supervised positions reach the LM head, in chunks, so that no `[B, T, V]` array ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nlicot.evaluation.metrics import entails
from nlicot.model.encoding import TokenKind
from nlicot.model.fast import kernels
from nlicot.model.fast.attention import dummy_mask
from nlicot.model.loaded_model import causal_lm
from nlicot.prediction.decoding import choice_probabilities
from nlicot.settings import SegmentWeights
from nlicot.training.windows import MicroBatch

CHUNK_LOGITS = 8 * 2**20
"""Logits computed at once; 2^23 float32 are 32 MB."""


def weights_by_kind(weights: SegmentWeights, progress: float = 1.0) -> Tensor:
    """Return the weights as a `[K]` tensor, by `TokenKind`; those that are not supervised have weight 0.

    Args:
        weights: the settings.
        progress: 0 in the first step of training, 1 in the last one and in evaluations, whose losses could
            not be compared under weights that change.
    """
    thought_weight = weights.thought_weight
    if weights.final_thought_weight is not None:
        thought_weight = (1 - progress) * thought_weight + progress * weights.final_thought_weight
    weight_of = {
        TokenKind.SCAFFOLD: weights.scaffold_weight,
        TokenKind.THOUGHT: thought_weight,
        TokenKind.LABEL: weights.label_weight,
        TokenKind.DRAFT: weights.label_weight,
    }
    return torch.tensor([weight_of.get(kind, 0.0) for kind in TokenKind])


def token_losses(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return the supervised tokens' negative log-likelihoods `[S]` in nats and hidden states `[S, H]`."""
    output = causal_lm(model).model(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=dummy_mask(batch.input_ids.device),
        use_cache=False,
        spans=batch.spans,
    )
    hidden: Tensor = output.last_hidden_state[0].index_select(0, batch.positions)
    weight = causal_lm(model).lm_head.weight
    losses: Tensor = _TokenLosses.apply(hidden, weight, batch.targets)  # type: ignore[no-untyped-call]
    return losses, hidden


def training_losses(model: Any, batch: MicroBatch, label_ids: tuple[int, int]) -> Tensor:
    """Return the losses `[S]` to train on: those of `token_losses`, with soft labels their cross-entropy.

    With p of label 1, the logits z of both labels and the target t, -p log P(1) - (1 - p) log P(0) is
    -log P(t) + (t - p) (z1 - z0): the log-sum-exp over the vocabulary is that of the hard label.
    """
    losses, hidden = token_losses(model, batch)
    if batch.p_entailment is None:
        return losses
    places = torch.nonzero(batch.kinds == TokenKind.LABEL).squeeze(1)
    zero, one = causal_lm(model).lm_head.weight[list(label_ids)].float()
    # No matrix product, because autocast would round its factors.
    log_odds = (hidden[places].float() * (one - zero)).sum(-1)
    target = (batch.targets[places] == label_ids[1]).float()
    return losses.index_add(0, places, (target - batch.p_entailment[batch.rows[places]]) * log_odds)


class _TokenLosses(Function):
    """Cross-entropy after a frozen LM head, in chunks.

    A token's gradient is known up to the upstream factor, so it is computed with the loss and no logits are
    kept for the backward pass, only `[S, H]`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        states = hidden.to(weight.dtype)
        gradients = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        size = max(1, CHUNK_LOGITS // weight.shape[0])
        for start in range(0, len(hidden), size):
            # The last chunk overlaps the one before it: oneDNN would keep kernels for each other length.
            start = max(0, min(start, len(hidden) - size))
            part = slice(start, start + size)
            logits = states[part] @ weight.t()
            losses[part], sums = kernels.negative_log_likelihoods(logits, targets[part])
            if gradients is not None:
                gradients[part] = kernels.logits_gradient(logits, targets[part], sums) @ weight
        ctx.save_for_backward(gradients)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gradients,) = ctx.saved_tensors
        return (gradients * grad[:, None]).to(ctx.dtype), None, None


def num_right_labels(model: Any, batch: MicroBatch, hidden: Tensor, label_ids: tuple[int, int]) -> int:
    """Count the examples whose label the model prefers to the other one, given the true thought."""
    is_label = batch.kinds == TokenKind.LABEL
    p_entailment = choice_probabilities(causal_lm(model).lm_head, hidden[is_label], label_ids)[:, 1]
    return int((entails(p_entailment) == (batch.targets[is_label] == label_ids[1])).sum())


def sum_by_kind(losses: Tensor, kinds: Tensor) -> Tensor:
    """Sum the losses by `TokenKind`: `[K]`."""
    sums = torch.zeros(len(TokenKind), dtype=torch.float64, device=losses.device)
    return sums.index_add(0, kinds, losses.detach().double())
