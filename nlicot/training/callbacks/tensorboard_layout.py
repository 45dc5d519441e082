"""The layout of TensorBoard's custom-scalars page: dev loss and accuracy of all runs on one page.

The module and `generated_metrics` log the tags; this only groups them into charts.
"""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

MULTILINE = "Multiline"
LAYOUT = {
    "dev": {
        "loss": [MULTILINE, ["^dev/loss$"]],
        "accuracy": [MULTILINE, ["^dev_generated/accuracy$"]],
        "loss of the label": [MULTILINE, ["^dev/loss_label$"]],
        "F1": [MULTILINE, ["^dev_generated/f1$"]],
    },
    "train and dev": {
        "loss": [MULTILINE, ["^train/loss$", "^dev/loss$"]],
        "loss of the label": [MULTILINE, ["^train/loss_label$", "^dev/loss_label$"]],
    },
}
"""Charts by page section: how each is drawn, and regular expressions for its tags."""


class BoardLayout(Callback):
    """Write the layout to a new run's event file; a resumed run has it already."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout before the first scalar."""
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and trainer.is_global_zero and not trainer.global_step:
            board.add_custom_scalars(LAYOUT)
