"""The whole pipeline against a third-party server: llama.cpp's, with the bundled model.

Needs `pip install 'llama-cpp-python[server]'`, which compiles llama.cpp, and is therefore in no requirements
file; without it the test skips. The model is far too small to be a teacher; this tests the pipeline.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from nlicot.cli import main
from nlicot.config_files import SAMPLE
from nlicot.data.thoughts import read_reflections, read_scores, read_thoughts
from nlicot.errors import NoAnswers
from nlicot.model.base_model import bundled_file
from tests.time_limits import HANGS_S

NUM_PAIRS = 8
SERVER_NEEDS = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in SERVER_NEEDS),
        reason="llama.cpp's server is not installed: pip install 'llama-cpp-python[server]'",
    ),
]


@pytest.fixture
def server_url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(bundled_file())]
    # One thread: several spin, next to other programs. One token at a time: with larger batches this
    # library's AMX kernels crash on some virtual machines.
    command += ["--n_threads", "1", "--n_threads_batch", "1", "--n_batch", "1", "--n_ubatch", "1"]
    command += ["--model_alias", "smollm2", "--n_ctx", "2048", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(10 * HANGS_S):
                assert process.poll() is None, "the server exited"
                try:
                    urlopen(f"{url}/v1/models").read()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                pytest.fail("the server did not start")
            yield url
        finally:
            process.terminate()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The first pairs of the real set, or of the sample without it."""
    real = os.environ.get("NLICOT_REAL_DATA")
    folder = Path(real) / "comp34812" if real else SAMPLE / "original_data"
    for split, num in (("train", NUM_PAIRS), ("dev", 2)):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[: num + 1]
        path = tmp_path / "root" / "original_data" / f"{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path / "root"


def _ends(command: str, *flags: str) -> bool:
    """Run a command; a model this small may fail at every pair, which stops it."""
    code = main([command, *flags])
    assert code in (0, NoAnswers.exit_code)
    return code == 0


def test_generate_reflect_score_prepare_and_fit(root: Path, server_url: str, tmp_path: Path) -> None:
    teacher = ["--root", str(root), "--backend", "openai", "--server-url", server_url, "--model", "smollm2"]
    teacher += ["--concurrency", "1", "--temperature", "0", "--timeout", "300"]
    path, reflected_path, scored_path = (
        root / f"{stage}_thoughts" / "train.jsonl" for stage in ("original", "reflected", "scored")
    )

    assert main(["generate", *teacher, "--max-tokens", "90", "--yes"]) == 0
    thoughts = read_thoughts(path)
    assert len(thoughts) + _num_failed(path) == NUM_PAIRS
    assert main(["prepare", "--root", str(root), "--builder", "unmodified"]) == 0

    wrong = [thought for thought in thoughts if not thought.correct]
    if _ends("reflect", *teacher, "--split", "train", "--max-tokens", "150"):
        reflections = read_reflections(reflected_path)
        assert len(reflections) + _num_failed(reflected_path) == len(wrong)
        assert all(reflection.reflected_label == reflection.true_label for reflection in reflections)
    if _ends("score", *teacher, "--split", "train", "--max-tokens", "80", "--rounds", "0"):
        assert len(read_scores(scored_path).scores) + _num_failed(scored_path) == len(thoughts)
    print(f"{len(thoughts)} thoughts, {len(wrong)} wrong")

    fitted = main(
        [
            *("fit", "--root", str(root), "--data.builder", "unmodified", "--model.base", "bundled"),
            *("--data.effective_batch", "8", "--trainer.max_epochs", "1", "--final_evaluation", "false"),
            *("--generated_metrics.every_n_epochs", "0", "--checkpoints_root", str(tmp_path / "runs")),
        ]
    )
    assert fitted == 0


def _num_failed(path: Path) -> int:
    failures = path.with_name("train.failures.jsonl")
    return len([json.loads(line) for line in failures.read_text().splitlines()]) if failures.exists() else 0
