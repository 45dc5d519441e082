"""Exports in the programs they are for: peft, transformers, and llama.cpp if its bindings are installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM

from nlicot.cli import main
from nlicot.export.agreement import Question
from nlicot.export.gguf_file import write_model
from nlicot.export.gguf_vocabulary import vocabulary_of
from nlicot.model.base_model import resolve
from nlicot.model.prompt_format import load_prompt_format
from tests.export.conftest import fit
from tests.export.test_gguf import LLAMA_3
from tests.model.test_mistral_folders import write_sentencepiece_folder, write_tekken_folder
from tests.model.test_prompt_format import NASTY
from tests.small_model import small_llama, small_mistral
from tests.small_tokenizers import TEMPLATES, byte_level, like_sentencepiece, write_chat_model

pytestmark = pytest.mark.slow
PROMPTS = [
    "Premise: It rained 1,234 times.\nHypothesis: It's 12345678 o'clock; they don't know.",
    *(f"Premise: {text}" for text in NASTY.values() if "<" not in text and "[" not in text),
]
"""Texts without control tokens that start like a run's prompts, not with a blank."""


@pytest.fixture(scope="module")
def bundled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--data.builder=label_only", "--model.lora.r=8", "--model.learning_rate=1e-3"]
    return fit("bundled", tmp_path_factory.mktemp("runs"), "bundled", *flags)


def export(run: Path, kind: str, out: Path, *flags: str) -> dict[str, Any]:
    assert main(["export", str(run), "--format", kind, "--out", str(out), *flags]) == 0
    found: dict[str, Any] = json.loads((out / "agreement.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_the_code_of_the_card_answers(kind: str, bundled_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(bundled_run, kind, out, "--check_pairs=4", "--force")  # four pairs are too few to compare
    (code,) = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    if kind == "peft":  # no hub here: the base's name is that of a folder
        config = json.loads((out / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(resolve("bundled").folder)
        (out / "adapter_config.json").write_text(json.dumps(config))
    code = code.replace("max_new_tokens=256", "max_new_tokens=12")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=out,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()  # two steps of training do not always teach the JSON


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_merged_models_of_each_number_format_agree(dtype: str, bundled_run: Path, tmp_path: Path) -> None:
    found = export(bundled_run, "merged", tmp_path / "out", f"--dtype={dtype}", "--check_pairs=12")
    assert found["export"]["num_same_prompts"] == 12


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("gguf", "bfloat16"),
        ("gguf", "float16"),
        ("gguf", "float32"),
        ("gguf-adapter", "float32"),
        ("gguf-adapter", "float16"),
    ],
)
def test_llama_cpp_predicts_what_the_run_predicts(
    kind: str, dtype: str, bundled_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    found = export(bundled_run, kind, tmp_path / "out", f"--dtype={dtype}", "--check_pairs=12")
    assert found["export"]["num_same_prompts"] == 12


def llama_cpp_agrees(model: Any, folder: Path, path: Path) -> None:
    """Compare ids of prompts and p(entailment) in float32 with those of transformers."""
    from nlicot.export.llama_cpp_consumer import LlamaCppConsumer

    prompt_format = load_prompt_format(folder)
    vocabulary = vocabulary_of(prompt_format, folder, model.config.vocab_size)
    write_model(model, vocabulary, path, dtype="float32", name="small")
    labels = [prompt_format.encode_segment(digit, first=False)[0] for digit in "01"]
    questions = [
        Question(
            prompt=prompt,
            prompt_ids=prompt_format.encode_prompt(prompt),
            completion_ids=prompt_format.encode_segment('{"predicted_label": ', first=True),
        )
        for prompt in PROMPTS
    ]
    readings = LlamaCppConsumer(path).read(questions, labels)
    assert [each.prompt_ids for each in readings] == [each.prompt_ids for each in questions]
    for question, reading in zip(questions, readings, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*question.prompt_ids, *question.completion_ids]])).logits[0, -1]
        expected = logits[labels].softmax(-1)[1].item()
        assert reading.p_entailment == pytest.approx(expected, abs=2e-3)


def model_of(config: Any, kind: Callable[[Any], Any]) -> Any:
    torch.manual_seed(5)
    model = kind(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_parameters": LLAMA_3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"attention_bias": True, "tie_word_embeddings": True},
        {"head_dim": 32},
    ],
    ids=["plain", "llama3", "linear", "bias", "head_dim"],
)
def test_llama_cpp_computes_what_transformers_does(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = write_chat_model(tmp_path / "base", byte_level(), TEMPLATES["zephyr"])
    vocab_size = load_prompt_format(folder).vocab_size
    model = model_of(small_llama(vocab_size, **options), LlamaForCausalLM)
    llama_cpp_agrees(model, folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("tokenizer", ["normalizer", "first", "always", "mistral", "tekken", "bundled"])
def test_llama_cpp_makes_the_same_ids(tokenizer: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    if tokenizer == "mistral":
        folder = write_sentencepiece_folder(tmp_path / "base")
    elif tokenizer == "tekken":
        folder = write_tekken_folder(tmp_path / "base")
    elif tokenizer == "bundled":
        folder = resolve("bundled").folder
    else:
        folder = write_chat_model(tmp_path / "base", like_sentencepiece(tokenizer), TEMPLATES["instruct"])
    prompt_format = load_prompt_format(folder)
    if prompt_format.name == "mistral":
        model = model_of(small_mistral(prompt_format.vocab_size), MistralForCausalLM)
    else:
        model = model_of(small_llama(prompt_format.vocab_size), LlamaForCausalLM)
    llama_cpp_agrees(model, folder, tmp_path / "m.gguf")
