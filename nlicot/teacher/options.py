"""The teacher commands' flags, and the configuration files that stand in for them.

A configuration file has a section for each command, its keys the flags' names: they are put before what was
typed, so that the same parser checks both and what was typed wins.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlicot.command_line import parse_label_map
from nlicot.errors import ConfigError
from nlicot.flags import count, names
from nlicot.teacher.backends.registry import BACKENDS
from nlicot.teacher.engine.pricing import parse_price
from nlicot.yaml_files import hint, read_yaml

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "teacher.yaml"
STAGES = ("generate", "reflect", "score")
COMPANIONS = ("--next-models", "--regenerate-with")
DESCRIPTIONS = {
    "generate": "Ask a teacher for a blind chain of thought and a label for each pair.",
    "reflect": "Ask a stronger teacher to reflect on the thoughts that missed the true label.",
    "score": "Ask a judge to score thoughts and reflections, and have low ones written anew.",
}
EXAMPLES = {
    "generate": "python -m nlicot generate --root data --split train,dev --dry-run",
    "reflect": "python -m nlicot reflect --root data --split train,dev --budget 5.00",
    "score": "python -m nlicot score --root data --split train --threshold 4 --rounds 2",
}


def parse(stage: str, args: Sequence[str]) -> argparse.Namespace:
    """The options of one command: the recipe in `configs/teacher.yaml`, each --config, then `args`.

    Raises:
        ConfigError: a configuration file that cannot be read, or a key that is no flag.
    """
    parser = _parser(stage)
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--config", type=Path, action="append", default=[])
    named, _ = early.parse_known_args(list(args))
    expanded: list[str] = []
    for path in [DEFAULT_CONFIG, *named.config]:
        expanded += _section(path, stage, parser)
    if any(arg.partition("=")[0] in ("--model", "--backend") for arg in args):
        # Who chooses a teacher does not mean the recipe's other models, which its server may not know.
        expanded = [flag for flag in expanded if flag.partition("=")[0] not in COMPANIONS]
    return parser.parse_args([*expanded, *args])


def _section(path: Path, stage: str, parser: argparse.ArgumentParser) -> list[str]:
    """A file's section for the stage, as flags."""
    content = read_yaml(path, label=f"--config {path}") or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: found no sections, expected some of {', '.join(STAGES)}")
    for name in content:
        _check_known(str(name), STAGES, f"--config {path}")
    flags = []
    known = [flag[2:] for action in parser._actions for flag in action.option_strings if flag[:2] == "--"]
    for key, value in (content.get(stage) or {}).items():
        flag = str(key).replace("_", "-")
        _check_known(
            flag, [name for name in known if name not in ("help", "config")], f"--config {path}: {stage}"
        )
        flags += _as_flags(flag, value)
    return flags


def _check_known(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise ConfigError(f"{where}: found no setting {name!r} ({hint(name, known)})")


def _as_flags(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{flag}"]
    if isinstance(value, list):
        return [f"--{flag}={','.join(map(str, value))}"]
    return [f"--{flag}={value}"]


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m nlicot {stage}",
        description=DESCRIPTIONS[stage],
        epilog=f"example: {EXAMPLES[stage]}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, action="append", help="flags in a file; configs/teacher.yaml comes first"
    )
    _add_input(parser, stage)
    _add_teacher(parser)
    _add_limits(parser)
    _add_journal(parser)
    if stage == "generate":
        _add_generate(parser)
    if stage == "score":
        _add_score(parser)
    return parser


def _add_input(parser: argparse.ArgumentParser, stage: str) -> None:
    group = parser.add_argument_group("input and output")
    group.add_argument("--root", type=Path, help="the data root (default: a copy of the sample, data/try)")
    group.add_argument("--split", type=names, help="default: train and dev, as far as there")
    group.add_argument("--limit", type=count, help="only the first so many pairs of each split")
    group.add_argument("--ids", type=names, help="only these pairs, separated by commas")
    group.add_argument("--label-map", type=parse_label_map, help="entailment=1,neutral=0,contradiction=0")
    group.add_argument("--overwrite", action="store_true", help="replace a finished output")
    group.add_argument("--prompt", type=Path, help="a prompt file of one's own (see nlicot/teacher/prompts)")
    group.add_argument("--definitions", type=Path, help="what the labels mean on this data, a YAML file")


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--backend", choices=list(BACKENDS), default="mistral")
    group.add_argument(
        "--server-url", help="of an OpenAI-compatible server, for example http://localhost:8000"
    )
    group.add_argument("--model", help="its name on the server; for `local` a base or a run's folder")
    group.add_argument(
        "--next-models", type=names, default=(), help="asked where --model gave no usable answer"
    )
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-p", type=float)
    group.add_argument("--max-tokens", type=count, default=512, help="an answer's budget (default 512)")
    group.add_argument("--seed", type=int, help="sent with each request")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits and cost")
    group.add_argument(
        "--dry-run", action="store_true", help="count requests, tokens and dollars; ask nothing"
    )
    group.add_argument("--budget", type=float, help="dollars that cannot be passed")
    group.add_argument("--price", type=parse_price, help="INPUT,OUTPUT in dollars a million tokens")
    group.add_argument("--prices", type=Path, help="a price table of one's own, a YAML file")
    group.add_argument(
        "--concurrency",
        type=count,
        default=16,
        help="most requests in flight (default 16); a batch takes what there is",
    )
    group.add_argument("--requests-per-minute", type=float, help="default: what the server announces")
    group.add_argument("--tokens-per-minute", type=float, help="default: what the server announces")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default 120)")


def _add_journal(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("journal")
    group.add_argument("--retry-failures", action="store_true", help="ask again where answers were no use")
    group.add_argument(
        "--reparse", action="store_true", help="read all kept answers again; asks nothing twice"
    )
    group.add_argument(
        "--export-journal", type=Path, metavar="FILE.jsonl", help="write the journal, and stop"
    )


def _add_generate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("thoughts")
    group.add_argument("--samples", type=count, default=1, help="thoughts for each pair (default 1)")
    group.add_argument(
        "--prompt-type", choices=("initial_generation", "relation"), default="initial_generation"
    )
    group.add_argument("--relation-map", type=parse_label_map, help="entailment=1,neutral=1,contradiction=0")
    group.add_argument(
        "--probe", action="store_true", help="only the first 100 answers against the true labels"
    )
    group.add_argument(
        "--yes", action="store_true", help="go on even where the probe finds a lopsided teacher"
    )


def _add_score(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    group.add_argument("--threshold", type=int, choices=range(1, 6), default=4, help="lower is written anew")
    group.add_argument(
        "--rounds", type=int, choices=range(11), default=3, help="at most so often (default 3)"
    )
    group.add_argument("--regenerate-with", type=names, default=(), help="models of round 1, 2 ...")
