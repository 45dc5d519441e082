"""Micro-batches of token ids, and the window of them that makes one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlicot.model.encoding import TokenKind
from nlicot.model.fast.attention import Spans, common_prefix_len

LENGTH_MULTIPLE = 32
"""oneDNN keeps kernels for each number of tokens, so keep the number of distinct lengths small."""
PADDED_FROM = 16 * LENGTH_MULTIPLE
"""Shorter rows are not padded: padding would be a notable part of them."""


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """Examples that go through the model together, packed into one row (see `attention.spans`).

    Attributes:
        input_ids: `[N]`: the common prefix once, then each example's suffix, then padding.
        position_ids: `[N]`, each token's position in its own example.
        spans: lengths of the prefix, the suffixes and the padding.
        positions: `[S]`, the position in the row at which a supervised token is predicted.
        targets: `[S]`, that token.
        kinds: `[S]`, its `TokenKind`.
        rows: `[S]`, the index of its example.
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
        """Copy to another device."""
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
    """The examples of one optimizer step, or one batch of an evaluation.

    Attributes:
        micro_batches: this rank's part.
        num_by_kind: `[4]`, tokens by `TokenKind` in the whole window, over all ranks.
        ids: the ids of this rank's examples, in the order of the micro-batches' rows.
        labels: their labels.
    """

    micro_batches: list[MicroBatch]
    num_by_kind: Tensor
    ids: list[str]
    labels: list[int]

    def to(self, device: torch.device | str, **options: Any) -> Window:
        """Copy to another device; Lightning calls this."""
        return Window(
            micro_batches=[batch.to(device, **options) for batch in self.micro_batches],
            num_by_kind=self.num_by_kind,
            ids=self.ids,
            labels=self.labels,
        )


def shared_prefix_len(rows: Sequence[dict[str, Any]]) -> int:
    """Return the length of the examples' common prefix, without supervised tokens."""
    prompts = (_first_supervised(row) for row in rows)
    return common_prefix_len([row["input_ids"] for row in rows], min(prompts)) if len(rows) > 1 else 0


def _first_supervised(row: dict[str, Any]) -> int:
    return next(index for index, kind in enumerate(row["kinds"]) if kind != TokenKind.PROMPT)


def _num_padding(num_tokens: int) -> int:
    """Number of padding tokens that make a long row a multiple of `LENGTH_MULTIPLE`."""
    return -num_tokens % LENGTH_MULTIPLE if num_tokens >= PADDED_FROM else 0


def collate(rows: Sequence[dict[str, Any]], prefix_len: int) -> MicroBatch:
    """Pack encoded examples into one micro-batch that holds their common prefix once."""
    lengths = tuple(len(row["input_ids"]) - prefix_len for row in rows)
    spans = Spans(prefix_len=prefix_len, suffix_lens=lengths, padding=_num_padding(prefix_len + sum(lengths)))
    parts = [torch.as_tensor(rows[0]["input_ids"][:prefix_len], dtype=torch.long)]
    positions, targets, kinds, owners = [], [], [], []
    start = prefix_len
    for index, row in enumerate(rows):
        ids = torch.as_tensor(row["input_ids"], dtype=torch.long)
        kind = torch.as_tensor(row["kinds"], dtype=torch.long)
        parts.append(ids[prefix_len:])
        supervised = torch.nonzero(kind != TokenKind.PROMPT).squeeze(1)
        # The token at t is predicted at t - 1, which may be the prefix's last token.
        predicted_at = supervised - 1
        positions.append(
            torch.where(predicted_at < prefix_len, predicted_at, predicted_at - prefix_len + start)
        )
        targets.append(ids[supervised])
        kinds.append(kind[supervised])
        owners.append(torch.full_like(supervised, index))
        start += len(ids) - prefix_len
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
