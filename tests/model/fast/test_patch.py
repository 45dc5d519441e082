"""The fast parts against the plain ones of transformers and PEFT: the same losses and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from nlicot.model import base_model
from nlicot.model.fast.attention import dummy_mask
from nlicot.model.fast.attention.cpu import attend_on_cpu
from nlicot.model.fast.attention.cuda import padded_attention, varlen_attention, varlen_works
from nlicot.model.fast.attention.spans import Spans, common_prefix_len
from nlicot.model.fast.dropout import Dropout
from nlicot.model.fast.patch import _LoraLinear, patch_layers
from nlicot.model.lora import adapter_parameters, attach
from nlicot.settings import LoraSettings
from tests.small_model import write_small_model

SPANS = [
    Spans(prefix_len=0, suffix_lens=(7,)),
    Spans(prefix_len=5, suffix_lens=(1,)),
    Spans(prefix_len=0, suffix_lens=(9, 4, 1)),
    Spans(prefix_len=6, suffix_lens=(3, 11, 1, 8), padding=5),
    Spans(prefix_len=17, suffix_lens=(16, 15, 33)),
]
each_layout = pytest.mark.parametrize("spans", SPANS, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def _model(folder: Path, *, dropout: float = 0.0, quantization: str = "none", dtype: str = "float32") -> Any:
    base = base_model.load(
        base_model.resolve(str(folder)), quantization=quantization, dtype=dtype, for_training=True
    )
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
    """The same, each example through the model on its own."""
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
def test_hidden_states_and_gradients_are_those_of_each_example_alone(
    folder: Path, spans: Spans, quantization: str
) -> None:
    ids = _ids(spans)
    plain, fast = (_model(folder, quantization=quantization) for _ in range(2))
    patch_layers(fast)
    expected, found = _one_by_one(plain, spans, ids), _packed(fast, spans, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted = _gradients(plain, expected)
    for name, gradient in _gradients(fast, found).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-3, msg=name)


def test_in_bfloat16_the_fast_parts_are_as_near_to_float32_as_the_plain_ones(folder: Path) -> None:
    spans = SPANS[-1]
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


def test_an_example_says_nothing_about_its_neighbours(folder: Path) -> None:
    spans = SPANS[-1]
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


def _reference_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest: int,
    most_keys: int,
    **options: Any,
) -> torch.Tensor:
    """What torch documents of `varlen_attn`, whose own kernel needs a GPU: one sequence after another."""
    assert options["window_size"] == (-1, 0), "causal"
    assert options["enable_gqa"]
    assert query_ends.dtype is key_ends.dtype is torch.int32
    lengths, num_keys = query_ends.diff(), key_ends.diff()
    assert (int(lengths.max()), int(num_keys.max())) == (longest, most_keys)
    found = []
    for q, k, v in zip(
        query.split(lengths.tolist()),
        key.split(num_keys.tolist()),
        value.split(num_keys.tolist()),
        strict=True,
    ):
        later = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        parts = (part.transpose(0, 1)[None] for part in (q, k, v))
        attended = functional.scaled_dot_product_attention(
            *parts, attn_mask=~later, scale=options["scale"], enable_gqa=True
        )
        found.append(attended[0].transpose(0, 1))
    return torch.cat(found)


@each_layout
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", [padded_attention, varlen_attention])
def test_attention_on_a_gpu_and_on_a_cpu_is_the_same(
    spans: Spans, kv_heads: int, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU is given are calls that a CPU answers too, FlashAttention's by its documentation."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _reference_varlen)
    generator = torch.Generator().manual_seed(0)

    def parts() -> list[torch.Tensor]:
        shapes = [(4, spans.num_tokens, 8)] + 2 * [(kv_heads, spans.num_tokens, 8)]
        return [
            torch.randn(shape, generator=generator.manual_seed(1), requires_grad=True) for shape in shapes
        ]

    one, other = parts(), parts()
    own = attend_on_cpu(*one, spans, 0.3)
    torchs = kernel(*other, spans, 0.3)
    used = spans.num_tokens - spans.padding
    torch.testing.assert_close(own[:used], torchs[:used])
    factor = torch.randn(own.shape, generator=generator)
    factor[used:] = 0  # what comes out of the filler is not used
    for out in (own, torchs):
        (out * factor).sum().backward()
    for mine, reference in zip(one, other, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_flash_attention_is_taken_where_it_finds_what_the_plain_kernels_find() -> None:
    assert varlen_works(torch.bfloat16, 128)
    assert not varlen_works(torch.float32, 128), "it has no float32"


# ------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_with_dropout_is_the_formula_with_the_same_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(32, 24, bias=False, dtype=dtype).requires_grad_(False)
    x = torch.randn(2, 9, 32, dtype=dtype, requires_grad=True)
    a, b = torch.randn(4, 32, requires_grad=True), torch.randn(24, 4, requires_grad=True)
    dropout = Dropout(0.25)
    kept = dropout.of(torch.ones(18, 32)).view(x.shape)
    out = _LoraLinear.apply(x, a, b, 2.0, dropout, base)  # type: ignore[no-untyped-call]
    grad = torch.randn(out.shape, dtype=dtype)
    out.backward(grad)

    exact = [part.detach().double().requires_grad_() for part in (x, a, b)]
    dropped = exact[0] * kept / 0.75
    wanted = exact[0] @ base.weight.double().t() + 2.0 * dropped @ exact[1].t() @ exact[2].t()
    wanted.backward(grad.double())
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    pairs = [(out, wanted), *zip((x.grad, a.grad, b.grad), (part.grad for part in exact), strict=True)]
    for found, expected in pairs:
        assert found is not None
        assert expected is not None
        distance = (found.detach().double() - expected.detach()).norm() / expected.detach().norm()
        assert float(distance) < tolerance


def test_dropout_acts_in_training_alone(folder: Path) -> None:
    spans = SPANS[-1]
    ids = _ids(spans)
    model = _model(folder, dropout=0.5)
    reference = copy.deepcopy(model).eval()
    patch_layers(model)
    torch.manual_seed(0)
    assert not torch.allclose(_packed(model, spans, ids), _packed(model, spans, ids))
    torch.testing.assert_close(
        _packed(model.eval(), spans, ids), _one_by_one(reference, spans, ids), rtol=1e-4, atol=1e-4
    )


def test_without_spans_and_gradients_the_model_is_as_before(folder: Path) -> None:
    ids = _ids(Spans(prefix_len=0, suffix_lens=(12,)))[None]
    plain, fast = _model(folder).eval(), _model(folder).eval()
    patch_layers(fast)
    with torch.inference_mode():
        expected, found = (model(input_ids=ids).logits for model in (plain, fast))
    torch.testing.assert_close(found, expected)
    assert functional.cross_entropy(found[0, :-1], ids[0, 1:]).isfinite()


def test_common_prefix_is_shared_by_all_rows() -> None:
    assert common_prefix_len([[1, 2, 3], [1, 2, 3, 4], [1, 2, 9]], limit=5) == 2
    assert common_prefix_len([[1, 2, 3], [1, 2, 3, 4]], limit=2) == 2
    assert common_prefix_len([[1], [2]], limit=5) == 0
