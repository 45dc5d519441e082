"""What TensorBoard's custom-scalars page shows: dev loss and accuracy of all runs, on one page.

The tags themselves are logged by `module` and `evaluation`; this only says which of them stand together.
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
    "train beside dev": {
        "loss": [MULTILINE, ["^train/loss$", "^dev/loss$"]],
        "loss of the label": [MULTILINE, ["^train/loss_label$", "^dev/loss_label$"]],
    },
}
"""Charts by page section: how they are drawn, and regular expressions of their tags."""


class BoardLayout(Callback):
    """Writes the layout into a new run's event file; a resumed run has it already."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it once, before the first figure."""
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and trainer.is_global_zero and not trainer.global_step:
            board.add_custom_scalars(LAYOUT)
