"""GGUF files, read back: tensors, settings and tokenizers against second implementations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import AutoTokenizer, LlamaForCausalLM, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nlicot.cli import main
from nlicot.errors import ExportError
from nlicot.export.gguf_adapter import adapter_matrices
from nlicot.export.gguf_file import check_shape, write_adapter, write_model
from nlicot.export.gguf_vocabulary import Vocabulary, vocabulary_of
from nlicot.model.prompt_format import ChatFormat, load_prompt_format
from nlicot.prediction.predictor import Member
from tests.model.test_mistral_folders import write_sentencepiece_folder, write_tekken_folder
from tests.small_model import small_llama, small_mistral
from tests.small_tokenizers import TEMPLATES, byte_level, like_sentencepiece, unigram, write_chat_model

HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 16  # of `small_llama`
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = write_chat_model(tmp_path_factory.mktemp("bytes"), byte_level(), TEMPLATES["zephyr"])
    return vocabulary_of(load_prompt_format(folder), folder, 700)


def small_model(**options: Any) -> Any:
    torch.manual_seed(3)
    model = LlamaForCausalLM(small_llama(700, **options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def tensors(reader: gguf.GGUFReader) -> dict[str, np.ndarray[Any, Any]]:
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: element i of a head's first half is followed by element i of its second half."""
    half, order = len(rows) // heads // 2, []
    for head in range(heads):
        for index in range(half):
            order += [2 * half * head + index, 2 * half * head + half + index]
    return rows[order]


@pytest.mark.parametrize(("dtype", "epsilon"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_a_models_tensors_come_back(
    dtype: str, epsilon: float, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = small_model(tie_word_embeddings=False, attention_bias=True)
    write_model(model, vocabulary, tmp_path / "m.gguf", dtype=dtype, name="small")
    found = tensors(gguf.GGUFReader(tmp_path / "m.gguf"))
    assert len(found) == len(model.state_dict()) == 2 * 13 + 3
    layer = model.model.layers[1]
    expected = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output.weight": model.lm_head.weight,
        "output_norm.weight": model.model.norm.weight,
        "blk.1.attn_q.weight": neighbours(layer.self_attn.q_proj.weight, HEADS),
        "blk.1.attn_q.bias": neighbours(layer.self_attn.q_proj.bias, HEADS),
        "blk.1.attn_k.weight": neighbours(layer.self_attn.k_proj.weight, KEY_HEADS),
        "blk.1.attn_k.bias": neighbours(layer.self_attn.k_proj.bias, KEY_HEADS),
        "blk.1.attn_v.weight": layer.self_attn.v_proj.weight,
        "blk.1.attn_output.weight": layer.self_attn.o_proj.weight,
        "blk.1.ffn_gate.weight": layer.mlp.gate_proj.weight,
        "blk.1.ffn_up.weight": layer.mlp.up_proj.weight,
        "blk.1.ffn_down.weight": layer.mlp.down_proj.weight,
        "blk.1.attn_norm.weight": layer.input_layernorm.weight,
        "blk.1.ffn_norm.weight": layer.post_attention_layernorm.weight,
    }
    for name, weight in expected.items():
        exact = weight.ndim == 1  # vectors stay in float32
        rounding = (
            {"rtol": 0, "atol": 0} if exact else {"rtol": epsilon, "atol": 1e-7}
        )  # float16 has subnormals
        np.testing.assert_allclose(found[name], weight.detach().numpy(), **rounding)


def test_neighbours_rotated_give_the_scores_of_halves_rotated() -> None:
    """Scores of queries and keys do not depend on which order is rotated in which way."""
    torch.manual_seed(0)
    projections = torch.randn(2, HEAD_SIZE, 8, dtype=torch.float64)
    inputs = torch.randn(2, 8, dtype=torch.float64)
    half = HEAD_SIZE // 2
    angles = torch.tensor([5.0, 9.0], dtype=torch.float64)[:, None] * 100.0 ** -(torch.arange(half) / half)
    turns = torch.polar(torch.ones_like(angles), angles)

    def score(rotated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], order: Any) -> torch.Tensor:
        query, key = (
            rotated(order(matrix) @ x, turn)
            for matrix, x, turn in zip(projections, inputs, turns, strict=True)
        )
        return query @ key

    def halves(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.complex(x[:half], x[half:]) * turn).T.flatten()

    def pairs(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.view(half, 2)) * turn).flatten()

    expected = score(halves, lambda matrix: matrix)
    torch.testing.assert_close(score(pairs, lambda matrix: neighbours(matrix, 1)), expected)
    assert abs(score(pairs, lambda matrix: matrix) - expected) > 0.1


def test_tied_embeddings_are_written_once(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_model(
        small_model(tie_word_embeddings=True), vocabulary, tmp_path / "m.gguf", dtype="float32", name="x"
    )
    assert "output.weight" not in tensors(gguf.GGUFReader(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "rope", [LLAMA_3, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}], ids=["llama3", "linear"]
)
def test_scaled_frequencies_are_those_of_transformers(
    rope: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = small_model(rope_parameters=rope)
    write_model(model, vocabulary, tmp_path / "m.gguf", dtype="float32", name="x")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    factors = tensors(reader)["rope_freqs.weight"]
    theta = value(reader, "llama.rope.freq_base")
    used = theta ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE) / factors
    expected = LlamaRotaryEmbedding(model.config).inv_freq.numpy()
    np.testing.assert_allclose(used, expected, rtol=1e-6)
    assert factors.max() == pytest.approx(rope["factor"])


def test_settings_are_those_of_the_config(vocabulary: Vocabulary, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = small_mistral(700, head_dim=32, sliding_window=512, rms_norm_eps=1e-5, rope_parameters=rope)
    model = MistralForCausalLM(config)
    write_model(model, vocabulary, tmp_path / "m.gguf", dtype="bfloat16", name="small")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "small",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "llama.vocab_size": 700,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {key: value(reader, key) for key in expected} == expected
    assert value(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "qwen2"}, "the model type 'qwen2'"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "the rotary embedding 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "a partly rotated head",
        ),
    ],
)
def test_other_shapes_are_refused(change: dict[str, Any], problem: str) -> None:
    config = small_llama(700)
    check_shape(config, name="base")
    for name, each in change.items():
        setattr(config, name, each)
    with pytest.raises(
        ExportError, match=f"base: found {problem}, expected a Llama or Mistral model; export"
    ):
        check_shape(config, name="base")


# -------------------------------------------------------------------- adapters


def test_an_adapters_product_is_that_of_the_run_in_llama_cpps_order(
    label_run: Path, member: Callable[[Path], Member], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(label_run), "--format", "gguf-adapter", "--unchecked", "--out", str(out)]) == 0
    reader = gguf.GGUFReader(out / "adapter.gguf")
    alpha = reader.fields["adapter.lora.alpha"]
    assert (alpha.types, alpha.contents()) == ([gguf.GGUFValueType.FLOAT32], 64.0)
    expected = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    assert {key: value(reader, key) for key in expected} == expected
    found, weights = tensors(reader), member(label_run).weights
    assert len(found) == len(weights) == 2 * 4 * 2
    heads = {"q": HEADS, "k": KEY_HEADS}
    for layer in range(2):
        for mine, theirs in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "output": "o_proj"}.items():
            name = f"model.base_model.model.model.layers.{layer}.self_attn.{theirs}"
            a, b = (weights[f"{name}.lora_{matrix}.default.weight"] for matrix in "AB")
            product = b @ a
            product = neighbours(product, heads[mine]) if mine in heads else product
            a, b = (found[f"blk.{layer}.attn_{mine}.weight.lora_{matrix}"] for matrix in "ab")
            np.testing.assert_allclose(b @ a, product.numpy(), rtol=1e-5, atol=1e-7)


def test_small_updates_survive_in_float16(tmp_path: Path) -> None:
    weights = {"model.layers.0.self_attn.v_proj.lora_a": torch.full((4, 64), 3e-6)}
    write_adapter(weights, small_llama(700), tmp_path / "a.gguf", alpha=8, dtype="float16", name="x")
    (found,) = tensors(gguf.GGUFReader(tmp_path / "a.gguf")).values()
    np.testing.assert_allclose(found, 3e-6, rtol=0.01)


def test_names_of_matrices_are_those_of_the_modules(
    label_run: Path, member: Callable[[Path], Member]
) -> None:
    names = set(adapter_matrices(member(label_run)))
    assert {
        "model.layers.0.self_attn.q_proj.lora_a",
        "model.layers.1.self_attn.o_proj.lora_b",
    } <= names


# ------------------------------------------------------------------ tokenizers


def test_byte_level_pieces_are_filled_up_to_the_models_rows(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, byte_level(), TEMPLATES["zephyr"])
    tokenizer: Any = load_prompt_format(folder)
    num = tokenizer.vocab_size
    found = vocabulary_of(tokenizer, folder, num + 2)
    assert list(found.pieces[:num]) == tokenizer.tokenizer.convert_ids_to_tokens(list(range(num)))
    assert list(found.pieces[num:]) == [f"[PAD{num}]", f"[PAD{num + 1}]"]
    control = {token for token, kind in enumerate(found.kinds) if kind is gguf.TokenType.CONTROL}
    assert control == set(tokenizer.special_ids)
    assert found.merges[0].count(" ") == 1
    assert found.special_ids["eos"] == tokenizer.eos_id
    assert not found.starts_with_bos


@pytest.mark.parametrize("prefix", ["normalizer", "first"])
def test_scores_rank_pieces_as_merges_do(prefix: str, tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, like_sentencepiece(prefix), TEMPLATES["zephyr"])
    found = vocabulary_of(load_prompt_format(folder), folder, 1)
    kinds = dict(zip(found.pieces, found.kinds, strict=True))
    scores = dict(zip(found.pieces, found.scores, strict=True))
    assert found.model == "llama"
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"], kinds["▁"]) == (
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.BYTE,
        gguf.TokenType.NORMAL,
    )
    merged = [piece for piece, score in scores.items() if score < 0]
    assert len({scores[piece] for piece in merged}) == len(merged)
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert [scores["".join(merge)] for merge in merges[:3]] == [0.0, -1.0, -2.0]


def test_mistrals_pieces_have_sentencepieces_own_scores(tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path)
    found = vocabulary_of(load_prompt_format(folder), folder, 32768)
    model: Any = MistralTokenizer.v3().instruct_tokenizer.tokenizer
    assert len(found.pieces) == 32768
    assert found.pieces[3] == "[INST]"
    assert found.kinds[3] is gguf.TokenType.CONTROL
    assert found.scores[5000] == model._model.get_score(5000)
    assert found.special_ids == {"bos": 1, "eos": 2, "pad": 2}
    assert found.starts_with_bos
    assert found.chat_template == "{{ '<s>[INST] ' + messages[0]['content'] + '[/INST]' }}"


def test_tekkens_pieces_are_those_of_its_tokenizer_json(tmp_path: Path) -> None:
    folder = write_tekken_folder(tmp_path)
    found = vocabulary_of(load_prompt_format(folder), folder, 1356)
    assert (found.model, found.pre, len(found.pieces)) == ("gpt2", "tekken", 1356)
    assert found.chat_template == "{{ '<s>[INST]' + messages[0]['content'] + '[/INST]' }}"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"found no tokenizer\.json, which a GGUF file is made from"):
        vocabulary_of(load_prompt_format(folder), folder, 1356)


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, unigram(), TEMPLATES["zephyr"])
    with pytest.raises(ExportError, match=r"llama\.cpp has no name for this tokenizer's way to split texts"):
        vocabulary_of(ChatFormat(AutoTokenizer.from_pretrained(folder)), folder, 700)
