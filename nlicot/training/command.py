"""What `fit` does; `measuring` has the commands that decode.

It reads its data and finds its base before a model loads.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from nlicot.builders import builder_name
from nlicot.data.atomic_write import write_json
from nlicot.errors import ConfigError
from nlicot.run.config import CommandLine
from nlicot.run.folder import CONFIG, FIT_SUMMARY, METRICS, RECIPE, run_file, say_which_data, value_of
from nlicot.training.callbacks.checkpoints import BEST, LAST, PEFT_FOLDER, RunCheckpoints
from nlicot.training.callbacks.generated_metrics import GeneratedMetrics
from nlicot.training.callbacks.tensorboard_layout import BoardLayout
from nlicot.training.datamodule import PairsData
from nlicot.training.module import ThoughtTuner

SHORT = {
    "--root": "--data.root",
    "--votes": "--model.decoding.votes",
    "--think": "--model.decoding.think",
    "--tune-threshold": "--tune_threshold",
    "--probe-thoughts": "--probe_thoughts",
}
"""Flags as a person types them, and as Lightning's command line has them."""
OF_THE_RUN = ("config", "run", "resume", "preflight", "checkpoints_root")
OF_THE_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(command: str, args: Sequence[str]) -> int:
    """Run one of the four commands; returns its exit code."""
    _quieten()
    args = [_full_name(arg) for arg in args]
    if command == "fit":
        return fit(args)
    from nlicot.prediction.commands import evaluate

    return evaluate(command, args)


def prepared_command_line(command: str, args: Sequence[str]) -> CommandLine:
    """The parsed command line of a command beside the four that reads as `fit` does, over the recipe."""
    _quieten()
    return CommandLine(command, [_full_name(arg) for arg in args], RECIPE)


def _quieten() -> None:
    """Keep what a user can do nothing about off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes", "bitsandbytes.backends"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*lr_scheduler.step.*",
        ".*is_gradient_checkpointing.*",
        ".*transfer_batch_to_device.*",
        ".*predict returned None.*",
    ):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _full_name(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return SHORT.get(name, name) + equals + value


# ------------------------------------------------------------------------ fit


def fit(args: Sequence[str]) -> int:
    """Train an adapter, or go on with a run."""
    resumed = value_of(args, "--resume")
    cli = CommandLine("fit", args, RECIPE if resumed is None else run_file(Path(resumed), CONFIG))
    data, module = cli.datamodule, cli.model
    say_which_data(data)
    count_tokens = None
    if data.builder.max_thought_tokens is not None:
        module.resolve_base(on_sample=data.on_sample)
        count_tokens = module.prompt_format.count_thought_tokens
    data.read_for_fit(count_tokens)
    module.resolve_base(on_sample=data.on_sample)
    module.prompts, module.forms = data.prompts, data.forms
    if cli.config["preflight"]:
        print(_preflight(cli))
        return 0

    if resumed is None:
        folder, checkpoint = _new_run_folder(cli, data), None
    else:
        folder, checkpoint = Path(resumed), str(run_file(Path(resumed), LAST))
    checkpoints = RunCheckpoints(folder, **cli.config["checkpoint"].as_dict())
    trainer = cli.make_trainer(
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
            BoardLayout(),
            GeneratedMetrics(**cli.config["generated_metrics"].as_dict()),
            EarlyStopping(**cli.config["early_stopping"].as_dict()),
            checkpoints,
        ],
        default_root_dir=str(folder),
    )
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            print(f"nlicot: stopped; go on with: python -m nlicot fit --resume {folder}", file=sys.stderr)
            return 130
        raise
    if not trainer.is_global_zero:
        return 0
    write_json(folder / FIT_SUMMARY, _fit_summary(data, module, trainer, checkpoints))
    if cli.config["final_evaluation"]:
        # In a process of its own, which only decodes and so may use kernels that training cannot.
        command = [sys.executable, "-m", "nlicot", "validate", "--ckpt_path", str(folder / BEST)]
        environment = {name: value for name, value in os.environ.items() if name not in OF_THE_LAUNCHER}
        code = subprocess.run(command, check=False, env=environment).returncode
        if code:
            return code
    _log_hyper_parameters(folder, cli, checkpoints)
    _say_what_is_next(folder, data)
    return 0


def _preflight(cli: CommandLine) -> str:
    from nlicot.training.preflight import format_cost, measure

    cost = measure(cli.model, cli.datamodule, cli.make_trainer(logger=False, callbacks=[]))
    sampled = cli.config["generated_metrics"]
    return format_cost(
        cost, cli.datamodule, num_generated=sampled["num_pairs"] if sampled["every_n_epochs"] else 0
    )


def _new_run_folder(cli: CommandLine, data: PairsData) -> Path:
    """The run's own folder with its configuration in it; never one that is already there."""
    root = Path(cli.config["checkpoints_root"]).expanduser()
    name = cli.config["run"]
    stem = name or f"{builder_name(data.builder)}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process has made it, and says which one it is
        return Path(os.environ["NLICOT_RUN_FOLDER"])
    root.mkdir(parents=True, exist_ok=True)
    folder, count = root / stem, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if name:
                raise ConfigError(
                    f"--run {name}: found a run of that name in {root}, expected a new name "
                    f"(or go on with it: fit --resume {folder})"
                ) from None
            count += 1
            folder = root / f"{stem}-{count}"
    os.environ["NLICOT_RUN_FOLDER"] = str(folder)
    cli.parser.save(cli.config, str(folder / CONFIG), skip_none=False, overwrite=True)
    return folder


def _fit_summary(
    data: PairsData, module: ThoughtTuner, trainer: Trainer, checkpoints: RunCheckpoints
) -> dict[str, Any]:
    return {
        "base": module.resolved_base.name,
        "builder": type(data.builder).__name__,
        "built": data.reports,
        "optimizer_steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "monitor": checkpoints.monitor,
        "best": checkpoints.best,
        "best_step": checkpoints.best_step,
        "on_sample": data.on_sample,
    }


def _log_hyper_parameters(folder: Path, cli: CommandLine, checkpoints: RunCheckpoints) -> None:
    """The configuration beside the final figures, for TensorBoard's table of runs."""
    figures = {f"final/best {checkpoints.monitor}": checkpoints.best or 0.0}
    path = folder / METRICS
    if path.is_file():
        dev = json.loads(path.read_text(encoding="utf-8")).get("dev", {})
        figures |= {f"final/dev {name}": dev[name]["value"] for name in ("accuracy", "f1") if name in dev}
    board = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    settings = vars(cli.config.as_flat())
    # What every run has alike, or only itself, would stand in the table's first columns.
    board.log_hyperparams(
        {name: value for name, value in settings.items() if name[0] != "_" and name not in OF_THE_RUN},
        figures,
    )
    board.finalize("success")


def _say_what_is_next(folder: Path, data: PairsData) -> None:
    own = "" if data.on_sample else " --root YOUR_DATA"
    print(
        f"\nadapter      {folder / PEFT_FOLDER} (best checkpoint {folder / BEST})"
        f"\nmetrics      {folder / METRICS}"
        f"\nTensorBoard  tensorboard --logdir {folder.parent}"
        f"\nnext         python -m nlicot predict --ckpt_path {folder / BEST}{own}"
    )
