"""Measure generated predictions while fitting: once per epoch, on a fixed sample of dev pairs.

Users get what the model generates; the label's accuracy given the true thought is optimistic, and the module
logs it under its own name.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryConfusionMatrix,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
)

from nlicot.prediction.predictor import Predictor, gather
from nlicot.records import LABEL_NAMES, Example, Prediction
from nlicot.run.data import RunData
from nlicot.settings import DecodingSettings, GeneratedMetricsSettings

METRICS = {
    "accuracy": BinaryAccuracy,
    "precision": BinaryPrecision,
    "recall": BinaryRecall,
    "f1": BinaryF1Score,
}


class GeneratedMetrics(Callback):
    """Decode a sample of dev pairs at the end of an epoch; log accuracy, precision, recall and F1.

    Args:
        settings: how often, and how many pairs.
        data: the run's dev pairs and prompts.
        decoding: how predictions are made.
    """

    def __init__(self, settings: GeneratedMetricsSettings, data: RunData, decoding: DecodingSettings) -> None:
        self.settings = settings
        self.data = data
        self.decoding = decoding

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode and log."""
        every = self.settings.every_n_epochs
        if every < 1 or (trainer.current_epoch + 1) % every:
            return
        examples = self.data.dev_sample(self.settings.num_pairs)
        predictions = self._decode(trainer, pl_module, examples)
        true = torch.tensor([example.label for example in examples])
        found = torch.tensor([predictions[example.id].predicted_label for example in examples])
        for name, kind in METRICS.items():
            pl_module.log(f"dev_generated/{name}", kind()(found, true), prog_bar=name == "accuracy")
        pl_module.log("dev_generated/num_pairs", float(len(examples)))
        closed = sum(prediction.status != "truncated" for prediction in predictions.values())
        pl_module.log("dev_generated/closed_share", closed / len(examples))
        confusion = BinaryConfusionMatrix()(found, true)
        board = getattr(trainer.logger, "experiment", None)
        if board is not None and trainer.is_global_zero:
            board.add_image("dev_generated/confusion", confusion_image(confusion), trainer.global_step)
            for index, example in enumerate(examples[: self.settings.num_texts]):
                text = _as_markdown(example, predictions[example.id])
                board.add_text(f"dev_generated/thought_{index}", text, trainer.global_step)

    def _decode(self, trainer: Trainer, pl_module: Any, examples: list[Example]) -> dict[str, Prediction]:
        predictor = Predictor(
            pl_module.loaded,
            self.data.prompts,
            self.data.forms,
            self.decoding,
            autocast=trainer.precision_plugin.forward_context,
        )
        was_training = pl_module.model.training
        pl_module.model.eval()
        batch = predictor.batch(examples, rank=trainer.global_rank, world_size=trainer.world_size)
        predictions = list(predictor.decode(batch))
        pl_module.model.train(was_training)
        return {prediction.id: prediction for prediction in gather(predictions, trainer.world_size)}


def confusion_image(confusion: torch.Tensor) -> torch.Tensor:
    """Draw a 2x2 confusion matrix (rows true, columns predicted) as a uint8 image `[3, H, W]`."""
    import io

    import matplotlib as mpl

    mpl.use("agg")
    import numpy as np
    from matplotlib import pyplot
    from PIL import Image

    counts = confusion.tolist()
    figure, axes = pyplot.subplots(figsize=(3.6, 3.2), dpi=110)
    axes.imshow(counts, cmap="Blues", vmin=0)
    highest = max(max(row) for row in counts) or 1
    for true, row in enumerate(counts):
        for predicted, count in enumerate(row):
            ink = "white" if count > highest / 2 else "black"
            axes.text(predicted, true, str(count), ha="center", va="center", color=ink, fontsize=14)
    names = [LABEL_NAMES[label] for label in (0, 1)]
    axes.set(xticks=[0, 1], yticks=[0, 1], xlabel="predicted", ylabel="true")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names, rotation=90, va="center")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    pixels = np.array(Image.open(buffer).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _as_markdown(example: Example, prediction: Prediction) -> str:
    verdict = "right" if prediction.predicted_label == example.label else "wrong"
    lines = [
        f"**Premise:** {example.premise}",
        f"**Hypothesis:** {example.hypothesis}",
        f"**Thought:** {prediction.thought_process}",
        f"**Label:** {prediction.predicted_label} (true {example.label}, {verdict}; "
        f"p(entailment) = {prediction.p_entailment:.3f}, {prediction.status})",
    ]
    return "\n\n".join(lines)
