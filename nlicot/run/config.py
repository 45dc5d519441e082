"""Lightning's command line around the module and the data: which flags and keys there are.

What the commands do with them stands in `commands`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from nlicot.errors import ConfigError
from nlicot.model.base_model import PRECISIONS
from nlicot.run.config_errors import parse_all
from nlicot.training.callbacks.checkpoints import RunCheckpoints
from nlicot.training.callbacks.generated_metrics import GeneratedMetrics
from nlicot.training.datamodule import PairsData
from nlicot.training.module import ThoughtTuner

DESCRIPTIONS = {
    "fit": "Tune an adapter. The recipe is loaded by default; later --config files and flags win. "
    "--root DATA is short for --data.root DATA. "
    "Example: python -m nlicot fit --config configs/reflected.yaml --root data",
    "inspect": "Training examples token by token, exactly as fit encodes them, and their lengths against the "
    "budget. Takes the configs and flags of fit; no model is loaded. "
    "Example: python -m nlicot inspect --config configs/reflected.yaml --root data --num 3",
    "validate": "Metrics on every dev pair, with predictions and thoughts. "
    "Example: python -m nlicot validate --ckpt_path checkpoints/RUN/best.ckpt",
    "test": "Metrics on labelled test pairs, with predictions and thoughts. "
    "Example: python -m nlicot test --ckpt_path checkpoints/RUN/best.ckpt --root data",
    "predict": "Predictions for pairs without labels. "
    "Example: python -m nlicot predict --ckpt_path checkpoints/RUN/best.ckpt --root data",
}


class CommandLine(LightningCLI):
    """LightningCLI with our arguments; `command` decides which of them there are."""

    def __init__(self, command: str, args: Sequence[str], default_config: Path) -> None:
        self.command = command
        super().__init__(
            ThoughtTuner,
            PairsData,
            run=False,
            args=list(args),
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"python -m nlicot {command}",
                "default_config_files": [str(default_config)],
                "exit_on_error": False,
                "usage": f"python -m nlicot {command} [--config FILE ...] [options]",
                "description": DESCRIPTIONS[command],
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning does not know of."""
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_as_seed)
        # Made by the command, which knows the run's folder.
        parser.add_class_arguments(EarlyStopping, "early_stopping", instantiate=False, fail_untyped=False)
        parser.add_class_arguments(GeneratedMetrics, "generated_metrics", instantiate=False)
        parser.add_class_arguments(RunCheckpoints, "checkpoint", skip={"folder"}, instantiate=False)
        parser.add_argument(
            "--checkpoints_root", type=str, default="checkpoints", help="where run folders lie"
        )
        if self.command == "inspect":
            _add_what_to_inspect(parser)
        elif self.command == "fit":
            parser.add_argument("--run", type=str | None, default=None, help="the run's name")
            parser.add_argument("--resume", type=str | None, default=None, help="a run to go on with")
            parser.add_argument(
                "--preflight",
                action="store_true",
                help="measure memory and time, and the largest micro-batch that fits; then stop",
            )
            parser.add_argument(
                "--final_evaluation", type=bool, default=True, help="decode every dev pair after fitting"
            )
        else:
            parser.add_argument(
                "--ckpt_path", type=str, help="checkpoints/<run>/best.ckpt; several make an ensemble"
            )
            parser.add_argument(
                "--weights", type=str | None, default=None, help="of an ensemble's members, such as 2,1"
            )
            parser.add_argument("--split", type=str, default="dev" if self.command == "validate" else "test")
            parser.add_argument(
                "--output", type=str | None, default=None, help="where predictions are written"
            )
        if self.command == "validate":
            parser.add_argument(
                "--tune_threshold",
                action="store_true",
                help="pick threshold and temperature on this split; `test` and `predict` then use them",
            )
            parser.add_argument(
                "--probe_thoughts",
                action="store_true",
                help="how often the label turns without its thought, or without the premise",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and tell every mistake at once."""
        self.config = parse_all(parser, args)
        accumulated = self.config["trainer"]["accumulate_grad_batches"]
        if accumulated != 1:
            raise ConfigError(
                f"--trainer.accumulate_grad_batches: found {accumulated}, expected 1; "
                "set --data.effective_batch instead"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Left to the command, which knows the run's folder."""
        return None  # type: ignore[return-value]

    def make_trainer(self, **settings: Any) -> Trainer:
        """The trainer of the configuration, with a command's own logger and callbacks."""
        config = self.config_init["trainer"].as_dict()
        config |= {"use_distributed_sampler": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        config["enable_model_summary"] = False
        if config.get("precision") is None:
            config["precision"] = PRECISIONS[self.model.dtype_name]
        # Named, or the bar would depend on whether some other package brought `rich` along.
        # Commands that decode count pairs in a bar of their own.
        wanted = config.get("enable_progress_bar") is not False and self.command == "fit"
        config["enable_progress_bar"] = wanted
        bars = [TQDMProgressBar(refresh_rate=1)] if wanted else []
        named = config.get("callbacks") or []
        named = named if isinstance(named, list) else [named]  # Lightning takes one by itself, too
        config["callbacks"] = [*bars, *settings.pop("callbacks", []), *named]
        return Trainer(**{**config, **settings})


def _add_what_to_inspect(parser: LightningArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "dev"), default="train", help="whose examples")
    parser.add_argument("--num", type=int, default=2, help="how many examples, from the first")
    parser.add_argument(
        "--id", type=str, action="append", default=[], help="a pair to show instead; again for more"
    )
    parser.add_argument("--json", action="store_true", help="everything, token ids too, as one JSON document")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )
    # Keys of a run's own config.yaml, which may be given as --config; they say nothing of its data.
    for name in ("run", "resume", "preflight", "final_evaluation"):
        parser.add_argument(f"--{name}", type=Any, default=None, help=argparse.SUPPRESS)


def _as_seed(value: Any) -> int:
    return int(value)
