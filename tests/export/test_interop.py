"""Exports in the programs they are for: peft, transformers, and llama.cpp if its bindings are installed."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralForCausalLM,
    pipeline,
)

from nlicot.cli import main
from nlicot.completion import LABEL_OPENING, Form
from nlicot.config_files import SAMPLE
from nlicot.export.agreement import Question
from nlicot.export.gguf_file import write_model
from nlicot.export.gguf_vocabulary import vocabulary_of
from nlicot.export.lm_eval_task import lm_eval_task
from nlicot.model.base_model import resolve
from nlicot.model.prompt_format import load_prompt_format
from nlicot.prompts import LabelDefinitions, StudentPrompts
from tests.export.conftest import fit
from tests.export.test_gguf import LLAMA_3
from tests.interop import needs
from tests.model.test_mistral_folders import SPM, write_sentencepiece_folder, write_tekken_folder
from tests.model.test_prompt_format import NASTY
from tests.small_model import small_llama, small_mistral
from tests.small_tokenizers import TEMPLATES, byte_level, like_sentencepiece, write_chat_model

pytestmark = [pytest.mark.interop, pytest.mark.slow]
PROMPTS = [
    "Premise: It rained 1,234 times.\nHypothesis: It's 12345678 o'clock; they don't know.",
    *(f"Premise: {text}" for text in NASTY.values() if "<" not in text and "[" not in text),
]
"""Texts without control tokens that start like a run's prompts, not with a blank."""
TOKENIZERS = ["normalizer", "first", "always", "mistral", "tekken", "bundled"]


@pytest.fixture(scope="module")
def bundled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--data.builder=label_only", "--model.lora.r=8", "--model.learning_rate=1e-3"]
    return fit("bundled", tmp_path_factory.mktemp("runs"), "bundled", *flags)


def export(run: Path, kind: str, out: Path, *flags: str) -> dict[str, Any]:
    """Export a run; return the figures of the check, if it was checked."""
    assert main(["export", str(run), "--format", kind, "--out", str(out), *flags]) == 0
    figures = out / "agreement.json"
    return dict(json.loads(figures.read_text())) if figures.exists() else {}


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_the_code_of_the_card_answers(kind: str, bundled_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(bundled_run, kind, out, "--check_pairs=4")
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


def test_a_pipeline_writes_what_the_model_generates(bundled_run: Path, tmp_path: Path) -> None:
    export(bundled_run, "merged", tmp_path / "out", "--unchecked")
    prompt = json.loads((tmp_path / "out" / "prompt_template.json").read_text())["prompt"]
    chat = [{"role": "user", "content": prompt}]
    options = {"max_new_tokens": 8, "do_sample": False}
    (found,) = pipeline("text-generation", model=str(tmp_path / "out"))(chat, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = load_prompt_format(tmp_path / "out").encode_prompt(prompt)
    row = model.generate(torch.tensor([ids]), **options)[0, len(ids) :]
    answer = AutoTokenizer.from_pretrained(tmp_path / "out").decode(row, skip_special_tokens=True)
    assert found["generated_text"] == [*chat, {"role": "assistant", "content": answer}]


@needs("lm_eval")
def test_lm_eval_scores_what_the_run_scores(bundled_run: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own"
    export(bundled_run, "merged", out, "--unchecked")
    assert main(["validate", f"--ckpt_path={bundled_run / 'best.ckpt'}", f"--output={own}"]) == 0
    expected = [json.loads(line) for line in (own / "dev.jsonl").read_text().splitlines()]
    shutil.copy(SAMPLE / "original_data" / "dev.csv", tmp_path / "dev.csv")
    flags = ["--model=hf", f"--model_args=pretrained={out},dtype=float32", f"--tasks={out / 'lm_eval.yaml'}"]
    flags += ["--apply_chat_template", "--device=cpu", "--batch_size=4", f"--limit={len(expected)}"]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *flags, "--output_path=scores", "--log_samples"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )
    (samples,) = (tmp_path / "scores").rglob("samples_nlicot_*.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["doc"]["premise"] for sample in found] == [pair["premise"] for pair in expected]
    for sample, pair in zip(found, expected, strict=True):
        no, yes = (float(response[0][0]) for response in sample["resps"])
        assert 1 / (1 + math.exp(no - yes)) == pytest.approx(pair["p_entailment"], abs=0.03)
        assert sample["acc"] == float((yes > no) == (pair["true_label"] == 1))


@needs("lm_eval")
@pytest.mark.parametrize("base", ["bundled", "mistral"])
def test_lm_eval_makes_the_runs_ids(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    monkeypatch.chdir(tmp_path)
    folder = resolve("bundled").folder if base == "bundled" else write_hub_mistral(tmp_path / "base")
    prompt_format = load_prompt_format(folder)
    model_of(small_llama(prompt_format.vocab_size), LlamaForCausalLM).save_pretrained(tmp_path / "out")
    prompt_format.save_tokenizer(tmp_path / "out", base_folder=folder)
    prompts = StudentPrompts(definitions=LabelDefinitions(entailment="it {{ holds", no_entailment="{% no"))
    task = lm_eval_task(prompts, Form.LABEL_ONLY, prompt_format, 9) or ""
    # The Mistral file for `transformers` merges runs of blanks in another order than SentencePiece.
    texts = [text for text in PROMPTS if base == "bundled" or "\t" not in text]
    pairs = [{"premise": text, "hypothesis": f"x {text}", "label": 1} for text in (*texts, "NA", '"')]
    with Path("dev.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["premise", "hypothesis", "label"])
        writer.writeheader()
        writer.writerows(pairs)
    harness = HFLM(pretrained=str(tmp_path / "out"), device="cpu")
    loaded = ConfigurableTask(config=yaml.safe_load(task))
    loaded.build_all_requests(
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=harness.apply_chat_template,
        tokenizer_name="base",
    )
    requests = [harness._encode_pair(*request.args) for request in loaded.instances]
    expected = [
        [
            *prompt_format.encode_prompt(
                prompts.render(pair["premise"], pair["hypothesis"], form=Form.LABEL_ONLY)
            ),
            *prompt_format.encode_segment(LABEL_OPENING, first=True),
            *prompt_format.encode_segment(label, first=False),
        ]
        for pair in pairs
        for label in "01"
    ]
    assert [[*context, *continuation] for context, continuation in requests] == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_merged_models_of_each_number_format_agree(dtype: str, bundled_run: Path, tmp_path: Path) -> None:
    found = export(bundled_run, "merged", tmp_path / "out", f"--dtype={dtype}", "--check_pairs=12")
    assert found["export"]["num_same_prompts"] == 12


@needs("llama_cpp")
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


@needs("llama_cpp")
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
    folder = write_chat_model(tmp_path / "base", byte_level(), TEMPLATES["zephyr"])
    vocab_size = load_prompt_format(folder).vocab_size
    model = model_of(small_llama(vocab_size, **options), LlamaForCausalLM)
    llama_cpp_agrees(model, folder, tmp_path / "m.gguf")


@needs("llama_cpp")
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_llama_cpp_makes_the_same_ids(tokenizer: str, tmp_path: Path) -> None:
    folder, model = base_with(tokenizer, tmp_path / "base")
    llama_cpp_agrees(model, folder, tmp_path / "m.gguf")


def write_hub_mistral(folder: Path) -> Path:
    """The files of Mistral-7B-v0.3's tokenizer on the hub, with all its merges."""
    folder.mkdir()
    shutil.copy(SPM[3], folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["[INST]", "[/INST]"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "add_bos_token": True}))
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 32768}))
    return folder


def base_with(tokenizer: str, folder: Path) -> tuple[Path, Any]:
    """A folder with a tokenizer's files, and a small model with its vocabulary."""
    if tokenizer == "mistral":
        write_sentencepiece_folder(folder)
    elif tokenizer == "tekken":
        write_tekken_folder(folder)
    elif tokenizer == "bundled":
        folder = resolve("bundled").folder
    else:
        write_chat_model(folder, like_sentencepiece(tokenizer), TEMPLATES["instruct"])
    prompt_format = load_prompt_format(folder)
    if prompt_format.name == "mistral":
        return folder, model_of(small_mistral(prompt_format.vocab_size), MistralForCausalLM)
    return folder, model_of(small_llama(prompt_format.vocab_size), LlamaForCausalLM)
