"""The `prepare` command: write what `fit` would train on as a file of instruction data."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import Namespace

from nlicot.builders import BUILDERS, builder_name, check_built, find_builder
from nlicot.builders.base import Builder, build_report
from nlicot.command_line import CommandParser, Names, PositiveInt
from nlicot.data.atomic_write import refuse_overwriting, write_jsonl
from nlicot.data.pairs import PairFormat, read_examples
from nlicot.data.root import DataRoot, working_root
from nlicot.data.thoughts import TextFiles, read_joined
from nlicot.errors import ConfigError, DataError
from nlicot.prepare.formats import FORMATS, MARKERS, to_row
from nlicot.prepare.preferences import PREFERENCE, build_preferences, read_predicted_thoughts
from nlicot.prompts import LabelDefinitions, StudentPrompts, folded

T = TypeVar("T")


@contextlib.contextmanager
def _no_garbage_collector() -> Iterator[None]:
    """Pause the search for cycles, which records do not form: it takes half the time of 550,000 pairs."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_garbage_collector()
def main(args: Sequence[str]) -> int:
    """Run the `prepare` command."""
    settings = _parser().parse(args)
    root = working_root(settings.root)
    builder = find_builder(settings.builder, settings.builder_args, flag="--builder")
    definitions = folded(LabelDefinitions(**settings.definitions.as_dict()))
    prompts = StudentPrompts(definitions=definitions)
    name = builder_name(builder)
    splits = settings.split or _complete_splits(root, builder)
    is_preference = settings.format == PREFERENCE
    if is_preference and not builder.thinks:
        raise ConfigError(
            f"--format {PREFERENCE}: found the builder {name}, expected one with thoughts, such as reflected"
        )
    if settings.predictions and not is_preference:
        raise ConfigError(f"--predictions: found --format {settings.format}, expected --format {PREFERENCE}")
    for flag, given in (("--out", settings.out), ("--predictions", settings.predictions)):
        if given and len(splits) > 1:
            raise ConfigError(
                f"{flag}: found one path for the splits {', '.join(splits)}, expected one --split too"
            )
    stem = f"{name}-{PREFERENCE}" if is_preference else name
    paths = {split: settings.out or root.finetune(f"{stem}-{split}") for split in splits}
    refuse_overwriting(*paths.values(), overwrite=settings.overwrite)
    predicted_paths = [Path(each).expanduser() for each in settings.predictions]
    for split, path in paths.items():
        examples = read_examples(root.pairs(split), PairFormat.of(settings))
        texts = read_joined(examples, text_files(root, split, builder))
        first_sample = 1 + max((thought.sample for thought in texts.thoughts), default=-1)
        predicted = read_predicted_thoughts(predicted_paths, examples, first_sample=first_sample)
        thoughts = [*texts.thoughts, *predicted]
        built = builder.build(examples, thoughts, texts.reflections, texts.scores, prompts=prompts)
        check_built(built, builder, root.pairs(split))
        markers = MARKERS[settings.prompt_format]
        if is_preference:
            preferences = build_preferences(built, texts, predicted)
            if not preferences.records:
                raise DataError(
                    "no pair with a right and a wrong thought",
                    "some; more samples, reflections or --predictions give more",
                    path=root.pairs(split),
                )
            preferences = replace(preferences, records=_selected(preferences.records, settings))
            report = str(preferences)
            rows = (each.to_row(markers) for each in preferences.records)
        else:
            built = _selected(built, settings)
            report = str(build_report(len(examples), built))
            rows = (to_row(each, settings.format, markers) for each in built)
        write_jsonl(path, rows, overwrite=settings.overwrite)
        print(f"{split}: {name}: {report}\n{split}: wrote {path}")
    if "train" in paths and not is_preference:
        print(f"next: {_fit_command(settings, root, name, paths['train'], definitions)}")
        print("      (without a GPU add --config configs/overlays/small_model.yaml --model.base bundled)")
    return 0


def _selected(records: Sequence[T], settings: Namespace) -> list[T]:
    """Return the records in the order and number that the settings ask for; variants stay together."""
    groups: list[list[T]] = []
    for record in records:
        if getattr(record, "variant", 0):
            groups[-1].append(record)
        else:
            groups.append([record])
    if settings.shuffle_seed is not None:
        random.Random(settings.shuffle_seed).shuffle(groups)
    return [*itertools.chain.from_iterable(groups)][: settings.limit]


def text_files(root: DataRoot, split: str, builder: Builder) -> TextFiles:
    """Return the files of a data root that a builder needs in addition to a split's pairs."""
    needed = {getattr(root, kind)(split) for kind in builder.needed_texts(split)}
    return TextFiles.found(root.thoughts(split), root.reflections(split), root.scores(split), needed=needed)


def _complete_splits(root: DataRoot, builder: Builder) -> list[str]:
    """Return the splits with all that the builder needs; train if none, so that the error names its file."""
    complete = [
        split
        for split in ("train", "dev")
        if root.pairs(split).exists() and (root.thoughts(split).exists() or not builder.needed_texts(split))
    ]
    return complete or ["train"]


def _fit_command(
    settings: Namespace, root: DataRoot, name: str, path: Path, definitions: LabelDefinitions
) -> str:
    """Return the `fit` command that trains on the file, and builds dev in the same way."""
    builder = ["--config", f"configs/{name}.yaml"] if name in BUILDERS else []
    if settings.builder_args or not builder:
        kind = BUILDERS.get(name)
        builder += ["--data.builder", f"{kind.__module__}.{kind.__qualname__}" if kind else settings.builder]
    for key, value in settings.builder_args.items():
        builder += [f"--data.builder.{key}", str(value).lower() if isinstance(value, bool) else str(value)]
    files = ["--root", str(root.path), "--data.prepared", str(path)]
    words = ["python", "-m", "nlicot", "fit", *builder, *files]
    if definitions != LabelDefinitions():
        for key, text in asdict(definitions).items():
            words += [f"--definitions.{key}", text]
    return shlex.join(words + PairFormat.of(settings).flags())


def _parser() -> CommandParser:
    parser = CommandParser(
        "prepare",
        description="Write what `fit` would train on as instruction data: finetune/<builder>-<split>.jsonl.",
        example="python -m nlicot prepare --root data --builder reflected --format prompt-completion",
    )
    add = parser.add_argument
    add("--root", type=Path, default=None, help="the data root (default: a copy of the sample, data/try)")
    add("--split", type=Names, default=None, help="such as train,dev (default: whichever exist of both)")
    add("--builder", type=str, default="reflected", help=f"{', '.join(BUILDERS)}, or a class path")
    args_help = "NAME=VALUE ..., such as balance=true min_score=4"
    add("--builder_args", type=dict[str, Any], default={}, help=args_help)
    formats = (*FORMATS, PREFERENCE)
    add("--format", type=Literal[formats], default="text", help=f"of a row; {PREFERENCE} is for DPO")
    what = f"thoughts of the student for --format {PREFERENCE}, a file of predict; repeat for more"
    parser.add_repeated("predictions", metavar="FILE", help=what)
    add("--prompt_format", type=Literal[tuple(MARKERS)], default="mistral", help="markers around prompts")
    parser.add_class_arguments(LabelDefinitions, "definitions")
    parser.add_class_arguments(PairFormat)
    add("--shuffle_seed", type=int, default=None, help="shuffle with this seed (default: no shuffling)")
    add("--limit", type=PositiveInt | None, default=None, help="only the first N examples, after shuffling")
    add("--out", type=Path, default=None, help="write to this file; needs a single --split")
    add("--overwrite", type=bool, default=False, help="replace an earlier file")
    return parser
