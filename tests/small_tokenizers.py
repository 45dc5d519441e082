"""Tokenizers of a few hundred tokens, made as those of well-known models are, in folders of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nlicot.config_files import SAMPLE
from tests.small_model import small_llama

SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATES = {
    # Zephyr's and TinyLlama-Chat's kind: markers of ordinary text, each turn closed by EOS.
    "zephyr": "{% for turn in messages %}"
    "{{ '<|' + turn.role + '|>\n' + turn.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    # Mistral-7B-Instruct-v0.1's and v0.2's kind: BOS, then markers of ordinary text with spaces.
    "instruct": "{{ bos_token }}{% for turn in messages %}"
    "{% if turn.role == 'user' %}{{ '[INST] ' + turn.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn.content + eos_token }}{% endif %}{% endfor %}",
}


def _trained(pre_tokenizer: Any, normalizer: Any, alphabet: list[str]) -> tuple[list[str], list[Any]]:
    """Learn pieces and merges from the sample's pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    text = (SAMPLE / "original_data" / "train.csv").read_text(encoding="utf-8")
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def like_sentencepiece(prefix: str, *, with_bytes: bool = True) -> Tokenizer:
    """A Llama-2-like tokenizer; a `normalizer` or Metaspace (`first`, `always`) adds the dummy prefix."""
    spaces = normalizers.Replace(" ", "▁")
    pieces, merges = _trained(pre_tokenizers.Split("▁", "merged_with_next"), spaces, ["▁", *'01{}"\\'])
    with_unknown = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256) if with_bytes), *pieces]
    vocabulary = {piece: token for token, piece in enumerate(with_unknown)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=with_bytes, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    return tokenizer


def byte_level(*, add_prefix_space: bool = False, normalizer: Any = None) -> Tokenizer:
    """A GPT-2-like tokenizer, with EOS after its pieces."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pieces, merges = _trained(split, None, pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, split, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def word_piece() -> Tokenizer:
    """A BERT-like tokenizer: lower case, no spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.decoder = decoders.WordPiece()
    text = (SAMPLE / "original_data" / "train.csv").read_text(encoding="utf-8")
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """A T5-like tokenizer whose control tokens are pieces, too, which a text can spell."""
    pieces = [*SPECIAL, "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_chat_model(
    folder: Path, tokenizer: Tokenizer, template: str, *, weights: bool = False, **tokenizer_config: Any
) -> Path:
    """Write a model's folder with this tokenizer, with random weights of two small layers if asked."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)
    wrapped.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **tokenizer_config}))
    config = small_llama(len(wrapped))
    if weights:
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder
