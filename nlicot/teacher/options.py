"""Settings of `generate`, `reflect` and `score`: `configs/teacher.yaml`, `--config` files, then flags."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import register_type

from nlicot.command_line import (
    CommandParser,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TopP,
    UpToThousand,
)
from nlicot.config_files import TEACHER_RECIPE, read_yaml
from nlicot.data.pairs import LabelMap, PairFormat
from nlicot.data.rows import shown
from nlicot.data.shards import Shard
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, fold_definitions, read_definitions
from nlicot.records import LABELS
from nlicot.teacher.backends.base import BACKENDS, check_fields, endpoint
from nlicot.teacher.engine.pricing import Price, load_prices, parse_price
from nlicot.teacher.prompt import RELATIONS, STAGE_PROMPTS, PromptType, TeacherPrompt, load_prompt

DESCRIPTIONS = {
    "generate": "Ask a teacher for a blind chain of thought and a label for each pair.",
    "reflect": "Ask a stronger teacher to reflect on the thoughts that missed the true label.",
    "score": "Ask a judge to score thoughts and reflections, and rewrite those that score low.",
}
STAGES = tuple(DESCRIPTIONS)
_PARAMETERS = {name: f"--{name} sets it" for name in ("temperature", "top_p", "max_tokens", "seed")} | {
    "max_completion_tokens": "--max_tokens sets it",
    "random_seed": "--seed sets it",
}
_OWN_FIELDS = _PARAMETERS | {
    "model": "--model sets it",
    "messages": "--prompt sets them",
    "n": "--samples asks again",
    "stream": "a reply is read as a whole",
}
_WORD = re.compile(r"[A-Za-z][\w.:/-]*")
_NOT_WORDS = ("true", "false", "null", "none", "nan", "infinity")
EXAMPLES = {
    "generate": "python -m nlicot generate --root data --split train,dev --dry_run",
    "reflect": "python -m nlicot reflect --root data --split train,dev --budget 5.00",
    "score": "python -m nlicot score --root data --split train --threshold 4 --rounds 2",
}
register_type(
    Price,
    lambda price: f"{price.input},{price.output}",
    lambda value: parse_price(value if isinstance(value, str) else ",".join(map(str, value))),
)


def parse(stage: str, args: Sequence[str]) -> Namespace:
    """Parse one command's settings."""
    parser = CommandParser(
        stage,
        description=DESCRIPTIONS[stage],
        example=EXAMPLES[stage],
        sections=STAGES,
        file_settings={"definitions": "definitions.file"},
    )
    _add_settings(parser, stage)
    dropped = []
    if {arg.partition("=")[0] for arg in args} & {"--model", "--backend"}:
        # The other models in the recipe or a file may be unknown to the server of the chosen one.
        dropped = [f"--{name}=" for name in ("next_models", "regenerate_with") if parser.knows(name)]
    recipe = f"--config={TEACHER_RECIPE}"
    return parser.parse([recipe, *dropped, *args], check=functools.partial(_check, stage))


def _add_settings(parser: CommandParser, stage: str) -> None:
    add = parser.add_argument_group("input and output").add_argument
    add("--root", type=Path | None, help="the data root; by default a copy of the sample, data/try")
    add("--split", type=Names | None, help="separated by commas; by default train and dev, if they exist")
    add("--limit", type=PositiveInt | None, help="use only the first N pairs of each split")
    add("--ids", type=Names | None, help="use only these pairs, separated by commas")
    add("--shard", type=Shard | None, help="work on part I of N; merge-shards puts the parts together")
    add("--overwrite", type=bool, default=False, help="replace a finished output")
    add("--yes", type=bool, default=False, help="go on even if labels or definitions do not fit the answers")
    add("--prompt", type=Path | None, help="use your own prompt file (see nlicot/teacher/prompts)")
    add("--definitions.file", type=Path | None, help="meaning of the labels on this data: a YAML file")
    add("--definitions.entailment", type=str | None, help="meaning of label 1, completing 'answer 1 if ...'")
    add("--definitions.no_entailment", type=str | None, help="meaning of label 0")
    parser.add_class_arguments(PairFormat)

    teacher = parser.add_argument_group("teacher")
    add = teacher.add_argument
    backends = Literal.__getitem__(tuple(BACKENDS))
    add("--backend", type=backends, default="mistral", help="how the model is reached")
    add("--server_url", type=str | None, help="an OpenAI-compatible server, such as http://localhost:8000")
    add("--send_key", type=bool | None, help="send the key to any server, or to none; asked for if in doubt")
    add("--model", type=str | None, help="name on the server; for `local` a base model or a run's folder")
    add("--next_models", type=Names, default=Names(), help="asked in turn if --model gives no valid answer")
    add("--temperature", type=NonNegativeFloat | None, help="sampling temperature")
    add("--top_p", type=TopP | None, help="nucleus sampling")
    add("--max_tokens", type=PositiveInt, default=512, help="token budget of one answer")
    add("--seed", type=NonNegativeInt | None, help="seed sent with each request")
    text = "a field of every request, in JSON; null leaves it out; repeat for more"
    parser.add_repeated("request_field", teacher, metavar="NAME=VALUE", help=text)

    add = parser.add_argument_group("limits and cost").add_argument
    add("--dry_run", type=bool, default=False, help="count requests, tokens and dollars; send nothing")
    add("--budget", type=NonNegativeFloat | None, help="spending cap in dollars")
    add("--price", type=Price | None, help="INPUT,OUTPUT in dollars per million tokens")
    add("--prices", type=Path | None, help="use your own price table, a YAML file")
    add("--concurrency", type=UpToThousand, default=16, help="maximum number of requests in flight")
    add("--requests_per_minute", type=PositiveFloat | None, help="by default what the server announces")
    add("--tokens_per_minute", type=PositiveFloat | None, help="by default what the server announces")
    add("--timeout", type=PositiveFloat, default=120.0, help="seconds to wait for one answer")

    add = parser.add_argument_group("journal").add_argument
    add("--retry_failures", type=bool, default=False, help="retry pairs whose answers were unusable")
    add("--reparse", type=bool, default=False, help="parse all stored answers again; sends nothing twice")
    add("--export_journal", type=Path | None, metavar="FILE.jsonl", help="write the journal, and stop")

    if stage == "generate":
        add = parser.add_argument_group("thoughts").add_argument
        add("--samples", type=UpToThousand, default=1, help="thoughts per pair")
        kinds = Literal["initial_generation", "relation"]
        add("--prompt_type", type=kinds, default="initial_generation", help="ask for a label or a relation")
        add("--relation_map", type=LabelMap | None, help="entailment=1,neutral=1,contradiction=0")
        add("--probe", type=bool, default=False, help="only compare the first 100 answers with the labels")
    elif stage == "score":
        add = parser.add_argument_group("scores").add_argument
        add("--threshold", type=Literal[1, 2, 3, 4, 5], default=4, help="rewrite texts that score lower")
        rounds = Literal.__getitem__(tuple(range(11)))
        add("--rounds", type=rounds, default=3, help="maximum number of rewrite rounds")
        add("--regenerate_with", type=Names, default=Names(), help="the model of round 1, of round 2 ...")


def _check(stage: str, settings: Namespace) -> None:
    """Refuse settings that no run could use, before anything is read or sent."""
    if settings.export_journal:
        return
    if not settings.model:
        raise ConfigError("--model: found none, expected the teacher's name (or give it in a --config file)")
    for name in ("ids", "split"):
        if settings[name] == ():
            raise ConfigError(f"--{name}: found none, expected at least one name, or leave the flag out")
    endpoint(settings.backend, settings.server_url)
    load_prices(settings.prices)
    if fields := request_fields(settings):
        check_fields(settings.backend, fields)
    load_prompts(stage, settings)
    if stage == "generate":
        relation_map(settings)
        if settings.relation_map is not None and settings.prompt_type != "relation":
            raise ConfigError(
                f"--relation_map: found it with --prompt_type {settings.prompt_type}, expected relation, the "
                "only prompt that asks for one"
            )


def request_fields(settings: Namespace) -> dict[str, Any]:
    """Return the fields that `--request_field` sets in each request's body; None removes one."""
    fields: dict[str, Any] = {}
    for given in settings.request_field:
        name, _, text = map(str.strip, given.partition("="))
        if not name or not text:
            raise ConfigError(f"--request_field: found {given!r}, expected NAME=VALUE or NAME=null")
        found = f"--request_field {name}: found {shown(text)}"
        try:
            fields[name] = json.loads(text)
            json.dumps(fields[name], allow_nan=False)
        except (ValueError, RecursionError):
            # A shell removes the quotes of "low"; but a misspelt true or null is not meant as a word.
            if not _WORD.fullmatch(text) or text.casefold() in _NOT_WORDS:
                expected = """JSON, such as 5, true, null, '"text"' or '{"a": 1}'"""
                raise ConfigError(f"{found}, expected {expected}") from None
            fields[name] = text
        if name in _OWN_FIELDS and (fields[name] is not None or name not in _PARAMETERS):
            expected = "null" if name in _PARAMETERS else "another field"
            raise ConfigError(f"{found}, expected {expected}: {_OWN_FIELDS[name]}")
    for name in ("max_tokens", "max_completion_tokens") if settings.budget is not None else ():
        if fields.get(name, 0) is None:
            raise ConfigError(
                f"--budget: found --request_field {name}=null, expected a limit of every answer"
            )
    return fields


def label_definitions(settings: Namespace) -> LabelDefinitions | None:
    """Return the definitions that a file or texts give; texts win, and None means the defaults."""
    given, defaults = settings.definitions, asdict(LabelDefinitions())
    texts = {name: given[name] for name in defaults if given[name] is not None}
    if given.file is None and not texts:
        return None
    base = read_definitions(given.file) if given.file else defaults
    return LabelDefinitions(**fold_definitions(base | texts, label="--definitions"))


def load_prompts(stage: str, settings: Namespace) -> dict[PromptType, TeacherPrompt]:
    """Load a stage's prompts; `--prompt` replaces that of the first question."""
    first, *others = STAGE_PROMPTS[stage]
    if stage == "generate":
        first = PromptType(settings.prompt_type)
    definitions = label_definitions(settings)
    prompts = {first: load_prompt(first, settings.prompt, definitions)}
    return prompts | {kind: load_prompt(kind, definitions=definitions) for kind in others}


def definitions_name(settings: Namespace) -> str:
    """Name the definitions in the identity of a run, as earlier versions did for a file."""
    given = settings.definitions
    texts = [given.entailment, given.no_entailment]
    return str(given.file) if texts == [None, None] else json.dumps([str(given.file), *texts])


def relation_map(settings: Namespace) -> dict[str, int] | None:
    """Return the label of each relation: from `--relation_map`, else from the file of the definitions."""
    path = settings.definitions.file
    source, found = "--relation_map", settings.relation_map
    if not found and path is not None:
        source = f"--definitions {path}: relation_map"
        found = read_yaml(path, label=source).get("relation_map")
    if found is None:
        return None
    labels = dict(found) if isinstance(found, Mapping) else {}
    are_labels = all(type(label) is int and label in LABELS for label in labels.values())
    if set(labels) != set(RELATIONS) or not are_labels:
        expected = f"expected 0 or 1 for each of {', '.join(RELATIONS)}"
        raise ConfigError(f"{source}: found {labels or found}, {expected}")
    return labels
