#!/usr/bin/env bash
# bitsandbytes 0.50.2 with torch 2.13.0: importing it, on a machine where nothing will be compiled.
#
# Expected: an import registers operators; torch's compiler is loaded by whatever calls torch.compile.
# Happens:  the import decorates four functions with torch.compile, which loads torch._dynamo and torch._inductor.
# Seen:     after torch: neither | after bitsandbytes: torch._dynamo and torch._inductor, 4 calls of torch.compile
# Source:   the package's backends/default/ops.py; its documentation does not mention it.
# For users: every start of a program that loads a 4-bit model takes about a second longer, and needs what inductor
#           needs, such as a temporary folder that can be written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bitsandbytes==0.50.2 torch==2.13.0 numpy==2.3.5
cat > "$folder/load.py" <<'PY'
import sys

import torch


def loaded():
    return [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]


before, calls, compile = loaded(), [], torch.compile


def counted(*args, **options):
    calls.append(args)
    return compile(*args, **options)


torch.compile = counted
import bitsandbytes

print(f"after torch: {before or 'neither'} | after bitsandbytes: {loaded()}, {len(calls)} calls of torch.compile")
assert before == []
assert loaded() == ["torch._dynamo", "torch._inductor"]
assert len(calls) == 4, len(calls)
PY
cd "$folder"
venv/bin/python load.py 2>errors.txt || { cat errors.txt; exit 1; }
echo "as described"
