#!/usr/bin/env bash
# lightning 2.6.6 with fsspec: a checkpoint is written to the system's temporary folder first, then moved.
#
# Expected: "Saves a checkpoint atomically, avoiding the creation of incomplete checkpoints": if it cannot be saved, the
#           earlier file of that name is intact.
# Happens:  where the temporary folder is on another file system, the move is a copy onto the final name: on a full disk,
#           or if the process is killed, the earlier checkpoint is gone and a part of the new one has its name.
# Seen:     before: 400,000 bytes or more, loads | after a save that failed: does not load
# Source:   docstring of lightning.fabric.utilities.cloud_io._atomic_save; fsspec's LocalFileOpener.commit is shutil.move.
# For users: `last.ckpt` on a disk that fills up, with /tmp on another one, is lost when it is needed; a killed
#           process leaves a file of a checkpoint's size in /tmp. Save next to the final name and rename.
# Needs:    Linux with user namespaces (or root), for a small disk.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lightning==2.6.6 fsspec==2026.9.0 torch==2.13.0 numpy==2.3.5
cat > "$folder/save.py" <<'PY'
import os
import sys

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

path = os.path.join(sys.argv[1], "last.ckpt")
io = TorchCheckpointIO()
io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
before = os.path.getsize(path)
assert torch.load(path)["weights"].numel() == 100_000
try:
    io.save_checkpoint({"weights": torch.zeros(1_000_000)}, path)
except OSError as error:
    print(f"the save failed: {error.strerror}")
else:
    sys.exit("the disk was not full")
try:
    torch.load(path)
    found = "loads"
except Exception as error:
    found = f"does not load ({type(error).__name__})"
print(f"before: {before} bytes, loads | after: {os.path.getsize(path)} bytes, {found}")
assert found != "loads"
PY
mkdir "$folder/small"
unshare --map-root-user --mount bash -c "
  mount -t tmpfs -o size=1m tmpfs '$folder/small'
  '$folder/venv/bin/python' '$folder/save.py' '$folder/small'"
echo "as described"
