"""The stages as plain functions over records, for notebooks and other programs.

    from nlicot.teacher.api import generate_thoughts
    result = generate_thoughts(examples, backend=backend, settings=settings, journal="thoughts.sqlite")
    result.records, result.failures

They do what the commands do, without files, and raise `TeacherStopped` if the run ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Required, TypedDict, TypeVar, Unpack

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


class Run(TypedDict, total=False):
    """The keyword arguments of every stage; `prompts` replace the default ones.

    `backends.registry.connect` returns a backend. The journal stores every answer: with the same file,
    nothing is paid for twice. `run` holds limits and budget.
    """

    backend: Required[Backend]
    settings: Required[StageSettings]
    journal: Required[Path | str]
    run: RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Generic[T]):
    """A stage's records, in the order of its inputs, and its failures."""

    records: list[T]
    failures: list[Failure]
    report: RunReport


def generate_thoughts(
    examples: Sequence[Example],
    *,
    prompt: TeacherPrompt | None = None,
    num_samples: int = 1,
    relation_map: Mapping[str, int] | None = None,
    **run: Unpack[Run],
) -> StageResult[Thought]:
    """Ask for `num_samples` blind thoughts and labels of each pair.

    `relation_map` holds the label of each relation, for a prompt of type `relation`.
    """
    prompt = prompt or load_prompt(PromptType.INITIAL_GENERATION)
    inputs = {"examples": examples, "num_samples": num_samples, "relation_map": relation_map}
    return _run(GenerateStage, inputs, {prompt.type: prompt}, thought_from, run)


def reflect_on(
    thoughts: Iterable[Thought], *, prompt: TeacherPrompt | None = None, **run: Unpack[Run]
) -> StageResult[Reflection]:
    """Ask for a reflection on each wrong thought; skip correct ones."""
    prompts = {PromptType.REFLECTION: prompt or load_prompt(PromptType.REFLECTION)}
    return _run(ReflectStage, {"thoughts": list(thoughts)}, prompts, reflection_from, run)


def score_texts(
    texts: Iterable[Thought | Reflection],
    *,
    prompts: Mapping[PromptType, TeacherPrompt] | None = None,
    threshold: int = 4,
    num_rounds: int = 3,
    regenerate_with: Sequence[str] = (),
    **run: Unpack[Run],
) -> StageResult[Score | Thought | Reflection]:
    """Ask a judge for a score of each text, and rewrite those below `threshold`.

    The records hold every round: scores, and the regenerated thoughts and reflections between them.
    """
    prompts = {kind: load_prompt(kind) for kind in SCORE_PROMPTS} | dict(prompts or {})
    inputs = {"texts": list(texts), "threshold": threshold, "num_rounds": num_rounds}
    inputs["regenerate_with"] = tuple(regenerate_with)
    return _run(ScoreStage, inputs, prompts, scored_from, run)


def _run(
    stage_class: type[Stage[Any]],
    inputs: Mapping[str, Any],
    prompts: Mapping[PromptType, TeacherPrompt],
    record_from: Callable[[Row], T],
    run: Run,
) -> StageResult[T]:
    backend = run["backend"]
    stage = stage_class(
        endpoint=Endpoint(name=backend.name, server=backend.server),
        settings=run["settings"],
        prompts=prompts,
        **inputs,
    )
    with Journal(Path(run["journal"]), job=stage.name) as journal:
        report = run_phases(
            [Phase(tasks=stage.tasks)],
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=journal,
            settings=run.get("run") or RunSettings(),
        )
        found = list(outcomes(journal, stage.tasks(), report.tally))
    return StageResult(
        records=[record_from(row) for outcome in found if outcome.ok for row in rows_of(outcome)],
        failures=[failure_of(outcome) for outcome in found if not outcome.ok],
        report=report,
    )
