"""Flags of a fit of the small model that takes seconds."""

from __future__ import annotations

# 16 examples in windows of 4: four steps an epoch, an evaluation after each two.
SHORT_FIT = [
    "--data.builder=label_only",
    "--data.limit_train=16",
    "--data.limit_dev=4",
    "--data.effective_batch=4",
    "--trainer.val_check_interval=0.5",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--generated_metrics.every_n_epochs=0",
    "--final_evaluation=false",
    "--model.lora.r=4",
]
