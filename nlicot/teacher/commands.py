"""What `generate`, `reflect` and `score` do, from their options to a finished file and its summary.

Whatever can be refused is refused before the first request: outputs that exist, pairs that cannot be read,
prompts that lack a place, a missing key, an unknown model.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import refuse_overwriting, write_json, write_jsonl, write_text
from nlicot.data.root import working_root
from nlicot.data.thoughts import thought_from
from nlicot.errors import ConfigError, TeacherLopsided
from nlicot.records import Example, to_json_dict
from nlicot.teacher.backends.registry import BACKENDS, connect
from nlicot.teacher.engine.journal import Journal
from nlicot.teacher.engine.pricing import estimate, format_estimate, load_prices
from nlicot.teacher.engine.progress import ProgressBar
from nlicot.teacher.engine.scheduler import run_log
from nlicot.teacher.engine.session import (
    Phase,
    RunReport,
    RunSettings,
    failure_of,
    log_to,
    outcomes,
    rows_of,
    run_phases,
)
from nlicot.teacher.engine.summary import StageStatistics, summarise
from nlicot.teacher.options import parse
from nlicot.teacher.planning import Work, job_of, prices_of, works_of
from nlicot.teacher.stages.generate import Generation
from nlicot.teacher.stages.label_check import pairs_to_probe, probe

logger = logging.getLogger(__name__)
LOG_FOLDER = {"generate": "thoughts", "reflect": "reflections", "score": "score"}
NEXT = {
    "generate": "reflect",
    "reflect": "score (or straight on: prepare, fit)",
    "score": "prepare --builder reflected --builder-args min_score=4, or fit",
}


def main(command: str, args: Sequence[str]) -> int:
    """Run one of the three commands; returns its exit code."""
    options = parse(command, args)
    root = working_root(options.root)
    journal_path = root.path / "journal" / f"{command}.sqlite"
    if options.export_journal:
        return _export(journal_path, options)
    if not options.model:
        raise ConfigError("--model: found none, expected the teacher's name (or give it in a --config file)")
    works = works_of(command, options, root)
    asks_for_all = not (options.dry_run or getattr(options, "probe", False))
    if asks_for_all:
        refuse_overwriting(*(work.output_path for work in works), overwrite=options.overwrite)
    if options.dry_run:
        return _dry_run(works, options, journal_path)
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    log_path = root.path / "logs" / LOG_FOLDER[command] / f"{stamp}.log"
    with _opened(journal_path, options, job_of(works, options, root)) as journal, log_to(log_path):
        _say_what_was_lost(journal, options.backend)
        if options.reparse or options.retry_failures:
            journal.discard_outcomes(failed_only=not options.reparse)
        return _Command(command, options, works, journal, log_path).run()


class _Command:
    """One run over all splits, sharing a server, a journal and a log."""

    def __init__(
        self,
        name: str,
        options: argparse.Namespace,
        works: Sequence[Work],
        journal: Journal,
        log_path: Path,
    ) -> None:
        self.name, self.options, self.works = name, options, works
        self.journal, self.log_path = journal, log_path
        self.models = works[0].stage.models

    def run(self) -> int:
        """Ask, write, and say what it came to."""
        options = self.options
        backend = connect(
            options.backend,
            options.server_url,
            timeout_s=options.timeout,
            concurrency=options.concurrency,
            journal_folder=self.journal.path.parent,
        )
        total = sum(1 for work in self.works for _ in work.stage.requests())
        progress_bar = ProgressBar(total, self.name)
        run_log.info(
            "%s: %s of %s, prompt %s, %s",
            self.name,
            ", ".join(self.models),
            self.options.backend,
            next(iter(self.works)).stage.prompt_sha256[:12],
            ", ".join(work.split for work in self.works),
        )
        try:
            report = run_phases(
                list(self._phases()),
                stage=self.name,
                backend=backend,
                models=self.models,
                journal=self.journal,
                settings=RunSettings(
                    concurrency=BACKENDS[options.backend].in_flight(options.concurrency),
                    requests_per_minute=options.requests_per_minute,
                    tokens_per_minute=options.tokens_per_minute,
                    budget_usd=options.budget,
                    prices=prices_of(options, self.models),
                ),
                on_progress=progress_bar.update,
            )
        finally:
            progress_bar.close()
        if not getattr(options, "probe", False):
            for work in self.works:
                self._write(work, report)
            print(f"log          {self.log_path}\nnext         python -m nlicot {NEXT[self.name]}")
        return 0

    def _phases(self) -> Iterator[Phase]:
        first = self.works[0].stage
        if isinstance(first, Generation):
            probed = pairs_to_probe(first.examples())
            if probed:
                yield self._probe(first, probed)
            if self.options.probe:
                if not probed:
                    raise ConfigError("--probe: found no labels, expected some to compare with")
                return
        for work in self.works:
            yield Phase(tasks=work.stage.tasks)

    def _probe(self, stage: Generation, probed: list[Example]) -> Phase:
        small = Generation(
            examples=lambda: probed,
            endpoint=stage.endpoint,
            settings=stage.settings,
            prompt=stage.prompt,
            relation_map=stage.relation_map,
        )

        def judge() -> None:
            finals = self.journal.outcomes([task.key for task in small.tasks()])
            report = probe(
                thought_from(row) for final in finals.values() if final.ok for row in rows_of(final)
            )
            if self.options.probe or report.lopsided:
                print(report)
            else:
                logger.info(report.headline())
            if report.lopsided and not self.options.yes:
                raise TeacherLopsided(
                    f"{report.headline()}; say what they mean by --definitions FILE, then --probe again "
                    "(README, 'What the labels mean'); --yes to go on"
                )

        return Phase(tasks=small.tasks, after=judge)

    def _write(self, work: Work, report: RunReport) -> None:
        """The finished file in the pairs' order, its failures beside it, and the summary."""
        figures, failures = StageStatistics(), []

        def rows() -> Iterator[dict[str, Any]]:
            for final in outcomes(self.journal, work.stage.tasks(), report.tally):
                figures.add(final)
                if final.ok:
                    yield from final.rows
                else:
                    failures.append(to_json_dict(failure_of(final)))

        write_jsonl(work.output_path, rows(), overwrite=self.options.overwrite)
        failures_path = work.output_path.with_suffix(".failures.jsonl")
        failures_path.unlink(missing_ok=True)
        if failures:
            write_jsonl(failures_path, failures, overwrite=True)
        summary = summarise(self.name, figures, report)
        stem = self.log_path.with_suffix("")
        write_json(stem.with_name(f"{stem.name}-{work.split}.summary.json"), summary.content)
        write_text(
            stem.with_name(f"{stem.name}-{work.split}.summary.txt"), summary.text + "\n", overwrite=True
        )
        run_log.info("%s: %s", work.split, summary.text.splitlines()[0])
        print(f"{work.split}: {summary.text}\n\n{work.split:<13}{work.output_path}")
        if failures:
            print(f"failures     {failures_path} (the others are complete; --retry-failures asks again)")


# ------------------------------------------------------------------ besides asking


def _opened(journal_path: Path, options: argparse.Namespace, job: str = "") -> Journal:
    return Journal(journal_path, job=job, interrupted_are_paid=not BACKENDS[options.backend].runs_jobs)


def _dry_run(works: Sequence[Work], options: argparse.Namespace, journal_path: Path) -> int:
    """What a run would cost; nothing is sent, and no key is needed."""
    as_of = load_prices(options.prices).as_of
    opened = _opened(journal_path, options) if journal_path.exists() else contextlib.nullcontext()
    with opened as journal:
        for work in works:
            new = (
                request
                for request in work.stage.requests()
                if journal is None or journal.reply(request.key()) is None
            )
            found = estimate(new, prices_of(options, work.stage.models))
            print(f"{work.split}: {format_estimate(found, as_of=as_of)}")
    return 0


def _export(journal_path: Path, options: argparse.Namespace) -> int:
    if not journal_path.exists():
        raise ConfigError(
            f"--export-journal: found no journal {journal_path}, expected one of an earlier run"
        )
    with _opened(journal_path, options) as journal:
        write_jsonl(options.export_journal, journal.export(), overwrite=options.overwrite)
    print(f"journal      {options.export_journal}")
    return 0


def _say_what_was_lost(journal: Journal, backend: str) -> None:
    for intent in journal.interrupted:
        run_log.info(
            "%s: in flight when an earlier run ended, perhaps paid (request %s)", intent.pair, intent.key
        )
    if journal.interrupted:
        pairs = ", ".join(intent.pair for intent in journal.interrupted[:10])
        more = f" and {len(journal.interrupted) - 10} more" if len(journal.interrupted) > 10 else ""
        logger.info(
            "an earlier run ended with %d requests in flight, perhaps paid, now %s: %s%s",
            len(journal.interrupted),
            "looked for in its batch jobs" if BACKENDS[backend].runs_jobs else "asked again",
            pairs,
            more,
        )
