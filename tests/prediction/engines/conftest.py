"""A run of the small model that predicts labels or thinks, and its model as a plain function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from nlicot.cli import main
from nlicot.prediction.predictor import Predictor, load_predictor, read_member
from nlicot.run.config import parse_prediction
from tests.small_model import write_small_model

NUM_PAIRS = 5


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `multitask` run, in float32."""
    folder = tmp_path_factory.mktemp("engines")
    base = write_small_model(folder / "base")
    fit = ["fit", "--data.builder=multitask", f"--model.base={base}", f"--checkpoints_root={folder}"]
    fit += ["--run=both", "--data.limit_train=16", f"--data.limit_dev={NUM_PAIRS}", "--trainer.max_steps=2"]
    fit += ["--data.effective_batch=16", "--generated_metrics.every_n_epochs=0", "--final_evaluation=false"]
    fit += ["--model.quantization=none", "--model.dtype=float32", "--model.lora.r=4"]
    fit += ["--model.learning_rate=1e-2", "--model.decoding.max_thought_tokens=40"]
    assert main(fit) == 0
    return folder / "both"


@pytest.fixture(scope="package")
def predictor(run: Path) -> Predictor:
    """The run's model in this process."""
    (found,) = parse_prediction("predict", [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev"])
    return load_predictor(read_member(found))


@pytest.fixture(scope="package")
def rate(predictor: Predictor) -> Callable[[Sequence[int]], Mapping[int, float]]:
    """Log-probabilities of the likeliest tokens and the labels after some ids, by a plain forward pass."""
    model, labels = predictor.engine.model, predictor.engine.scaffold.label_ids

    @torch.inference_mode()
    def rated(ids: Sequence[int]) -> Mapping[int, float]:
        values = model(torch.tensor([list(ids)])).logits[0, -1].float().log_softmax(-1)
        tokens = dict.fromkeys([*labels, *values.topk(20).indices.tolist()])
        return {token: float(values[token]) for token in tokens}

    return rated
