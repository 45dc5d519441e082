"""Every example once an epoch, in windows of the effective batch, whatever the budget and the ranks."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from nlicot.completion import Form, render
from nlicot.model.base_model import resolve
from nlicot.model.encoding import TokenKind, encode_dataset
from nlicot.model.prompt_format import load_prompt_format
from nlicot.records import TrainingExample
from nlicot.training.windows import WindowDataset, WindowSampler, cut_by_tokens, variants_by_slot
from tests.small_model import write_small_model

SEED = 3


def _sampler(num_examples: int = 22, *, shuffle: bool = True, seed: int = SEED) -> WindowSampler:
    slots = [[index] for index in range(num_examples)]
    return WindowSampler(slots, window_size=4, seed=seed, shuffle=shuffle)


def _epoch(sampler: WindowSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("num_examples", [1, 3, 4, 5, 22, 64])
def test_windows_cover_each_epoch_exactly_once(num_examples: int) -> None:
    sampler = _sampler(num_examples)
    for epoch in range(3):
        windows = _epoch(sampler, epoch)
        assert sorted(index for window in windows for index in window) == list(range(num_examples))
        assert len(windows) == len(sampler)
        assert all(len(window) == 4 for window in windows[:-1])


def test_epochs_differ_and_the_same_seed_gives_the_same_epochs() -> None:
    first, second = _sampler(), _sampler()
    epochs = [_epoch(first, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [_epoch(second, epoch) for epoch in range(3)] == epochs
    assert _epoch(_sampler(seed=SEED + 1), 0) != epochs[0]


def test_order_of_the_data_set_stays_where_nothing_is_shuffled() -> None:
    assert _epoch(_sampler(6, shuffle=False), 1) == [[0, 1, 2, 3], [4, 5]]


def test_resumed_epoch_goes_on_behind_its_windows_and_later_epochs_are_whole() -> None:
    epochs = [_epoch(_sampler(), epoch) for epoch in range(3)]
    resumed = dataclasses.replace(_sampler(), resume_at=(1, 2))
    assert _epoch(resumed, 1) == epochs[1][2:]
    assert _epoch(resumed, 2) == epochs[2]
    assert _epoch(resumed, 0) == epochs[0]


def _varied(*nums: int) -> list[list[int]]:
    """Slots with these numbers of variants, numbered through."""
    ends = list(itertools.accumulate(nums))
    return [[*range(end - num, end)] for end, num in zip(ends, nums, strict=True)]


def test_each_epoch_has_another_variant_of_each_example_and_comes_back_to_the_first() -> None:
    slots = _varied(3, 1, 2, 3, 1)
    sampler = WindowSampler(slots, window_size=2, seed=SEED, shuffle=True)
    epochs = [[index for window in _epoch(sampler, epoch) for index in window] for epoch in range(6)]
    for slot in slots:
        taken = [next(index for index in epoch if index in slot) for epoch in epochs]
        assert taken == (slot * 6)[:6]
    assert len(sampler) == 3
    assert all(len(epoch) == len(slots) for epoch in epochs)
    resumed = dataclasses.replace(sampler, resume_at=(4, 1))
    assert _epoch(resumed, 4) == _epoch(sampler, 4)[1:]
    fixed = dataclasses.replace(sampler, shuffle=False)
    assert _epoch(fixed, 0) == _epoch(fixed, 1) == [[0, 3], [4, 6], [9]]


def test_the_first_variant_depends_on_seed_and_pair_and_not_on_other_pairs() -> None:
    rows = [{"id": f"p{number // 3}", "slot": number // 3} for number in range(60)]

    def first_ones(rows: list[dict[str, Any]], seed: int) -> dict[str, int]:
        encoded = datasets.Dataset.from_list(rows)
        slots = variants_by_slot(encoded, seed)
        assert [sorted(slot) for slot in slots] == _varied(*[3] * (len(rows) // 3))
        return {rows[slot[0]]["id"]: slot[0] % 3 for slot in slots}

    found = first_ones(rows, seed=1)
    assert set(found.values()) == {0, 1, 2}
    assert first_ones(rows[30:], seed=1) == {id_: first for id_, first in found.items() if int(id_[1:]) > 9}
    assert first_ones(rows, seed=2) != found


def test_variants_that_are_too_long_leave_the_others_to_their_example(tmp_path: Path) -> None:
    texts = {"a": ["long " * 99, "A."], "b": ["B.", "long " * 99, "C."], "c": ["long " * 99]}
    examples = [
        TrainingExample(
            id=id_, prompt="?", completion=render(text, 1), label=1, source="thought", variant=number
        )
        for id_, of_pair in texts.items()
        for number, text in enumerate(of_pair)
    ]
    prompt_format = load_prompt_format(resolve("bundled").folder)
    options: dict[str, Any] = {"max_length": 90, "over_budget": "drop", "cache": tmp_path}
    encoded, _ = encode_dataset(prompt_format, examples, **options)
    assert list(encoded["id"]) == ["a", "b", "b"]
    assert [sorted(slot) for slot in variants_by_slot(encoded, 0)] == [[0], [1, 2]]


@pytest.mark.parametrize("budget", [1, 40, 100, 300, 10_000])
def test_runs_stay_within_the_token_budget_unless_one_example_alone_exceeds_it(budget: int) -> None:
    lengths = random.Random(0).choices(range(5, 90), k=50)
    indices = random.Random(1).sample(range(50), 30)
    runs = cut_by_tokens(lengths, indices, budget, prefix_len=4)
    assert sorted(index for run in runs for index in run) == sorted(indices)
    for run in runs:
        assert len(run) == 1 or 4 + sum(lengths[index] - 4 for index in run) <= budget
    cut = [lengths[index] for run in runs for index in run]
    assert cut == sorted(cut, reverse=True)


# --------------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nine examples of different lengths; of those with a draft every other one learns it."""
    examples = [
        TrainingExample(
            id=f"e{index}",
            prompt="Does it hold?" + " Really?" * index,
            completion=render(
                "So it is. " * (9 - index),
                index % 2,
                Form.THOUGHT_FIRST if index % 3 else Form.DRAFT_FIRST,
            ),
            label=index % 2,
            source="thought",
            learns_draft=index % 2 == 0,
        )
        for index in range(9)
    ]
    prompt_format = load_prompt_format(resolve("bundled").folder)
    built, _ = encode_dataset(
        prompt_format, examples, max_length=500, over_budget="cut", cache=tmp_path_factory.mktemp("cache")
    )
    return built


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 200, 10_000])
def test_ranks_share_a_window_without_repeats(encoded: Any, world_size: int, budget: int) -> None:
    indices = [8, 1, 5, 0, 7]
    shares = [
        WindowDataset(encoded, token_budget=budget, rank=rank, world_size=world_size)[indices]
        for rank in range(world_size)
    ]
    found = [id_ for share in shares for id_ in share.ids]
    assert sorted(found) == sorted(f"e{index}" for index in indices)
    assert max(len(share.ids) for share in shares) - min(len(share.ids) for share in shares) <= 1
    for share in shares:
        assert share.labels == [int(id_[1:]) % 2 for id_ in share.ids]
        assert sum(map(len, share.micro_batches)) == len(share.ids)


def test_every_rank_knows_the_tokens_of_the_whole_window(encoded: Any) -> None:
    indices = [8, 1, 5]
    kinds = [kind for index in indices for kind in encoded[index]["kinds"]]
    expected = [kinds.count(kind) for kind in TokenKind]
    for rank in range(2):
        window = WindowDataset(encoded, token_budget=1, rank=rank, world_size=2)[indices]
        assert window.num_by_kind.tolist() == expected


def test_rank_without_a_share_gets_no_micro_batch(encoded: Any) -> None:
    window = WindowDataset(encoded, token_budget=100, rank=1, world_size=2)[[4]]
    assert (window.micro_batches, window.ids, window.labels) == ([], [], [])
    assert int(window.num_by_kind.sum()) == encoded[4]["length"]


@pytest.mark.parametrize(
    ("rows", "num_prompt", "prefix_len"),
    [
        ([[1, 2, 3], [1, 2, 3, 4], [1, 2, 9]], 2, 2),
        ([[1, 2, 3], [1, 2, 3, 4]], 2, 2),  # the third token is supervised
        ([[1, 2, 3, 4], [1, 2, 5, 4]], 3, 2),
        ([[1, 9], [2, 9]], 1, 0),
        ([[1, 2, 3]], 2, 0),
    ],
)
def test_prefix_is_that_of_all_prompts(rows: list[list[int]], num_prompt: int, prefix_len: int) -> None:
    encoded = datasets.Dataset.from_list(
        [
            {
                "id": str(index),
                "input_ids": ids,
                "kinds": [0] * num_prompt + [1] * (len(ids) - num_prompt),
                "label": 0,
                "p_entailment": None,
                "length": len(ids),
                "num_by_kind": [num_prompt, len(ids) - num_prompt, 0, 0, 0, 0],
            }
            for index, ids in enumerate(rows)
        ]
    )
    (batch,) = WindowDataset(encoded, token_budget=100)[[*range(len(rows))]].micro_batches
    assert batch.spans.prefix_len == prefix_len
    for sharing in (batch, *WindowDataset(encoded, token_budget=1)[[*range(len(rows))]].micro_batches):
        assert sharing.spans.prefix_len == prefix_len


@pytest.mark.parametrize("share_prefix", [True, False])
def test_micro_batches_hold_each_example_as_it_was_encoded(encoded: Any, share_prefix: bool) -> None:
    windows = WindowDataset(encoded, token_budget=150, share_prefix=share_prefix)
    window = windows[[0, 3, 6, 8]]
    by_id = {row["id"]: row for row in encoded}
    rows = [(batch, row) for batch in window.micro_batches for row in range(len(batch))]
    assert len(window.micro_batches) > 1
    for id_, (batch, row) in zip(window.ids, rows, strict=True):
        ids = torch.tensor(by_id[id_]["input_ids"])
        kinds = torch.tensor(by_id[id_]["kinds"])
        start, end, shared = batch.spans.blocks[row + bool(batch.spans.prefix_len)]
        assert torch.cat([batch.input_ids[:shared], batch.input_ids[start:end]]).equal(ids)
        assert batch.position_ids[start:end].tolist() == list(range(shared, len(ids)))
        mine = batch.rows == row
        learnt = (kinds != TokenKind.PROMPT) & (kinds != TokenKind.MASKED_DRAFT)
        assert batch.targets[mine].equal(ids[learnt])
        assert batch.kinds[mine].equal(kinds[learnt])
        # a token is predicted from the one before it
        before = torch.nonzero(learnt).squeeze(1) - 1
        assert batch.input_ids[batch.positions[mine]].equal(ids[before])


def test_training_loop_walks_each_epoch_in_its_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning tells a loader's `sampler` which epoch begins, but no `batch_sampler`."""
    from lightning.pytorch import Callback, Trainer

    from nlicot.settings import DataSettings, LoraSettings, ModelSettings
    from tests.small_model import small_training

    seen: list[tuple[str, ...]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(tuple(sorted(batch.ids)))

    base = str(
        write_small_model(tmp_path / "base")
    )  # first: in an empty cache it would unpack the bundled model
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path / "cache"))
    module, data = small_training(
        ModelSettings(base=base, quantization="none", dtype="float32", lora=LoraSettings(r=2)),
        DataSettings(limit_train=7, limit_dev=2, effective_batch=3),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[Watch()],
    )
    trainer.fit(module, data)
    first, second = seen[:3], seen[3:]
    assert [len(window) for window in first] == [len(window) for window in second] == [3, 3, 1]
    assert first != second
    ids = sorted(example.id for example in data.data.pairs["train"])
    assert sorted(sum(first, ())) == sorted(sum(second, ())) == ids
