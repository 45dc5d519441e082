"""The command `fit`: read the data, find the base, make the run's folder, train, evaluate the best."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from nlicot.builders import builder_name
from nlicot.command_line import worded
from nlicot.data.atomic_write import write_json, write_text
from nlicot.errors import ConfigError
from nlicot.model.loaded_model import (
    ResolvedModel,
    compute_dtype,
    load_model,
    resolve_model,
    silence_libraries,
)
from nlicot.run.config import FitCommand
from nlicot.run.data import RunData
from nlicot.run.folder import (
    BEST,
    CONFIG,
    FIT_SUMMARY,
    LAST,
    METRICS,
    PEFT_FOLDER,
    CheckpointMetadata,
    run_file,
)
from nlicot.settings import PRECISIONS, FitSettings, TrainerSettings
from nlicot.training.callbacks.checkpoints import RunCheckpoints
from nlicot.training.callbacks.generated_metrics import GeneratedMetrics
from nlicot.training.callbacks.tensorboard_layout import BoardLayout
from nlicot.training.datamodule import PairsData
from nlicot.training.module import NliModule
from nlicot.training.preflight import format_cost
from nlicot.training.preflight import measure as measure_cost

NOT_HYPER_PARAMETERS = ("run", "resume", "preflight", "checkpoints_root")
SET_BY_THE_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RUN_FOLDER = "NLICOT_RUN_FOLDER"
"""Environment variable with the folder that the first process made, for the other ranks."""


def fit(command: FitCommand) -> int:
    """Train an adapter, or continue a run; returns the exit code."""
    silence_libraries()
    settings = command.settings
    seed_everything(settings.seed_everything, workers=True, verbose=False)
    arguments = trainer_arguments(settings.trainer)
    data = RunData(settings)
    data.announce_sample()
    if data.builder.max_thought_tokens is None:
        data.read_for_fit()
        resolved = resolve_model(settings.model, on_sample=data.on_sample)
    else:
        resolved = resolve_model(settings.model, on_sample=data.on_sample)
        data.read_for_fit(resolved.prompt_format.count_thought_tokens)
    windows = PairsData(data, resolved.prompt_format)
    if settings.preflight:
        trainer = make_trainer(settings, arguments, logger=False)
        module = _load_module(trainer, resolved, data, settings)
        sampled = settings.generated_metrics
        print(
            format_cost(
                measure_cost(module, windows, trainer),
                settings.data,
                num_generated=sampled.num_pairs if sampled.every_n_epochs else 0,
            )
        )
        return 0

    folder = _new_run_folder(command, data) if settings.resume is None else Path(settings.resume)
    resumed_checkpoint = None if settings.resume is None else str(run_file(folder, LAST))
    checkpoints = RunCheckpoints(folder, **asdict(settings.checkpoint))
    trainer = make_trainer(
        settings,
        arguments,
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
            BoardLayout(),
            GeneratedMetrics(settings.generated_metrics, data, settings.model.decoding),
            EarlyStopping(**asdict(settings.early_stopping)),
            checkpoints,
        ],
        default_root_dir=str(folder),
    )
    module = _load_module(trainer, resolved, data, settings)
    try:
        trainer.fit(module, windows, ckpt_path=resumed_checkpoint, weights_only=True)
    except SystemExit:  # Lightning's reaction to Ctrl-C
        if trainer.interrupted:
            print(f"nlicot: stopped; continue with: python -m nlicot fit --resume {folder}", file=sys.stderr)
            return 130
        raise
    if not trainer.is_global_zero:
        return 0
    write_json(folder / FIT_SUMMARY, _summary(data, resolved, trainer, checkpoints))
    if settings.final_evaluation:
        code = _validate_in_a_new_process(folder)
        if code:
            return code
    _log_hyper_parameters(folder, command, checkpoints)
    _print_next_step(folder, data)
    return 0


def trainer_arguments(settings: TrainerSettings) -> dict[str, Any]:
    """Check the Trainer's arguments against its signature, and build what class paths name.

    Raises:
        ConfigError: a class does not exist, or does not take its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    try:
        found = parser.instantiate(parser.parse_object({"trainer": asdict(settings)}))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(worded(error)) from None
    arguments: dict[str, Any] = vars(found.trainer)
    return arguments


def make_trainer(
    settings: FitSettings, arguments: dict[str, Any], *, callbacks: Sequence[Callback] = (), **ours: Any
) -> Trainer:
    """Make the Trainer of a fit.

    Args:
        arguments: from `trainer_arguments`.
        ours: arguments that the command sets, whatever the settings say.
    """
    wants_bar = arguments["enable_progress_bar"] is not False
    # Named, or the bar would depend on whether `rich` is installed.
    bars = [TQDMProgressBar(refresh_rate=1)] if wants_bar else []
    named = arguments["callbacks"] or []
    named = named if isinstance(named, list) else [named]
    return Trainer(
        **{
            **arguments,
            "precision": arguments["precision"] or PRECISIONS[compute_dtype(settings.model.dtype)],
            "callbacks": [*bars, *callbacks, *named],
            "enable_progress_bar": wants_bar,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **ours,
        }
    )


def _load_module(
    trainer: Trainer, resolved: ResolvedModel, data: RunData, settings: FitSettings
) -> NliModule:
    metadata = CheckpointMetadata.of(resolved, data.prompts, data.forms)
    with trainer.init_module():
        loaded = load_model(resolved, settings.model, for_training=True, seed=settings.seed_everything)
    return NliModule(loaded, settings.model, metadata, seed=settings.seed_everything)


def _new_run_folder(command: FitCommand, data: RunData) -> Path:
    """Make the run's folder, with its configuration in it; an existing folder is never used."""
    settings = command.settings
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(os.environ[RUN_FOLDER])
    root = Path(settings.checkpoints_root).expanduser()
    stem = settings.run or f"{builder_name(data.builder)}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    root.mkdir(parents=True, exist_ok=True)
    folder, count = root / stem, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if settings.run:
                raise ConfigError(
                    f"--run {settings.run}: a run of that name exists in {root}; choose another name, "
                    f"or continue it with: fit --resume {folder}"
                ) from None
            count += 1
            folder = root / f"{stem}-{count}"
    os.environ[RUN_FOLDER] = str(folder)
    write_text(folder / CONFIG, command.yaml, overwrite=True)
    return folder


def _summary(
    data: RunData, resolved: ResolvedModel, trainer: Trainer, checkpoints: RunCheckpoints
) -> dict[str, Any]:
    return {
        "base": resolved.base.name,
        "builder": type(data.builder).__name__,
        "built": data.reports,
        "optimizer_steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "monitor": checkpoints.monitor,
        "best": checkpoints.best,
        "best_step": checkpoints.best_step,
        "on_sample": data.on_sample,
    }


def _validate_in_a_new_process(folder: Path) -> int:
    """Evaluate the best adapter in a process that only predicts, so that it can use faster kernels."""
    command = [sys.executable, "-m", "nlicot", "validate", "--ckpt_path", str(folder / BEST)]
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_THE_LAUNCHER}
    return subprocess.run(command, check=False, env=environment).returncode


def _log_hyper_parameters(folder: Path, command: FitCommand, checkpoints: RunCheckpoints) -> None:
    """Log the settings and the final figures for TensorBoard's table of runs."""
    figures = {f"final/best {checkpoints.monitor}": checkpoints.best or 0.0}
    path = folder / METRICS
    if path.is_file():
        dev = json.loads(path.read_text(encoding="utf-8")).get("dev", {})
        figures |= {f"final/dev {name}": dev[name]["value"] for name in ("accuracy", "f1") if name in dev}
    board = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    # Settings that are the same in every run, or unique to one, would fill the first columns of the table.
    board.log_hyperparams(
        {
            name: value
            for name, value in vars(command.values.as_flat()).items()
            if name not in NOT_HYPER_PARAMETERS
        },
        figures,
    )
    board.finalize("success")


def _print_next_step(folder: Path, data: RunData) -> None:
    root = "" if data.on_sample else " --root YOUR_DATA"
    print(
        f"\nadapter      {folder / PEFT_FOLDER} (best checkpoint {folder / BEST})"
        f"\nmetrics      {folder / METRICS}"
        f"\nTensorBoard  tensorboard --logdir {folder.parent}"
        f"\nnext         python -m nlicot predict --ckpt_path {folder / BEST}{root}"
    )
