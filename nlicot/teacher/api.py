"""The stages as plain functions over records, for notebooks and other programs.

    from nlicot.teacher.api import generate_thoughts
    result = generate_thoughts(examples, backend=backend, settings=settings, journal="thoughts.sqlite")
    result.records, result.failures

They do what the commands do, without files. All take a `backend` (`backends.registry.connect` returns one),
the `settings` of the models, the `journal` (a file that stores every answer: with the same one, nothing is
paid for twice), prompts (`load_prompt` loads other ones than the defaults), and `run`: limits and budget.
They raise `TeacherStopped` if the run ends early; all answers so far are in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from nlicot.data.rows import Row
from nlicot.data.thoughts import reflection_from, scored_from, thought_from
from nlicot.records import Example, Failure, Reflection, Score, Thought
from nlicot.teacher.backends.base import Backend, Endpoint
from nlicot.teacher.engine.journal import Journal
from nlicot.teacher.engine.session import (
    Phase,
    RunReport,
    RunSettings,
    failure_of,
    outcomes,
    rows_of,
    run_phases,
)
from nlicot.teacher.stages.base import Stage, StageSettings
from nlicot.teacher.stages.generate import GenerateStage
from nlicot.teacher.stages.prompts import SCORE_PROMPTS, PromptType, TeacherPrompt, load_prompt
from nlicot.teacher.stages.reflect import ReflectStage
from nlicot.teacher.stages.score import ScoreStage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Generic[T]):
    """A stage's records, in the order of its inputs, and its failures."""

    records: list[T]
    failures: list[Failure]
    report: RunReport


def generate_thoughts(
    examples: Sequence[Example],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompt: TeacherPrompt | None = None,
    num_samples: int = 1,
    relation_map: Mapping[str, int] | None = None,
    run: RunSettings | None = None,
) -> StageResult[Thought]:
    """Ask for a blind thought and a label for each pair.

    Args:
        prompt: of type `initial_generation` or `relation`.
        num_samples: thoughts per pair.
        relation_map: the label of each relation, for a prompt of type `relation`.
    """
    prompt = prompt or load_prompt(PromptType.INITIAL_GENERATION)
    stage = GenerateStage(
        examples=examples,
        endpoint=_endpoint(backend),
        settings=settings,
        prompts={prompt.type: prompt},
        num_samples=num_samples,
        relation_map=relation_map,
    )
    return _run(stage, thought_from, backend, journal, run)


def reflect_on(
    thoughts: Iterable[Thought],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompt: TeacherPrompt | None = None,
    run: RunSettings | None = None,
) -> StageResult[Reflection]:
    """Ask for a reflection on each wrong thought; skip correct ones."""
    stage = ReflectStage(
        thoughts=list(thoughts),
        endpoint=_endpoint(backend),
        settings=settings,
        prompts={PromptType.REFLECTION: prompt or load_prompt(PromptType.REFLECTION)},
    )
    return _run(stage, reflection_from, backend, journal, run)


def score_texts(
    texts: Iterable[Thought | Reflection],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompts: Mapping[PromptType, TeacherPrompt] | None = None,
    threshold: int = 4,
    num_rounds: int = 3,
    regenerate_with: Sequence[str] = (),
    run: RunSettings | None = None,
) -> StageResult[Score | Thought | Reflection]:
    """Ask a judge for a score of each text, and rewrite those below `threshold`.

    The records hold every round: scores, and the regenerated thoughts and reflections between them.
    """
    stage = ScoreStage(
        texts=list(texts),
        endpoint=_endpoint(backend),
        settings=settings,
        prompts={kind: load_prompt(kind) for kind in SCORE_PROMPTS} | dict(prompts or {}),
        threshold=threshold,
        num_rounds=num_rounds,
        regenerate_with=tuple(regenerate_with),
    )
    return _run(stage, scored_from, backend, journal, run)


def _endpoint(backend: Backend) -> Endpoint:
    return Endpoint(name=backend.name, server=backend.server)


def _run(
    stage: Stage[Any],
    record_from: Callable[[Row], T],
    backend: Backend,
    journal_path: Path | str,
    run: RunSettings | None,
) -> StageResult[T]:
    with Journal(Path(journal_path), job=stage.name) as journal:
        report = run_phases(
            [Phase(tasks=stage.tasks)],
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=journal,
            settings=run or RunSettings(),
        )
        found = list(outcomes(journal, stage.tasks(), report.tally))
    return StageResult(
        records=[record_from(row) for outcome in found if outcome.ok for row in rows_of(outcome)],
        failures=[failure_of(outcome) for outcome in found if not outcome.ok],
        report=report,
    )
