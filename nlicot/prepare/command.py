"""The `prepare` command: what `fit` would train on, as a file of instruction data."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlicot.builders import BUILDERS, Builder, builder_name, find_builder
from nlicot.data.root import DataRoot, parse_label_map, refuse_overwriting, working_root
from nlicot.data.streaming import PairsFile, TextFiles
from nlicot.errors import ConfigError
from nlicot.flags import count, names
from nlicot.prepare.export import Selection, prepare_file
from nlicot.prepare.formats import FORMATS, MARKERS
from nlicot.prompts import LabelDefinitions, StudentPrompts


def main(args: Sequence[str]) -> int:
    """The `prepare` command."""
    given = _parser().parse_args(args)
    root = working_root(given.root)
    builder = find_builder(given.builder, _builder_args(given.builder_args), flag="--builder")
    prompts = StudentPrompts(definitions=_definitions(given))
    name = builder_name(builder)
    splits = given.split or _splits_there(root, builder)
    if given.out and len(splits) > 1:
        raise ConfigError(
            f"--out: found one path for the splits {', '.join(splits)}, expected one --split too"
        )
    paths = {split: given.out or root.finetune(f"{name}-{split}") for split in splits}
    refuse_overwriting(*paths.values(), overwrite=given.overwrite)
    for split, path in paths.items():
        report = prepare_file(
            PairsFile(root.pairs(split), label_map=given.label_map),
            text_files(root, split, builder),
            path,
            builder=builder,
            prompts=prompts,
            selection=Selection(shuffle_seed=given.shuffle_seed, limit=given.limit),
            form=given.format,
            markers=given.prompt_format,
            overwrite=given.overwrite,
        )
        print(f"{split}: {name}: {report}\n{split}: wrote {path}")
    if "train" in paths:
        print(f"next: {_fit_command(given, root, name, paths['train'])}")
        print("      (without a GPU add --model.base bundled)")
    return 0


def text_files(root: DataRoot, split: str, builder: Builder) -> TextFiles:
    """The files of a data root that a builder reads beside a split's pairs."""
    thoughts = root.thoughts(split)
    needed = {thoughts} if builder.thinks else set()
    return TextFiles.found(thoughts, root.reflections(split), root.scores(split), needed=needed)


def _splits_there(root: DataRoot, builder: Builder) -> list[str]:
    """Train and dev, as far as the builder has what it needs; else train, so as to say what lacks."""
    there = [
        split
        for split in ("train", "dev")
        if root.pairs(split).exists() and (root.thoughts(split).exists() or not builder.thinks)
    ]
    return there or ["train"]


def _builder_args(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of `--builder-args`, their values read as JSON where they are JSON, else as text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(
                f"--builder-args: found {text!r}, expected NAME=VALUE, for example balance=true"
            )
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return found


def _definitions(given: argparse.Namespace) -> LabelDefinitions:
    """The words of the flags, else those of the file, else the project's own."""
    texts = asdict(LabelDefinitions())
    if given.definitions:
        texts |= _read_definitions(given.definitions, texts)
    flags = {"entailment": given.entailment, "no_entailment": given.no_entailment}
    return LabelDefinitions(**(texts | {name: text for name, text in flags.items() if text}))


def _read_definitions(path: Path, names: Iterable[str]) -> Mapping[str, str]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--definitions {path}: cannot be read ({' '.join(str(error).split())})") from None
    found = {name: content.get(name) if isinstance(content, dict) else None for name in names}
    for name, text in found.items():
        if not isinstance(text, str) or not text.strip():
            expected = "words that complete 'Answer 1 if ..., 0 if ...'"
            raise ConfigError(f"--definitions {path}: found no text for {name}, expected {expected}")
    return {name: str(text).strip().rstrip(".") for name, text in found.items()}


def _fit_command(given: argparse.Namespace, root: DataRoot, name: str, path: Path) -> str:
    """The `fit` that trains on the file; dev and prediction are given the same builder and words."""
    words = ["python", "-m", "nlicot", "fit"]
    words += ["--config", f"configs/{name}.yaml"] if name in BUILDERS else ["--data.builder", given.builder]
    words += ["--root", str(root.path), "--data.prepared", str(path)]
    definitions = _definitions(given)
    if definitions != LabelDefinitions():
        for key, text in asdict(definitions).items():
            words += [f"--data.definitions.{key}", text]
    if given.label_map:
        words += ["--data.label_map", ",".join(f"{key}={label}" for key, label in given.label_map.items())]
    return shlex.join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlicot prepare",
        description="Write what `fit` would train on as instruction data: finetune/<builder>-<split>.jsonl.",
        epilog="example: python -m nlicot prepare --root data --builder reflected --format prompt-completion",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", type=Path, help="the data root (default: a copy of the sample, data/try)")
    add("--split", type=names, help="separated by commas (default: train and dev, as far as there)")
    add("--builder", default="reflected", help=f"{', '.join(BUILDERS)}, or a class path (default reflected)")
    add("--builder-args", nargs="+", default=[], metavar="NAME=VALUE", help="balance=true min_score=4 ...")
    add("--format", choices=FORMATS, default="text", help="default text")
    add("--prompt-format", choices=MARKERS, default="mistral", help="markers of text and prompt-completion")
    add("--definitions", type=Path, metavar="FILE", help="YAML with entailment and no_entailment")
    add("--entailment", metavar="WORDS", help="what label 1 means, to complete 'Answer 1 if ...'")
    add("--no-entailment", metavar="WORDS", help="what label 0 means, likewise")
    add("--label-map", type=parse_label_map, help="entailment=1,neutral=0,contradiction=0")
    add("--shuffle-seed", type=int, metavar="SEED", help="shuffle by this seed (default: the pairs' order)")
    add("--limit", type=count, metavar="N", help="only the first N examples, after shuffling")
    add("--out", type=Path, metavar="PATH", help="another file to write, for a single --split")
    add("--overwrite", action="store_true", help="replace an earlier file")
    return parser
