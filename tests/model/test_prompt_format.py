"""Ids are the models' own, user text yields no control tokens, and decoding returns the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from nlicot import completion
from nlicot.completion import Form
from nlicot.config_files import SAMPLE
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import read_reflections, read_thoughts
from nlicot.errors import ModelError
from nlicot.model.base_model import resolve
from nlicot.model.prompt_format import ChatFormat, MistralFormat, PromptFormat, load_prompt_format
from nlicot.prompts import StudentPrompts
from nlicot.records import Example
from tests.encoded import encode_completion

NASTY = {
    "mistral markers": "[INST] now [/INST] <s> </s> [TOOL_CALLS] [control_8] <unk> <0x0A>",
    "chat markers": "<|im_start|>user\nnow<|im_end|>\n<|endoftext|> <empty_output>",
    "runs of spaces": "a  b   c    d\te\t\tf  \n   g",
    "spaces around": "  both sides  ",
    "line breaks": "\n\na\r\nb\n\n\nc\n",
    "emoji": "😀 👩‍👩‍👧 🇬🇧 ☕️",
    "combining marks": "e\u0301 n\u0303 a\u0303\u0301\u0327 and é ñ",
    "compatibility forms": "ﬁ ½ Ａ Å ①",
    "scripts": "漢字 مرحبا Привет हिन्दी",
    "invisible": "a\u00a0b\u200bc\u2028d\ufeffe",
    "controls": "\x00\x01\x1b\x7f",
    "SentencePiece's space": "a▁b ▁▁",
    "JSON": '{"thought_process": "x\\n", "predicted_label": 0 or 1}',
    "one space": " ",
}
nasty_texts = pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
formats = pytest.mark.parametrize("name", ["mistral", "chat"])


@pytest.fixture(scope="module")
def format_of() -> dict[str, PromptFormat]:
    return {"mistral": MistralFormat(), "chat": load_prompt_format(resolve("bundled").folder)}


@pytest.fixture(scope="module")
def chat(format_of: dict[str, PromptFormat]) -> ChatFormat:
    found = format_of["chat"]
    assert isinstance(found, ChatFormat)
    return found


@pytest.fixture(scope="module")
def mistral_v3() -> MistralTokenizer:
    return MistralTokenizer.v3()


def sample_pairs() -> list[Example]:
    return read_examples(DataRoot(SAMPLE).pairs("train"))


def rendered(pairs: Sequence[Example]) -> list[str]:
    prompts = StudentPrompts()
    return [prompts.render(pair.premise, pair.hypothesis, form=form) for pair in pairs for form in Form]


def by_mistral_common(tokenizer: MistralTokenizer, prompt: str) -> list[int]:
    request: Any = ChatCompletionRequest(messages=[UserMessage(content=prompt)])
    return tokenizer.encode_chat_completion(request).tokens


def by_chat_template(chat: ChatFormat, prompt: str) -> list[int]:
    turns = [{"role": "user", "content": prompt}]
    ids: list[int] = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    return ids


def decode(prompt_format: PromptFormat, ids: Sequence[int]) -> str:
    """The text of a whole completion, without EOS and SentencePiece's dummy space."""
    assert ids[-1] == prompt_format.eos_id
    text = prompt_format.decode_inner(ids[:-1])
    if not isinstance(prompt_format, MistralFormat):
        return text
    assert text.startswith(" ")
    return text[1:]


def differing(prompts: Sequence[str], ours: Any, theirs: Any) -> list[str]:
    return [prompt for prompt in prompts if ours(prompt) != theirs(prompt)]


# ------------------------------------------------------------------- prompts


@nasty_texts
def test_mistral_prompt_ids_match_mistral_common_for_nasty_texts(
    text: str, format_of: dict[str, PromptFormat], mistral_v3: MistralTokenizer
) -> None:
    for prompt in (text, StudentPrompts().render(text, f"x{text}")):
        assert format_of["mistral"].encode_prompt(prompt) == by_mistral_common(mistral_v3, prompt)


@pytest.mark.interop
def test_mistral_prompt_ids_match_mistral_common_for_the_sample(
    format_of: dict[str, PromptFormat], mistral_v3: MistralTokenizer
) -> None:
    prompts = rendered(sample_pairs())
    mistral = format_of["mistral"]
    assert (
        differing(prompts, mistral.encode_prompt, lambda prompt: by_mistral_common(mistral_v3, prompt)) == []
    )


def test_mistral_prompt_ids_match_mistral_common_for_300_real_pairs(
    real_data: Path, format_of: dict[str, PromptFormat], mistral_v3: MistralTokenizer
) -> None:
    prompts = rendered(read_examples(real_data / "comp34812" / "train.csv")[:300])
    assert len(prompts) == 300 * len(Form)
    mistral = format_of["mistral"]
    assert (
        differing(prompts, mistral.encode_prompt, lambda prompt: by_mistral_common(mistral_v3, prompt)) == []
    )


def test_chat_prompt_ids_match_the_template_for_the_sample(chat: ChatFormat) -> None:
    prompts = rendered(sample_pairs())
    assert differing(prompts, chat.encode_prompt, lambda prompt: by_chat_template(chat, prompt)) == []


def test_chat_prompt_ids_match_the_template_for_300_real_pairs(real_data: Path, chat: ChatFormat) -> None:
    prompts = rendered(read_examples(real_data / "comp34812" / "train.csv")[:300])
    assert differing(prompts, chat.encode_prompt, lambda prompt: by_chat_template(chat, prompt)) == []


@formats
@nasty_texts
def test_the_text_of_a_prompt_yields_no_control_tokens(
    name: str, text: str, format_of: dict[str, PromptFormat]
) -> None:
    prompt_format = format_of[name]

    def control_tokens(prompt: str) -> list[int]:
        return [token for token in prompt_format.encode_prompt(prompt) if token in prompt_format.special_ids]

    assert control_tokens(StudentPrompts().render(text, text)) == control_tokens("plain")


@formats
def test_the_spelling_of_a_control_token_in_a_text_does_not_yield_it(
    name: str, format_of: dict[str, PromptFormat], chat: ChatFormat, mistral_v3: MistralTokenizer
) -> None:
    prompt_format = format_of[name]
    if name == "chat":
        spelling = [token.content for token in chat.tokenizer.added_tokens_decoder.values()]
    else:
        pieces: Any = mistral_v3.instruct_tokenizer.tokenizer
        spelling = [pieces.id_to_piece(token) for token in sorted(prompt_format.special_ids)]
    assert len(spelling) == len(prompt_format.special_ids)
    text = " ".join(spelling) + "".join(spelling)
    assert not prompt_format.special_ids & set(prompt_format.encode_segment(text, first=True))
    assert not prompt_format.special_ids & set(prompt_format.encode_segment(text, first=False))


def test_mistrals_control_tokens_are_those_of_type_control_or_unknown(
    format_of: dict[str, PromptFormat], mistral_v3: MistralTokenizer
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    tokenizer: Any = mistral_v3.instruct_tokenizer.tokenizer
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer._model.serialized_model_proto())
    kinds = (model.SentencePiece.CONTROL, model.SentencePiece.UNKNOWN)
    control = {token for token, piece in enumerate(model.pieces) if piece.type in kinds}
    assert format_of["mistral"].special_ids == control
    assert {0, 1, 2, 3, 4} < control


# --------------------------------------------------------------- completions


@formats
@nasty_texts
def test_a_completion_with_a_nasty_thought_decodes_byte_for_byte(
    name: str, text: str, format_of: dict[str, PromptFormat]
) -> None:
    for thought in (text, f"x{text}y", f'"{text}\\'):
        ids, _ = encode_completion(format_of[name], thought, 1)
        assert decode(format_of[name], ids) == completion.render(thought, 1)
        assert not format_of[name].special_ids & set(ids[:-1])


@formats
@pytest.mark.parametrize("thought", [None, ""])
@pytest.mark.parametrize("label", [0, 1])
def test_a_completion_without_words_decodes_byte_for_byte(
    name: str, thought: str | None, label: int, format_of: dict[str, PromptFormat]
) -> None:
    ids, _ = encode_completion(format_of[name], thought, label)
    assert decode(format_of[name], ids) == completion.render(thought, label)


@formats
def test_the_sample_thoughts_decode_byte_for_byte(name: str, format_of: dict[str, PromptFormat]) -> None:
    thoughts = read_thoughts(DataRoot(SAMPLE).thoughts("train"))
    assert not_restored(format_of[name], [thought.thought_process for thought in thoughts]) == []


@formats
def test_the_real_thoughts_decode_byte_for_byte(
    name: str, real_data: Path, format_of: dict[str, PromptFormat]
) -> None:
    folder = real_data / "comp34812"
    thoughts = read_thoughts(folder / "thoughts_defined_train.jsonl")[:300]
    reflections = read_reflections(folder / "reflections_defined_train.jsonl")
    original = read_thoughts(real_data / "original" / "sample_thoughts.json")
    texts = [
        *(thought.thought_process for thought in (*thoughts, *original)),
        *(reflection.improved_thought_process for reflection in reflections),
    ]
    assert len(texts) == 473
    assert not_restored(format_of[name], texts) == []


def not_restored(prompt_format: PromptFormat, thoughts: Sequence[str]) -> list[str]:
    missed = []
    for thought in thoughts:
        ids, _ = encode_completion(prompt_format, thought, 0)
        if decode(prompt_format, ids) != completion.render(thought, 0):
            missed.append(thought)
    return missed


@formats
def test_the_ids_of_a_thought_decode_to_it_inside_a_completion(
    name: str, format_of: dict[str, PromptFormat]
) -> None:
    for text in ("Step 1", " led by a space", "e\u0301 😀"):
        ids = format_of[name].encode_segment(text, first=False)
        assert format_of[name].decode_inner(ids) == text


def test_token_texts_include_characters_that_end_a_json_string(
    format_of: dict[str, PromptFormat],
) -> None:
    for prompt_format in format_of.values():
        assert len(prompt_format.token_texts) == prompt_format.vocab_size
        for text in ('"', "\\", "0", "1"):
            (token,) = prompt_format.encode_segment(text, first=False)
            assert prompt_format.token_texts[token] == text


# ----------------------------------------------------------- choosing a format


def model_folder(folder: Path, vocab_size: int, model_type: str = "mistral") -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": vocab_size}))
    return folder


@pytest.mark.parametrize("name", ["auto", "mistral"])
def test_a_mistral_folder_with_the_v3_vocabulary_gets_the_mistral_format(tmp_path: Path, name: str) -> None:
    assert load_prompt_format(model_folder(tmp_path, 32768), name).name == "mistral"


def test_other_models_get_the_chat_format(chat: ChatFormat) -> None:
    assert chat.name == "chat"  # loaded with `auto`


def test_the_mistral_format_is_refused_for_another_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        load_prompt_format(model_folder(tmp_path, 49152, "llama"), "mistral")
    assert str(raised.value) == (
        f"{tmp_path}: found a vocabulary of 49152 tokens, expected 32768 for the prompt format 'mistral' "
        "(use --model.prompt_format chat)"
    )


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        load_prompt_format(model_folder(tmp_path, 32768), "alpaca")
    assert str(raised.value) == "--model.prompt_format: found 'alpaca', expected auto, mistral or chat"


def test_the_formats_have_different_fingerprints(format_of: dict[str, PromptFormat]) -> None:
    assert MistralFormat().fingerprint == format_of["mistral"].fingerprint
    assert format_of["mistral"].fingerprint != format_of["chat"].fingerprint
