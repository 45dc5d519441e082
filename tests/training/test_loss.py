"""The loss of a window is exact: the same whatever the micro-batches, and as the plain formula says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from nlicot.completion import Form, render
from nlicot.model import loaded_model
from nlicot.model.base_model import resolve
from nlicot.model.encoding import TokenKind, encode_dataset
from nlicot.model.fast.patch import patch_layers
from nlicot.model.loaded_model import adapter_parameters, attach, load_base
from nlicot.model.prompt_format import load_prompt_format
from nlicot.records import TrainingExample
from nlicot.settings import LoraSettings, SegmentWeights
from nlicot.training import loss as loss_module
from nlicot.training.loss import (
    num_right_labels,
    sum_by_kind,
    token_losses,
    training_losses,
    weights_by_kind,
)
from nlicot.training.windows import Window, WindowDataset
from tests.small_model import write_small_model

PLAIN = SegmentWeights()
NUM_EXAMPLES = 16


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def encoded(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sixteen examples of different lengths; six have drafts, three of which are only read."""
    examples = [
        TrainingExample(
            id=f"e{index}",
            prompt=f"Premise: {index} birds sing." + " They sing on." * (index % 5),
            completion=render(
                "The birds sing. " * (1 + index * 7 % 11) + 'So "yes".',
                index % 2,
                Form.THOUGHT_FIRST if index % 3 else Form.DRAFT_FIRST,
            ),
            label=index % 2,
            source="thought",
            learns_draft=index % 2 == 0,
        )
        for index in range(NUM_EXAMPLES)
    ]
    built, report = encode_dataset(
        load_prompt_format(small_model),
        examples,
        max_length=500,
        over_budget="drop",
        cache=tmp_path_factory.mktemp("cache"),
    )
    assert report.num_examples == NUM_EXAMPLES
    return built


@pytest.fixture(scope="module")
def adapted(small_model: Path) -> Any:
    """The small model in float32 with an adapter that does something and drops nothing."""
    resolved = resolve(str(small_model))
    base = load_base(resolved, quantization="none", dtype="float32", for_training=True)
    model = attach(base, LoraSettings(r=4, alpha=8, dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in adapter_parameters(model).items():
        if "lora_B" in name:  # zero in a fresh adapter, which would leave lora_A without gradients
            weight.data.normal_(0, 0.05, generator=generator)
    patch_layers(model)
    return model.train()


def _window(encoded: Any, token_budget: int) -> Window:
    return WindowDataset(encoded, token_budget=token_budget)[list(range(NUM_EXAMPLES))]


def _gradients(model: Any, window: Window, weights: SegmentWeights = PLAIN) -> dict[str, torch.Tensor]:
    """As `NliModule.training_step` takes them."""
    model.zero_grad(set_to_none=True)
    total = (window.num_by_kind * weights_by_kind(weights)).sum()
    for batch in window.micro_batches:
        losses, _ = token_losses(model, batch)
        ((losses * weights_by_kind(weights)[batch.kinds]).sum() / total).backward()
    return {name: weight.grad.clone() for name, weight in adapter_parameters(model).items()}


def test_gradients_are_the_same_for_1x16_2x8_and_16x1(adapted: Any, encoded: Any) -> None:
    windows = [_window(encoded, budget) for budget in (10_000, 700, 1)]
    sizes = [[len(batch) for batch in window.micro_batches] for window in windows]
    assert sizes[0] == [16]
    assert 1 < len(sizes[1]) < 16
    assert sizes[2] == [1] * 16
    assert windows[0].micro_batches[0].spans.prefix_len > 10
    apart = WindowDataset(encoded, token_budget=700, share_prefix=False)[list(range(NUM_EXAMPLES))]
    assert all(batch.spans.prefix_len == 0 for batch in apart.micro_batches)
    whole, *others = (_gradients(adapted, window) for window in [*windows, apart])
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for other in others:
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=1e-5, msg=name)


def _reference(model: Any, encoded: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and kinds of all supervised tokens, from full logits of one example after another."""
    losses, kinds = [], []
    for row in encoded:
        ids = torch.tensor([row["input_ids"]])
        kind = torch.tensor(row["kinds"])
        logits = model(input_ids=ids).logits[0, :-1]
        supervised = (kind[1:] != TokenKind.PROMPT) & (kind[1:] != TokenKind.MASKED_DRAFT)
        losses.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none")[supervised])
        kinds.append(kind[1:][supervised])
    return torch.cat(losses), torch.cat(kinds)


@pytest.mark.parametrize("token_budget", [1, 600, 10_000])
def test_loss_by_segment_is_that_of_full_logits(adapted: Any, encoded: Any, token_budget: int) -> None:
    sums = torch.zeros(len(TokenKind), dtype=torch.float64)
    window = _window(encoded, token_budget)
    with torch.no_grad():
        for batch in window.micro_batches:
            sums += sum_by_kind(token_losses(adapted, batch)[0], batch.kinds)
        losses, kinds = _reference(adapted, encoded)
    for kind in (TokenKind.SCAFFOLD, TokenKind.THOUGHT, TokenKind.LABEL, TokenKind.DRAFT):
        where = kinds == kind
        assert int(window.num_by_kind[kind]) == int(where.sum())
        assert float(sums[kind] / where.sum()) == pytest.approx(float(losses[where].mean()), abs=1e-5)
    assert float(sums[TokenKind.PROMPT]) == float(sums[TokenKind.MASKED_DRAFT]) == 0.0
    drafts = [int(window.num_by_kind[kind]) for kind in (TokenKind.DRAFT, TokenKind.MASKED_DRAFT)]
    assert (int(window.num_by_kind[TokenKind.LABEL]), drafts) == (NUM_EXAMPLES, [3, 3])


def test_chunks_of_the_head_change_nothing(
    adapted: Any, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _gradients(adapted, _window(encoded, 10_000))
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 49152 * 100)
    for name, gradient in _gradients(adapted, _window(encoded, 10_000)).items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-6, msg=name)


def test_segment_weights_weigh_numerator_and_denominator(adapted: Any, encoded: Any) -> None:
    weights = SegmentWeights(thought_weight=0.5, scaffold_weight=0.0, label_weight=20.0)
    found = _gradients(adapted, _window(encoded, 600), weights)

    adapted.zero_grad(set_to_none=True)
    losses, kinds = _reference(adapted, encoded)
    thought, label = kinds == TokenKind.THOUGHT, (kinds == TokenKind.LABEL) | (kinds == TokenKind.DRAFT)
    mean = (0.5 * losses[thought].sum() + 20 * losses[label].sum()) / (0.5 * thought.sum() + 20 * label.sum())
    mean.backward()
    for name, weight in adapter_parameters(adapted).items():
        torch.testing.assert_close(found[name], weight.grad, rtol=0, atol=1e-5, msg=name)
    plain = _gradients(adapted, _window(encoded, 600))
    assert any((found[name] - plain[name]).abs().max() > 1e-3 for name in plain)


def test_right_labels_are_those_preferred_under_the_true_thought(adapted: Any, encoded: Any) -> None:
    prompt_format = load_prompt_format(resolve("bundled").folder)
    zero, one = (prompt_format.encode_segment(digit, first=False)[0] for digit in "01")
    found = expected = 0
    with torch.no_grad():
        for batch in _window(encoded, 600).micro_batches:
            _, hidden = token_losses(adapted, batch)
            found += num_right_labels(adapted, batch, hidden, (zero, one))
        for row in encoded:
            logits = adapted(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            place = row["kinds"].index(TokenKind.LABEL)
            expected += int(logits[place - 1, one] > logits[place - 1, zero]) == row["label"]
    assert found == expected
    assert 0 < found < NUM_EXAMPLES


def test_a_tie_of_the_two_labels_counts_as_label_1(adapted: Any, encoded: Any) -> None:
    prompt_format = load_prompt_format(resolve("bundled").folder)
    zero, one = (prompt_format.encode_segment(digit, first=False)[0] for digit in "01")
    (batch,) = WindowDataset(encoded, token_budget=10_000)[[1, 3, 4]].micro_batches  # labels 1, 1, 0
    hidden = torch.zeros(len(batch.kinds), adapted.get_base_model().lm_head.weight.shape[1])
    assert num_right_labels(adapted, batch, hidden, (zero, one)) == 2


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_thoughts_weight_changes_linearly(progress: float) -> None:
    weights = SegmentWeights(thought_weight=2.0, final_thought_weight=0.4, label_weight=3.0)
    expected = [0.0, 1.0, 2.0 - 1.6 * progress, 3.0, 3.0, 0.0]
    assert weights_by_kind(weights, progress).tolist() == pytest.approx(expected)
    assert weights_by_kind(SegmentWeights(thought_weight=2.0), progress)[TokenKind.THOUGHT] == 2.0


# ---------------------------------------------------------------- soft labels

PROBABILITIES = [None, 0.9, 0.25, 1.0, 0.0, 0.5, None, 0.1]


@pytest.fixture(scope="module")
def label_ids(small_model: Path) -> tuple[int, int]:
    prompt_format = load_prompt_format(small_model)
    zero, one = (prompt_format.encode_segment(digit, first=False)[0] for digit in "01")
    return zero, one


def _soft(probabilities: Sequence[float | None], small_model: Path, cache: Path) -> Any:
    """Encode an example for each soft label, in each form that reads the label first."""
    examples = [
        TrainingExample(
            id=f"e{index}",
            prompt=f"Premise: {index} birds sing." + " They sing on." * (index % 3),
            completion=render("The birds sing." if index % 2 else None, index % 2, Form.LABEL_FIRST),
            label=index % 2,
            source="label",
            p_entailment=p,
        )
        for index, p in enumerate(probabilities)
    ]
    options: dict[str, Any] = {"max_length": 500, "over_budget": "drop", "cache": cache}
    encoded, _ = encode_dataset(load_prompt_format(small_model), examples, **options)
    return encoded


def _trained(
    model: Any, encoded: Any, budget: int, label_ids: tuple[int, int], weights: SegmentWeights = PLAIN
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of all examples as one window, and its gradients."""
    model.zero_grad(set_to_none=True)
    window = WindowDataset(encoded, token_budget=budget)[list(range(len(encoded)))]
    total = (window.num_by_kind * weights_by_kind(weights)).sum()
    loss = torch.zeros(())
    for batch in window.micro_batches:
        losses = training_losses(model, batch, label_ids)
        part = (losses * weights_by_kind(weights)[batch.kinds]).sum() / total
        part.backward()
        loss += part.detach()
    return loss, {name: weight.grad.clone() for name, weight in adapter_parameters(model).items()}


@pytest.mark.parametrize("budget", [1, 120, 10_000])
@pytest.mark.parametrize("weights", [PLAIN, SegmentWeights(thought_weight=0.3, label_weight=20.0)])
def test_soft_labels_are_the_cross_entropy_with_both_options(
    adapted: Any,
    small_model: Path,
    label_ids: tuple[int, int],
    tmp_path: Path,
    budget: int,
    weights: SegmentWeights,
) -> None:
    encoded = _soft(PROBABILITIES, small_model, tmp_path)
    loss, gradients = _trained(adapted, encoded, budget, label_ids, weights)

    adapted.zero_grad(set_to_none=True)
    total, num = torch.zeros(()), torch.zeros(())
    of_kind = weights_by_kind(weights)
    for row in encoded:  # full logits, one example after the other, and a target over the vocabulary
        ids, kinds = torch.tensor([row["input_ids"]]), torch.tensor(row["kinds"])[1:]
        logits = adapted(input_ids=ids).logits[0, :-1]
        target = functional.one_hot(ids[0, 1:], logits.shape[1]).float()
        if row["p_entailment"] is not None:
            place = kinds == TokenKind.LABEL
            target[place] = 0
            target[place, label_ids[1]] = row["p_entailment"]
            target[place, label_ids[0]] = 1 - row["p_entailment"]
        total = total + (functional.cross_entropy(logits, target, reduction="none") * of_kind[kinds]).sum()
        num += of_kind[kinds].sum()
    (total / num).backward()
    assert float(loss) == pytest.approx(float(total.detach() / num), abs=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for name, weight in adapter_parameters(adapted).items():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=0, atol=1e-5, msg=name)


def test_soft_labels_of_0_and_1_train_like_labels_bit_for_bit(
    adapted: Any, small_model: Path, label_ids: tuple[int, int], tmp_path: Path
) -> None:
    hard, certain, other = (
        _trained(adapted, _soft(soft, small_model, tmp_path), 120, label_ids)
        for soft in ([None] * 8, [0.0, 1.0] * 4, [1.0, 0.0] * 4)
    )
    assert torch.equal(hard[0], certain[0])
    assert all(torch.equal(hard[1][name], certain[1][name]) for name in hard[1])
    assert abs(float(hard[0] - other[0])) > 1e-3


def test_hard_labels_need_no_soft_ones(
    adapted: Any, encoded: Any, label_ids: tuple[int, int], small_model: Path, tmp_path: Path
) -> None:
    (batch,) = _window(encoded, 10_000).micro_batches
    assert batch.p_entailment is None
    assert torch.equal(training_losses(adapted, batch, label_ids), token_losses(adapted, batch)[0])
    window = WindowDataset(_soft([None, 0.9, 0.25], small_model, tmp_path), token_budget=1)[[0, 1, 2]]
    found = {id_: each.p_entailment for id_, each in zip(window.ids, window.micro_batches, strict=True)}
    assert found["e0"] is None
    assert [found[id_].item() for id_ in ("e1", "e2")] == pytest.approx([0.9, 0.25])


# ------------------------------------------------------------------------ NF4


@pytest.fixture(scope="module")
def bundled_in_4_bits() -> Any:
    base = load_base(resolve("bundled"), for_training=True)
    model = attach(base, LoraSettings(r=4, alpha=8, dropout=0.0), seed=0)
    patch_layers(model)
    return model


def test_gradients_flow_through_nf4_after_an_evaluation(bundled_in_4_bits: Any, encoded: Any) -> None:
    model = bundled_in_4_bits
    window = WindowDataset(encoded, token_budget=10_000)[[0, 1]]
    before = _gradients(model.train(), window)
    with torch.inference_mode():
        token_losses(model.eval(), window.micro_batches[0])
    after = _gradients(model.train(), window)
    up = [name for name in after if "lora_B" in name]
    assert len(up) == 30 * 4
    assert all(float(after[name].abs().max()) > 0 for name in up)
    for name in up:
        assert torch.equal(after[name], before[name]), name


def test_model_that_only_decodes_has_the_same_values_in_dense_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In dense matrices if memory allows, else with the kernel without gradients."""
    from bitsandbytes.nn import Linear4bit

    def four_bit(*, for_training: bool) -> tuple[Any, list[Any]]:
        model = load_base(resolve("bundled"), for_training=for_training)
        return model, [module for module in model.modules() if isinstance(module, Linear4bit)]

    training, kept = four_bit(for_training=True)
    assert kept
    assert not any(module.support_avx512bf16_for_cpu for module in kept)
    dense, left = four_bit(for_training=False)
    assert not left
    ids = torch.arange(40)[None] + 100
    with torch.inference_mode():
        found, expected = (model.eval()(input_ids=ids).logits.float() for model in (dense, training))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()

    monkeypatch.setattr(loaded_model, "available_bytes", lambda: 0)
    _, narrow = four_bit(for_training=False)
    assert {module.support_avx512bf16_for_cpu for module in narrow} == {
        Linear4bit(64, 64).support_avx512bf16_for_cpu
    }
