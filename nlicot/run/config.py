"""The command lines of `fit`, `inspect`, `validate`, `test`, `predict` and `export`.

`fit` and `inspect` start from the recipe, the others from the `config.yaml` of the run that made the
checkpoint; `--config` files and flags go on top. Nothing heavy is imported, so help and errors come at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from jsonargparse import Namespace

from nlicot import ranks
from nlicot.builders import find_builder
from nlicot.command_line import CommandParser, typed_settings
from nlicot.config_files import RECIPE, read_settings, section
from nlicot.errors import CheckpointError, ConfigError
from nlicot.model.base_model import PEFT_CONFIG
from nlicot.run.engines import ENGINES, TRANSFORMERS
from nlicot.run.folder import (
    BEST,
    CONFIG,
    LAST,
    RUN_FOLDER,
    SLURM_JOB,
    check_new_run,
    read_summary,
    run_file,
)
from nlicot.run.starting_adapter import Origin, StartingAdapter, lora_shape, read_peft_folder
from nlicot.servers.address import checked_address
from nlicot.settings import (
    MONITORED,
    SINGLE_FILES,
    SOFT_FILES,
    ExportFormat,
    ExportSettings,
    FitSettings,
    InspectSettings,
    PredictionSettings,
    PredictSettings,
    RunSettings,
    ValidateSettings,
)
from nlicot.signals import slurm_job

DESCRIPTIONS = {
    "fit": "Train an adapter. configs/recipe.yaml is always loaded; --config files and flags win.",
    "inspect": "Show training examples token by token, as fit encodes them, and their lengths against the "
    "budget. Takes the configs and flags of fit; no model is loaded.",
    "validate": "Metrics on every dev pair, with predictions and thoughts.",
    "test": "Metrics on labelled test pairs, with predictions and thoughts.",
    "predict": "Predictions for pairs without labels.",
    "export": "Write a run's model for other programs: peft, transformers or llama.cpp. It is loaded by that "
    "program and must predict what the run predicts.",
}
EXAMPLES = {
    "fit": "fit --config configs/reflected.yaml --root data",
    "inspect": "inspect --config configs/reflected.yaml --root data --num 3",
    "validate": "validate --ckpt_path checkpoints/RUN/best.ckpt",
    "test": "test --ckpt_path checkpoints/RUN/best.ckpt --root data",
    "predict": "predict --ckpt_path checkpoints/RUN/best.ckpt --root data",
    "export": "export checkpoints/RUN --format merged",
}
ONLY_FIT = ("run", "resume", "start_from", "preflight", "final_evaluation")
OBSOLETE = ("optimizer", "lr_scheduler")
"""Keys in the config.yaml of older runs, which are always null."""
CHANGED_BY_A_RESUME = (
    # Paths of the data: `fit` compares its content.
    *("root", "label_map", "columns", "delimiter"),
    *("data.allow_overlap", "data.prepared", *(f"data.{name}" for name in SINGLE_FILES)),
    *("data.blind_test", *(f"data.{name}" for name in SOFT_FILES)),
    # How long it trains, and how often it measures, saves and logs.
    *(f"trainer.{bound}_{unit}" for unit in ("epochs", "steps") for bound in ("min", "max")),
    *("trainer.max_time", "early_stopping.patience", "early_stopping.min_delta", "early_stopping.verbose"),
    "early_stopping.stopping_threshold",
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.log_every_n_steps"),
    *("checkpoint.every_n_steps", "generated_metrics.every_n_epochs", "generated_metrics.num_texts"),
    *("trainer.enable_progress_bar", "final_evaluation"),
    # The machine: memory and speed.
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.num_nodes"),
    *("data.micro_batch_tokens", "model.gradient_checkpointing", "model.compile_kernels", "model.shard_base"),
    "model.decoding.batch_size",
)
"""Settings that `fit --resume` may change (docs/training_runs.md); the others decided the steps so far."""


SET_BY_A_LAUNCHER = {"MASTER_PORT": (1, 65535)} | dict.fromkeys(
    ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE"), (0, 2**31 - 1)
)
"""Environment variables that Lightning and torch read as whole numbers, with the least and the greatest."""


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """A parsed `fit`: typed settings, and the same as nested namespaces and as YAML for `config.yaml`."""

    settings: FitSettings
    values: Namespace
    yaml: str
    changes: Sequence[str]  # what a resume changes: a setting's name, the run's value and the new one
    start: StartingAdapter | None  # None, too, if a resume has weights of its own


@dataclass(frozen=True, kw_only=True)
class ResumeChanges:
    """The settings that differ from those of a run, with both values: those for a resume, and others."""

    allowed: Sequence[str] = ()
    refused: Sequence[str] = ()
    new_values: Mapping[str, Any] = field(default_factory=dict)  # of those for a resume, by dotted name

    @classmethod
    def between(cls, earlier: Namespace, found: Namespace) -> ResumeChanges:
        """Compare parsed settings."""
        old, new = (vars(each.as_flat()) for each in (earlier, found))
        allowed, refused, new_values = [], [], {}
        for name in {**old, **new}:
            values = old.get(name), new.get(name)
            # To Lightning, 1 batch is not the share 1.0 of them.
            is_same = values[0] == values[1] and isinstance(values[0], int) is isinstance(values[1], int)
            if name in ("resume", "preflight") or is_same:
                continue
            before, after = ("null" if value is None else str(value) for value in values)
            if name in CHANGED_BY_A_RESUME:
                allowed.append(f"--{name}: {before} -> {after}")
                new_values[name] = new.get(name)
            else:
                refused.append(f"--{name}: found {after}, expected {before}")
        return cls(allowed=allowed, refused=refused, new_values=new_values)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A checkpoint to predict with; its folder is the run's."""

    checkpoint: Path
    label: str  # names the checkpoint in messages
    settings: RunSettings  # the run's, with the command line on top
    typed: frozenset[str]  # names of the settings that the command line gives by flags
    configured_base: str  # the base in the run's `config.yaml`


def parse_fit(args: Sequence[str]) -> FitCommand:
    """Parse `fit`, or `fit --resume RUN` on top of the run's own settings.

    A resume is refused if it changes a setting that decided the steps so far, a new run if its folder cannot
    be made.
    """
    parser = _parser("fit", FitSettings)
    resumed = typed_settings(args).get("resume")
    base = _run_settings(Path(resumed[-1]).expanduser()) if resumed else _recipe()
    found = _parse(parser, args, base)
    settings = FitSettings(**vars(parser.instantiate(found)))
    _check_launcher()
    if settings.resume and not resumed:
        raise ConfigError(f"--resume: found it in a YAML file, expected the flag --resume {settings.resume}")
    if settings.trainer.limit_train_batches == 0:
        raise ConfigError(
            "--trainer.limit_train_batches: found 0, expected 1 or more: nothing would be trained"
        )
    _check_monitors(settings)
    _check_strategy(settings)
    _check_builder(settings)
    changes = ResumeChanges.between(parser.parse([], **base), found) if resumed else ResumeChanges()
    if changes.refused:
        raise ConfigError(
            f"--resume {settings.resume} continues the run with its own settings; "
            f"{'; '.join(changes.refused)} (leave these out, or start a new run)"
        )
    if settings.trainer.max_epochs in (None, -1) and settings.trainer.max_steps == -1:
        raise ConfigError(
            f"--trainer.max_epochs: found {settings.trainer.max_epochs or 'null'} without "
            "--trainer.max_steps, expected one of them: the learning rate falls to 0 until the last step"
        )
    if not settings.resume and not settings.preflight:
        root = Path(settings.checkpoints_root).expanduser()
        if settings.run and _is_requeued(root / settings.run):
            return parse_fit([*args, "--resume", str(root / settings.run)])
        is_on_several = ranks.started_by_launcher() or settings.trainer.num_nodes > 1
        if settings.run is None and is_on_several and not os.environ.get(RUN_FOLDER):
            raise ConfigError(
                "--run: found none, expected a name: processes on several machines, or that srun or torchrun "
                "starts, must agree on the run's folder"
            )
        check_new_run(settings.run, root)
    start = None
    if settings.start_from is not None and not _has_weights(settings.resume):
        start = _starting_adapter(settings.start_from)
        start.check_shape(settings.model.lora)
    recorded = found.clone()
    recorded["resume"], recorded["preflight"] = None, False
    yaml = parser.dump(recorded, skip_unset=False)
    return FitCommand(settings=settings, values=found, yaml=yaml, changes=changes.allowed, start=start)


def _has_weights(resumed: str | None) -> bool:
    return resumed is not None and (Path(resumed).expanduser() / LAST).is_file()


def _starting_adapter(given: str) -> StartingAdapter:
    """Find the adapter in a run's folder, in one of its checkpoints, or in a PEFT folder."""
    path = Path(given).expanduser()
    if (path / PEFT_CONFIG).is_file():
        return read_peft_folder(given)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise CheckpointError(
            f"--from {given}: found neither {CONFIG} nor {PEFT_CONFIG}, expected the folder of a run or of a "
            "PEFT adapter"
        )
    folder = path.parent if path.is_file() else path
    base = _run_settings(folder)
    checkpoints = [path] if path.is_file() else [path / name for name in (BEST, LAST)]
    weights_path = next(filter(Path.is_file, checkpoints), None)
    if weights_path is None:
        raise CheckpointError(f"--from {given}: found neither {BEST} nor {LAST}, expected one of them")
    # Only the model's settings: a builder of the other run may be a class that is not here.
    base["settings"] = {name: each for name, each in base["settings"].items() if name == "model"}
    lora = _parse(_parser("fit", FitSettings), [], base).model.lora
    summary = read_summary(folder)
    return StartingAdapter(
        given=given,
        weights_path=weights_path,
        shape=lora_shape(lora.r, lora.alpha, lora.target_modules),
        base=None,
        builder=summary.get("builder"),
        origin=Origin.in_summary(summary),
    )


def _check_launcher() -> None:
    """Refuse a number that a launcher, or the user, set in the environment, and that none can be."""
    for name, (least, greatest) in SET_BY_A_LAUNCHER.items():
        text = os.environ.get(name, str(least))
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= greatest):
            raise ConfigError(
                f"{name}: found {text!r} in the environment, expected a whole number from {least} to "
                f"{greatest}; correct or unset it"
            )


def _is_requeued(folder: Path) -> bool:
    """Return whether SLURM has started this job again, and its earlier start made this run."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return restarts != "0" and folder.is_dir() and read_summary(folder).get(SLURM_JOB) == slurm_job()


def _check_monitors(settings: FitSettings) -> None:
    for name, group in (("checkpoint", settings.checkpoint), ("early_stopping", settings.early_stopping)):
        found = f"--{name}.monitor: found {group.monitor!r}"
        # Callbacks of the user may log other figures.
        if group.monitor not in MONITORED and not settings.trainer.callbacks:
            raise ConfigError(f"{found}, expected one of {', '.join(MONITORED)}")
        if group.monitor.startswith("dev_generated/") and not settings.generated_metrics.every_n_epochs:
            raise ConfigError(f"{found}, which --generated_metrics.every_n_epochs 0 turns off")
        better = "min" if group.monitor.startswith("dev/loss") else "max"
        if group.monitor in MONITORED and group.mode != better and not settings.resume:
            raise ConfigError(
                f"--{name}.mode: found {group.mode} with --{name}.monitor {group.monitor}, expected {better}"
            )


def _check_strategy(settings: FitSettings) -> None:
    """Refuse strategies that split the adapter's layers, and what cannot work with a base that is shared."""
    strategy = settings.trainer.strategy
    name = strategy if isinstance(strategy, str) else str(strategy.get("class_path"))
    if re.search("fsdp|deepspeed|ModelParallel", name, re.IGNORECASE):
        raise ConfigError(
            f"--trainer.strategy: found {name!r}, expected ddp; to share the base among devices add "
            "--model.shard_base true (docs/scaling.md)"
        )
    if not settings.model.shard_base:
        return
    if "ddp" not in name.lower():
        raise ConfigError(
            f"--model.shard_base: found --trainer.strategy {name}, expected ddp and several --trainer.devices"
        )
    if settings.generated_metrics.every_n_epochs:
        raise ConfigError(
            "--model.shard_base: found --generated_metrics.every_n_epochs "
            f"{settings.generated_metrics.every_n_epochs}, expected 0: devices that share the base cannot "
            "decode different numbers of tokens"
        )


def changes_to(folder: Path, values: Namespace) -> ResumeChanges:
    """Compare the values of a `FitCommand` with those that a run was fitted with."""
    return ResumeChanges.between(_parser("fit", FitSettings).parse([], **_run_settings(folder)), values)


def fitted_settings(folder: Path) -> FitSettings:
    """Return the settings of a run but for its builder, which may be a class that is not here."""
    parser, base = _parser("fit", FitSettings), _run_settings(folder)
    section(base["settings"], "data").pop("builder", None)
    return FitSettings(**vars(parser.instantiate(_parse(parser, [], base))))


def parse_inspect(args: Sequence[str]) -> InspectSettings:
    """Parse `inspect`."""
    for name in sorted(typed_settings(args).keys() & {"resume", "start_from"}):
        flag = "from" if name == "start_from" else name
        raise ConfigError(f"--{flag}: inspect has no run; give its settings: --config RUN/{CONFIG}")
    parser = _parser("inspect", InspectSettings, id="a pair to show instead; repeat for more")
    for name in ONLY_FIT:  # a run's config.yaml may be given with --config
        parser.add_argument(f"--{name}", type=Any, default=None, help=argparse.SUPPRESS)
    found = vars(parser.instantiate(parser.parse(args, **_recipe())))
    settings = InspectSettings(**{name: value for name, value in found.items() if name not in ONLY_FIT})
    _check_builder(settings)
    return settings


def parse_prediction(command: str, args: Sequence[str]) -> list[TrainedRun]:
    """Parse `validate`, `test` or `predict`, once for each `--ckpt_path`."""
    kinds = {"validate": ValidateSettings, "test": PredictionSettings, "predict": PredictSettings}
    kind = kinds[command]
    parser = _parser(command, kind, ckpt_path=f"checkpoints/RUN/{BEST}; repeat for an ensemble")
    checkpoints = [Path(name).expanduser() for name in typed_settings(args).get("ckpt_path", [])]
    if not checkpoints:
        parser.parse(args, **_recipe())  # prints --help
        raise ConfigError(f"{command} needs --ckpt_path checkpoints/RUN/{BEST}")
    _check_launcher()
    for checkpoint in checkpoints:
        if checkpoint.is_dir():
            inside = [*checkpoint.glob("*.ckpt"), *checkpoint.glob(f"*/{BEST}")]
            there = ", ".join(sorted(map(str, inside))) or f"a file such as checkpoints/RUN/{BEST}"
            raise CheckpointError(f"--ckpt_path {checkpoint}: found a folder, expected {there}")
        if not checkpoint.is_file():
            there = ", ".join(map(str, sorted(Path("checkpoints").glob(f"*/{BEST}")))) or "none"
            raise CheckpointError(f"--ckpt_path {checkpoint}: no such file; checkpoints here: {there}")
    runs = [
        _trained_run(parser, kind, args, checkpoint, label=f"--ckpt_path {checkpoint}")
        for checkpoint in checkpoints
    ]
    _check_engine(runs)
    return runs


def _check_engine(runs: Sequence[TrainedRun]) -> None:
    """Refuse an engine that is unknown, not installed, or cannot do what the command line asks."""
    settings, typed = cast("PredictionSettings", runs[0].settings), runs[0].typed
    name = settings.engine
    if name not in ENGINES:
        raise ConfigError(f"--engine: found {name!r}, expected one of {', '.join(ENGINES)}")
    entry = ENGINES[name]
    for setting in sorted(typed):
        if any(setting == unused or setting.startswith(f"{unused}.") for unused in entry.unused):
            raise ConfigError(f"--{setting}: --engine {name} cannot use it; leave it out")
    if entry.asks_server:
        if settings.server_url is None:
            expected = "expected the server's address, for example http://localhost:8080"
            raise ConfigError(f"--engine {name}: found no --server_url, {expected}")
        checked_address(settings.server_url)
    elif settings.server_url is not None:
        raise ConfigError(f"--server_url: --engine {name} cannot use it; leave it out")
    if name == TRANSFORMERS:
        return
    if len(runs) > 1:
        raise ConfigError(f"--engine {name} takes one --ckpt_path, found {len(runs)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"--engine {name} takes one process: start it without torchrun or srun")
    if entry.module and not importlib.util.find_spec(entry.module):
        raise ConfigError(f"--engine {name} is not installed: run {entry.pip}")


def parse_export(args: Sequence[str]) -> TrainedRun:
    """Parse `export RUN`, with the run first."""
    parser, formats = _parser("export", ExportSettings), "|".join(get_args(ExportFormat))
    parser.add_argument("run", nargs="?", type=str | None, metavar="RUN", help="its folder, or its name")
    if not args or args[0].startswith("-"):
        parser.parse(args, **_recipe())  # prints --help
        raise ConfigError(f"export: found no run, expected export RUN --format {formats}")
    named = Path(args[0]).expanduser()
    root = Path(typed_settings(args).get("checkpoints_root", ["checkpoints"])[-1]).expanduser()
    folder = root / named if not named.exists() and (root / named).is_dir() else named
    if not folder.exists():
        runs = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{BEST}")))
        raise CheckpointError(f"export {args[0]}: no such run; runs in {root}: {runs or 'none'}")
    has_best = (folder / BEST).is_file() or not (folder / LAST).is_file()
    checkpoint = folder / LAST if not has_best else run_file(folder, BEST)
    found = _trained_run(parser, ExportSettings, args, checkpoint, label=str(checkpoint))
    if getattr(found.settings, "format", None) is None:
        raise ConfigError(f"export needs --format {formats}")
    return found


def _trained_run(
    parser: CommandParser, kind: type[RunSettings], args: Sequence[str], checkpoint: Path, *, label: str
) -> TrainedRun:
    typed = frozenset(typed_settings(args))
    base = _run_settings(checkpoint.parent, without=ONLY_FIT)
    data, trainer, model = (section(base["settings"], name) for name in ("data", "trainer", "model"))
    data.pop("builder", None)  # predictions need none, and its class may not be here
    if "root" in typed:
        _drop_single_files(data)
    if trainer.get("num_nodes") not in (None, "1") and not ranks.started_by_launcher():
        trainer.pop("num_nodes")  # a run of several machines predicts on this one
    alpha = section(model, "lora").get("alpha")
    own_root, found = base["settings"].get("root"), _parse(parser, args, base)
    if own_root is not None and str(found["root"]) != own_root:  # by a file of --config
        _drop_single_files(data)
        found = _parse(parser, args, base)
    if len(found.pop("ckpt_path", None) or ()) > len(typed_settings(args).get("ckpt_path", ())):
        raise ConfigError("ckpt_path: found it in a YAML file, expected the flag --ckpt_path")
    found.pop("run", None)
    settings = kind(**vars(parser.instantiate(found)))
    if alpha is not None and settings.model.lora.alpha != float(alpha):
        raise ConfigError(
            f"--model.lora.alpha: found {settings.model.lora.alpha:g}, expected {alpha}, with which the "
            "run was fitted; leave it out"
        )
    if typed & {"data", "data.builder", "config"}:
        _check_builder(settings)
    return TrainedRun(
        checkpoint=checkpoint,
        label=label,
        settings=settings,
        typed=typed,
        configured_base=model.get("base", ""),
    )


def _drop_single_files(data: dict[str, Any]) -> None:
    """Leave the files of another root instead of the single files of a run."""
    for name in SINGLE_FILES:
        data.pop(name, None)


def _check_builder(settings: RunSettings) -> None:
    if isinstance(settings.data.builder, str):
        find_builder(settings.data.builder)


def _parser(command: str, settings: type, **repeated: str) -> CommandParser:
    """Make a command's parser; `repeated` are flags that may be given several times, with their help."""
    example = f"python -m nlicot {EXAMPLES[command]}"
    parser = CommandParser(command, description=DESCRIPTIONS[command], example=example, own_page="trainer")
    parser.add_class_arguments(settings, skip=set(repeated))
    for name, text in repeated.items():
        parser.add_repeated(name, help=text)
    return parser


def _parse(parser: CommandParser, args: Sequence[str], base: dict[str, Any]) -> Namespace:
    """Parse flags over a file's settings; an error that the flags did not make names the file."""
    try:
        return parser.parse(args, **base, check=parser.instantiate)
    except ConfigError as error:
        try:
            parser.parse([], **base, check=parser.instantiate)
        except ConfigError:
            if str(base["source"]) in str(error):
                raise error from None
            raise CheckpointError(f"{base['source']}: {error}") from None
        raise


def _recipe() -> dict[str, Any]:
    return {"settings": read_settings(RECIPE), "source": str(RECIPE)}


def _run_settings(folder: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    path = run_file(folder, CONFIG)
    found = {name: each for name, each in read_settings(path).items() if name not in (*OBSOLETE, *without)}
    if not found:
        raise CheckpointError(f"{path}: found no settings, expected those of the run; restore a copy of it")
    return {"settings": found, "source": str(path)}
