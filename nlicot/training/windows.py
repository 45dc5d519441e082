"""From encoded examples to the windows that `fit` trains on, one per optimizer step.

An epoch is a seeded permutation cut into windows of the effective batch; of an example with variants (the
builder's `samples: all`), it has the next one. A window is sorted by length and cut into micro-batches by a
token budget; the loss is divided by the window's tokens, so the cut changes nothing but speed and memory.
"""

from __future__ import annotations

import itertools
import logging
import os.path
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nlicot.errors import ConfigError
from nlicot.model.base_model import cache_folder
from nlicot.model.encoding import UNSUPERVISED, TokenKind, encode_dataset
from nlicot.model.fast.attention import Spans
from nlicot.model.prompt_format import PromptFormat
from nlicot.run.data import RunData

logger = logging.getLogger(__name__)

ROW_MULTIPLE = 128
"""oneDNN keeps 25 MB of kernels for each number of tokens, so keep the number of distinct lengths small."""
PADDED_FROM = 4 * ROW_MULTIPLE
"""Shorter rows are not padded: padding would be a notable part of them."""


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """Examples that go through the model together, packed into one row (see `model.fast.attention`)."""

    input_ids: Tensor  # [N]: the common prefix once, then each example's suffix, then padding
    position_ids: Tensor  # [N]: each token's position in its own example
    spans: Spans  # lengths of the prefix, the suffixes and the padding
    positions: Tensor  # [S]: the position in the row at which a supervised token is predicted
    targets: Tensor  # [S]: that token
    kinds: Tensor  # [S]: its `TokenKind`
    rows: Tensor  # [S]: the index of its example
    p_entailment: Tensor | None  # [B]: soft labels, or the labels themselves; None if no label is soft

    def __post_init__(self) -> None:
        assert self.positions.shape == self.targets.shape == self.kinds.shape == self.rows.shape
        assert len(self.input_ids) == len(self.position_ids) == self.spans.num_tokens

    def __len__(self) -> int:
        return len(self.spans.suffix_lens)

    def to(self, device: torch.device | str, **options: Any) -> MicroBatch:
        """Copy to another device."""
        names = ("input_ids", "position_ids", "positions", "targets", "kinds", "rows", "p_entailment")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: tensor.to(device, **options) for name, tensor in tensors.items()})


def collate(rows: Sequence[dict[str, Any]], prefix_len: int) -> MicroBatch:
    """Pack encoded examples into one micro-batch that holds their common prefix once."""
    lengths = torch.tensor([len(row["input_ids"]) - prefix_len for row in rows])
    num_tokens = prefix_len + int(lengths.sum())
    padding = -num_tokens % ROW_MULTIPLE if num_tokens >= PADDED_FROM else 0
    spans = Spans(prefix_len=prefix_len, suffix_lens=tuple(lengths.tolist()), padding=padding)

    def packed(column: str) -> Tensor:
        suffixes = itertools.chain.from_iterable(row[column][prefix_len:] for row in rows)
        return torch.tensor([*rows[0][column][:prefix_len], *suffixes, *[0] * padding])

    input_ids, kinds = packed("input_ids"), packed("kinds")
    supervised = torch.nonzero(torch.isin(kinds, torch.tensor(UNSUPERVISED), invert=True)).squeeze(1)
    starts = prefix_len + lengths.cumsum(0) - lengths
    owners = torch.searchsorted(starts, supervised, right=True) - 1
    soft = [row["p_entailment"] for row in rows]
    return MicroBatch(
        input_ids=input_ids,
        position_ids=spans.position_ids(),
        spans=spans,
        # A token is predicted at the one before it: of a suffix's first token, the prefix's last.
        positions=torch.where(supervised == starts[owners], prefix_len - 1, supervised - 1),
        targets=input_ids[supervised],
        kinds=kinds[supervised],
        rows=owners,
        p_entailment=None
        if all(p is None for p in soft)
        else torch.tensor(
            [float(row["label"]) if p is None else p for row, p in zip(rows, soft, strict=True)]
        ),
    )


def placeholder() -> MicroBatch:
    """Return one token of which nothing is learned, for a rank that must run the model as often as others."""
    nothing = {"input_ids": [0], "kinds": [int(TokenKind.PROMPT)], "p_entailment": None}
    return collate([nothing], prefix_len=0)


def cut_by_tokens(
    lengths: Sequence[int], indices: Sequence[int], token_budget: int, *, prefix_len: int = 0
) -> list[list[int]]:
    """Sort `indices` by length, longest first, and cut them into as few runs as the token budget allows.

    The longest run, which decides the peak of memory, is as short as that number of runs allows. An
    example longer than the budget gets a run to itself. The examples' common prefix counts once per run.

    >>> cut_by_tokens([5, 3, 4, 9], [0, 1, 2, 3], token_budget=9)
    [[3], [0], [2, 1]]
    >>> cut_by_tokens([2] * 8, range(8), token_budget=10)
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    ordered = sorted(indices, key=lambda index: (-lengths[index], index))

    def cut(budget: int) -> list[list[int]]:
        runs: list[list[int]] = []
        left = 0
        for index in ordered:
            suffix_len = lengths[index] - prefix_len
            if runs and suffix_len <= left:
                runs[-1].append(index)
                left -= suffix_len
            else:
                runs.append([index])
                left = budget - lengths[index]
        return runs

    fewest = len(cut(token_budget))
    return cut(bisect_left(range(token_budget), True, key=lambda budget: len(cut(budget)) == fewest))


@dataclass(slots=True, kw_only=True)
class Window:
    """The examples of one optimizer step, or one batch of an evaluation."""

    micro_batches: list[MicroBatch]  # this rank's part
    num_by_kind: Tensor  # [K]: tokens by `TokenKind` in the whole window, over all ranks
    ids: list[str]  # of this rank's examples, in the order of the micro-batches' rows
    labels: list[int]

    def to(self, device: torch.device | str, **options: Any) -> Window:
        """Copy to another device; Lightning calls this."""
        return replace(self, micro_batches=[batch.to(device, **options) for batch in self.micro_batches])


@dataclass(eq=False)
class WindowDataset(Dataset[Window]):
    """Fetch a whole window of an encoded data set at once, this rank's part of it as tensors.

    Example i of a window, sorted by length, goes to rank i mod `world_size`.
    """

    encoded: Any  # from `encode_dataset`
    _: KW_ONLY
    token_budget: int  # maximum tokens of a micro-batch
    rank: int = 0
    world_size: int = 1
    share_prefix: bool = True

    def __post_init__(self) -> None:
        self.lengths: list[int] = list(self.encoded["length"])
        # A view, so that counting a window's tokens does not decode them.
        self._counts = self.encoded.select_columns("num_by_kind")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: list[int]) -> Window:
        """Fetch one window; a rank without examples gets no micro-batch."""
        ordered = sorted(indices, key=lambda index: (-self.lengths[index], index))
        mine = ordered[self.rank :: self.world_size]
        fetched = self.encoded.__getitems__(mine)
        prefix_len = 0
        if self.share_prefix and len(mine) > 1:  # of the prompts: supervised tokens are not shared
            common = os.path.commonprefix([row["input_ids"] for row in fetched])  # noqa: RUF071 (of ids)
            prefix_len = min(len(common), *(row["kinds"].count(TokenKind.PROMPT) for row in fetched))
        rows = dict(zip(mine, fetched, strict=True))
        runs = cut_by_tokens(self.lengths, mine, self.token_budget, prefix_len=prefix_len)
        return Window(
            micro_batches=[collate([rows[index] for index in run], prefix_len) for run in runs],
            num_by_kind=torch.tensor(self._counts[ordered]["num_by_kind"]).sum(dim=0),
            ids=[rows[index]["id"] for run in runs for index in run],
            labels=[rows[index]["label"] for run in runs for index in run],
        )


def variants_by_slot(encoded: Any, seed: int) -> list[list[int]]:
    """Return the indices of each example's variants, in the order in which epochs take them.

    The first one depends on the seed and the pair, so that an epoch has samples of all numbers.
    """
    numbers = list(encoded["slot"])
    slots = [list(same) for _, same in itertools.groupby(range(len(numbers)), key=numbers.__getitem__)]
    for slot in slots:
        if len(slot) > 1:
            first = random.Random(f"{seed}/{encoded[slot[0]]['id']}").randrange(len(slot))
            slot[:] = slot[first:] + slot[:first]
    return slots


@dataclass(eq=False)
class WindowSampler(Sampler[list[int]]):
    """Yield the indices of one window at a time; each epoch has its own permutation and the next variants."""

    slots: Sequence[Sequence[int]]  # from `variants_by_slot`; without variants, an index each
    _: KW_ONLY
    window_size: int
    seed: int
    shuffle: bool
    epoch: int = 0
    resume_at: tuple[int, int] = (0, 0)
    """An epoch of which the first windows are skipped, and how many."""

    def __len__(self) -> int:
        return -(-len(self.slots) // self.window_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order, turn = list(range(len(self.slots))), 0
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order, turn = torch.randperm(len(order), generator=generator).tolist(), self.epoch
        epoch, window = self.resume_at
        first = window if epoch == self.epoch else 0
        for start in range(first * self.window_size, len(order), self.window_size):
            slots = (self.slots[number] for number in order[start : start + self.window_size])
            yield [slot[turn % len(slot)] for slot in slots]


class PairsData(LightningDataModule):
    """The encoded training examples of a run; Lightning stores its state in checkpoints under this name."""

    def __init__(self, data: RunData, prompt_format: PromptFormat) -> None:
        super().__init__()
        self.data = data
        self.settings = data.settings
        self._resume_at = (0, 0)
        self._encoded: dict[str, Any] = {}
        max_length, over_budget = self.settings.max_length, self.settings.over_budget
        for split, built in data.built.items():
            self._encoded[split], report = encode_dataset(
                prompt_format, built, max_length=max_length, over_budget=over_budget, cache=cache_folder()
            )
            logger.info(
                f"{split}: {report.num_examples} examples, {report.num_tokens} tokens "
                f"({report.num_supervised} supervised, the longest example {report.longest}); over the "
                f"budget of {max_length}: {report.num_cut} cut at a sentence end, "
                f"{report.num_dropped} left out"
            )
            if not report.num_examples:
                raise ConfigError(f"--data.max_length {max_length}: too short for every example of {split}")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training: the epoch, and how many of its windows are done."""
        trainer: Any = self.trainer
        completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"epoch": trainer.current_epoch, "window": completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was written."""
        self._resume_at = (state_dict["epoch"], state_dict["window"])

    def train_dataloader(self) -> DataLoader[Window]:
        """Return windows, one per optimizer step."""
        return self._loader("train", self.sampler("train", shuffle=True, resume_at=self._resume_at))

    def val_dataloader(self) -> DataLoader[Window]:
        """Return windows of the dev examples."""
        return self._loader("dev", self.sampler("dev", shuffle=False))

    def sampler(self, split: str, **options: Any) -> WindowSampler:
        """Return the order of a split's examples, cut into windows."""
        size, seed = self.settings.effective_batch, self.data.seed
        slots = variants_by_slot(self._encoded[split], seed)
        return WindowSampler(slots, window_size=size, seed=seed, **options)

    def windows(self, split: str, **options: int) -> WindowDataset:
        """Return the encoded examples of a split, a window at a time."""
        options = {"token_budget": self.settings.micro_batch_tokens, **options}
        return WindowDataset(self._encoded[split], share_prefix=self.settings.share_prefix, **options)

    def _loader(self, split: str, sampler: WindowSampler) -> DataLoader[Any]:
        trainer: Any = self.trainer
        windows = self.windows(split, rank=trainer.global_rank, world_size=trainer.world_size)
        # As `sampler`, not `batch_sampler`: Lightning sets the epoch on the former only.
        return DataLoader(windows, batch_size=None, sampler=sampler)
