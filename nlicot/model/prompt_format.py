"""Prompt formats: how prompts and completions become token ids, one class per kind of tokenizer.

`mistral` renders `<s>[INST] {prompt}[/INST]` with the tokenizer of `mistral_common`, so the ids are Mistral's
own; `chat` uses the chat template of the model's tokenizer. Both never read a control token from user text,
and encode a completion segment by segment. A new format is a subclass of `PromptFormat` and one line in
`PROMPT_FORMATS`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from nlicot import completion
from nlicot.errors import ModelError
from nlicot.model.base_model import BUNDLED, CONFIG_FILE, bundled_file, is_unpacked, resolve

AUTO = "auto"
MISTRAL_V3_VOCABULARY = 32768
MISTRAL_V3_MODELS = ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3")
"""Hub models whose tokenizer is part of the package `mistral_common`, so nothing is downloaded for it."""


class PromptFormat(ABC):
    """Encodes prompts and completion segments so that decoding returns the text byte for byte."""

    name: ClassVar[str]
    eos_id: int
    pad_id: int
    vocab_size: int
    special_ids: frozenset[int]  # control tokens, which a thought must not contain

    @classmethod
    def fits(cls, config: Mapping[str, Any]) -> bool:
        """Decide by a model's `config.json` if `auto` selects this format."""
        return True

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Load the tokenizer from a model's folder; raises `ModelError` if it does not support the format."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, up to the start of the model's answer."""

    @abstractmethod
    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of completion segments, none of them the first of its completion."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of one prompt."""
        return self.encode_prompts([prompt])[0]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """Return the ids of one completion segment; only the `first` takes a tokenizer's dummy prefix."""
        return self.encode_segments([text])[0]

    def count_thought_tokens(self, thought: str) -> int:
        """Return the number of tokens of a thought inside a completion."""
        return len(self.encode_segment(completion.escape(thought), first=False))

    @abstractmethod
    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text of ids from inside a completion, without removing a dummy prefix."""

    @abstractmethod
    def control_text(self, token: int) -> str:
        """Return the vocabulary's name of a control token, which `decode_inner` may omit."""

    @cached_property
    def token_texts(self) -> list[str]:
        """Each id's text, to find tokens with a quote, a backslash or a line break."""
        return [self.decode_inner([token]) for token in range(self.vocab_size)]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the format's ids, stored in checkpoints and caches."""
        probe = 'Premise: "a  b"\n[INST] \U0001f600 e\u0301 </s> {"thought_process": "x\\n"}'
        texts = [self.encode_prompt(probe), self.encode_segment(probe, first=True)]
        ids = [*texts, self.eos_id, self.vocab_size]
        return hashlib.sha256(json.dumps([self.name, ids]).encode()).hexdigest()


class MistralFormat(PromptFormat):
    """Mistral's v3 instruction format, with a given SentencePiece file or that of `mistral_common`."""

    name = "mistral"

    def __init__(self, path: Path | None = None) -> None:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        tokenizer = MistralTokenizer.from_file(str(path)) if path else MistralTokenizer.v3()
        self._tokenizer = tokenizer.instruct_tokenizer.tokenizer
        self._model = model = self._tokenizer._model  # the SentencePiece model
        self.eos_id = self._tokenizer.eos_id
        self.pad_id = self.eos_id  # Mistral has no padding token; masks follow lengths, so any id works
        self.vocab_size = self._tokenizer.n_words
        ids = range(self.vocab_size)
        self.special_ids = frozenset(each for each in ids if model.IsControl(each) or model.IsUnknown(each))
        plain = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        plain.ParseFromString(model.serialized_model_proto())
        plain.normalizer_spec.add_dummy_prefix = False
        self._without_prefix = SentencePieceProcessor(model_proto=plain.SerializeToString())

    @classmethod
    def fits(cls, config: Mapping[str, Any]) -> bool:
        """Select Mistral models with the v3 vocabulary."""
        return config.get("model_type") == "mistral" and int(config["vocab_size"]) == MISTRAL_V3_VOCABULARY

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> MistralFormat:
        """Load the folder's `tokenizer.model.v3`, else that of `mistral_common`."""
        path = folder / "tokenizer.model.v3"
        loaded = cls(path if path.is_file() else None)
        if loaded.vocab_size != int(config["vocab_size"]):
            raise ModelError(
                f"{folder}: found a vocabulary of {config['vocab_size']} tokens, expected "
                f"{loaded.vocab_size} for the prompt format 'mistral' (use --model.prompt_format chat)"
            )
        return loaded

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """`<s>[INST] {prompt}[/INST]`; the space is the dummy prefix of the prompt's own encoding."""
        opening, closing = map(self._tokenizer.get_special_token, ("[INST]", "[/INST]"))
        encoded = self._model.encode(list(prompts), num_threads=-1)
        return [[self._tokenizer.bos_id, opening, *ids, closing] for ids in encoded]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """SentencePiece puts a space before each text it encodes; only the first segment keeps it."""
        return list((self._model if first else self._without_prefix).encode(text))

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode the texts on all cores."""
        return list(self._without_prefix.encode(list(texts), num_threads=-1))

    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text without control tokens, a leading space included."""
        return str(self._without_prefix.decode([token for token in ids if token not in self.special_ids]))

    def control_text(self, token: int) -> str:
        """Return the piece's name."""
        return str(self._model.IdToPiece(token))


class ChatFormat(PromptFormat):
    """The chat template of a Hugging Face tokenizer: one user turn and the start of the answer."""

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template; use a model that has one, "
                "or one with Mistral's v3 tokenizer (--model.prompt_format mistral)"
            )
        self.tokenizer = tokenizer
        self.eos_id = tokenizer.eos_token_id
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size = len(tokenizer)
        added = {token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
        self.special_ids = frozenset({*tokenizer.all_special_ids, *added})

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> ChatFormat:
        """Load the folder's tokenizer."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder))

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Encode the template's markers as control tokens, the prompts as plain text."""
        before, after = self._template_ids
        return [[*before, *ids, *after] for ids in self.encode_segments(prompts)]

    @cached_property
    def _template_ids(self) -> list[list[int]]:
        marker = "\x02prompt\x03"
        turns = [{"role": "user", "content": marker}]
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, _, after = rendered.partition(marker)
        return list(self.tokenizer([before, after], add_special_tokens=False)["input_ids"])

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode the texts on all cores; byte-level tokenizers have no dummy prefix."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        return list(self.tokenizer(list(texts), **options)["input_ids"])

    def decode_inner(self, ids: Sequence[int]) -> str:
        """Return the text of all ids, control tokens included."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **options))

    def control_text(self, token: int) -> str:
        """Return the token's name."""
        return str(self.tokenizer.convert_ids_to_tokens(token))


PROMPT_FORMATS: tuple[type[PromptFormat], ...] = (MistralFormat, ChatFormat)
"""All formats; `auto` selects the first one that fits."""


def load_prompt_format(folder: Path, name: str = AUTO) -> PromptFormat:
    """Load the prompt format of a model's folder: the one of that name, or for `auto` the first that fits."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    for each in PROMPT_FORMATS:
        if each.name == name or (name == AUTO and each.fits(config)):
            return each.load(folder, config)
    *others, last = [AUTO, *(each.name for each in PROMPT_FORMATS)]
    raise ModelError(f"--model.prompt_format: found {name!r}, expected {', '.join(others)} or {last}")


def prompt_format_of_base(base: str, name: str = AUTO) -> PromptFormat:
    """Load the prompt format of a base without its weights, for commands that only look at tokens."""
    if base in MISTRAL_V3_MODELS and name in (AUTO, MistralFormat.name) and not Path(base).is_dir():
        return MistralFormat()
    if base == BUNDLED and name in (AUTO, ChatFormat.name) and not is_unpacked():
        from transformers import AutoTokenizer

        gguf_path = bundled_file()
        return ChatFormat(AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name))
    return load_prompt_format(resolve(base, weights=False).folder, name)
