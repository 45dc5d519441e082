"""`predict --engine vllm` by contract: the calls it makes, against the interface of a pinned version.

`recorded` has the signatures of vLLM 0.33.0, which needs a GPU; where it is installed they are compared with
its own. Its model is the run's, so that predictions can be compared, too.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlicot.cli import main
from nlicot.completion import THOUGHT_OPENING
from nlicot.prediction.predictor import Predictor
from tests.prediction.engines.conftest import NUM_PAIRS

Rate = Callable[[Sequence[int]], Mapping[int, float]]
INSTALLED = importlib.util.find_spec("vllm") is not None


class TokensPrompt(TypedDict):
    """vllm/inputs: the required key; the others are about images and caches."""

    prompt_token_ids: list[int]


@dataclass
class LoRARequest:
    """vllm/lora/request.py: the first three fields."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass(kw_only=True)
class SamplingParams:
    """vllm/sampling_params.py: the fields that are used, with their defaults."""

    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None


@dataclass
class Logprob:
    """vllm/logprobs.py."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """vllm/outputs.py: the fields that are read."""

    text: str
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None


@dataclass
class RequestOutput:
    """vllm/outputs.py: the field that is read."""

    outputs: list[CompletionOutput]


class LLM:
    """vllm/entrypoints/llm.py: the arguments that are used, and calls as they came."""

    rate: Rate
    made: list[LLM] = []  # noqa: RUF012
    refusal: Exception | None = None

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        seed: int = 0,
        **kwargs: Any,  # of EngineArgs
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert kwargs.keys() <= {"enable_lora", "max_lora_rank"}
        self.options = {"model": model, "dtype": dtype, "quantization": quantization, "seed": seed, **kwargs}
        self.calls: list[tuple[list[TokensPrompt], list[SamplingParams], LoRARequest | None]] = []
        self.made.append(self)

    def generate(
        self,
        prompts: Sequence[TokensPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert isinstance(sampling_params, Sequence)
        assert not use_tqdm
        self.calls.append((list(prompts), list(sampling_params), lora_request))
        return [
            self._answer(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _answer(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if params.logprob_token_ids is None:
            return RequestOutput([CompletionOutput("Step 1: it follows.", None, "stop")])
        rated = type(self).rate(ids)  # of the asked tokens, and of the one that is sampled
        asked = {*params.logprob_token_ids, max(rated, key=lambda token: rated[token])}
        logprobs = {token: Logprob(rated[token]) for token in asked}
        return RequestOutput([CompletionOutput("1", [logprobs], "length")])


RECORDED = {
    "vllm": (LLM, SamplingParams, TokensPrompt),
    "vllm.lora.request": (LoRARequest,),
}


@pytest.fixture
def recorded(rate: Rate, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    """Put the recorded interface in the place of vLLM."""
    for name, members in RECORDED.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "rate", staticmethod(rate), raising=False)
    yield LLM
    LLM.made.clear()


def predict(run: Path, *flags: str) -> int:
    shared = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--data.limit_dev={NUM_PAIRS}"]
    return main(["predict", *shared, "--engine=vllm", *flags])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not INSTALLED, reason="vllm is not installed: pip install vllm")
@pytest.mark.parametrize(("module", "members"), RECORDED.items())
def test_the_recorded_interface_is_that_of_vllm(module: str, members: tuple[Any, ...]) -> None:
    found = importlib.import_module(module)
    for member in members:
        real = inspect.signature(getattr(found, member.__name__)).parameters
        for name, parameter in inspect.signature(member).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                assert real[name].default == parameter.default


def test_labels_are_those_of_the_run_and_the_ids_its_own(
    run: Path, recorded: type[LLM], predictor: Predictor, tmp_path: Path
) -> None:
    assert predict(run, f"--output={tmp_path / 'vllm'}", "--model.decoding.batch_size=3") == 0
    shared = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--data.limit_dev={NUM_PAIRS}"]
    assert main(["predict", *shared, f"--output={tmp_path / 'own'}"]) == 0
    for found, mine in zip(rows(tmp_path / "vllm"), rows(tmp_path / "own"), strict=True):
        assert found["p_entailment"] == pytest.approx(mine["p_entailment"], abs=1e-4)
        assert {**found, "p_entailment": 0} == {**mine, "p_entailment": 0}
    (made,) = recorded.made
    assert made.options == {
        "model": str((run.parent / "base").resolve()),
        "dtype": "float32",
        "quantization": None,
        "seed": 0,
        "enable_lora": True,
        "max_lora_rank": 8,  # the smallest that vLLM has for a rank of 4
    }
    assert [len(prompts) for prompts, _, _ in made.calls] == [3, NUM_PAIRS - 3]
    for prompts, sampling, adapter in made.calls:
        assert adapter == LoRARequest("run", 1, str((run / "adapter").resolve()))
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        labels = list(predictor.engine.scaffold.label_ids)
        assert sampling == [SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=labels)] * len(
            prompts
        )


def test_a_thought_is_generated_up_to_its_closing_quote(
    run: Path, recorded: type[LLM], predictor: Predictor, tmp_path: Path
) -> None:
    assert predict(run, f"--output={tmp_path}", "--think=true") == 0
    (made,) = recorded.made
    (first, sampling, _), (second, _, _) = made.calls
    assert {(each.max_tokens, tuple(each.stop or ()), each.temperature) for each in sampling} == {
        (40, ('", "predicted_label":',), 0.0)
    }
    opening = predictor.engine.prompt_format.encode_segment(THOUGHT_OPENING, first=True)
    after = predictor.engine.ids_before_label("Step 1: it follows.")[len(opening) :]
    assert [[*each["prompt_token_ids"], *after] for each in first] == [
        each["prompt_token_ids"] for each in second
    ]
    assert {(row["thought_process"], row["status"]) for row in rows(tmp_path)} == {
        ("Step 1: it follows.", "closed")
    }


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_vllm_its_pip_line_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(run) == 2
    assert "nlicot: --engine vllm is not installed: run pip install vllm" in capsys.readouterr().err


def test_what_vllm_refuses_is_one_line(
    run: Path, recorded: type[LLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorded, "refusal", RuntimeError("Failed to infer device type\nmore"))
    assert predict(run) == 2
    assert f"--engine vllm: cannot load {run.parent / 'base'}: Failed to infer device type\n" in (
        capsys.readouterr().err
    )


def test_another_adapter_than_the_checkpoints_is_refused(
    run: Path, recorded: type[LLM], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    weights, content = load_file(path), path.read_bytes()
    try:
        save_file({name: weight + torch.tensor(1.0) for name, weight in weights.items()}, path)
        assert predict(run, f"--output={tmp_path}") == 2
        assert f"--engine vllm loads {run / 'adapter'}, which has other weights; name best.ckpt" in (
            capsys.readouterr().err
        )
        path.unlink()
        assert predict(run, f"--output={tmp_path}") == 2
        assert f"{run / 'adapter'}: no adapter that vLLM can load (" in capsys.readouterr().err
    finally:
        path.write_bytes(content)
    assert recorded.made == []
