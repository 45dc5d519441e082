"""TensorBoard shows the charts of runs side by side, and texts as they are."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from nlicot.cli import main
from nlicot.records import Example, Prediction
from nlicot.training.callbacks import _as_markdown
from tests.small_model import write_small_model

FLAGS = [
    "--data.builder=label_only",
    "--data.limit_train=8",
    "--data.limit_dev=4",
    "--data.effective_batch=4",
    "--generated_metrics.num_pairs=2",
    "--final_evaluation=false",
    "--model.lora.r=4",
    "--run=run",
]


def test_dev_loss_and_accuracy_of_runs_stand_together(tmp_path: Path) -> None:
    base = write_small_model(tmp_path / "base")
    root = [f"--checkpoints_root={tmp_path}", f"--model.base={base}"]
    assert main(["fit", *FLAGS, *root, "--trainer.max_epochs=1"]) == 0
    assert main(["fit", "--resume", str(tmp_path / "run"), "--trainer.max_epochs=2"]) == 0

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)  # once, though the run was gone on with
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {
        f"{section.title}: {chart.title}": chart for section in layout.category for chart in section.chart
    }
    assert list(charts["dev: loss"].multiline.tag) == ["^dev/loss$"]
    assert list(charts["dev: accuracy"].multiline.tag) == ["^dev_generated/accuracy$"]
    # Every tag that a chart asks for is one that was logged.
    logged = set(events.Tags()["scalars"])
    wanted = {tag.strip("^$") for chart in charts.values() for tag in chart.multiline.tag}
    assert wanted <= logged


def test_patience_counts_only_the_epochs_in_which_predictions_are_decoded(tmp_path: Path) -> None:
    base = write_small_model(tmp_path / "base")
    monitor = ["--early_stopping.monitor=dev_generated/accuracy", "--early_stopping.mode=max"]
    # No measurement after the first is an improvement, so patience 2 ends the run at the third.
    patience = ["--early_stopping.min_delta=100", "--early_stopping.patience=2"]
    epochs = ["--generated_metrics.every_n_epochs=2", "--trainer.max_epochs=7", "--data.limit_train=4"]
    root = [f"--checkpoints_root={tmp_path}", f"--model.base={base}"]
    assert main(["fit", *FLAGS, *root, *monitor, *patience, *epochs]) == 0
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["epochs"] == 6


HOSTILE = [
    "![look](http://example.invalid/a.png)",
    '<img src="http://example.invalid/a.png">',
    "[click](http://example.invalid)",
    "    code\n# heading\n* item\n1. item\n> quote\n---",
    "_a_ **b** `c` ~~d~~ \\*e* <http://example.invalid> &lt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_as_they_are(text: str) -> None:
    example = Example(id="a", premise=text, hypothesis=text, label=1)
    prediction = Prediction(
        id="a", predicted_label=1, p_entailment=0.75, thought_process=text, status="ok", completion=""
    )
    shown = markdown_to_safe_html(_as_markdown(example, prediction))
    assert set(re.findall(r"<(\w+)", shown)) == {"p", "strong"}
    visible = html.unescape(re.sub(r"<.*?>", "", shown))
    assert visible.count(" ".join(text.split())) == 3
