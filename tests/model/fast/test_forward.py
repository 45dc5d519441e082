"""Rows that `model.fast.forward` decodes have the hidden states that transformers computes for them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import rms_norm, silu
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from nlicot.model.fast import decode_step
from nlicot.model.fast.forward import Rows, load_forward
from nlicot.model.loaded_model import attach, merge_dense
from nlicot.prediction.transformers_rows import TransformersRows
from nlicot.settings import LoraSettings
from tests.small_model import small_llama

VOCAB_SIZE = 300
PREFIX = [5, 6, 7, 8, 9, 10, 11]
SUFFIXES = [[20, 21, 22], [30], [40, 41, 42, 43, 44, 45], [50, 51]]


def _llama(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(1)
    config = small_llama(VOCAB_SIZE, initializer_range=0.2, head_dim=32, **options)
    return LlamaForCausalLM(config).to(dtype).eval()


def _alone(model: Any, ids: list[int]) -> torch.Tensor:
    """The last hidden state of one row without a cache."""
    hidden: torch.Tensor = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return hidden


def _rows(kind: str, model: Any, prefix: list[int]) -> Rows | TransformersRows:
    if kind == "transformers":
        return TransformersRows(model, prefix)
    forward = load_forward(model)
    assert forward is not None
    return Rows(forward, prefix)


@pytest.mark.parametrize("prefix", [PREFIX, []], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("kind", ["own", "transformers"])
@torch.inference_mode()
def test_every_row_is_as_if_it_were_alone(kind: str, prefix: list[int]) -> None:
    """Rows enter new slots and used ones, several from one prompt; they grow past a block, and some leave."""
    model = _llama()
    rows = _rows(kind, model, prefix)
    expected = [[*prefix, *suffix] for suffix in SUFFIXES]

    def check() -> None:
        wanted = torch.stack([_alone(model, ids) for ids in expected])
        torch.testing.assert_close(rows.hidden, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows.logits(), model.lm_head(wanted), rtol=1e-4, atol=1e-3)

    def feed(num_tokens: int) -> None:
        for step in range(num_tokens):
            tokens = [100 + (7 * step + slot) % 150 for slot in range(len(expected))]
            rows.feed(torch.tensor(tokens))
            for ids, token in zip(expected, tokens, strict=True):
                ids.append(token)

    torch.testing.assert_close(rows.encode(SUFFIXES), torch.stack([_alone(model, ids) for ids in expected]))
    rows.enter(SUFFIXES, [0, 1, 2, 3])
    check()
    feed(20)
    check()
    long = list(range(60, 80))
    rows.enter([long, [90]], [1, 4, 0, 5])  # two rows of each
    expected[1], expected[0] = [*prefix, *long], [*prefix, 90]
    expected += [[*prefix, *long], [*prefix, 90]]
    check()
    feed(130)
    check()
    rows.keep([4, 2, 0])
    expected[:] = [expected[4], expected[2], expected[0]]
    check()
    feed(3)
    check()
    rows.enter([[91, 92]] * 20, list(range(3, 23)))
    expected += [[*prefix, 91, 92] for _ in range(20)]
    feed(2)
    check()


@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_transformers_is() -> None:
    model = _llama(torch.bfloat16)
    exact = _llama()
    exact.load_state_dict(model.state_dict())
    ids = [[*PREFIX, *suffix] for suffix in SUFFIXES]
    wanted = torch.stack([_alone(exact, each) for each in ids])
    plain = torch.stack([_alone(model, each) for each in ids]).float()
    rows = _rows("own", model, PREFIX)
    found = rows.encode(SUFFIXES).float()
    assert (found - wanted).norm() < 1.5 * (plain - wanted).norm()


@torch.inference_mode()
def test_adapter_is_part_of_the_forward_pass_once_it_is_merged() -> None:
    base = _llama()
    adapted: Any = attach(base, LoraSettings(r=4, alpha=8, dropout=0.0), seed=0).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.2)
    wanted = _alone(adapted.get_base_model(), [*PREFIX, 20])
    assert load_forward(base) is None  # an active adapter is not part of a matrix
    restore = merge_dense(adapted)
    found = _rows("own", base, PREFIX).encode([[20]])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    restore()
    torch.testing.assert_close(_alone(adapted.get_base_model(), [*PREFIX, 20]), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_mistral_and_biases() -> None:
    torch.manual_seed(2)
    shape = small_llama(VOCAB_SIZE, head_dim=32).to_dict()
    known = {
        name: shape[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    known |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "initializer_range": 0.2}
    mistral = MistralForCausalLM(MistralConfig(**known, sliding_window=None)).eval()
    for model in (mistral, _llama(attention_bias=True, mlp_bias=True)):
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.data.normal_()
        rows = _rows("own", model, PREFIX)
        rows.enter(SUFFIXES, [0, 1, 2, 3])
        rows.feed(torch.tensor([1, 2, 3, 4]))
        wanted = [_alone(model, [*PREFIX, *suffix, slot + 1]) for slot, suffix in enumerate(SUFFIXES)]
        torch.testing.assert_close(rows.hidden, torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"head_dim": 24},
    ],
    ids=str,
)
def test_other_models_are_left_to_transformers(options: dict[str, Any]) -> None:
    config = small_llama(VOCAB_SIZE, **options)
    assert load_forward(LlamaForCausalLM(config)) is None


def test_mistral_with_a_sliding_window_is_left_to_transformers() -> None:
    config = small_llama(VOCAB_SIZE, head_dim=32)
    window = MistralConfig(**{**config.to_dict(), "model_type": "mistral", "sliding_window": 64})
    assert load_forward(AutoModelForCausalLM.from_config(window)) is None


def test_without_a_compiler_decoding_is_left_to_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    decode_step.load.cache_clear()
    assert load_forward(_llama()) is None
    decode_step.load.cache_clear()


def test_compiler_that_fails_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    decode_step.load.cache_clear()
    assert load_forward(_llama()) is None
    decode_step.load.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_element_wise_functions_are_those_of_torch(dtype: torch.dtype) -> None:
    operations = decode_step.load(4, 2, 32, dtype)
    assert operations is not None
    generator = torch.Generator().manual_seed(0)
    hidden, delta = (torch.randn(5, 48, generator=generator).to(dtype) for _ in range(2))
    weight, gate_up = torch.rand(48).to(dtype), torch.randn(5, 96, generator=generator).to(dtype)
    total = hidden + delta
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(
        operations.add_norm(hidden, delta, weight, 1e-5), rms_norm(total, (48,), weight, 1e-5), **tolerance
    )
    assert hidden.equal(total)
    gate, up = gate_up.chunk(2, dim=1)
    torch.testing.assert_close(operations.gate(gate_up), silu(gate) * up, **tolerance)
