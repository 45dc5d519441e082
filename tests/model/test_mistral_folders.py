"""Folders with the files of Mistral's models: the ids are those of mistral_common."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM

from nlicot import completion
from nlicot.errors import ModelError
from nlicot.model.base_model import resolve
from nlicot.model.loaded_model import load_base
from nlicot.model.prompt_format import PromptFormat, load_prompt_format
from nlicot.prompts import StudentPrompts
from tests.encoded import encode_completion
from tests.model.test_prompt_format import NASTY
from tests.small_tokenizers import TEMPLATES, byte_level, write_chat_model

DATA = MistralTokenizer._data_path()
SPM = {version: next(DATA.glob(f"mistral_instruct_tokenizer_*.model.v{version}")) for version in (2, 3, 7)}
INSTRUCT = "{{ bos_token }}{% for turn in messages %}{{ '[INST] ' + turn.content + '[/INST]' }}{% endfor %}"
TEKKEN_INSTRUCT = INSTRUCT.replace("[INST] ", "[INST]")
CHATML = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_sentencepiece_folder(
    folder: Path, *, model_type: str = "mistral", version: int | None = 3, template: str | None = None
) -> Path:
    """The tokenizer files of Mistral-7B-v0.3: SentencePiece's, and the same pieces for `transformers`."""
    folder.mkdir(exist_ok=True)
    tokenizer: Any = MistralTokenizer.from_file(str(SPM[version or 3])).instruct_tokenizer.tokenizer
    pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.n_words)]
    control = [token for token in range(tokenizer.n_words) if tokenizer._model.IsControl(token)]
    added = [
        {"id": token, "content": pieces[token], "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token in (0, *control)
    ]
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    model = {"type": "BPE", "vocab": {piece: token for token, piece in enumerate(pieces)}, "merges": []}
    model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None}
    decoder = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decoder += [
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model}
    content |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    content |= {"post_processor": None, "decoder": {"type": "Sequence", "decoders": decoder}}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if version:
        shutil.copy(SPM[version], folder / f"tokenizer.model.v{version}")
    shutil.copy(SPM[version or 3], folder / "tokenizer.model")
    return write_configs(folder, model_type, len(pieces), template)


def write_configs(folder: Path, model_type: str, vocab_size: int, template: str | None) -> Path:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**names, "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": None}
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": vocab_size}))
    (folder / "params.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return folder


def write_tekken_folder(
    folder: Path, *, template: str | None = None, tokenizer_json: bool = True, version: str = "v3"
) -> Path:
    """The tokenizer files of Nemo and Ministral-8B, with the first thousand of Tekken's tokens."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    folder.mkdir(exist_ok=True)
    content = json.loads((DATA / "tekken_240718.json").read_text(encoding="utf-8"))
    content["vocab"] = content["vocab"][:1256]
    content["config"] |= {"default_vocab_size": 1356, "default_num_special_tokens": 100, "version": version}
    if version != "v3":  # newer files list their control tokens
        content["special_tokens"] = [
            {"rank": rank, "token_str": each.value, "is_control": True}
            for rank, each in enumerate(SpecialTokens)
        ]
    (folder / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    if tokenizer_json:
        converted: Tokenizer = MistralConverter(str(folder / "tekken.json")).converted()
        converted.save(str(folder / "tokenizer.json"))
    return write_configs(folder, "mistral", 1356, template)


def tokenizer_of(folder: Path) -> MistralTokenizer:
    newest = folder / "tekken.json"
    return MistralTokenizer.from_file(
        str(newest if newest.is_file() else max(folder.glob("tokenizer.model.v*")))
    )


def assert_mistrals_ids(found: PromptFormat, tokenizer: MistralTokenizer) -> None:
    assert found.name == "mistral"
    inner: Any = tokenizer.instruct_tokenizer.tokenizer
    for text in NASTY.values():
        prompt = StudentPrompts().render(text, f"x{text}")
        request: Any = ChatCompletionRequest(messages=[UserMessage(content=prompt)])
        assert found.encode_prompt(prompt) == tokenizer.encode_chat_completion(request).tokens
        ids, _ = encode_completion(found, text, 1)
        opened = inner.encode(completion.THOUGHT_OPENING, bos=False, eos=False)
        assert ids[: len(opened)] == opened
        assert found.decode_inner(ids[:-1]).removeprefix(found.dummy_prefix) == completion.render(text, 1)
        assert ids[-1] == inner.eos_id
    assert (found.vocab_size, found.eos_id) == (inner.n_words, inner.eos_id)


# ------------------------------------------------------------------ Mistral's own


@pytest.mark.parametrize("model_type", ["mistral", "mixtral"])
@pytest.mark.parametrize("template", [None, INSTRUCT], ids=["Mistral-7B-v0.3", "Mistral-7B-Instruct-v0.3"])
@pytest.mark.parametrize("version", [2, 3, 7])
def test_sentencepiece_folders_give_mistrals_ids(
    version: int, template: str | None, model_type: str, tmp_path: Path
) -> None:
    folder = write_sentencepiece_folder(tmp_path, model_type=model_type, version=version, template=template)
    assert_mistrals_ids(load_prompt_format(folder), MistralTokenizer.from_file(str(SPM[version])))


def test_a_folder_without_mistrals_own_file_takes_that_of_v3(tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path, version=None)
    assert_mistrals_ids(load_prompt_format(folder), MistralTokenizer.v3())


@pytest.mark.parametrize("tokenizer_json", [True, False])
@pytest.mark.parametrize(
    "template", [None, TEKKEN_INSTRUCT], ids=["Mistral-Nemo-Base", "Ministral-8B-Instruct"]
)
def test_tekken_folders_give_mistrals_ids(template: str | None, tokenizer_json: bool, tmp_path: Path) -> None:
    folder = write_tekken_folder(tmp_path, template=template, tokenizer_json=tokenizer_json)
    assert_mistrals_ids(load_prompt_format(folder), tokenizer_of(folder))


def test_newer_tekken_files_give_mistrals_ids(tmp_path: Path) -> None:
    folder = write_tekken_folder(tmp_path, version="v13", tokenizer_json=False)
    config = {"model_type": "mistral3", "text_config": {"vocab_size": 1356}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_mistrals_ids(load_prompt_format(folder), tokenizer_of(folder))


def test_tekken_of_its_full_size_gives_mistrals_ids(tmp_path: Path) -> None:
    shutil.copy(DATA / "tekken_240911.json", tmp_path / "tekken.json")
    write_configs(tmp_path, "mistral", 131072, TEKKEN_INSTRUCT)
    assert_mistrals_ids(load_prompt_format(tmp_path), MistralTokenizer.v3(is_tekken=True, is_mm=True))


# ------------------------------------------------------------- other templates


@pytest.mark.parametrize("kept", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_mistral_folder_with_other_markers_gets_those(kept: str, tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path, template=CHATML if kept != "chat_template.jinja" else None)
    if kept == "chat_template.jinja":
        (folder / kept).write_text(CHATML, encoding="utf-8")
    found = load_prompt_format(folder)
    assert found.name == "chat"
    text = "<|im_start|>user\nDoes it?<|im_end|>\n<|im_start|>assistant\n"
    assert found.decode_inner(found.encode_prompt("Does it?")).removeprefix(" ") == text


def test_a_tekken_folder_with_other_markers_gets_those_of_its_tokenizer(tmp_path: Path) -> None:
    found = load_prompt_format(write_tekken_folder(tmp_path, template=CHATML))
    text = "<|im_start|>user\nDoes it?<|im_end|>\n<|im_start|>assistant\n"
    assert (found.name, found.decode_inner(found.encode_prompt("Does it?"))) == ("chat", text)


def test_another_vocabulary_of_the_same_size_is_not_mistrals(tmp_path: Path) -> None:
    write_chat_model(tmp_path, byte_level(), TEMPLATES["zephyr"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 32768}))
    assert load_prompt_format(tmp_path).name == "chat"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="the model's tokenizer has no chat template"):
        load_prompt_format(tmp_path)


def test_a_file_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_sentencepiece_folder(tmp_path, model_type="mixtral")
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral", "vocab_size": 32000}))
    with pytest.raises(ModelError) as raised:
        load_prompt_format(folder)
    assert str(raised.value) == (
        f"{folder}: found a vocabulary of 32000 tokens, expected 32768 for the prompt format 'mistral' "
        "(use --model.prompt_format chat)"
    )


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3"])
def test_a_broken_tokenizer_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write_configs(tmp_path, "mixtral", 32768, None)
    (tmp_path / name).write_bytes(base64.b64decode("AAAA"))
    with pytest.raises(ModelError) as raised:
        load_prompt_format(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: the tokenizer cannot be loaded (")
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- weights


def test_the_shards_are_loaded_and_not_the_consolidated_copy(tmp_path: Path) -> None:
    folder = write_tekken_folder(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=1356, **sizes, **heads))
    model.save_pretrained(folder, max_shard_size="400KB")
    (folder / "consolidated.safetensors").write_bytes(b"another layout, which transformers does not read")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    loaded = load_base(resolve(str(folder)), quantization="none", dtype="float32", for_training=False)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(loaded.parameters(), model.parameters(), strict=True)
    )

    (folder / "model.safetensors.index.json").unlink()
    for shard in shards:
        shard.unlink()
    with pytest.raises(ModelError) as raised:
        load_base(resolve(str(folder)), quantization="none", dtype="float32", for_training=False)
    assert str(raised.value).startswith(f"--model.base {folder}: ")
    assert "\n" not in str(raised.value)
