"""Packed attention on a GPU and on a CPU; the layout of a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from nlicot.model.fast import compiled_attention
from nlicot.model.fast.attention import (
    Spans,
    attend_on_cpu,
    padded_attention,
    varlen_attention,
    varlen_works,
)

LAYOUTS = [
    Spans(prefix_len=0, suffix_lens=(7,)),
    Spans(prefix_len=5, suffix_lens=(1,)),
    Spans(prefix_len=0, suffix_lens=(9, 4, 1)),
    Spans(prefix_len=6, suffix_lens=(3, 11, 1, 8), padding=5),
    Spans(prefix_len=17, suffix_lens=(16, 15, 33)),
    Spans(prefix_len=173, suffix_lens=(5, 20)),
]
each_layout = pytest.mark.parametrize("spans", LAYOUTS, ids=str)


def _reference_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    **options: Any,
) -> torch.Tensor:
    """`varlen_attn` as torch documents it, one sequence after another; its kernel needs a GPU."""
    assert options["window_size"] == (-1, 0), "causal"
    assert options["enable_gqa"]
    assert cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
    lengths, num_keys = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert (int(lengths.max()), int(num_keys.max())) == (max_q, max_k)
    found = []
    for q, k, v in zip(
        query.split(lengths.tolist()),
        key.split(num_keys.tolist()),
        value.split(num_keys.tolist()),
        strict=True,
    ):
        masked = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        parts = (part.transpose(0, 1)[None] for part in (q, k, v))
        attended = functional.scaled_dot_product_attention(
            *parts, attn_mask=~masked, scale=options["scale"], enable_gqa=True
        )
        found.append(attended[0].transpose(0, 1))
    return torch.cat(found)


@each_layout
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", [padded_attention, varlen_attention])
def test_attention_on_a_gpu_and_on_a_cpu_is_the_same(
    spans: Spans, kv_heads: int, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU code calls functions that also run on a CPU, FlashAttention through its reference."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _reference_varlen)
    generator = torch.Generator().manual_seed(0)

    def parts() -> list[torch.Tensor]:
        shapes = [(4, spans.num_tokens, 8)] + 2 * [(kv_heads, spans.num_tokens, 8)]
        return [
            torch.randn(shape, generator=generator.manual_seed(1), requires_grad=True) for shape in shapes
        ]

    one, other = parts(), parts()
    cpu = attend_on_cpu(*one, spans, 0.3)
    gpu = kernel(*other, spans, 0.3)
    used = spans.num_tokens - spans.padding
    torch.testing.assert_close(cpu[:used], gpu[:used])
    factor = torch.randn(cpu.shape, generator=generator)
    factor[used:] = 0  # the outputs of padding are not used
    for out in (cpu, gpu):
        (out * factor).sum().backward()
    for mine, reference in zip(one, other, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


@each_layout
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (4, 1, 128)])
def test_the_compiled_kernel_is_as_close_to_float32_as_the_plain_one(
    spans: Spans, heads: int, kv_heads: int, dim: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(spans.num_tokens, num, dim) for num in (heads, kv_heads, kv_heads, heads)]
    *inputs, grad = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    if not compiled_attention.supports(inputs[0]):
        pytest.skip("no processor with AVX512-BF16, or no compiler")

    def run(dtype: torch.dtype, kernel: Any) -> list[torch.Tensor]:
        parts = [part.to(dtype).requires_grad_() for part in inputs]
        out = kernel(*parts)
        return [out.detach(), *torch.autograd.grad(out, parts, grad.to(dtype))]

    def plain(*parts: torch.Tensor) -> torch.Tensor:
        return attend_on_cpu(*(part.transpose(0, 1) for part in parts), spans, 0.3)

    exact = run(torch.float32, plain)
    found = run(torch.bfloat16, lambda *parts: compiled_attention.attend(*parts, spans.blocks, 0.3))
    for mine, theirs, truth in zip(found, run(torch.bfloat16, plain), exact, strict=True):
        distance, allowed = (float((part.float() - truth).norm() / truth.norm()) for part in (mine, theirs))
        assert distance < max(1.5 * allowed, 0.003)


@pytest.mark.usefixtures("compiler")
def test_the_compiled_kernel_gives_the_same_bits_for_any_number_of_threads() -> None:
    spans = LAYOUTS[-1]
    shapes = [(spans.num_tokens, num, 32) for num in (4, 2, 2)]
    torch.manual_seed(0)
    parts = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    if not compiled_attention.supports(parts[0]):
        pytest.skip("no processor with AVX512-BF16, or no compiler")
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 2):
        torch.set_num_threads(num_threads)
        out = compiled_attention.attend(*parts, spans.blocks, 0.3)
        results.append([out, *torch.autograd.grad(out.square().sum(), parts)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_flash_attention_agrees_with_the_plain_kernels_in_bfloat16() -> None:
    assert varlen_works(torch.bfloat16, 128)
    assert not varlen_works(torch.float32, 128), "it does not support float32"
