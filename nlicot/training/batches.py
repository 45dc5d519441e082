"""What training reads: micro-batches of token ids, and the window of them that makes one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlicot.model.encoding import TokenKind


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """Examples that go through the model together, padded on the right.

    Right padding needs no attention mask: under causal attention no real token sees what follows it.

    Attributes:
        input_ids: `[B, T]`.
        positions: `[S]`, where in the flattened `[B * T]` a supervised token is predicted.
        targets: `[S]`, that token.
        kinds: `[S]`, its `TokenKind`.
        rows: `[S]`, which example of the batch it belongs to.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    kinds: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        assert self.positions.shape == self.targets.shape == self.kinds.shape == self.rows.shape
        assert self.positions.numel() == 0 or int(self.positions.max()) < self.input_ids.numel()

    def to(self, device: torch.device | str, **options: Any) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(
            input_ids=self.input_ids.to(device, **options),
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


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> MicroBatch:
    """Encoded examples as one micro-batch."""
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    positions, targets, kinds, owners = [], [], [], []
    for index, row in enumerate(rows):
        ids = torch.as_tensor(row["input_ids"], dtype=torch.long)
        kind = torch.as_tensor(row["kinds"], dtype=torch.long)
        input_ids[index, : len(ids)] = ids
        supervised = torch.nonzero(kind != TokenKind.PROMPT).squeeze(1)
        # The token at t is predicted at t - 1; a prompt always stands before the first supervised one.
        positions.append(supervised - 1 + index * width)
        targets.append(ids[supervised])
        kinds.append(kind[supervised])
        owners.append(torch.full_like(supervised, index))
    return MicroBatch(
        input_ids=input_ids,
        positions=torch.cat(positions),
        targets=torch.cat(targets),
        kinds=torch.cat(kinds),
        rows=torch.cat(owners),
    )
