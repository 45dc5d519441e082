"""The command `fit`: read the data, find the base, make the run's folder, train, evaluate the best."""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from signal import Signals
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger

from nlicot import ranks, signals
from nlicot.builders import builder_name
from nlicot.command_line import worded
from nlicot.config_files import section
from nlicot.data.atomic_write import clear_scratch, disk_errors, make_folder, write_json, write_text
from nlicot.data.pairs import labelled_pairs_shown
from nlicot.data.soft_labels import SOFT_LABELS
from nlicot.errors import CheckpointError, ConfigError, DiskFull, Interrupted, NlicotError
from nlicot.evaluation.metrics import MADE_WITH, read_metrics
from nlicot.model.base_model import base_name, choose
from nlicot.model.fast.heap import memory_for
from nlicot.model.loaded_model import (
    ResolvedModel,
    check_max_length,
    choose_accelerator,
    compute_dtype,
    load_model,
    resolve_model,
    silence_libraries,
)
from nlicot.prediction.predictor import check_votes, read_checkpoint
from nlicot.report.card import as_card
from nlicot.report.read_runs import read_run
from nlicot.run.config import FitCommand
from nlicot.run.data import RunData
from nlicot.run.folder import (
    BEST,
    CONFIG,
    EVENTS,
    FIT_SUMMARY,
    LAST,
    METRICS,
    NUM_STEPS,
    PEFT_FOLDER,
    RUN_FOLDER,
    SLURM_JOB,
    CheckpointMetadata,
    check_new_run,
    hold_run,
    is_of_other_weights,
    read_summary,
)
from nlicot.run.starting_adapter import STARTED_FROM, Origin
from nlicot.settings import PRECISIONS, FitSettings, TrainerSettings
from nlicot.text_tables import counted
from nlicot.training import preflight
from nlicot.training.callbacks import EarlyStopping, GeneratedMetrics, RunCheckpoints
from nlicot.training.module import NliModule
from nlicot.training.warm_start import WarmStart
from nlicot.training.windows import PairsData

NOT_HYPER_PARAMETERS = ("run", "resume", "preflight", "checkpoints_root")
SET_BY_THE_LAUNCHER = (
    *("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_NTASKS", "TORCHELASTIC_RUN_ID"),  # by which Lightning finds out that it need not start processes
)
HYPER_PARAMETERS = ".hparams"
"""Suffix of the event file with the settings and the final figures."""


def fit(command: FitCommand) -> int:
    """Train an adapter, or continue a run; returns the exit code."""
    silence_libraries()
    settings = command.settings
    seed_everything(settings.seed_everything, workers=True, verbose=False)
    arguments = trainer_arguments(settings.trainer)
    check_trainer(settings, arguments)
    data = RunData(settings)
    data.announce_sample()

    @functools.cache
    def base() -> str:
        return choose(settings.model.base, settings.model.fallback_base, on_sample=data.on_sample)

    @functools.cache
    def resolved() -> ResolvedModel:
        return resolve_model(replace(settings.model, base=base()), on_sample=data.on_sample)

    start = WarmStart.read(command.start, base_name(base())) if command.start else None
    # Errors in the data come first; a builder that limits a thought's tokens needs the tokenizer, though.
    data.read_for_fit(lambda thought: resolved().prompt_format.count_thought_tokens(thought))
    check_votes(data.forms, settings.model.decoding)  # as predictions after an epoch do
    num_steps_before = 0
    if settings.resume:
        num_steps_before = _check_resume(Path(settings.resume).expanduser(), resolved(), data, settings)
    origin = _origin(start, settings)
    if start:
        start.check_tokenizer(resolved())
    if ranks.is_first():
        for line in labelled_pairs_shown(data.pairs["train"]):
            print(line)
        if start:
            print(f"starting from {origin}")
        if data.soft_labels:
            print(f"learning from {data.soft_labels}")
    windows = PairsData(data, resolved().prompt_format)
    check_batches(settings.trainer, windows)
    if settings.preflight:
        trainer = make_trainer(settings, arguments, logger=False)
        module = _load_module(trainer, resolved(), data, settings, start)
        with _memory_for_micro_batches(settings):
            print(preflight.measure(module, windows, trainer, settings.generated_metrics))
        return 0

    folder = Path(settings.resume).expanduser() if settings.resume else _new_run_folder(command, data)
    train = functools.partial(
        _train, command, folder, data, windows, resolved(), arguments, num_steps_before, start, origin
    )
    if not ranks.is_first():
        return train()
    with hold_run(folder, is_new=not settings.resume):
        os.environ[RUN_FOLDER] = str(folder)  # for this fit's other processes
        try:
            return train()
        except DiskFull as error:
            if not (folder / LAST).is_file():
                raise
            way = f"continue with: python -m nlicot fit --resume {folder}"
            raise DiskFull(error.path, error.reason, way=way) from None
        finally:
            del os.environ[RUN_FOLDER]


def _train(
    command: FitCommand,
    folder: Path,
    data: RunData,
    windows: PairsData,
    resolved: ResolvedModel,
    arguments: dict[str, Any],
    num_steps_before: int,
    start: WarmStart | None,
    origin: Origin | None,
) -> int:
    """Train in a run's folder, write its files and evaluate its best adapter; returns the exit code."""
    settings, stop = command.settings, signals.Deferred()
    summary = _summary(resolved, data, origin)
    if ranks.is_first():
        clear_scratch(folder)
        comment = f"# started from {origin}\n" if origin else ""
        write_text(folder / CONFIG, comment + command.yaml, overwrite=True)
        before = read_summary(folder)
        for key in (NUM_STEPS, "epochs", "monitor", "best", "best_step"):  # training goes on
            before.pop(key, None)
        write_json(folder / FIT_SUMMARY, {**before, **summary})
        print(*command.changes, sep="\n", end="\n" * bool(command.changes))
        if not (folder / LAST).is_file():
            for earlier in folder.glob(f"{EVENTS}*"):
                earlier.unlink()
    checkpoints = RunCheckpoints(folder, settings.checkpoint, stop)
    early_stopping = EarlyStopping(**asdict(settings.early_stopping))
    trainer = make_trainer(
        settings,
        arguments,
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
            GeneratedMetrics(
                settings.generated_metrics,
                data,
                settings.model.decoding,
                remedy=functools.partial(_with_less_memory, folder),
            ),
            early_stopping,
            checkpoints,
        ],
        default_root_dir=str(folder),
    )
    module = _load_module(trainer, resolved, data, settings, start)
    last = str(folder / LAST) if (folder / LAST).is_file() else None
    try:
        # Disk errors also of TensorBoard's files.
        with (
            signals.handling(stop),
            disk_errors(folder),
            _memory_for_micro_batches(settings, folder),
            ranks.ending_together(trainer.strategy, functools.partial(_way_on, folder)),
        ):
            trainer.fit(module, windows, ckpt_path=last, weights_only=True)
    except SystemExit:  # Lightning's reaction to `Stopped`
        if not trainer.interrupted:
            raise
        if not trainer.is_global_zero:
            return 0  # the first process reports it
        raise Interrupted(_way_on(folder), stop.signum or Signals.SIGINT) from None
    except Exception as error:
        # The signal reached a program that this one waits for, too, such as the kernels' compiler.
        if stop.signum is None or isinstance(error, NlicotError):
            raise
        raise Interrupted(_way_on(folder), stop.signum) from None
    if not trainer.is_global_zero:
        return 0
    if stop.signum is not None:  # noted while the fit was ending: a resume goes on with the final evaluation
        raise Interrupted(_way_on(folder), stop.signum)
    if not trainer.global_step:
        raise ConfigError(f"{folder}: training ended before its first step; raise --trainer.max_time")
    if trainer.global_step == num_steps_before:
        print(f"{folder} was finished at step {num_steps_before}; {_why_finished(settings, early_stopping)}")
    summary |= {
        NUM_STEPS: trainer.global_step,
        "epochs": trainer.current_epoch,
        "monitor": settings.checkpoint.monitor,
        "best": checkpoints.best,
        "best_step": checkpoints.best_step,
    }
    write_json(folder / FIT_SUMMARY, summary)
    checkpoint, kind = folder / BEST, "best checkpoint"
    if checkpoints.best is None:
        checkpoint, kind = folder / LAST, "last checkpoint"
        print(
            f"no {BEST}: training ended before {settings.checkpoint.monitor} had a value; "
            f"the adapter is that of {checkpoint}"
        )
    if settings.final_evaluation:
        is_one_of_several = ranks.started_by_launcher() or settings.trainer.num_nodes > 1
        if code := _validate_in_a_new_process(checkpoint, is_one_of_several=is_one_of_several):
            return code
    _log_hyper_parameters(folder, command, checkpoints.best)
    card = as_card(read_run(folder, "dev"), None)
    write_text(folder / PEFT_FOLDER / "README.md", card, overwrite=True)
    metrics = folder / METRICS
    print(
        f"\nadapter      {folder / PEFT_FOLDER} ({kind} {checkpoint})"
        + (f"\nmetrics      {metrics}" if metrics.is_file() else "")
        + f"\nTensorBoard  tensorboard --logdir {folder.parent}"
        f"\nnext         python -m nlicot predict --ckpt_path {checkpoint}"
        f"{'' if data.path('test', 'pairs').is_file() else ' --data.test_pairs PAIRS.csv'}"
    )
    return 0


def _way_on(folder: Path) -> str:
    """Return what to do after a fit that ended early."""
    if (folder / LAST).is_file():
        return f"continue with: python -m nlicot fit --resume {folder}"
    return "no step was finished, run the same command to start again"


def _why_finished(settings: FitSettings, early_stopping: EarlyStopping) -> str:
    """Return the flags that continue a finished run, or the reason for which none does."""
    if early_stopping.stopping_reason in (
        EarlyStoppingReason.NON_FINITE_METRIC,
        EarlyStoppingReason.DIVERGENCE_THRESHOLD,
    ):
        reason = str(early_stopping.stopping_reason_message).removesuffix(" Signaling Trainer to stop.")
        return f"early stopping ended it: {reason}"
    max_time = ", --trainer.max_time" if settings.trainer.max_time is not None else ""
    other_threshold = ", or change --early_stopping.stopping_threshold"
    return (
        f"raise --trainer.max_epochs, --trainer.max_steps{max_time} or --early_stopping.patience "
        "to continue it" + other_threshold * (settings.early_stopping.stopping_threshold is not None)
    )


def _memory_for_micro_batches(
    settings: FitSettings, folder: Path | None = None
) -> AbstractContextManager[None]:
    """Refuse micro-batches that do not fit; `folder` is that of a run that can be continued."""
    tokens = settings.data.micro_batch_tokens
    smaller = f"--data.micro_batch_tokens {max(1, tokens // 2)}"

    return memory_for(
        f"a micro-batch of {tokens} tokens (--data.micro_batch_tokens)",
        remedy=lambda: _with_less_memory(folder, smaller, ", then --model.gradient_checkpointing true"),
    )


def _with_less_memory(folder: Path | None, smaller: str, otherwise: str = "") -> str:
    """Return what to do if a fit needs too much memory without the flag `smaller`."""
    if folder is not None and (folder / LAST).is_file():
        return f"continue with: python -m nlicot fit --resume {folder} {smaller}"
    return f"use {smaller}{otherwise}"


def _summary(resolved: ResolvedModel, data: RunData, origin: Origin | None) -> dict[str, Any]:
    """Return the part of `fit.json` that is known before training."""
    job = signals.slurm_job()
    known = ({SLURM_JOB: job} if job else {}) | ({STARTED_FROM: asdict(origin)} if origin else {})
    known |= {SOFT_LABELS: asdict(data.soft_labels)} if data.soft_labels else {}
    return known | {
        "base": resolved.base.name,
        "builder": type(data.builder).__name__,
        "built": data.reports,
        "dev_pairs": data.dev_pairs_report,
        "on_sample": data.on_sample,
    }


def _check_resume(folder: Path, resolved: ResolvedModel, data: RunData, settings: FitSettings) -> int:
    """Refuse to continue with other data, another base or fewer steps; returns the number of steps done."""
    label = f"--resume {folder}"
    if not (folder / LAST).is_file():
        if (folder / BEST).is_file():
            raise CheckpointError(f"{label}: found {BEST} without {LAST}, expected both; start a new run")
        if ranks.is_first():
            print(f"{folder} had saved no step yet; it starts again with its own settings")
        return 0
    checkpoint = read_checkpoint(folder / LAST, label=label)
    CheckpointMetadata.from_checkpoint(checkpoint, label=label).check(
        CheckpointMetadata.of(resolved, data.prompts, data.forms)
    )
    data.check_same_as(read_summary(folder), label=label)
    for name, done in (("max_epochs", checkpoint["epoch"]), ("max_steps", checkpoint["global_step"])):
        limit = getattr(settings.trainer, name)
        if limit is not None and 0 <= limit < done:
            unit = name.removeprefix("max_")
            raise ConfigError(
                f"--trainer.{name}: found {limit}, expected {done} or more: {done} {unit} are done"
            )
    return int(checkpoint["global_step"])


def _origin(start: WarmStart | None, settings: FitSettings) -> Origin | None:
    """Return what the run starts from, or started from before a resume.

    A run that had saved no step starts again, and must do so from the same weights.
    """
    given = start.origin if start else None
    if not settings.resume:
        return given
    recorded = Origin.in_summary(read_summary(Path(settings.resume).expanduser()))
    if given and recorded and given.sha256 != recorded.sha256:
        raise CheckpointError(
            f"--resume {settings.resume}: found {given}, expected the weights that the run started "
            f"from, sha256 {recorded.sha256}; start a new run"
        )
    return recorded or given


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


def check_trainer(settings: FitSettings, arguments: dict[str, Any]) -> None:
    """Refuse arguments that Lightning refuses, before data is read and a folder made."""
    precision, dtype = settings.trainer.precision or "", compute_dtype(settings.model.dtype)
    if precision.startswith("bf16") and dtype != "bfloat16":  # the fast layers multiply in the base's dtype
        raise ConfigError(
            f"--trainer.precision: found {precision} with a base in {dtype}, expected 32-true; leave it out, "
            "or add --model.dtype bfloat16"
        )

    def refusal(arguments: dict[str, Any]) -> str:
        try:
            make_trainer(settings, arguments, logger=False)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            return " ".join(str(error).split())
        return ""

    if not (reason := refusal(arguments)):
        ranks.check_num_processes(make_trainer(settings, arguments, logger=False).world_size)
        return
    defaults = asdict(TrainerSettings())
    changed = [name for name, value in asdict(settings.trainer).items() if value != defaults[name]]
    culprit = next((name for name in changed if not refusal({**arguments, name: defaults[name]})), "")
    flag = f"--trainer.{culprit}" if culprit else "the --trainer settings"
    origin = f" (or in {Path(settings.resume).expanduser() / CONFIG})" if settings.resume else ""
    raise ConfigError(f"{flag}{origin}: Lightning refuses this: {reason}")


def check_batches(trainer: TrainerSettings, windows: PairsData) -> None:
    """Refuse limits that leave no batch of a split, and evaluations further apart than epochs."""
    if trainer.fast_dev_run:  # it replaces them
        return
    num_batches = {}
    for split, name in (("train", "limit_train_batches"), ("dev", "limit_val_batches")):
        num, limit = len(windows.sampler(split, shuffle=False)), getattr(trainer, name)
        num_batches[split] = num if limit is None else preflight.limited(num, limit)
        if limit and not num_batches[split]:
            raise ConfigError(
                f"--trainer.{name}: found {limit:g} of {counted(num, 'window')} of {split}, expected one or "
                "more; give a larger part, or a whole number"
            )
    interval, num = trainer.val_check_interval, num_batches["train"]
    is_in_epoch = trainer.check_val_every_n_epoch is not None and num_batches["dev"]
    if is_in_epoch and isinstance(interval, int) and interval > num:
        raise ConfigError(
            f"--trainer.val_check_interval: found {interval}, expected {num} or less, the steps of an epoch; "
            "to count steps over epochs add --trainer.check_val_every_n_epoch null"
        )


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
            "accelerator": choose_accelerator(arguments["accelerator"]),
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
    trainer: Trainer, resolved: ResolvedModel, data: RunData, settings: FitSettings, start: WarmStart | None
) -> NliModule:
    with trainer.init_module():
        loaded = load_model(resolved, settings.model, for_training=True, seed=settings.seed_everything)
    check_max_length(loaded.model.config, settings.data.max_length)
    if start:
        loaded.load_adapter(start.weights, label=start.label)
    metadata = CheckpointMetadata.of(resolved, data.prompts, data.forms)
    return NliModule(loaded, settings.model, metadata, seed=settings.seed_everything)


def _new_run_folder(command: FitCommand, data: RunData) -> Path:
    """Make the run's folder; an existing folder is never used."""
    run, root = command.settings.run, Path(command.settings.checkpoints_root).expanduser()
    if not ranks.is_first():
        if made := os.environ.get(RUN_FOLDER):
            return Path(made)
        if run and ranks.started_by_launcher():
            return root / run
        raise ConfigError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']}: found a process that another program started, "
            "expected one start of fit, which starts a process for each of --trainer.devices"
        )
    stem = run or f"{builder_name(data.builder)}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    make_folder(root, label=f"--checkpoints_root {root}")
    for end in itertools.chain([""], map("-{}".format, itertools.count(2))):
        folder = root / f"{stem}{end}"
        check_new_run(run, root)  # another process may have made it since the settings were read
        if run and folder.exists():
            with hold_run(folder, is_new=False):
                shutil.rmtree(folder)
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


def _validate_in_a_new_process(checkpoint: Path, *, is_one_of_several: bool) -> int:
    """Evaluate an adapter in a process that only predicts, so that it can use faster kernels."""
    command = [sys.executable, "-m", "nlicot", "validate", "--ckpt_path", str(checkpoint)]
    if is_one_of_several:  # the others have ended, and a launcher may show one device to each
        command += ["--trainer.num_nodes", "1", "--trainer.devices", "1"]
    sys.stdout.flush()  # or the lines so far would follow those of the new process in a file or pipe
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_THE_LAUNCHER}
    way = f"the adapter is trained, evaluate it with: {shlex.join(['python', *command[1:]])}"
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait()
        except signals.Stopped as stop:
            if stop.signum is not Signals.SIGINT:  # a terminal sends this one to both
                process.terminate()
            process.wait()
            raise Interrupted(way, stop.signum) from None
    if code < 0:  # such as SIGKILL for lack of memory
        killer = Signals(-code)
        raise Interrupted(f"{killer.name} ended the final evaluation; {way}", killer)
    return code


def _log_hyper_parameters(folder: Path, command: FitCommand, best: float | None) -> None:
    """Log the settings and the final figures for TensorBoard's table of runs."""
    dev = read_metrics(folder / METRICS).get("dev", {})
    if is_of_other_weights(folder, section(dev, MADE_WITH)):
        dev = {}
    figures = {} if best is None else {f"final/best {command.settings.checkpoint.monitor}": best}
    figures |= {f"final/dev {name}": dev[name]["value"] for name in ("accuracy", "f1") if name in dev}
    # Settings that are the same in every run, or unique to one, would fill the first columns of the table.
    varied = {
        name: value
        for name, value in vars(command.values.as_flat()).items()
        if name not in NOT_HYPER_PARAMETERS
    }
    # TensorBoard shows the first table of a run that it finds, so that of an earlier fit goes.
    for earlier in (*folder.glob(f"events.*{HYPER_PARAMETERS}"), folder / "hparams.yaml"):
        earlier.unlink(missing_ok=True)
    board = TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, filename_suffix=HYPER_PARAMETERS
    )
    board.log_hyperparams(varied, figures)
    board.finalize("success")
