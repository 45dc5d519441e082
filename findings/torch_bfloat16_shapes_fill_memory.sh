#!/usr/bin/env bash
# torch 2.13.0 on a CPU with bfloat16 instructions: the same weight, multiplied with another number of rows each time.
#
# Expected: memory stays as it was: results are freed, and there is one weight.
# Happens:  hundreds of megabytes stay in use. oneDNN, which torch multiplies bfloat16 with, compiles code for each shape
#           and keeps 1,024 of them. Batches without padding have another shape each, so a training run grows for hours.
# Seen:     after 1,000 shapes, freed blocks given back: 868 MB more; with ONEDNN_PRIMITIVE_CACHE_CAPACITY=64: 309 MB
# Source:   oneDNN's documentation, "Primitive Cache": kept by least recent use, 1,024 by default; torch's
#           aten/src/ATen/native/mkldnn/Matmul.cpp sends bfloat16 products of sufficient size there.
# For users: memory that grows for the first thousands of steps is not a leak of the training loop. Set the variable
#           before the first product; compiling again cost no time that could be measured (30.0 and 28.9 s for 15,000
#           products of 1,500 shapes).
# Needs:    a processor with bfloat16 instructions; without them it says so and ends with exit code 77.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat > "$folder/shapes.py" <<'PY'
import ctypes
import re
import sys

import torch

if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    print("this processor has no bfloat16 instructions", file=sys.stderr)
    sys.exit(77)


def megabytes():
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024


weight, rows = torch.ones(576, 576).bfloat16(), torch.ones(1200, 576).bfloat16()
rows[:99] @ weight
before = megabytes()
for count in range(200, 1200):
    rows[:count] @ weight
print(megabytes() - before)
PY
cd "$folder"
by_default=$(OMP_NUM_THREADS=1 venv/bin/python shapes.py)
with_64=$(OMP_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 venv/bin/python shapes.py)
echo "after 1,000 shapes: $by_default MB more; with ONEDNN_PRIMITIVE_CACHE_CAPACITY=64: $with_64 MB"
test "$by_default" -gt $((2 * with_64))
echo "as described"
