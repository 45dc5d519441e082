"""The stages as plain functions over records: for a notebook, or a program of one's own.

    from nlicot.teacher.api import generate_thoughts
    made = generate_thoughts(examples, backend=backend, settings=settings, journal="thoughts.sqlite")
    made.records, made.failures

They are the commands without files: the same journal, retries and limits, so what was answered once is not
paid for again, whichever way it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from nlicot.teacher.stages.generate import Generation
from nlicot.teacher.stages.prompts import PromptType, TeacherPrompt, load_prompt
from nlicot.teacher.stages.reflect import Reflecting
from nlicot.teacher.stages.score import Scoring

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Generic[T]):
    """What a stage made, in the input's order; the failures of what stayed without; and how it went."""

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
) -> Made[Thought]:
    """Ask for a blind thought and a label for each pair.

    Args:
        journal: the file that keeps every answer; the same one again asks for nothing twice.
        prompt: of type `initial_generation` (which ships, and is the default) or `relation`.

    Raises:
        TeacherStopped: the run ended early; what was answered is in the journal.
    """
    stage = Generation(
        examples=lambda: examples,
        endpoint=_endpoint(backend),
        settings=settings,
        prompt=prompt or load_prompt(PromptType.INITIAL_GENERATION),
        num_samples=num_samples,
        relation_map=relation_map,
    )
    rows, failures, report = _run(stage, backend, Path(journal), run)
    return Made(records=[thought_from(row) for row in rows], failures=failures, report=report)


def reflect_on(
    thoughts: Iterable[Thought],
    *,
    backend: Backend,
    settings: StageSettings,
    journal: Path | str,
    prompt: TeacherPrompt | None = None,
    run: RunSettings | None = None,
) -> Made[Reflection]:
    """Ask for a reflection on each wrong thought; right ones are passed over.

    Raises:
        TeacherStopped: the run ended early; what was answered is in the journal.
    """
    given = list(thoughts)
    stage = Reflecting(
        thoughts=lambda: given,
        endpoint=_endpoint(backend),
        settings=settings,
        prompt=prompt or load_prompt(PromptType.REFLECTION),
    )
    rows, failures, report = _run(stage, backend, Path(journal), run)
    return Made(records=[reflection_from(row) for row in rows], failures=failures, report=report)


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
) -> Made[Score | Thought | Reflection]:
    """Ask a judge for a score of each text, and for a new text where it is below `threshold`.

    The records hold every round: scores, and the regenerated thoughts and reflections between them.

    Raises:
        TeacherStopped: the run ended early; what was answered is in the journal.
    """
    given = list(texts)
    stage = Scoring(
        texts=lambda: given,
        endpoint=_endpoint(backend),
        settings=settings,
        prompts={kind: load_prompt(kind) for kind in Scoring.prompt_types} | dict(prompts or {}),
        threshold=threshold,
        num_rounds=num_rounds,
        regenerate_with=tuple(regenerate_with),
    )
    rows, failures, report = _run(stage, backend, Path(journal), run)
    return Made(records=[scored_from(row) for row in rows], failures=failures, report=report)


def _endpoint(backend: Backend) -> Endpoint:
    return Endpoint(name=backend.name, server=backend.server)


def _run(
    stage: Stage[Any], backend: Backend, journal_path: Path, run: RunSettings | None
) -> tuple[list[Row], list[Failure], RunReport]:
    with Journal(journal_path, job=stage.name) as journal:
        report = run_phases(
            [Phase(tasks=stage.tasks)],
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=journal,
            settings=run or RunSettings(),
        )
        rows, failures = [], []
        for final in outcomes(journal, stage.tasks(), report.tally):
            if final.ok:
                rows += rows_of(final)
            else:
                failures.append(failure_of(final))
    return rows, failures, report
