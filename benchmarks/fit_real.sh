#!/usr/bin/env bash
# Fit `reflected` for two epochs on the real pairs in NLICOT_REAL_DATA, then decode all dev pairs.
# About 30 minutes on two CPU cores. Further flags are passed to `fit`: benchmarks/fit_real.sh --run NAME
set -euo pipefail
real="${NLICOT_REAL_DATA:?set it to the folder that contains comp34812/}/comp34812"
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m nlicot fit --config configs/reflected.yaml --model.base bundled \
  --data.train_pairs "$real/train.csv" --data.train_thoughts "$real/thoughts_defined_train.jsonl" \
  --data.train_reflections "$real/reflections_defined_train.jsonl" \
  --data.dev_pairs "$real/dev.csv" --data.dev_thoughts "$real/thoughts_defined_dev.jsonl" \
  --data.dev_reflections "$real/reflections_defined_dev.jsonl" --data.test_pairs "$real/test.csv" \
  --definitions.entailment "it follows from the premise or fits it as a plausible reading" \
  --definitions.no_entailment "it conflicts with the premise or is ruled out by it" \
  --data.effective_batch 16 --model.learning_rate 1e-3 --model.decoding.max_thought_tokens 120 \
  --trainer.max_epochs 2 --generated_metrics.num_pairs 64 "$@"
