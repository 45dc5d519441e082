"""A tokenizer as GGUF describes it: pieces, their kinds, merges or scores, and the chat template.

llama.cpp knows two kinds that Llama and Mistral models use: `gpt2`, byte-level BPE by merges, with a name for
the rule that splits texts before; and `llama`, SentencePiece's BPE by scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from nlicot.errors import ExportError
from nlicot.model.prompt_format import ChatFormat, MistralFormat, PromptFormat

LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    ("ByteLevel with its split",): "gpt-2",
    ("Digits", "ByteLevel with its split"): "smollm",
    (LLAMA_3_SPLIT, "ByteLevel"): "llama-bpe",
    (TEKKEN_SPLIT, "ByteLevel"): "tekken",
}
"""The steps of the library `tokenizers` before BPE, and llama.cpp's name for them."""
BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The fields of a GGUF file's tokenizer; without `merges` it has `scores`."""

    model: str
    pre: str
    pieces: Sequence[str]
    kinds: Sequence[TokenType]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    special_ids: Mapping[str, int]  # of bos, eos and pad
    starts_with_bos: bool
    chat_template: str

    def add_to(self, writer: GGUFWriter) -> None:
        """Add the fields to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.pieces)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        for name, token in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.starts_with_bos)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)  # the template has the blank that some formats put there
        writer.add_chat_template(self.chat_template)


def vocabulary_of(prompt_format: PromptFormat, base_folder: Path, num_pieces: int) -> Vocabulary:
    """Describe a tokenizer, filled up to the number of the model's rows; raises `ExportError`."""
    ids = {"bos": prompt_format.bos_id, "eos": prompt_format.eos_id, "pad": prompt_format.pad_id}
    common: dict[str, Any] = {
        "special_ids": {name: token for name, token in ids.items() if token is not None},
        "chat_template": prompt_format.chat_template,
        "starts_with_bos": True,
    }
    if isinstance(prompt_format, MistralFormat):
        if prompt_format.sentencepiece is not None:
            return _of_sentencepiece(prompt_format.sentencepiece, num_pieces, common)
        path = base_folder / "tokenizer.json"
        if not path.is_file():
            raise ExportError(f"{base_folder}: found no tokenizer.json, which a GGUF file is made from")
        content = json.loads(path.read_text(encoding="utf-8"))
    else:
        assert isinstance(prompt_format, ChatFormat)
        tokenizer = prompt_format.tokenizer
        common["starts_with_bos"] = list(tokenizer("x")["input_ids"])[:1] == [tokenizer.bos_token_id]
        content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] == "BPE" and content["model"].get("byte_fallback"):
        return _of_scores(content, num_pieces, common)
    if content["model"]["type"] == "BPE" and (name := SPLITS.get(tuple(_steps(content["pre_tokenizer"])))):
        pieces, kinds = _pieces(content, num_pieces)
        merges = [" ".join(pair) for pair in _merges(content)]
        return Vocabulary(model="gpt2", pre=name, pieces=pieces, kinds=kinds, merges=merges, **common)
    raise ExportError(
        f"{base_folder}: llama.cpp has no name for this tokenizer's way to split texts that nlicot knows; "
        "export --format merged and convert it with llama.cpp's convert_hf_to_gguf.py"
    )


def _steps(step: Mapping[str, Any] | None) -> list[str]:
    """Name the steps of a pre-tokenizer."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [name for each in step["pretokenizers"] for name in _steps(each)]
    if step["type"] == "ByteLevel":
        return ["ByteLevel with its split" if step["use_regex"] else "ByteLevel"]
    if step["type"] == "Split":
        return [str(step["pattern"].get("Regex"))]
    return [str(step["type"])]


def _of_scores(content: Mapping[str, Any], num: int, common: Mapping[str, Any]) -> Vocabulary:
    """A piece's score is the negative rank of the first merge that makes it, as SentencePiece gives it."""
    pieces, kinds = _pieces(content, num)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(content)):
        ranks.setdefault(left + right, rank)
    unknown = content["model"]["unk_token"]
    kinds = [
        TokenType.UNKNOWN if piece == unknown else TokenType.BYTE if BYTE.fullmatch(piece) else kind
        for piece, kind in zip(pieces, kinds, strict=True)
    ]
    return Vocabulary(
        model="llama",
        pre="default",
        pieces=pieces,
        kinds=kinds,
        scores=[float(-ranks.get(piece, 0)) for piece in pieces],
        **common,
    )


def _of_sentencepiece(model: Any, num: int, common: Mapping[str, Any]) -> Vocabulary:
    def kind(token: int) -> TokenType:
        named = {
            TokenType.UNKNOWN: model.is_unknown,
            TokenType.CONTROL: model.is_control,
            TokenType.UNUSED: model.is_unused,
            TokenType.BYTE: model.is_byte,
        }
        return next((each for each, holds in named.items() if holds(token)), TokenType.NORMAL)

    known = range(model.vocab_size())
    unused = [f"[PAD{token}]" for token in range(len(known), num)]
    return Vocabulary(
        model="llama",
        pre="default",
        pieces=[*map(model.id_to_piece, known), *unused],
        kinds=[*map(kind, known), *[TokenType.UNUSED] * len(unused)],
        scores=[*map(model.get_score, known), *[0.0] * len(unused)],
        **common,
    )


def _pieces(content: Mapping[str, Any], num: int) -> tuple[list[str], list[TokenType]]:
    """Return the piece and the kind of each id; ids without a piece are unused."""
    pieces = {token: piece for piece, token in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(pieces, TokenType.NORMAL)
    for added in content["added_tokens"]:
        pieces[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    tokens = range(max(num, *(token + 1 for token in pieces)))
    return (
        [pieces.get(token, f"[PAD{token}]") for token in tokens],
        [kinds.get(token, TokenType.UNUSED) for token in tokens],
    )


def _merges(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges, which older files have as texts."""
    return [
        (left, right)
        for left, right in (
            merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]
        )
    ]
