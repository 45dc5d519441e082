"""Patched layers against those of transformers and PEFT: the same hidden states and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from nlicot.model.base_model import resolve
from nlicot.model.fast.attention import Spans, dummy_mask
from nlicot.model.fast.patch import _FastLayer, _Linears, patch_layers
from nlicot.model.loaded_model import adapter_parameters, attach, load_base
from nlicot.settings import LoraSettings
from tests.model.fast.test_attention import LAYOUTS, each_layout
from tests.small_model import small_mistral, write_small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def _model(folder: Path, *, dropout: float = 0.0, quantization: str = "none", dtype: str = "float32") -> Any:
    base = load_base(resolve(str(folder)), quantization=quantization, dtype=dtype, for_training=True)
    model = attach(base, LoraSettings(r=4, alpha=8, dropout=dropout), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in adapter_parameters(model).items():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05, generator=generator)
    return model.train()


def _ids(spans: Spans) -> torch.Tensor:
    return torch.randint(10, 40_000, (spans.num_tokens,), generator=torch.Generator().manual_seed(3))


def _packed(model: Any, spans: Spans, ids: torch.Tensor) -> torch.Tensor:
    """`[N, H]` hidden states of the row."""
    inner = model.get_base_model().model
    return inner(
        input_ids=ids[None],
        position_ids=spans.position_ids()[None],
        attention_mask=dummy_mask(ids.device),
        use_cache=False,
        spans=spans,
    ).last_hidden_state[0]


def _one_by_one(model: Any, spans: Spans, ids: torch.Tensor) -> torch.Tensor:
    """The same, one example per call."""
    found = []
    for start, end, before in spans.blocks:
        if not before:
            example, kept = ids[start:end], slice(None)
        else:
            example, kept = torch.cat([ids[:before], ids[start:end]]), slice(before, None)
        hidden = model.get_base_model().model(input_ids=example[None], use_cache=False).last_hidden_state
        found.append(hidden[0, kept])
    return torch.cat(found)


def _gradients(model: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    (hidden * torch.randn(hidden.shape)).sum().backward()
    return {name: weight.grad.clone() for name, weight in adapter_parameters(model).items()}


@each_layout
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_hidden_states_and_gradients_match_those_of_each_example_by_itself(
    folder: Path, spans: Spans, quantization: str
) -> None:
    ids = _ids(spans)
    plain, fast = (_model(folder, quantization=quantization) for _ in range(2))
    patch_layers(fast)
    expected, found = _one_by_one(plain, spans, ids), _packed(fast, spans, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    reference = _gradients(plain, expected)
    for name, gradient in _gradients(fast, found).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-3, atol=1e-3, msg=name)


class ScaledLinear(torch.nn.Linear):
    """As a layer of FP8: without its scale, the weight is another one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_layer_of_an_unknown_quantisation_keeps_its_own_forward_pass(folder: Path) -> None:
    spans = LAYOUTS[-1]
    ids = _ids(spans)
    plain, fast = (_model(folder) for _ in range(2))
    for model in (plain, fast):
        model.get_base_model().model.layers[0].mlp.gate_proj.__class__ = ScaledLinear
    patch_layers(fast)
    layers = fast.get_base_model().model.layers
    assert [isinstance(each.forward, _FastLayer) for each in layers] == [False, True]
    found, expected = _packed(fast, spans, ids), _one_by_one(plain, spans, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_language_model_of_one_that_takes_images_is_patched() -> None:
    """As Mistral Small 3.1."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small_mistral(50_000).to_dict()
    torch.manual_seed(0)
    config = Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", **vision})
    base = Mistral3ForConditionalGeneration(config)
    spans = LAYOUTS[-1]
    ids = _ids(spans)
    model = attach(base, LoraSettings(r=4), seed=0).train()
    expected = _one_by_one(model, spans, ids)
    patch_layers(model)
    layers = model.get_base_model().model.language_model.layers
    assert all(isinstance(each.forward, _FastLayer) for each in layers)
    torch.testing.assert_close(_packed(model, spans, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled_or_eager")
def test_in_bfloat16_patched_layers_are_as_close_to_float32_as_plain_ones(folder: Path) -> None:
    spans = LAYOUTS[-1]
    ids = _ids(spans)
    exact = _model(folder)
    truth = _gradients(exact, _one_by_one(exact, spans, ids))

    def distance(fast: bool) -> float:
        model = _model(folder, dtype="bfloat16")
        if fast:
            patch_layers(model)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = _packed(model, spans, ids) if fast else _one_by_one(model, spans, ids)
        found = _gradients(model, hidden)
        return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)

    assert 0 < distance(fast=True) < 1.5 * distance(fast=False)


def test_an_example_does_not_affect_its_neighbours(folder: Path) -> None:
    spans = LAYOUTS[-1]
    ids = _ids(spans)
    model = _model(folder)
    patch_layers(model)
    start, end, _ = spans.blocks[2]
    changed = ids.clone()
    changed[start:end] = 77
    before, after = (_packed(model, spans, row) for row in (ids, changed))
    others = torch.ones(len(ids), dtype=torch.bool)
    others[start:end] = False
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[~others], after[~others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linears_with_lora_and_dropout_match_the_formula_with_the_same_masks(dtype: torch.dtype) -> None:
    """Two matrices of the same input, and a third without an adapter between them."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.25, target_modules=["0", "2"])
    sizes = (24, 12, 16)
    plain = torch.nn.Sequential(*(torch.nn.Linear(32, size, bias=False, dtype=dtype) for size in sizes))
    modules: Any = inject_adapter_in_model(settings, plain)
    linears = _Linears(list(modules))
    adapters = linears.adapters()
    for weight in adapters:
        weight.data.normal_()
    x, grad = torch.randn(18, 32, dtype=dtype), torch.randn(18, sum(sizes), dtype=dtype)
    dropout = linears.dropout()
    masks = dropout.apply(torch.ones(18, 32))
    with torch.no_grad():
        out, inner = linears.forward(x, linears.weight(), dropout)
        grads = linears.backward(grad.split(sizes, dim=1), x, linears.weight(), dropout, inner)

    exact = [part.detach().double().requires_grad_() for part in (x, *adapters)]
    w = linears.weight().double()
    deltas = [
        2.0 * (exact[0] * mask / 0.75) @ a.t() @ b.t()
        for mask, a, b in zip(masks, exact[1::2], exact[2::2], strict=True)
    ]
    expected = exact[0] @ w.t() + torch.cat([deltas[0], torch.zeros(18, 12), deltas[1]], dim=1)
    expected.backward(grad.double())
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    for found, reference in [
        (out, expected),
        *zip((grads[0], *grads[1]), (e.grad for e in exact), strict=True),
    ]:
        assert reference is not None
        distance = (found.detach().double() - reference.detach()).norm() / reference.detach().norm()
        assert float(distance) < tolerance


def test_dropout_acts_only_in_training(folder: Path) -> None:
    spans = LAYOUTS[-1]
    ids = _ids(spans)
    model = _model(folder, dropout=0.5)
    reference = copy.deepcopy(model).eval()
    patch_layers(model)
    torch.manual_seed(0)
    assert not torch.allclose(_packed(model, spans, ids), _packed(model, spans, ids))
    torch.testing.assert_close(
        _packed(model.eval(), spans, ids), _one_by_one(reference, spans, ids), rtol=1e-4, atol=1e-4
    )


def test_without_spans_and_gradients_the_model_behaves_as_before(folder: Path) -> None:
    ids = _ids(Spans(prefix_len=0, suffix_lens=(12,)))[None]
    plain, fast = _model(folder).eval(), _model(folder).eval()
    patch_layers(fast)
    with torch.inference_mode():
        expected, found = (model(input_ids=ids).logits for model in (plain, fast))
    torch.testing.assert_close(found, expected)
    assert functional.cross_entropy(found[0, :-1], ids[0, 1:]).isfinite()
