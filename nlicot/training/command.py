"""The command `fit`: read the data, find the base, make the run's folder, train, evaluate the best."""

from __future__ import annotations

import datetime
import functools
import itertools
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
from nlicot.data.pairs import labelled_pairs_shown
from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import read_metrics
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
from nlicot.training import preflight
from nlicot.training.callbacks import GeneratedMetrics, RunCheckpoints
from nlicot.training.module import NliModule
from nlicot.training.windows import PairsData

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

    @functools.cache
    def resolved() -> ResolvedModel:
        return resolve_model(settings.model, on_sample=data.on_sample)

    # Errors in the data come first; a builder that limits a thought's tokens needs the tokenizer, though.
    data.read_for_fit(lambda thought: resolved().prompt_format.count_thought_tokens(thought))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in labelled_pairs_shown(data.pairs["train"]):
            print(line)
    windows = PairsData(data, resolved().prompt_format)
    if settings.preflight:
        trainer = make_trainer(settings, arguments, logger=False)
        module = _load_module(trainer, resolved(), data, settings)
        sampled = settings.generated_metrics
        num_generated = sampled.num_pairs if sampled.every_n_epochs else 0
        print(preflight.measure(module, windows, trainer, num_generated=num_generated))
        return 0

    folder = Path(settings.resume) if settings.resume else _new_run_folder(command, data)
    last_checkpoint = str(run_file(folder, LAST)) if settings.resume else None
    checkpoints = RunCheckpoints(folder, settings.checkpoint)
    trainer = make_trainer(
        settings,
        arguments,
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
            GeneratedMetrics(settings.generated_metrics, data, settings.model.decoding),
            EarlyStopping(**asdict(settings.early_stopping)),
            checkpoints,
        ],
        default_root_dir=str(folder),
    )
    module = _load_module(trainer, resolved(), data, settings)
    try:
        trainer.fit(module, windows, ckpt_path=last_checkpoint, weights_only=True)
    except SystemExit:  # Lightning's reaction to Ctrl-C
        if trainer.interrupted:
            print(f"nlicot: stopped; continue with: python -m nlicot fit --resume {folder}", file=sys.stderr)
            return 130
        raise
    if not trainer.is_global_zero:
        return 0
    summary = {
        "base": resolved().base.name,
        "builder": type(data.builder).__name__,
        "built": data.reports,
        "optimizer_steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "monitor": settings.checkpoint.monitor,
        "best": checkpoints.best,
        "best_step": checkpoints.best_step,
        "on_sample": data.on_sample,
    }
    write_json(folder / FIT_SUMMARY, summary)
    if settings.final_evaluation and (code := _validate_in_a_new_process(folder)):
        return code
    _log_hyper_parameters(folder, command, checkpoints.best)
    print(
        f"\nadapter      {folder / PEFT_FOLDER} (best checkpoint {folder / BEST})"
        f"\nmetrics      {folder / METRICS}"
        f"\nTensorBoard  tensorboard --logdir {folder.parent}"
        f"\nnext         python -m nlicot predict --ckpt_path {folder / BEST}"
        f"{'' if data.on_sample else ' --root YOUR_DATA'}"
    )
    return 0


def trainer_arguments(settings: TrainerSettings) -> dict[str, Any]:
    """Check the Trainer's arguments against its signature, and build what class paths name."""
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
    """Make the Trainer of a fit from `trainer_arguments`; `ours` go over them."""
    wants_bar = arguments["enable_progress_bar"] is not False
    # Named, or the bar would depend on whether `rich` is installed.
    bars = [TQDMProgressBar(refresh_rate=1)] if wants_bar else []
    named = arguments["callbacks"] or []
    return Trainer(
        **{
            **arguments,
            "precision": arguments["precision"] or PRECISIONS[compute_dtype(settings.model.dtype)],
            "callbacks": [*bars, *callbacks, *(named if isinstance(named, list) else [named])],
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
    with trainer.init_module():
        loaded = load_model(resolved, settings.model, for_training=True, seed=settings.seed_everything)
    metadata = CheckpointMetadata.of(resolved, data.prompts, data.forms)
    return NliModule(loaded, settings.model, metadata, seed=settings.seed_everything)


def _new_run_folder(command: FitCommand, data: RunData) -> Path:
    """Make the run's folder, with its configuration in it; an existing folder is never used."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(os.environ[RUN_FOLDER])
    run, root = command.settings.run, Path(command.settings.checkpoints_root).expanduser()
    stem = run or f"{builder_name(data.builder)}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    root.mkdir(parents=True, exist_ok=True)
    for end in itertools.chain([""], map("-{}".format, itertools.count(2))):
        folder = root / f"{stem}{end}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if run:
                raise ConfigError(
                    f"--run {run}: a run of that name exists in {root}; choose another name, "
                    f"or continue it with: fit --resume {folder}"
                ) from None
    os.environ[RUN_FOLDER] = str(folder)
    write_text(folder / CONFIG, command.yaml, overwrite=True)
    return folder


def _validate_in_a_new_process(folder: Path) -> int:
    """Evaluate the best adapter in a process that only predicts, so that it can use faster kernels."""
    command = [sys.executable, "-m", "nlicot", "validate", "--ckpt_path", str(folder / BEST)]
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_THE_LAUNCHER}
    return subprocess.run(command, check=False, env=environment).returncode


def _log_hyper_parameters(folder: Path, command: FitCommand, best: float | None) -> None:
    """Log the settings and the final figures for TensorBoard's table of runs."""
    dev = read_metrics(folder / METRICS).get("dev", {})
    figures = {f"final/best {command.settings.checkpoint.monitor}": best or 0.0}
    figures |= {f"final/dev {name}": dev[name]["value"] for name in ("accuracy", "f1") if name in dev}
    # Settings that are the same in every run, or unique to one, would fill the first columns of the table.
    varied = {
        name: value
        for name, value in vars(command.values.as_flat()).items()
        if name not in NOT_HYPER_PARAMETERS
    }
    board = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    board.log_hyperparams(varied, figures)
    board.finalize("success")
