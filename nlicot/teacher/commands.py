"""The commands `generate`, `reflect` and `score`; refusals come before the first request."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from nlicot.data.atomic_write import refuse_overwriting, write_json, write_jsonl, write_text
from nlicot.data.pairs import read_examples
from nlicot.data.root import DataRoot, working_root
from nlicot.data.thoughts import TextFiles, read_joined, thought_from
from nlicot.errors import ConfigError, DataError, TeacherLopsided
from nlicot.records import to_json_dict
from nlicot.teacher.backends.base import BACKENDS, connect, endpoint
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.journal import Journal
from nlicot.teacher.engine.pricing import Price, estimate, format_estimate, load_prices, price_of
from nlicot.teacher.engine.progress import ProgressBar, summarise
from nlicot.teacher.engine.scheduler import run_log
from nlicot.teacher.label_check import pairs_to_probe, probe
from nlicot.teacher.options import definitions_name, load_prompts, relation_map
from nlicot.teacher.stages import GenerateStage, ReflectStage, ScoreStage, Stage, StageSettings

logger = logging.getLogger(__name__)
OUTPUT_PATH = {"generate": DataRoot.thoughts, "reflect": DataRoot.reflections, "score": DataRoot.scores}
LOG_FOLDER = {"generate": "thoughts", "reflect": "reflections", "score": "score"}
NEXT_COMMAND = {
    "generate": "reflect",
    "reflect": "score (or continue with: prepare, fit)",
    "score": "prepare --builder reflected --builder_args min_score=4, or fit",
}
MAX_PAIRS_LISTED = 10


def run(command: str, settings: Namespace) -> int:
    """Run one of the three commands; returns its exit code."""
    root = working_root(settings.root)
    journal_path = root.path / "journal" / f"{command}.sqlite"
    if settings.export_journal:
        _export_journal(journal_path, settings)
        return 0
    existing = [split for split in ("train", "dev") if root.pairs(split).exists()]
    splits = settings.split or existing or ["train"]  # reading train then reports the missing file
    stages = {split: _stage(command, split, settings, root) for split in splits}
    if settings.dry_run:
        _dry_run(stages, settings, journal_path)
        return 0
    only_probe = settings.get("probe")
    output_paths = {split: OUTPUT_PATH[command](root, split) for split in splits}
    if not only_probe:
        refuse_overwriting(*output_paths.values(), overwrite=settings.overwrite)
    log_path = root.path / "logs" / LOG_FOLDER[command] / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
    job = _job(stages, settings, root)
    with _open_journal(journal_path, settings, job) as journal, scheduler.log_to(log_path):
        _report_interrupted(journal, runs_jobs=BACKENDS[settings.backend].runs_jobs)
        if settings.reparse or settings.retry_failures:
            journal.discard_outcomes(failed_only=not settings.reparse)
        report = _ask(stages, settings, journal)
        if not only_probe:
            for split, stage in stages.items():
                _write_output(split, stage, output_paths[split], settings, report, journal, log_path)
            print(f"log          {log_path}\nnext         python -m nlicot {NEXT_COMMAND[command]}")
    return 0


def _stage(command: str, split: str, settings: Namespace, root: DataRoot) -> Stage[Any]:
    """Read a split's inputs and prompts, and set up the stage over them."""
    examples = read_examples(root.pairs(split), label_map=settings.label_map)
    known = {example.id for example in examples}
    wanted = known if settings.ids is None else set(settings.ids)
    if unknown := ", ".join(sorted(wanted - known)):
        raise ConfigError(f"--ids: found {unknown}, expected ids of pairs in {root.pairs(split)}")
    chosen = [example for example in examples if example.id in wanted][: settings.limit]
    fields = dataclasses.fields(StageSettings)
    shared: dict[str, Any] = {
        "endpoint": endpoint(settings.backend, settings.server_url),
        "settings": StageSettings(**{field.name: settings[field.name] for field in fields}),
        "prompts": load_prompts(command, settings),
    }
    if command == "generate":
        relations = relation_map(settings)
        return GenerateStage(examples=chosen, num_samples=settings.samples, relation_map=relations, **shared)
    path, reflections_path = root.thoughts(split), root.reflections(split)
    if not path.exists():
        raise DataError("no such file", path=path, remedy="write it first: python -m nlicot generate")
    with_reflections = command == "score" and reflections_path.exists()
    files = TextFiles(thoughts=path, reflections=reflections_path if with_reflections else None)
    joined = read_joined(examples, files)
    ids = {example.id for example in chosen}
    thoughts = [thought for thought in joined.thoughts if thought.id in ids]
    if command == "reflect":
        return ReflectStage(thoughts=thoughts, **shared)
    reflections = {(reflection.id, reflection.sample): reflection for reflection in joined.reflections}
    return ScoreStage(
        texts=[reflections.get((thought.id, thought.sample)) or thought for thought in thoughts],
        threshold=settings.threshold,
        num_rounds=settings.rounds,
        regenerate_with=settings.regenerate_with or (settings.model,),
        **shared,
    )


def _prices(settings: Namespace, models: Iterable[str]) -> dict[str, Price | None]:
    """Return each model's price; None if it is not known."""
    table = load_prices(settings.prices)
    return {model: price_of(model, table, settings.price, backend=settings.backend) for model in models}


def _job(stages: Mapping[str, Stage[Any]], settings: Namespace, root: DataRoot) -> str:
    """Identify a run by what it asks: a budget covers all starts of the same run, and no other run."""
    first = next(iter(stages.values()))
    folder, prompt = str(root.path.resolve()), str(settings.prompt)
    content = [first.name, settings.backend, settings.server_url, first.models, folder, list(stages)]
    content += [first.settings.params(), definitions_name(settings), prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _ask(stages: Mapping[str, Stage[Any]], settings: Namespace, journal: Journal) -> scheduler.RunReport:
    """Ask all questions that the journal has no answer to."""
    stage = next(iter(stages.values()))
    backend = connect(
        settings.backend,
        settings.server_url,
        timeout_s=settings.timeout,
        concurrency=settings.concurrency,
        journal_folder=journal.path.parent,
    )
    models, splits, prompt = ", ".join(stage.models), ", ".join(stages), stage.first_prompt.sha256[:12]
    run_log.info("%s: %s of %s, prompt %s, %s", stage.name, models, settings.backend, prompt, splits)
    num_questions = sum(1 for stage in stages.values() for _ in stage.questions())
    with contextlib.closing(ProgressBar(num_questions, stage.name)) as progress_bar:
        return scheduler.run_phases(
            _phases(stages, settings, journal),
            stage=stage.name,
            backend=backend,
            models=stage.models,
            journal=journal,
            settings=scheduler.RunSettings(
                concurrency=BACKENDS[settings.backend].in_flight(settings.concurrency),
                requests_per_minute=settings.requests_per_minute,
                tokens_per_minute=settings.tokens_per_minute,
                budget_usd=settings.budget,
                prices=_prices(settings, stage.models),
            ),
            on_progress=progress_bar.update,
        )


def _phases(stages: Mapping[str, Stage[Any]], settings: Namespace, journal: Journal) -> list[scheduler.Phase]:
    phases = [scheduler.Phase(tasks=stage.tasks) for stage in stages.values()]
    stage = next(iter(stages.values()))
    if not isinstance(stage, GenerateStage):
        return phases
    probed = pairs_to_probe(stage.examples)
    if settings.probe and not probed:
        raise ConfigError("--probe: found no labels, expected some to compare with")
    if not probed:
        return phases
    # One sample per pair is enough for the probe.
    small = dataclasses.replace(stage, examples=probed, num_samples=1)

    def judge() -> None:
        found = journal.outcomes([task.key for task in small.tasks()]).values()
        rows = (row for outcome in found if outcome.ok for row in scheduler.rows_of(outcome))
        report = probe(thought_from(row) for row in rows)
        if settings.probe or report.lopsided:
            print(report)
        else:
            logger.info(report.headline())
        if report.lopsided and not settings.yes:
            raise TeacherLopsided(
                f"{report.headline()}; define them with --definitions FILE, then --probe again "
                "(docs/teacher.md, 'What the labels mean'), or continue with --yes"
            )

    first = scheduler.Phase(tasks=small.tasks, after=judge)
    return [first] if settings.probe else [first, *phases]


def _write_output(
    split: str,
    stage: Stage[Any],
    path: Path,
    settings: Namespace,
    report: scheduler.RunReport,
    journal: Journal,
    log_path: Path,
) -> None:
    """Write the records in the order of the inputs, the failures next to them, and the summary."""
    found = list(scheduler.outcomes(journal, stage.tasks(), report.tally))
    rows = (row for outcome in found if outcome.ok for row in outcome.rows)
    write_jsonl(path, rows, overwrite=settings.overwrite)
    failures_path = path.with_suffix(".failures.jsonl")
    failures_path.unlink(missing_ok=True)
    if failures := [to_json_dict(scheduler.failure_of(outcome)) for outcome in found if not outcome.ok]:
        write_jsonl(failures_path, failures, overwrite=True)
    content, text = summarise(stage.name, found, report)
    stem = f"{log_path.stem}-{split}.summary"
    write_json(log_path.with_name(f"{stem}.json"), content)
    write_text(log_path.with_name(f"{stem}.txt"), text + "\n", overwrite=True)
    run_log.info("%s: %s", split, text.splitlines()[0])
    print(f"{split}: {text}\n\n{split:<13}{path}")
    if failures:
        print(f"failures     {failures_path} (all other pairs are complete; --retry_failures asks again)")


def _open_journal(journal_path: Path, settings: Namespace, job: str = "") -> Journal:
    return Journal(journal_path, job=job, interrupted_are_paid=not BACKENDS[settings.backend].runs_jobs)


def _dry_run(stages: Mapping[str, Stage[Any]], settings: Namespace, journal_path: Path) -> None:
    """Print what a run would cost; nothing is sent, and no key is needed."""
    as_of = load_prices(settings.prices).as_of
    exists = journal_path.exists()
    with _open_journal(journal_path, settings) if exists else contextlib.nullcontext() as journal:
        for split, stage in stages.items():
            requests = (request for _, request, _ in stage.questions())
            new = (each for each in requests if journal is None or journal.reply(each.key()) is None)
            cost = estimate(new, _prices(settings, stage.models))
            print(f"{split}: {format_estimate(cost, as_of=as_of)}")


def _export_journal(journal_path: Path, settings: Namespace) -> None:
    if not journal_path.exists():
        message = f"--export_journal: found no journal {journal_path}, expected one of an earlier run"
        raise ConfigError(message)
    with _open_journal(journal_path, settings) as journal:
        write_jsonl(settings.export_journal, journal.export(), overwrite=settings.overwrite)
    print(f"journal      {settings.export_journal}")


def _report_interrupted(journal: Journal, *, runs_jobs: bool) -> None:
    for intent in journal.interrupted:
        run_log.info("%s: in flight when an earlier run ended (request %s)", intent.pair, intent.key)
    if num := len(journal.interrupted):
        pairs = ", ".join(intent.pair for intent in journal.interrupted[:MAX_PAIRS_LISTED])
        more = f" and {num - MAX_PAIRS_LISTED} more" if num > MAX_PAIRS_LISTED else ""
        action = "looked up in its batch jobs" if runs_jobs else "sent again"
        message = "an earlier run ended with %d requests in flight, possibly billed; they are %s: %s%s"
        logger.info(message, num, action, pairs, more)
