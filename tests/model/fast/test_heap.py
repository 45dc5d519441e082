"""A failed allocation is one line with what to do; other errors pass."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nlicot.errors import ConfigError
from nlicot.model.fast.heap import NUM_PRIMITIVES, cgroup_headrooms, memory_for


def test_failed_allocation_names_the_work_and_the_remedy() -> None:
    with (
        pytest.raises(ConfigError, match=r"^not enough memory for 5 rows; use 2$"),
        memory_for("5 rows", remedy=lambda: "use 2"),
    ):
        torch.empty(1 << 55)


def test_other_errors_of_torch_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="must match the size"),
        memory_for("5 rows", remedy=lambda: "use 2"),
    ):
        torch.ones(2) + torch.ones(3)


def test_what_limits_leave_is_that_of_the_own_group_and_of_those_above(tmp_path: Path) -> None:
    def group(folder: Path, **files: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"memory.{name}").write_text(f"{text}\n", encoding="ascii")

    group(tmp_path / "job" / "step", max="max", current="300", stat="inactive_file 0")
    group(tmp_path / "job", max="1000", current="700", stat="anon 500\ninactive_file 200")
    group(tmp_path, max="5000", current="900", stat="inactive_file 0")
    assert cgroup_headrooms("0::/job/step\n", tmp_path) == [500, 4100]
    assert cgroup_headrooms("0::/docker/0123\n", tmp_path) == [4100]  # the host's path
    group(
        tmp_path / "memory" / "job",
        limit_in_bytes="1000",
        usage_in_bytes="700",
        stat="inactive_file 1\ntotal_inactive_file 100",
    )
    assert cgroup_headrooms("5:cpu,cpuacct:/job\n4:memory:/job\n", tmp_path) == [400]


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="bfloat16 products are not oneDNN's here"
)
def test_products_of_many_shapes_leave_little_memory_in_use() -> None:
    code = """
import sys, torch
from nlicot.model.fast.heap import keep_few_primitives, resident_bytes, trim_heap

if sys.argv[1] == "few":
    keep_few_primitives()
weight, rows = torch.ones(576, 576).bfloat16(), torch.ones(800, 576).bfloat16()
rows[:99] @ weight
before = resident_bytes()
for num_rows in range(100, 800):
    rows[:num_rows] @ weight
trim_heap()
print(resident_bytes() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name != NUM_PRIMITIVES}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    kept = [
        int(subprocess.check_output([sys.executable, "-c", code, how], env=environment))
        for how in ("few", "default")
    ]
    assert kept[0] < kept[1] / 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not a recent glibc")
def test_large_blocks_stay_out_of_the_heap_for_a_time() -> None:
    code = """
import ctypes
import torch
from nlicot.model.fast.heap import large_blocks_apart

class Counts(ctypes.Structure):  # of glibc's mallinfo2; the fourth is that of blocks apart
    _fields_ = [("numbers", ctypes.c_size_t * 10)]

count = ctypes.CDLL(None).mallinfo2
count.restype = Counts

def num_apart():
    before = count().numbers[3]
    block = torch.empty(24 << 20, dtype=torch.uint8)
    return count().numbers[3] - before

with large_blocks_apart():
    print(num_apart())
print(num_apart())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert printed.split() == ["1", "0"]
