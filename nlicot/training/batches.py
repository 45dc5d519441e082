"""What training reads: micro-batches of token ids, and the window of them that makes one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlicot.model.encoding import TokenKind
from nlicot.model.fast.attention.spans import Spans, common_prefix_len

ROW_STEP = 32
"""Kernels are prepared, and kept, for each number of tokens; so there shall not be many such numbers."""
FILLED_FROM = 16 * ROW_STEP
"""A shorter row is left as it is: a filler would be a notable share of it."""


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """Examples that go through the model together, in one row without padding (see `attention.spans`).

    Attributes:
        input_ids: `[N]`: what all examples begin with, once, then the rest of each, then a filler.
        position_ids: `[N]`, each token's place in its own example.
        spans: where the examples lie.
        positions: `[S]`, where in the row a supervised token is predicted.
        targets: `[S]`, that token.
        kinds: `[S]`, its `TokenKind`.
        rows: `[S]`, which example it belongs to.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: Spans
    positions: Tensor
    targets: Tensor
    kinds: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        assert self.positions.shape == self.targets.shape == self.kinds.shape == self.rows.shape
        assert len(self.input_ids) == len(self.position_ids) == self.spans.num_tokens

    def __len__(self) -> int:
        return len(self.spans.suffix_lens)

    def to(self, device: torch.device | str, **options: Any) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(
            input_ids=self.input_ids.to(device, **options),
            position_ids=self.position_ids.to(device, **options),
            spans=self.spans,
            positions=self.positions.to(device, **options),
            targets=self.targets.to(device, **options),
            kinds=self.kinds.to(device, **options),
            rows=self.rows.to(device, **options),
        )


@dataclass(slots=True, kw_only=True)
class Window:
    """The examples of one optimizer step, or of one stretch of an evaluation.

    Attributes:
        micro_batches: this rank's share.
        num_by_kind: `[4]`, tokens by `TokenKind` in the whole window, over all ranks.
        ids: the ids of this rank's examples, in the order of the micro-batches' rows.
        labels: their labels.
    """

    micro_batches: list[MicroBatch]
    num_by_kind: Tensor
    ids: list[str]
    labels: list[int]

    def to(self, device: torch.device | str, **options: Any) -> Window:
        """The same on another device; Lightning calls this."""
        return Window(
            micro_batches=[batch.to(device, **options) for batch in self.micro_batches],
            num_by_kind=self.num_by_kind,
            ids=self.ids,
            labels=self.labels,
        )


def shared_beginning(rows: Sequence[dict[str, Any]]) -> int:
    """How many tokens the examples begin with alike, no supervised one among them."""
    prompts = (_first_supervised(row) for row in rows)
    return common_prefix_len([row["input_ids"] for row in rows], min(prompts)) if len(rows) > 1 else 0


def _first_supervised(row: dict[str, Any]) -> int:
    return next(index for index, kind in enumerate(row["kinds"]) if kind != TokenKind.PROMPT)


def _filler(num_tokens: int) -> int:
    """Tokens that make a long row a multiple of `ROW_STEP`."""
    return -num_tokens % ROW_STEP if num_tokens >= FILLED_FROM else 0


def collate(rows: Sequence[dict[str, Any]], shared: int) -> MicroBatch:
    """Encoded examples as one micro-batch, which holds the `shared` tokens that all begin with once."""
    lengths = tuple(len(row["input_ids"]) - shared for row in rows)
    spans = Spans(prefix_len=shared, suffix_lens=lengths, padding=_filler(shared + sum(lengths)))
    parts = [torch.as_tensor(rows[0]["input_ids"][:shared], dtype=torch.long)]
    positions, targets, kinds, owners = [], [], [], []
    start = shared
    for index, row in enumerate(rows):
        ids = torch.as_tensor(row["input_ids"], dtype=torch.long)
        kind = torch.as_tensor(row["kinds"], dtype=torch.long)
        parts.append(ids[shared:])
        supervised = torch.nonzero(kind != TokenKind.PROMPT).squeeze(1)
        # The token at t is predicted at t - 1, which may be the last of the shared ones.
        predicted_at = supervised - 1
        positions.append(torch.where(predicted_at < shared, predicted_at, predicted_at - shared + start))
        targets.append(ids[supervised])
        kinds.append(kind[supervised])
        owners.append(torch.full_like(supervised, index))
        start += len(ids) - shared
    parts.append(torch.zeros(spans.padding, dtype=torch.long))
    return MicroBatch(
        input_ids=torch.cat(parts),
        position_ids=spans.position_ids(),
        spans=spans,
        positions=torch.cat(positions),
        targets=torch.cat(targets),
        kinds=torch.cat(kinds),
        rows=torch.cat(owners),
    )
