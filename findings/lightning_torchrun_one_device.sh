#!/usr/bin/env bash
# lightning 2.6.6: torchrun starts two processes of a program whose Trainer has devices=1.
#
# Expected: the error that another wrong number gets: "You set `devices=3` ... does not match the world size (2)".
# Happens:  with devices=1 the strategy is one for a single device, which never looks at the launcher. Each process trains
#           on all examples and believes to be the only one, so all write the same files.
# Seen:     devices=3: ValueError | devices=1: world size 1, is_global_zero True, 8 of 8 examples, in both processes
# Source:   the package's strategies/launchers/subprocess_script.py calls the environment's validate_settings, but
#           trainer/connectors/accelerator_connector.py gives SingleDeviceStrategy no launcher.
# For users: a job script that forgets --devices costs N times the GPU hours of one run, and its checkpoints are those of
#           whichever process wrote last. Compare the launcher's WORLD_SIZE with trainer.world_size; nlicot refuses it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lightning==2.6.6 torch==2.13.0 numpy==2.3.5
cat > "$folder/train.py" <<'PY'
import logging
import sys

import torch
from lightning.pytorch import LightningModule, Trainer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.num_seen = torch.nn.Linear(4, 1), 0

    def training_step(self, batch, index):
        self.num_seen += len(batch)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


devices = int(sys.argv[1])
model = Model()
try:
    trainer = Trainer(accelerator="cpu", devices=devices, max_epochs=1, **QUIET)
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2))
except ValueError as error:
    print(f"devices={devices}: {type(error).__name__}", flush=True)
else:
    first, world_size = trainer.is_global_zero, trainer.world_size
    print(f"devices={devices}: world size {world_size}, is_global_zero {first}, {model.num_seen} of 8 examples", flush=True)
PY
cd "$folder"
export OMP_NUM_THREADS=1
for devices in 3 1; do
  venv/bin/torchrun --nproc_per_node 2 train.py "$devices" >>found.txt 2>>errors.txt || { cat errors.txt; exit 1; }
done
cat found.txt
[ "$(grep -c '^devices=3: ValueError$' found.txt)" = 2 ]
[ "$(grep -c '^devices=1: world size 1, is_global_zero True, 8 of 8 examples$' found.txt)" = 2 ]
echo "as described"
