"""Read the file of a sweep, and plan its runs: everything that can be refused is refused here.

The file is a settings file of `fit` with a list, `experiments`. Each has a name and settings of its own,
which go over those of the file, and is fitted once for each of its seeds. `command` starts the fits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.command_line import Names, Seed, constraint_of
from nlicot.config_files import hint, merged, read_settings, renamed, with_nulls
from nlicot.data.pairs import ColumnNames, LabelMap
from nlicot.errors import ConfigError, NlicotError
from nlicot.run.config import FitCommand, changes_to, parse_fit
from nlicot.run.data import RunData
from nlicot.run.folder import (
    CONFIG,
    FIT_SUMMARY,
    NUM_STEPS,
    check_new_run,
    hold_run,
    never_trained,
    predictions_path,
    read_summary,
)
from nlicot.run.starting_adapter import StartingAdapter, lora_shape

OWN_KEYS = ("experiments", "name", "seeds", "config")
"""Keys that are not settings of `fit`; the last two may be given for all experiments too."""
SET_BY_THE_SWEEP = {
    "seed_everything": "give seeds instead",
    "run": "it is the experiment's name and the seed",
    "checkpoints_root": "give --out instead",
    **dict.fromkeys(("resume", "preflight", "final_evaluation"), "a sweep decides it"),
}
"""Settings of `fit` that may not be given, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Flags of `fit` that several seeds share; `source` is the experiment whose runs they start from."""

    name: str
    seeds: Sequence[int]
    flags: Sequence[str]
    source: str | None

    def seed_of_source(self, seed: int, source: Experiment) -> int:
        """Return the seed of the run to start from: the same one, or the only one."""
        return seed if seed in source.seeds else source.seeds[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One fit: the arguments that start or continue it, and the folder of the run that it starts from."""

    experiment: str
    seed: int
    folder: Path
    args: Sequence[str]
    state: str  # finished, stopped or new
    source: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The runs in their order, and a report on the training examples of each unfinished experiment."""

    runs: Sequence[PlannedRun]
    reports: Mapping[str, str]


AS_TEXT: dict[str, type[LabelMap | ColumnNames]] = {"label_map": LabelMap, "columns": ColumnNames}
"""Mappings whose flags take NAME=VALUE,NAME=VALUE."""


def run_name(experiment: str, seed: int) -> str:
    """Return the name of one of a sweep's runs."""
    return f"{experiment}-{seed}"


def run_folder(out: Path, experiment: str, seed: int) -> Path:
    """Return the folder of one of a sweep's runs."""
    return out / run_name(experiment, seed)


def read_experiments(path: Path, *, seeds: Sequence[str] = (), flags: Sequence[str] = ()) -> list[Experiment]:
    """Read a sweep's file.

    Args:
        seeds: seeds of all experiments, instead of those in the file.
        flags: further flags of every fit, over the file's.
    """
    common = read_settings(path, flag="")
    entries = common.pop("experiments", None)
    if not (isinstance(entries, list) and entries and all(isinstance(each, dict) for each in entries)):
        raise ConfigError(
            f"{path}: experiments: expected a list such as `- name: labels`, each with settings"
        )
    if "name" in common:
        raise ConfigError(f"{path}: name: found it outside of the experiments, expected one for each of them")
    found: dict[str, Experiment] = {}
    for number, entry in enumerate(entries, start=1):
        own = renamed(with_nulls(entry))
        name = own.pop("name", "")
        if not name or not isinstance(name, str):
            raise ConfigError(
                f"{path}: experiment {number}: found no name, expected one such as `name: labels`"
            )
        if name in found:
            raise ConfigError(f"{path}: found two experiments named {name}, expected different names")
        where = f"{path}: {name}"
        files = [*_config_files(common, path), *_config_files(own, where)]
        settings = {key: each for key, each in merged(common, own).items() if key not in OWN_KEYS}
        source = _source(settings, list(found), [each.get("name") for each in entries], where)
        in_file = own.get("seeds", common.get("seeds", "0"))
        experiment = Experiment(
            name=name,
            seeds=_seeds(list(seeds), "--seeds") if seeds else _seeds(in_file, f"{where}: seeds"),
            flags=[*(f"--config={file}" for file in files), *as_flags(settings), *flags],
            source=source,
        )
        _check_own(experiment.flags, where)
        if source is not None:
            if {"--from", "--start_from", "--start-from"} & {flag.partition("=")[0] for flag in flags}:
                raise ConfigError(f"{where}: found --from, expected none: it starts from {source}")
            _check_seeds(experiment, found[source], where)
        found[name] = experiment
    return list(found.values())


def as_flags(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield nested settings, whose values are text or parsed, as flags.

    >>> list(as_flags({"root": "data", "model": {"lora": {"r": "8"}, "dtype": None}}))
    ['--root=data', '--model.lora.r=8', '--model.dtype=null']
    """
    for key, value in settings.items():
        if key in AS_TEXT and isinstance(value, Mapping):
            value = AS_TEXT[key](value)
        if isinstance(value, str | Path | LabelMap | ColumnNames):
            yield f"--{prefix}{key}={value}"
        elif isinstance(value, Mapping) and value and "class_path" not in value:
            yield from as_flags(value, f"{prefix}{key}.")
        else:
            yield f"--{prefix}{key}={json.dumps(value, ensure_ascii=False)}"


def _config_files(settings: Mapping[str, Any], where: Path | str) -> list[str]:
    found = settings.get("config", [])
    files = found if isinstance(found, list) else [found]
    if not all(isinstance(file, str) and file for file in files):
        raise ConfigError(f"{where}: config: expected a file of settings, or a list of them")
    return files


def _seeds(found: Any, where: str) -> list[int]:
    texts = found if isinstance(found, list) else [found]
    constraint = constraint_of(Seed)
    assert constraint is not None
    seeds: list[int] = []
    for text in texts:
        if not (isinstance(text, str) and text.isdecimal() and constraint.allows(int(text))):
            raise ConfigError(
                f"{where}: found {text!r}, expected {constraint.words}, or a list of such seeds"
            )
        if int(text) in seeds:
            raise ConfigError(f"{where}: found {text} twice, expected different seeds")
        seeds.append(int(text))
    if not seeds:
        raise ConfigError(f"{where}: found none, expected at least one")
    return seeds


def _source(settings: dict[str, Any], earlier: Sequence[str], names: Sequence[Any], where: str) -> str | None:
    """Take the name of an earlier experiment out of the settings; a path stays for `fit` to read."""
    given = settings.get("start_from")
    if not isinstance(given, str):
        return None
    if given in earlier:
        settings.pop("start_from")
        return given
    if given in names:
        raise ConfigError(f"{where}: from: found {given}, expected an experiment above it; move it up")
    if not Path(given).expanduser().exists():
        advice = hint(given, earlier) if earlier else "there is none above it"
        raise ConfigError(f"{where}: from: found {given!r}, no file and no experiment above it; {advice}")
    return None


def _check_own(flags: Sequence[str], where: str) -> None:
    names = {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    for name, remedy in SET_BY_THE_SWEEP.items():
        if name in names:
            raise ConfigError(f"{where}: {name} cannot be set for a sweep; {remedy}")


def _check_seeds(experiment: Experiment, source: Experiment, where: str) -> None:
    missing = [seed for seed in experiment.seeds if seed not in source.seeds]
    if missing and len(source.seeds) > 1:
        raise ConfigError(
            f"{where}: from: found the seed {missing[0]}, expected one of {source.name}: "
            f"{', '.join(map(str, source.seeds))}"
        )


def chosen(experiments: Sequence[Experiment], names: Names | None) -> list[Experiment]:
    """Return the experiments of these names and those that they start from; all if there are no names."""
    known = {experiment.name: experiment for experiment in experiments}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--only: found {name!r}, expected experiments; {hint(name, list(known))}")
    wanted = set(names or known)
    for experiment in reversed(experiments):
        if experiment.name in wanted and experiment.source is not None:
            wanted.add(experiment.source)
    return [experiment for experiment in experiments if experiment.name in wanted]


def make_plan(path: Path, experiments: Sequence[Experiment], out: Path) -> Plan:
    """Check the settings and the data of all experiments; a source is before the experiments that need it."""
    commands: dict[str, FitCommand] = {}
    known = {experiment.name: experiment for experiment in experiments}
    runs: list[PlannedRun] = []
    for experiment in experiments:
        try:
            command = commands[experiment.name] = parse_fit(experiment.flags)
            if command.settings.preflight or not command.settings.final_evaluation:  # by a file of `config`
                raise ConfigError(
                    "found preflight true or final_evaluation false, expected neither in a sweep"
                )
            if experiment.source is not None:
                _check_start(command, commands[experiment.source], experiment.source)
            for seed in experiment.seeds:
                source = None
                if experiment.source is not None:
                    origin = known[experiment.source]
                    source = run_folder(out, origin.name, experiment.seed_of_source(seed, origin))
                runs.append(_planned(experiment, seed, out, command, source))
        except NlicotError as error:
            raise ConfigError(f"{path}: {experiment.name}: {error}") from None
    left = {run.experiment for run in runs if run.state != "finished"}
    finished = [run.folder for run in runs if run.state == "finished"]
    left_commands = {name: commands[name] for name in commands if name in left}
    return Plan(runs=runs, reports=_reports(path, left_commands, finished))


def _check_start(command: FitCommand, source: FitCommand, name: str) -> None:
    """Refuse another base or shape than that of the experiment to start from, which may not be fitted yet."""
    base, expected = command.settings.model.base, source.settings.model.base
    if base != expected:
        raise ConfigError(
            f"--from {name}: --model.base: found {base}, expected {expected}, its base; give both the same"
        )
    lora = source.settings.model.lora
    shape = lora_shape(lora.r, lora.alpha, lora.target_modules)
    adapter = StartingAdapter(
        given=name, weights_path=Path(name), shape=shape, base=None, builder=None, origin=None
    )
    adapter.check_shape(command.settings.model.lora)


def _planned(
    experiment: Experiment, seed: int, out: Path, command: FitCommand, source: Path | None
) -> PlannedRun:
    name, folder = run_name(experiment.name, seed), run_folder(out, experiment.name, seed)
    own = {"seed_everything": seed, "checkpoints_root": str(out), "run": name}
    if source is not None:
        own["start_from"] = str(source)
    if not folder.exists() or never_trained(folder):
        check_new_run(name, out)
        state, args = "new", [*experiment.flags, *(f"--{key}={value}" for key, value in own.items())]
    else:
        with hold_run(folder, is_new=False):  # refused while another process trains it
            state, args = _continued(experiment, folder, command, own)
    return PlannedRun(
        experiment=experiment.name, seed=seed, folder=folder, args=["fit", *args], state=state, source=source
    )


def _continued(
    experiment: Experiment, folder: Path, command: FitCommand, own: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """Return the state of a run that exists, and the arguments that continue it."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: found no {CONFIG}, expected the folder of a run; move it away")
    values = command.values.clone()
    for name, value in own.items():
        values[name] = value
    changes = changes_to(folder, values)
    if changes.refused:
        raise ConfigError(
            f"{folder} is a run with other settings; {'; '.join(changes.refused)} "
            "(give the experiment another name, or remove that folder)"
        )
    if not changes.allowed:
        return ("finished" if is_finished(folder) else "stopped"), [f"--resume={folder}"]
    # Explicitly, for a setting that the file no longer has: else the run's own would stay.
    own_now = as_flags(changes.new_values)
    return "stopped", [f"--resume={folder}", *experiment.flags, *own_now]


def is_finished(folder: Path) -> bool:
    """Return whether a run's training has ended, and its best adapter was evaluated after that."""
    summary, predictions = folder / FIT_SUMMARY, predictions_path(folder)
    if NUM_STEPS not in read_summary(folder) or not predictions.is_file():
        return False
    return predictions.stat().st_mtime >= summary.stat().st_mtime


def _reports(path: Path, commands: Mapping[str, FitCommand], finished: Sequence[Path]) -> dict[str, str]:
    """Read each experiment's data as its fits will; return reports on it, if all have the same dev pairs.

    Those of the finished runs must be the same, too.
    """
    reports: dict[str, str] = {}
    logger = logging.getLogger(RunData.__module__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    first: tuple[str, str] | None = None
    try:
        for name, command in commands.items():
            data = RunData(command.settings)
            # The number of tokens matters to a builder that drops long thoughts, not to this check.
            data.read_for_fit(lambda thought: 0)
            report = data.dev_pairs_report
            if first is not None and report != first[1]:
                raise ConfigError(
                    f"found dev pairs ({report}) other than those of {first[0]} ({first[1]}), expected the "
                    "same, so that predictions can be compared"
                )
            reports[name] = data.reports["train"]
            if first is not None:
                continue
            first = name, report
            for folder in finished:
                if (earlier := read_summary(folder).get("dev_pairs")) and earlier != report:
                    raise ConfigError(
                        f"found dev pairs ({report}) other than those of {folder}, which is finished "
                        f"({earlier}), expected the same; restore the file, or give another --out"
                    )
    except NlicotError as error:
        raise ConfigError(f"{path}: {name}: {error}") from None
    finally:
        logger.setLevel(level)
    return reports
