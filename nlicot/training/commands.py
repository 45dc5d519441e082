"""What `fit`, `validate`, `test` and `predict` do.

Each reads its data and finds its base before a model loads. What a finished run was made with stands in
its `config.yaml`; the other commands start from there, so a checkpoint's path is all they need.
"""

from __future__ import annotations

import datetime
import difflib
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from nlicot.builders import builder_name
from nlicot.errors import CheckpointError, ConfigError
from nlicot.metrics import format_table
from nlicot.prediction.outcome import label_shares, measure, record_metrics
from nlicot.prediction.writer import write_predictions
from nlicot.training.checkpoints import BEST, LAST, PEFT_FOLDER, RunCheckpoints
from nlicot.training.config_errors import read_config
from nlicot.training.datamodule import SINGLE_FILES, PairsData
from nlicot.training.evaluation import GeneratedMetrics, gather
from nlicot.training.lightning_cli import CommandLine
from nlicot.training.module import CHECKPOINT_KEY, ThoughtTuner
from nlicot.writing import write_json

RECIPE = Path(__file__).parents[2] / "configs" / "recipe.yaml"
CONFIG, FIT_SUMMARY, METRICS = "config.yaml", "fit.json", "metrics.json"
OF_THE_RUN = ("config", "run", "resume", "checkpoints_root")
OF_THE_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(command: str, args: Sequence[str]) -> int:
    """Run one of the four commands; returns its exit code."""
    _quieten()
    args = [_root_alias(arg) for arg in args]
    return fit(args) if command == "fit" else evaluate(command, args)


def _quieten() -> None:
    """Keep what a user can do nothing about off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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


def _root_alias(arg: str) -> str:
    return "--data.root" + arg.removeprefix("--root") if arg == "--root" or arg.startswith("--root=") else arg


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """A flag's value, before anything is parsed: it decides which configuration is the default."""
    for index, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
        if arg == flag and index + 1 < len(args):
            return args[index + 1]
    return None


# ------------------------------------------------------------------------ fit


def fit(args: Sequence[str]) -> int:
    """Train an adapter, or go on with a run."""
    resumed = _value_of(args, "--resume")
    cli = CommandLine("fit", args, RECIPE if resumed is None else _run_file(Path(resumed), CONFIG))
    data, module = cli.datamodule, cli.model
    _say_which_data(data)
    data.read_for_fit()
    module.resolve_base(on_sample=data.on_sample)
    module.prompts, module.forms = data.prompts, data.forms

    if resumed is None:
        folder, checkpoint = _new_run_folder(cli, data), None
    else:
        folder, checkpoint = Path(resumed), str(_run_file(Path(resumed), LAST))
    checkpoints = RunCheckpoints(folder, **cli.config["checkpoint"].as_dict())
    trainer = cli.make_trainer(
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
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


def _say_which_data(data: PairsData) -> None:
    if data.on_sample:
        print(
            "SAMPLE DATA: no --root was given, so this runs on the small sample in data/sample. "
            "For your own pairs: "
            "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
        )


def _run_file(folder: Path, name: str) -> Path:
    """A file of a run's folder.

    Raises:
        CheckpointError: it is not there; runs that have one are named.
    """
    path = folder / name
    if path.is_file():
        return path
    runs = sorted(other.parent.name for other in folder.parent.glob(f"*/{name}"))
    near = difflib.get_close_matches(folder.name, runs, n=1)
    hint = (
        f"did you mean {folder.parent / near[0]}?"
        if near
        else f"runs that have it: {', '.join(runs) or 'none'}"
    )
    raise CheckpointError(f"{path}: found no such file, expected one written by `fit`; {hint}")


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


# ------------------------------------------------------ validate, test, predict


def evaluate(command: str, args: Sequence[str]) -> int:
    """Decode a split with a tuned adapter; measure it where it is labelled, write predictions."""
    given = _value_of(args, "--ckpt_path")
    if given is None:
        if {"-h", "--help", "--print_config"} & set(args):
            CommandLine(command, args, RECIPE)  # prints, and exits
        raise ConfigError(f"{command}: found no --ckpt_path, expected checkpoints/<run>/{BEST}")
    checkpoint = Path(given).expanduser()
    if not checkpoint.is_file():
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: found no such file, expected checkpoints/<run>/{BEST}; "
            f"there are: {', '.join(map(str, sorted(Path('checkpoints').glob(f'*/{BEST}')))) or 'none'}"
        )
    stored = _stored(checkpoint)
    cli = _from_run(command, args, checkpoint, stored["base"])
    data, module = cli.datamodule, cli.model
    _say_which_data(data)
    split = cli.config["split"]
    examples = data.read_pairs(split) if command == "predict" else data.read_labelled(split)
    data.check_apart_from_train(split)
    module.resolve_base(on_sample=data.on_sample)
    module.prompts = data.prompts
    module.take_over(stored)
    module.only_decodes = True

    trainer = cli.make_trainer(logger=False, callbacks=[], default_root_dir=str(checkpoint.parent))
    runs: dict[str, Callable[..., Any]] = {
        "validate": trainer.validate,
        "test": trainer.test,
        "predict": trainer.predict,
    }
    options: dict[str, Any] = {"return_predictions": False} if command == "predict" else {"verbose": False}
    runs[command](module, datamodule=data, ckpt_path=str(checkpoint), weights_only=True, **options)
    predictions = gather(module.predictions, trainer.world_size)
    if not trainer.is_global_zero:
        return 0

    output = Path(cli.config["output"]) if cli.config["output"] else checkpoint.parent / "predictions"
    csv_path, jsonl_path = write_predictions(output, split, examples, predictions)
    if command == "predict":
        print(f"{len(examples)} predictions; {label_shares(predictions, checkpoint.parent / METRICS)}")
    else:
        metrics = measure(examples, predictions)
        record_metrics(checkpoint.parent / METRICS, split, metrics, examples, predictions)
        print(format_table(metrics, f"{split}: {len(examples)} pairs of {data.path_of(split, 'pairs')}"))
        print(f"\nmetrics      {checkpoint.parent / METRICS}")
    print(f"predictions  {csv_path}\nthoughts     {jsonl_path}")
    return 0


def _from_run(command: str, args: Sequence[str], checkpoint: Path, base: str) -> CommandLine:
    """The run's own configuration, with the base it really took, and this command's flags over it."""
    config = read_config(_run_file(checkpoint.parent, CONFIG))
    for key in ("run", "resume", "final_evaluation"):
        config.pop(key, None)
    if _value_of(args, "--data.root") is not None:
        # Another root's files, not the single paths of the run; those named now stand in `args`.
        for name in SINGLE_FILES:
            config["data"][name] = None
    if _value_of(args, "--model.base") is None:  # a fallback may have stood in for the configured one
        config["model"]["base"] = base
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as merged:
        yaml.safe_dump(config, merged)
        merged.flush()
        return CommandLine(command, args, Path(merged.name))


def _stored(checkpoint: Path) -> dict[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        found: dict[str, Any] = content[CHECKPOINT_KEY]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"--ckpt_path {checkpoint}: found no nlicot checkpoint ({type(error).__name__}), "
            "expected one that `fit` wrote"
        ) from error
    return found
