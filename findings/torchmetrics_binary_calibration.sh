#!/usr/bin/env bash
# torchmetrics 1.9.0: the calibration error of a binary classifier.
#
# Expected: BinaryCalibrationError of p equals MulticlassCalibrationError of [1 - p, p]: the page of both calls them
#           the top-label calibration error, accuracy of the predicted label against its confidence, per bin.
# Happens:  the binary one bins p itself and compares it with the rate of label 1; the predicted label plays no part.
#           Errors of opposite sign at p and at 1 - p cancel in the multiclass figure, and add up in the binary one.
# Seen:     p 0.2 0.8, always label 1, 10 bins: binary 0.50, multiclass 0.30
# Source:   documentation of torchmetrics.classification.BinaryCalibrationError (the formula's text); its update
#           function returns (preds, target) as confidences and accuracies.
# For users: two papers' calibration errors of the same NLI predictions differ by the class they happened to call.
#           State which one a figure is; nlicot states it in the metric's docstring.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

p = torch.tensor([0.2, 0.8] * 10)
label = torch.ones(20, dtype=torch.int)
binary = BinaryCalibrationError(n_bins=10)(p, label).item()
multiclass = MulticlassCalibrationError(num_classes=2, n_bins=10)(torch.stack([1 - p, p], 1), label).item()
# By hand: |0.2 - 1| and |0.8 - 1|, half each; for the predicted label: confidence 0.8, right half of the time.
by_hand = (abs(0.2 - 1) + abs(0.8 - 1)) / 2, abs(0.8 - 0.5)
print(f"p 0.2 0.8, always label 1, 10 bins: binary {binary:.2f}, multiclass {multiclass:.2f}")
assert abs(binary - by_hand[0]) < 1e-6
assert abs(multiclass - by_hand[1]) < 1e-6
PY
echo "as described"
