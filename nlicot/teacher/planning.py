"""What a teacher command is to do, from its options: a stage over each split, its models, prices and name."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.data.root import DataRoot
from nlicot.prompts import LabelDefinitions
from nlicot.teacher.backends.registry import endpoint
from nlicot.teacher.engine.pricing import Price, load_prices, price_of
from nlicot.teacher.stages.base import Stage, StageSettings
from nlicot.teacher.stages.generate import Generation
from nlicot.teacher.stages.inputs import pairs_of, texts_of, thoughts_of
from nlicot.teacher.stages.prompts import (
    PromptType,
    TeacherPrompt,
    check_relation_map,
    load_definitions,
    load_prompt,
    load_relation_map,
)
from nlicot.teacher.stages.reflect import Reflecting
from nlicot.teacher.stages.score import Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One split's stage, and the file that it fills."""

    split: str
    stage: Stage[Any]
    output_path: Path


def works_of(command: str, options: argparse.Namespace, root: DataRoot) -> list[Work]:
    """The stage over each split, with its prompts and its input found and checked.

    Raises:
        ConfigError: a flag, prompt or definition that will not do.
        DataError: pairs that cannot be read, or no thoughts where they are needed.
    """
    where = endpoint(options.backend, options.server_url)
    definitions = load_definitions(options.definitions) if options.definitions else None
    settings = StageSettings(
        model=options.model,
        next_models=options.next_models,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    works = []
    for split in _splits(options, root):
        pairs = pairs_of(root, split, label_map=options.label_map, limit=options.limit, ids=options.ids)
        stage: Stage[Any]
        if command == "generate":
            kind = PromptType(options.prompt_type)
            stage = Generation(
                examples=pairs,
                endpoint=where,
                settings=settings,
                prompt=load_prompt(kind, options.prompt, definitions),
                num_samples=options.samples,
                relation_map=_relation_map(options),
            )
            output_path = root.thoughts(split)
        elif command == "reflect":
            stage = Reflecting(
                thoughts=thoughts_of(root, split, pairs),
                endpoint=where,
                settings=settings,
                prompt=load_prompt(PromptType.REFLECTION, options.prompt, definitions),
            )
            output_path = root.reflections(split)
        else:
            stage = Scoring(
                texts=texts_of(root, split, pairs),
                endpoint=where,
                settings=settings,
                prompts=_scoring_prompts(options.prompt, definitions),
                threshold=options.threshold,
                num_rounds=options.rounds,
                regenerate_with=options.regenerate_with or (options.model,),
            )
            output_path = root.scores(split)
        works.append(Work(split=split, stage=stage, output_path=output_path))
    return works


def _splits(options: argparse.Namespace, root: DataRoot) -> Sequence[str]:
    if options.split is not None:
        return tuple(options.split)
    there = [split for split in ("train", "dev") if root.pairs(split).exists()]
    return there or ["train"]  # which is then missed by name


def _relation_map(options: argparse.Namespace) -> dict[str, int] | None:
    if options.relation_map:
        return check_relation_map(options.relation_map, where="--relation-map")
    return load_relation_map(options.definitions) if options.definitions else None


def _scoring_prompts(
    path: Path | None, definitions: LabelDefinitions | None
) -> dict[PromptType, TeacherPrompt]:
    own = {PromptType.SCORING: path}
    return {kind: load_prompt(kind, own.get(kind), definitions) for kind in Scoring.prompt_types}


def prices_of(options: argparse.Namespace, models: Iterable[str]) -> dict[str, Price | None]:
    """Each model's price; None where it is not known."""
    prices = load_prices(options.prices)
    return {model: price_of(model, prices, options.price, backend=options.backend) for model in models}


def job_of(works: Sequence[Work], options: argparse.Namespace, root: DataRoot) -> str:
    """Names a run by what it asks, so that a budget counts all of its starts and no other run's."""
    first = works[0].stage
    content = [
        first.name,
        options.backend,
        options.server_url,
        first.models,
        str(root.path.resolve()),
        [work.split for work in works],
        first.settings.params(),
        str(options.definitions),
        str(options.prompt),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
