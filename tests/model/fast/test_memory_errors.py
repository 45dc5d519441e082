"""The compiled kernels read and write no memory but their own, as AddressSanitizer finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
KERNELS = ["test_attention.py", "test_forward.py"]


@pytest.mark.slow
def test_the_compiled_kernels_keep_to_their_memory(tmp_path: Path) -> None:
    compilers = {"CC": shutil.which("cc"), "CXX": shutil.which("g++")}
    if None in compilers.values():
        pytest.skip("no C or C++ compiler")
    # The second, so that the sanitizer finds the C++ exceptions of other libraries.
    sanitizer = [_library("libasan.so"), _library("libstdc++.so.6")]
    if not sanitizer[0].is_absolute():
        pytest.skip("no AddressSanitizer: it belongs to g++ (libasan)")
    wrappers = {}
    for name, compiler in compilers.items():
        wrapper = tmp_path / name.lower()
        wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD= exec {compiler} -fsanitize=address "$@"\n')
        wrapper.chmod(0o755)
        wrappers[name] = str(wrapper)
    environment = os.environ | wrappers
    environment |= {
        "LD_PRELOAD": " ".join(map(str, sanitizer)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "not gpu"]
    command += [str(TESTS / name) for name in KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    compiled = {path.name for path in (tmp_path / "cache").rglob("*.so")}
    # The attention kernel needs AVX512-BF16; without it, the tests of it were skipped.
    needed = {"decode_step.so"} | ({"attention.so"} if torch.cpu._is_avx512_bf16_supported() else set())
    assert compiled == needed


def _library(name: str) -> Path:
    command = ["g++", f"-print-file-name={name}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
