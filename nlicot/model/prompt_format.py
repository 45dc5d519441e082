"""How a prompt and a completion become token ids, for one kind of tokenizer each.

`mistral` renders `<s>[INST] {prompt}[/INST]` with the tokenizer of `mistral_common`, so the ids are
Mistral's own; `chat` uses the chat template that the model's tokenizer carries. Both encode user text
without ever reading a control token out of it, and encode a completion segment by segment.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nlicot import completion
from nlicot.errors import ModelError

MISTRAL_V3_VOCABULARY = 32768


class PromptFormat(ABC):
    """Encodes prompts and completion segments; `decode` gives the text back byte for byte."""

    name: str
    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int

    @abstractmethod
    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids up to where the model's answer begins."""

    @abstractmethod
    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """The ids of one completion segment; only the `first` takes a tokenizer's dummy prefix."""

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """`encode_prompt` of each."""
        return [self.encode_prompt(prompt) for prompt in prompts]

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_segment` of each, none of them a completion's first."""
        return [self.encode_segment(text, first=False) for text in texts]

    def count_thought_tokens(self, thought: str) -> int:
        """How many tokens a thought takes inside a completion."""
        return len(self.encode_segment(completion.escape(thought), first=False))

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion's ids, EOS left out."""

    @abstractmethod
    def decode_inner(self, ids: Sequence[int]) -> str:
        """The text of ids from inside a completion, where no dummy prefix was added."""

    @abstractmethod
    def control_text(self, token: int) -> str:
        """What the vocabulary calls a control token, which `decode_inner` may leave out."""

    @cached_property
    def token_texts(self) -> list[str]:
        """Each id's text, for telling which tokens hold a quote, a backslash or a line break."""
        return [self.decode_inner([token]) for token in range(self.vocab_size)]

    @property
    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """The control tokens, which no thought may hold."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides the ids, kept in checkpoints and caches."""
        probe = 'Premise: "a  b"\n[INST] \U0001f600 e\u0301 </s> {"thought_process": "x\\n"}'
        ids = [
            self.encode_prompt(probe),
            self.encode_segment(probe, first=True),
            self.eos_id,
            self.vocab_size,
        ]
        return hashlib.sha256(json.dumps([self.name, ids]).encode()).hexdigest()


class ChatFormat(PromptFormat):
    """The chat template of a Hugging Face tokenizer, one user turn and the start of the answer."""

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template; name a model that has one, "
                "or one with Mistral's v3 tokenizer (--model.prompt_format mistral)"
            )
        self.tokenizer = tokenizer
        self.bos_id = tokenizer.bos_token_id
        self.eos_id = tokenizer.eos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The template's own markers as control tokens, the prompt inside as plain text."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokenizer takes the texts on all cores."""
        before, after = self._template_ids
        return [[*before, *ids, *after] for ids in self._encode_texts(prompts)]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """Byte-level tokenizers have no dummy prefix, so `first` makes no difference."""
        return self._encode_texts([text])[0]

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokenizer takes the texts on all cores."""
        return self._encode_texts(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, with a closing EOS dropped."""
        return self.decode_inner(ids[:-1] if ids and ids[-1] == self.eos_id else ids)

    def decode_inner(self, ids: Sequence[int]) -> str:
        """The text of the ids as they are."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def control_text(self, token: int) -> str:
        """The token's own name."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    @property
    def special_ids(self) -> frozenset[int]:
        """What the tokenizer calls special, added tokens included."""
        added = {token for token, text in self.tokenizer.added_tokens_decoder.items() if text.special}
        return frozenset({*self.tokenizer.all_special_ids, *added})

    @cached_property
    def _template_ids(self) -> tuple[list[int], list[int]]:
        """What stands before a prompt and behind it, control tokens included."""
        marker = "\x02prompt\x03"
        turns = [{"role": "user", "content": marker}]
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, _, after = rendered.partition(marker)
        first, last = self.tokenizer([before, after], add_special_tokens=False)["input_ids"]
        return first, last

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        return found


class MistralFormat(PromptFormat):
    """Mistral's v3 instruction format, by `mistral_common`'s SentencePiece model.

    Args:
        tokenizer_path: a `tokenizer.model.v3`; the one inside `mistral_common` by default.
    """

    name = "mistral"

    def __init__(self, tokenizer_path: Path | None = None) -> None:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        tokenizer = (
            MistralTokenizer.from_file(str(tokenizer_path)) if tokenizer_path else MistralTokenizer.v3()
        )
        self._pieces = tokenizer.instruct_tokenizer.tokenizer
        self.bos_id = self._pieces.bos_id
        self.eos_id = self._pieces.eos_id
        # Mistral has no padding token; masks go by length, so any id serves.
        self.pad_id = self._pieces.eos_id
        self.vocab_size = self._pieces.n_words
        self._opening_id = self._pieces.get_special_token("[INST]")
        self._closing_id = self._pieces.get_special_token("[/INST]")

    def encode_prompt(self, prompt: str) -> list[int]:
        """`<s>[INST] {prompt}[/INST]`; the space is the dummy prefix of the prompt's own encoding."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """SentencePiece takes the texts on all cores."""
        encoded = self._pieces._model.encode(list(prompts), num_threads=-1)
        before = [self._pieces.bos_id, self._opening_id]
        return [[*before, *ids, self._closing_id] for ids in encoded]

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """SentencePiece puts a space before every text it encodes, which only the first may keep."""
        return self._encode(text) if first else list(self._without_prefix.encode(text))

    def encode_segments(self, texts: Sequence[str]) -> list[list[int]]:
        """SentencePiece takes the texts on all cores."""
        found: list[list[int]] = self._without_prefix.encode(list(texts), num_threads=-1)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text, dummy prefix and EOS dropped."""
        text: str = self._pieces.decode([token for token in ids if token != self.eos_id])
        return text

    def decode_inner(self, ids: Sequence[int]) -> str:
        """The text of the ids, a leading space kept."""
        plain = [token for token in ids if token not in self.special_ids]
        text: str = self._without_prefix.decode(plain)
        return text

    def control_text(self, token: int) -> str:
        """The piece's own name."""
        return str(self._pieces._model.IdToPiece(token))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Control tokens and `<unk>`."""
        pieces = self._pieces._model
        ids = range(self.vocab_size)
        return frozenset(token for token in ids if pieces.IsControl(token) or pieces.IsUnknown(token))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(text, bos=False, eos=False)
        return ids

    @cached_property
    def _without_prefix(self) -> Any:
        """The same SentencePiece model, its dummy prefix switched off."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(self._pieces._model.serialized_model_proto())
        model.normalizer_spec.add_dummy_prefix = False
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(model.SerializeToString())
        return processor


def load_prompt_format(folder: Path, name: str = "auto") -> PromptFormat:
    """The format that fits the tokenizer in a model's folder.

    Args:
        folder: the model's files.
        name: `mistral`, `chat`, or `auto`: Mistral's where the folder holds `tokenizer.model.v3` or
            its model speaks of 32,768 tokens and has no chat template of its own, else the chat template.

    Raises:
        ModelError: the format does not fit the tokenizer.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = int(config["vocab_size"])
    if name == "auto":
        is_mistral = config.get("model_type") == "mistral" and vocabulary == MISTRAL_V3_VOCABULARY
        name = "mistral" if is_mistral else "chat"
    if name == "mistral":
        own = folder / "tokenizer.model.v3"
        mistral = MistralFormat(own if own.is_file() else None)
        if mistral.vocab_size != vocabulary:
            raise ModelError(
                f"{folder}: found a vocabulary of {vocabulary} tokens, expected {mistral.vocab_size} "
                "for the prompt format 'mistral' (use --model.prompt_format chat)"
            )
        return mistral
    if name != "chat":
        raise ModelError(f"--model.prompt_format: found {name!r}, expected auto, mistral or chat")
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(folder))
