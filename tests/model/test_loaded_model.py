"""The adapter: its modules and initial weights, merging it, and loading it with PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PhiConfig, PhiForCausalLM

from nlicot.errors import ConfigError, ModelError
from nlicot.model.base_model import resolve
from nlicot.model.loaded_model import (
    LoadedModel,
    adapter_parameters,
    attach,
    check_max_length,
    load_base,
    merge_dense,
)
from nlicot.model.prompt_format import load_prompt_format
from nlicot.settings import LoraSettings
from tests.small_model import small_llama, small_mistral, write_small_model

RECIPE = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


def _base(small_model: Path, **options: Any) -> Any:
    return load_base(resolve(str(small_model)), for_training=True, **options)


@pytest.fixture
def base(small_model: Path) -> Any:
    return _base(small_model, quantization="none", dtype="float32")


def test_recipe_adapts_the_four_attention_projections_of_every_layer(base: Any) -> None:
    names = adapter_parameters(attach(base, LoraSettings(), seed=0))
    projections = {(name.split(".")[4], name.split(".")[6]) for name in names}
    assert projections == {(layer, projection) for layer in "01" for projection in RECIPE}
    # r x (in + out): 32 x (64 + 64) for q and o, 32 x (64 + 32) for k and v, in two layers
    assert sum(weight.numel() for weight in names.values()) == 2 * 32 * (128 + 96 + 96 + 128)


def test_adapter_is_float32_on_a_bfloat16_base_in_4_bits(small_model: Path) -> None:
    adapted = attach(_base(small_model), LoraSettings(r=4), seed=0)
    assert {weight.dtype for weight in adapter_parameters(adapted).values()} == {torch.float32}


def test_new_adapter_changes_no_logit_and_depends_on_its_seed(small_model: Path) -> None:
    ids = torch.tensor([[1, 5, 9]])
    fresh = _base(small_model, quantization="none", dtype="float32")
    with torch.no_grad():
        expected = fresh(input_ids=ids).logits
    first = attach(fresh, LoraSettings(r=4), seed=3)
    with torch.no_grad():
        assert torch.equal(first.eval()(input_ids=ids).logits, expected)

    def weights(seed: int) -> dict[str, torch.Tensor]:
        base = _base(small_model, quantization="none", dtype="float32")
        return dict(adapter_parameters(attach(base, LoraSettings(r=4), seed=seed)))

    again, other = weights(3), weights(4)
    mine = adapter_parameters(first)
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    assert not all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_base_without_some_of_its_weights_is_refused(small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(small_model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"found no weights of model\.layers\.1\.mlp\.up_proj\.weight; copy"):
        _base(folder)


def _configured(small_model: Path, folder: Path, **settings: float | None) -> Path:
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("logits_scaling", 8),
        ("logit_scale", 0.0625),
    ],
)
def test_a_base_that_changes_its_logits_is_refused(
    key: str, value: float, small_model: Path, tmp_path: Path
) -> None:
    folder = _configured(small_model, tmp_path / "base", **{key: value})
    found = rf"base: config\.json: {key}: found {value:g}, expected none; use another base"
    with pytest.raises(ModelError, match=found):
        _base(folder, quantization="none", dtype="float32")


def test_a_base_whose_config_has_them_without_effect_is_loaded(small_model: Path, tmp_path: Path) -> None:
    settings = {"final_logit_softcapping": None, "attn_logit_softcapping": None, "logits_scaling": 1.0}
    assert _base(_configured(small_model, tmp_path / "base", **settings), quantization="none")


def test_a_base_whose_output_layer_has_a_bias_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    PhiForCausalLM(config).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"base: found lm_head\.bias, expected none; use another base"):
        _base(tmp_path / "base", quantization="none", dtype="float32")


def test_training_on_examples_longer_than_the_sliding_window_is_refused() -> None:
    check_max_length(small_mistral(8, sliding_window=4096), 768)  # as Mistral-7B-v0.1
    check_max_length(small_mistral(8, sliding_window=512), 512)
    check_max_length(small_mistral(8, sliding_window=None), 768)
    check_max_length(small_llama(8, sliding_window=512, use_sliding_window=False), 768)
    found = r"^--data\.max_length: found 768, expected 512 or less, the base's sliding_window$"
    with pytest.raises(ConfigError, match=found):
        check_max_length(small_mistral(8, sliding_window=512), 768)


def test_training_on_examples_longer_than_the_context_is_refused() -> None:
    check_max_length(small_llama(8), 2048)
    with pytest.raises(ConfigError, match="found 2049, expected 2048 or less, the base's max_position_embed"):
        check_max_length(small_llama(8), 2049)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4}
    check_max_length(small_llama(8, rope_parameters=yarn), 8192)  # as Qwen2.5 is extended
    with pytest.raises(ConfigError, match="found 8193, expected 8192 or less"):
        check_max_length(small_llama(8, rope_parameters=yarn), 8193)


def test_a_base_with_layers_that_are_not_attention_is_refused(small_model: Path, tmp_path: Path) -> None:
    """In a packed row, a convolution or linear attention would read the example before."""
    folder = _configured(small_model, tmp_path / "base", layer_types=["linear_attention", "full_attention"])
    with pytest.raises(ModelError, match=r"layer_types: found linear_attention, expected attention layers o"):
        _base(folder, quantization="none", dtype="float32")


def test_unknown_projection_is_refused_with_the_known_ones(base: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        attach(base, LoraSettings(target_modules=["q_proj", "query"]), seed=0)
    assert str(caught.value) == (
        "--model.lora.target_modules: the model has no linear module named query; it has down_proj, "
        "gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


def test_saved_folder_loads_with_plain_peft_and_replaces_an_earlier_one(
    base: Any, small_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted: Any = attach(base, LoraSettings(r=4), seed=0)
    resolved, prompt_format = resolve(str(small_model)), load_prompt_format(small_model)
    folder = tmp_path / "adapter"
    for round_ in (1, 2):
        for weight in adapter_parameters(adapted).values():
            weight.data.fill_(round_ / 100)
        LoadedModel(model=adapted, prompt_format=prompt_format, base=resolved).save_adapter(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "SHA256SUMS"}

    dense = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(dense, folder)
    assert loaded.peft_config["default"].base_model_name_or_path == str(small_model)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)


def test_merged_adapter_gives_close_logits_and_is_removed_exactly(tmp_path: Path) -> None:
    resolved = resolve(str(write_small_model(tmp_path / "base")))
    base = load_base(resolved, quantization="none", dtype="float32", for_training=False)
    adapted = attach(base, LoraSettings(r=4), seed=0).eval()
    for name, weight in adapter_parameters(adapted).items():
        torch.manual_seed(len(name))
        weight.data.normal_(0, 0.2)
    ids = torch.arange(12)[None] + 5
    with torch.inference_mode():
        before = adapted(input_ids=ids).logits
        undo = merge_dense(adapted)
        merged = adapted(input_ids=ids).logits
        undo()
        after = adapted(input_ids=ids).logits
        plain = load_base(resolved, quantization="none", dtype="float32", for_training=False)
        unadapted = plain.eval()(input_ids=ids).logits
    assert (merged - before).abs().max() < 1e-3
    assert (unadapted - before).abs().max() > 0.05
    assert torch.equal(after, before)
