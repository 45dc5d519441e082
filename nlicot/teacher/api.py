"""The stages as plain functions over records, for notebooks and other programs.

    from nlicot.teacher.api import generate_thoughts
    result = generate_thoughts(examples, backend=backend, settings=settings, journal="thoughts.sqlite")
    result.records, result.failures

They do what the commands do, without files. `options` are the keyword arguments of `run_stage` and the
fields of the stage: `num_samples`, `relation_map`, `threshold`, `num_rounds`, `regenerate_with`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from nlicot.data.rows import Row
from nlicot.data.thoughts import Scored, reflection_from, scored_from, thought_from
from nlicot.records import Example, Failure, Reflection, Thought
from nlicot.teacher.backends.base import Backend, Endpoint
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.journal import Journal
from nlicot.teacher.prompt import STAGE_PROMPTS, TeacherPrompt, load_prompt
from nlicot.teacher.stages import GenerateStage, ReflectStage, ScoreStage, Stage, StageSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Generic[T]):
    """A stage's records, in the order of its inputs, and its failures."""

    records: list[T]
    failures: list[Failure]
    report: scheduler.RunReport


def generate_thoughts(examples: Sequence[Example], **options: Any) -> StageResult[Thought]:
    """Ask for a blind thought and a label for each pair."""
    return run_stage(GenerateStage, thought_from, examples=examples, **options)


def reflect_on(thoughts: Sequence[Thought], **options: Any) -> StageResult[Reflection]:
    """Ask for a reflection on each wrong thought; skip correct ones."""
    return run_stage(ReflectStage, reflection_from, thoughts=thoughts, **options)


def score_texts(texts: Sequence[Thought | Reflection], **options: Any) -> StageResult[Scored]:
    """Ask a judge for a score of each text, and rewrite those below the threshold.

    The records hold every round: scores, and the regenerated thoughts and reflections between them.
    """
    return run_stage(ScoreStage, scored_from, texts=texts, **options)


def run_stage(
    stage_class: type[Stage[Any]],
    record_from: Callable[[Row], T],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompts: Sequence[TeacherPrompt] = (),
    run: scheduler.RunSettings | None = None,
    **inputs: Any,
) -> StageResult[T]:
    """Run a stage, and read its records.

    Args:
        backend: `backends.registry.connect` returns one.
        journal: a file that stores every answer: with the same one, nothing is paid for twice.
        prompts: replace the default ones of their types; `prompt.load_prompt` loads them.
        run: limits and budget.

    Raises:
        TeacherStopped: the run ended early; all answers so far are in the journal.
    """
    given = {prompt.type: prompt for prompt in prompts}
    defaults = {kind: load_prompt(kind) for kind in STAGE_PROMPTS[stage_class.name]}
    endpoint = Endpoint(name=backend.name, server=backend.server)
    stage = stage_class(endpoint=endpoint, settings=settings, prompts=given | defaults | given, **inputs)
    with Journal(Path(journal), job=stage.name) as opened:
        report = scheduler.run_phases(
            [scheduler.Phase(tasks=stage.tasks)],
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=opened,
            settings=run or scheduler.RunSettings(),
        )
        found = list(scheduler.outcomes(opened, stage.tasks(), report.tally))
    return StageResult(
        records=[record_from(row) for outcome in found if outcome.ok for row in scheduler.rows_of(outcome)],
        failures=[scheduler.failure_of(outcome) for outcome in found if not outcome.ok],
        report=report,
    )
