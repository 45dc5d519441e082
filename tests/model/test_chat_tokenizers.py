"""Other people's chat models: ids spell the rendered text byte for byte, or the tokenizer is refused."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from nlicot import completion
from nlicot.cli import main
from nlicot.completion import Form
from nlicot.config_files import SAMPLE
from nlicot.data.root import DataRoot
from nlicot.data.thoughts import read_thoughts
from nlicot.errors import ModelError
from nlicot.model.encoding import TokenKind
from nlicot.model.prompt_format import ChatFormat, PromptFormat, load_prompt_format
from nlicot.prompts import StudentPrompts
from nlicot.records import TrainingExample
from tests.encoded import encode_completion, encode_example
from tests.model.test_prompt_format import NASTY, sample_pairs
from tests.small_tokenizers import (
    TEMPLATES,
    byte_level,
    like_sentencepiece,
    unigram,
    word_piece,
    write_chat_model,
)

LLAMA = {"tokenizer_class": "LlamaTokenizer"}
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "normalizer": (lambda: like_sentencepiece("normalizer"), {}),
    "first": (lambda: like_sentencepiece("first"), {}),
    "always": (lambda: like_sentencepiece("always"), {}),
    "LlamaTokenizer": (lambda: like_sentencepiece("normalizer"), {**LLAMA, "legacy": False}),
    "LlamaTokenizer, legacy": (lambda: like_sentencepiece("normalizer"), {**LLAMA, "legacy": True}),
    "byte level": (byte_level, {}),
    "byte level with a prefix": (lambda: byte_level(add_prefix_space=True), {}),
    "byte level, NFC": (lambda: byte_level(normalizer=normalizers.NFC()), {}),
}
OWN_IDS = ("first", "LlamaTokenizer", "byte level", "byte level, NFC")
"""Kinds whose own ids of a rendered template spell it: ours are the same."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ChatFormat]:
    known: dict[tuple[str, str], ChatFormat] = {}

    def load(kind: str, template: str) -> ChatFormat:
        if (kind, template) not in known:
            make, config = KINDS[kind]
            folder = tmp_path_factory.mktemp("model")
            found = load_prompt_format(write_chat_model(folder, make(), TEMPLATES[template], **config))
            assert isinstance(found, ChatFormat)
            known[kind, template] = found
        return known[kind, template]

    return load


each_kind = pytest.mark.parametrize("kind", KINDS)
each_template = pytest.mark.parametrize("template", TEMPLATES)
AROUND = {"zephyr": ("<|user|>\n", "</s>\n<|assistant|>\n"), "instruct": ("<s>[INST] ", " [/INST]")}


@each_template
@each_kind
def test_prompt_and_completion_decode_to_the_rendered_text(
    kind: str, template: str, loaded: Callable[[str, str], ChatFormat]
) -> None:
    chat = loaded(kind, template)
    before, after = AROUND[template]
    texts = [text for name, text in NASTY.items() if name != "SentencePiece's space"]
    for text, form in itertools.product([*texts, *(f"x{text}y" for text in texts), "</s><s>"], Form):
        prompt = StudentPrompts().render(text, f"x{text}x", form=form)
        ids, _ = encode_completion(chat, text, 1, form)
        whole = before + prompt + after + completion.render(text, 1, form)
        assert chat.decode_inner(chat.encode_prompt(prompt) + ids[:-1]) == whole
        assert ids[-1] == chat.eos_id
        assert chat.eos_id not in ids[:-1]


@each_kind
def test_the_sample_thoughts_decode_byte_for_byte(
    kind: str, loaded: Callable[[str, str], ChatFormat]
) -> None:
    chat = loaded(kind, "zephyr")
    for thought in read_thoughts(DataRoot(SAMPLE).thoughts("train")):
        ids, _ = encode_completion(chat, thought.thought_process, 0)
        assert chat.decode_inner(ids[:-1]) == completion.render(thought.thought_process, 0)


@each_template
@pytest.mark.parametrize("kind", OWN_IDS)
def test_prompt_ids_are_the_models_own_if_those_spell_the_text(
    kind: str, template: str, loaded: Callable[[str, str], ChatFormat]
) -> None:
    chat = loaded(kind, template)
    if template == "instruct" and "byte" in kind:
        pytest.skip("a byte-level vocabulary has pieces that span the space before a prompt")
    for pair in sample_pairs()[:40]:
        prompt = StudentPrompts().render(pair.premise, pair.hypothesis)
        turns = [{"role": "user", "content": prompt}]
        own = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        found = chat.encode_prompt(prompt)
        if template == "zephyr" and "byte" not in kind:  # ours has no dummy prefix, not even once
            found = [chat.tokenizer.convert_tokens_to_ids("▁"), *found]
        assert found == own


@each_kind
def test_a_label_is_one_token_that_spells_it(kind: str, loaded: Callable[[str, str], ChatFormat]) -> None:
    chat = loaded(kind, "zephyr")
    for label in (0, 1):
        ids, kinds = encode_completion(chat, "Step 1.", label)
        (token,) = (each for each, own in zip(ids, kinds, strict=True) if own == TokenKind.LABEL)
        assert (chat.decode_inner([token]), chat.token_texts[token]) == (str(label), str(label))


@each_kind
def test_each_segment_starts_with_its_first_character(
    kind: str, loaded: Callable[[str, str], ChatFormat]
) -> None:
    chat = loaded(kind, "instruct")
    prompt, text = "Does it follow?", completion.render("Step 1.", 1)
    example = TrainingExample(id="a", prompt=prompt, completion=text, label=1, source="thought")
    encoded = encode_example(chat, example, max_length=999, over_budget="drop")
    assert encoded is not None
    texts = {
        each: chat.decode_inner(
            [token for token, own in zip(encoded.input_ids[:-1], encoded.kinds, strict=False) if own == each]
        )
        for each in TokenKind
    }
    assert texts == {
        TokenKind.PROMPT: "<s>[INST] Does it follow? [/INST]",
        TokenKind.SCAFFOLD: '{"thought_process": ", "predicted_label": }',
        TokenKind.THOUGHT: 'Step 1."',
        TokenKind.LABEL: "1",
        TokenKind.DRAFT: "",
        TokenKind.MASKED_DRAFT: "",
    }


def test_the_probe_takes_under_half_a_second(loaded: Callable[[str, str], ChatFormat]) -> None:
    chat = loaded("normalizer", "zephyr")
    started = time.process_time()
    assert chat.fault() is None
    assert time.process_time() - started < 0.5


# ------------------------------------------------------------------- templates


def test_a_template_that_strips_a_prompt_is_followed(tmp_path: Path) -> None:
    template = TEMPLATES["zephyr"].replace("turn.content", "turn.content | trim")
    chat = load_prompt_format(write_chat_model(tmp_path, byte_level(), template))
    assert chat.decode_inner(chat.encode_prompt(" a b \n")) == "<|user|>\na b</s>\n<|assistant|>\n"


def test_a_template_with_the_date_has_the_same_ids_on_every_day(tmp_path: Path) -> None:
    template = "{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + TEMPLATES["zephyr"]
    chat = load_prompt_format(write_chat_model(tmp_path, byte_level(), template))
    assert chat.decode_inner(chat.encode_prompt("a")).startswith("Today is 26 Jul 2024\n<|user|>\na")


def test_special_tokens_that_swallow_a_line_break_are_encoded_exactly(tmp_path: Path) -> None:
    tokenizer = like_sentencepiece("first")
    tokenizer.add_special_tokens(
        [AddedToken("<|user|>", rstrip=True), AddedToken("<|assistant|>", rstrip=True)]
    )
    chat = load_prompt_format(write_chat_model(tmp_path, tokenizer, TEMPLATES["zephyr"]))
    assert chat.decode_inner(chat.encode_prompt("a")) == "<|user|>\na</s>\n<|assistant|>\n"


def test_runs_of_models_that_normalise_texts_are_still_recognised(
    loaded: Callable[[str, str], ChatFormat],
) -> None:
    chat = loaded("byte level, NFC", "zephyr")
    options = {"add_special_tokens": False, "split_special_tokens": True}
    own = chat.tokenizer(PromptFormat.fingerprint_text, **options)["input_ids"]
    assert chat.encode_segment(chat.fingerprint_text, first=True) == own
    assert "\u00e9" in chat.fingerprint_text  # as the tokenizer itself reads e and its accent


# --------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("tokenizer", "template", "message"),
    [
        (word_piece, TEMPLATES["zephyr"], "the tokenizer makes '"),
        (unigram, TEMPLATES["zephyr"], "the tokenizer reads control tokens from a text"),
        (lambda: like_sentencepiece("first", with_bytes=False), TEMPLATES["zephyr"], "makes '<unk>"),
        (
            byte_level,
            "{{ raise_exception('a system turn, please') }}",
            "refuses a question: a system turn, please",
        ),
        (byte_level, "Hello", "the model's chat template leaves the question out"),
    ],
)
def test_a_tokenizer_that_changes_texts_is_refused_in_one_line(
    tokenizer: Callable[[], Tokenizer],
    template: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_chat_model(tmp_path / "model", tokenizer(), template)
    assert main(["inspect", f"--model.base={folder}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith("use another base (--model.base FOLDER or bundled)")


def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, byte_level(), TEMPLATES["zephyr"])
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelError) as raised:
        load_prompt_format(folder)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{folder}: the tokenizer cannot be loaded (")


def test_a_tokenizer_with_markers_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, byte_level(), TEMPLATES["zephyr"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
    with pytest.raises(ModelError) as raised:
        load_prompt_format(folder)
    eos = config["vocab_size"] - 1  # the last token
    assert str(raised.value) == (
        f"{folder}: the tokenizer uses the id {eos}, but the model has {eos} tokens; "
        "use another base (--model.base FOLDER or bundled)"
    )


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, byte_level(), "{{ messages[0].content }}", eos_token=None)
    with pytest.raises(ModelError, match="the model's tokenizer has no eos_token"):
        load_prompt_format(folder)


# ---------------------------------------------------------------------- inspect


def test_inspect_shows_the_text_that_fit_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chat_model(tmp_path / "model", like_sentencepiece("normalizer"), TEMPLATES["instruct"])
    assert main(["inspect", f"--model.base={folder}", "--num=3", "--json", "--data.max_length=4096"]) == 0
    content = json.loads(capsys.readouterr().out)
    for example in content["examples"]:
        text = "".join(piece["text"] for piece in example["pieces"])
        assert text.startswith("<s>[INST] Does the hypothesis hold")
        assert '[/INST]{"thought_process": "' in text


def test_fit_trains_and_evaluates_a_chat_model_with_a_dummy_prefix(tmp_path: Path) -> None:
    base = write_chat_model(
        tmp_path / "base", like_sentencepiece("normalizer"), TEMPLATES["zephyr"], weights=True
    )
    flags = ["--data.limit_train=4", "--data.limit_dev=4", "--data.max_length=2048", "--trainer.max_steps=1"]
    flags += ["--trainer.accelerator=cpu", "--model.compile_kernels=false", "--final_evaluation=false"]
    flags += ["--model.decoding.max_thought_tokens=8"]
    assert main(["fit", f"--model.base={base}", f"--checkpoints_root={tmp_path}", "--run=run", *flags]) == 0
    assert (tmp_path / "run" / "best.ckpt").is_file()
