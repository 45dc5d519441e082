"""The commands `generate`, `reflect` and `score`, their progress bar and summary; refusals come first."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import Namespace
from tqdm import tqdm

from nlicot.data.atomic_write import refuse_overwriting, write_json, write_jsonl, write_text
from nlicot.data.pairs import LABELLED_SPLITS, PairFormat, read_examples
from nlicot.data.root import DataRoot, failures_path, working_root
from nlicot.data.shards import Shard, ShardOfWork
from nlicot.data.thoughts import TextFiles, read_joined, thought_from
from nlicot.errors import ConfigError, DataError, NoAnswers, TeacherLopsided
from nlicot.evaluation import metrics
from nlicot.records import to_json_dict
from nlicot.teacher.backends.base import BACKENDS, Request, connect, endpoint, find_key
from nlicot.teacher.engine import scheduler
from nlicot.teacher.engine.journal import Journal, Outcome
from nlicot.teacher.engine.pricing import Budget, Price, estimate, format_estimate, load_prices, price_of
from nlicot.teacher.engine.scheduler import Consumption, RunReport, Tally, run_log
from nlicot.teacher.engine.stopping_rule import SAME_COMMAND
from nlicot.teacher.label_check import ProbeReport, pairs_to_probe, probe
from nlicot.teacher.options import (
    STAGES,
    definitions_name,
    load_prompts,
    parse,
    relation_map,
    request_fields,
)
from nlicot.teacher.stages import GenerateStage, ReflectStage, ScoreStage, Stage, StageSettings, task_key

T = TypeVar("T")

logger = logging.getLogger(__name__)
OUTPUT_PATH = {"generate": DataRoot.thoughts, "reflect": DataRoot.reflections, "score": DataRoot.scores}
LOG_FOLDER = {"generate": "thoughts", "reflect": "reflections", "score": "score"}
NEXT_COMMAND = {
    "generate": ["reflect"],
    "generate, all right": ["prepare", "--builder", "correct_only"],
    "reflect": ["score"],
    "score": ["prepare", "--builder", "reflected"],
}
SMALLEST_DATABASE = 512
"""Bytes of the smallest page of SQLite, which takes a shorter file for an empty database."""
MAX_PAIRS_LISTED = 10


def run(command: str, settings: Namespace) -> int:
    """Run one of the three commands; returns its exit code."""
    root = working_root(settings.root)
    shard: Shard | None = settings.shard
    journal_path = root.path / "journal" / (shard.name if shard else "") / f"{command}.sqlite"
    if settings.export_journal:
        _export_journal(journal_path, settings)
        return 0
    existing = [split for split in ("train", "dev") if root.pairs(split).exists()]
    splits = settings.split or existing or ["train"]  # reading train then reports the missing file
    stages = {split: _stage(command, split, settings, root) for split in splits}
    if settings.dry_run:
        _dry_run(stages, settings, root, journal_path)
        return 0
    # Refusals come before anything is written.
    find_key(settings.backend, settings.server_url, settings.send_key)
    first = next(iter(stages.values()))
    Budget(prices=_prices(settings, first.models), cap_usd=settings.budget)
    only_probe = settings.get("probe")
    whole = {split: OUTPUT_PATH[command](root, split) for split in splits}
    outputs = {split: shard.path(path) if shard else path for split, path in whole.items()}
    # Failures that are asked again, or a split that is missing, only add to outputs of the same run.
    is_unfinished = settings.retry_failures or not all(map(_has_content, outputs.values()))
    may_add = not settings.reparse and is_unfinished and journal_path.exists()
    if not only_probe:
        refuse_overwriting(*outputs.values(), overwrite=settings.overwrite or may_add)
        refuse_overwriting(*map(failures_path, outputs.values()), overwrite=True)
    finished = [str(path) for path in outputs.values() if _has_content(path)]
    if finished and not _has_content(journal_path, at_least=SMALLEST_DATABASE) and not only_probe:
        logger.warning(
            "%s: %s, though %s is finished: every answer is asked and paid again (--dry_run shows the cost)",
            journal_path,
            "empty" if journal_path.exists() else "missing",
            ", ".join(finished),
        )
    log_name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}{f'-{shard.name}' if shard else ''}.log"
    log_path = root.path / "logs" / LOG_FOLDER[command] / log_name
    job = _job(stages, settings, root)
    with _open_journal(journal_path, settings, job) as journal, scheduler.log_to(log_path):
        _report_interrupted(journal, runs_jobs=BACKENDS[settings.backend].runs_jobs)
        if may_add and not only_probe:
            others = [path for split, path in outputs.items() if not _is_ours(path, stages[split], journal)]
            refuse_overwriting(*others, overwrite=settings.overwrite)
        if settings.reparse or settings.retry_failures:
            journal.discard_outcomes(failed_only=not settings.reparse)
        report = _ask(stages, settings, journal)
        if not only_probe:
            empty, any_wrong = [], False
            # A probe before them asks about the first split.
            probes = report.phases[: -len(stages)]
            used = dict(zip(stages, report.phases[-len(stages) :], strict=True))
            for split, stage in stages.items():
                found = list(scheduler.outcomes(journal, stage.tasks(), report.tally))
                consumption = sum(probes if stage is first else (), used[split])
                _write_output(split, stage, outputs[split], found, report, consumption, log_path)
                if found and not any(outcome.ok for outcome in found):
                    empty.append(split)
                any_wrong |= any(outcome.correct is False for outcome in found)
            print(f"log          {log_path}")
            if empty:
                failed = {task.key for split in empty for task in stages[split].tasks()}
                is_unanswered = failed <= report.tally.unanswered.keys()
                again = SAME_COMMAND if is_unanswered else "--retry_failures asks again"
                raise NoAnswers(f"{', '.join(empty)}: every pair failed, so no output was written ({again})")
            if shard:
                for path in whole.values():
                    print(f"next         python -m nlicot merge-shards {shlex.quote(str(path))}")
                return 0
            print(f"next         {_next_command(command, settings, any_wrong=any_wrong)}")
            if command == "reflect":
                print("(scores are optional: prepare and fit also continue from here)")
    return 0


def _stage(command: str, split: str, settings: Namespace, root: DataRoot) -> Stage[Any]:
    """Read a split's inputs and prompts, and set up the stage over them."""
    optional, pair_format = split not in LABELLED_SPLITS, PairFormat.of(settings)
    examples = read_examples(root.pairs(split), pair_format, labels_optional=optional)
    known = {example.id for example in examples}
    wanted = known if settings.ids is None else set(settings.ids)
    if unknown := ", ".join(sorted(wanted - known)):
        raise ConfigError(
            f"--ids: found {unknown}, expected ids of pairs in {root.pairs(split)} (--split names another)"
        )
    chosen = [example for example in examples if example.id in wanted][: settings.limit]
    shard: Shard | None = settings.shard

    def inputs(items: Sequence[T]) -> tuple[Sequence[T], ShardOfWork | None]:
        if shard is None:
            return items, None
        # Not the server: each machine may have its own.
        names = ("backend", "samples", "threshold", "rounds", "regenerate_with")
        own = {name: settings.get(name) for name in names} | {"relations": dict(relations or {})}
        same = _stage_settings(settings), own, [prompt.sha256 for prompt in prompts.values()]
        return shard.of(items), ShardOfWork.of(shard, command, items, *same)

    prompts = load_prompts(command, settings)
    relations = relation_map(settings) if command == "generate" else None
    shared: dict[str, Any] = {
        "endpoint": endpoint(settings.backend, settings.server_url),
        "settings": _stage_settings(settings),
        "prompts": prompts,
    }
    if command == "generate":
        pairs, part = inputs(chosen)
        return GenerateStage(
            examples=pairs, num_samples=settings.samples, relation_map=relations, part=part, **shared
        )
    path, reflections_path = root.thoughts(split), root.reflections(split)
    if not path.exists():
        raise DataError("no such file", path=path, remedy="write it first: python -m nlicot generate")
    with_reflections = command == "score" and reflections_path.exists()
    files = TextFiles(thoughts=path, reflections=reflections_path if with_reflections else None)
    joined = read_joined(examples, files)
    report = probe(joined.thoughts)
    if report.labels_reversed or report.below_chance:  # reflections would argue for the wrong labels
        _check_labels(report, settings, where=f"{path}: ")
    ids = {example.id for example in chosen}
    thoughts = [thought for thought in joined.thoughts if thought.id in ids]
    if command == "reflect":
        mine, part = inputs(thoughts)
        return ReflectStage(thoughts=mine, part=part, **shared)
    reflections = {(reflection.id, reflection.sample): reflection for reflection in joined.reflections}
    texts, part = inputs([reflections.get((each.id, each.sample)) or each for each in thoughts])
    return ScoreStage(
        texts=texts,
        part=part,
        threshold=settings.threshold,
        num_rounds=settings.rounds,
        regenerate_with=settings.regenerate_with or (settings.model,),
        **shared,
    )


def _stage_settings(settings: Namespace) -> StageSettings:
    given = vars(settings) | {"request_fields": request_fields(settings)}
    return StageSettings(**{field.name: given[field.name] for field in dataclasses.fields(StageSettings)})


def _prices(settings: Namespace, models: Iterable[str]) -> dict[str, Price | None]:
    table = load_prices(settings.prices)
    return {model: price_of(model, table, settings.price, backend=settings.backend) for model in models}


def _job(stages: Mapping[str, Stage[Any]], settings: Namespace, root: DataRoot) -> str:
    """Identify a run by what it asks: a budget covers all starts of the same run, and no other run."""
    first = next(iter(stages.values()))
    folder, prompt = str(root.path.resolve()), str(settings.prompt)
    content = [first.name, settings.backend, settings.server_url, first.models, folder, list(stages)]
    content += [first.settings.params(), definitions_name(settings), prompt]
    if first.settings.request_fields:  # else the jobs of earlier journals would change
        content.append(first.settings.request_fields)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _ask(stages: Mapping[str, Stage[Any]], settings: Namespace, journal: Journal) -> RunReport:
    """Ask all questions that the journal has no answer to."""
    stage = next(iter(stages.values()))
    backend = connect(
        settings.backend,
        settings.server_url,
        send_key=settings.send_key,
        timeout_s=settings.timeout,
        concurrency=settings.concurrency,
        journal_folder=journal.path.parent,
    )
    models, splits, prompt = ", ".join(stage.models), ", ".join(stages), stage.first_prompt.sha256[:12]
    run_log.info("%s: %s of %s, prompt %s, %s", stage.name, models, settings.backend, prompt, splits)
    num_questions = sum(1 for stage in stages.values() for _ in stage.questions())
    with contextlib.closing(_ProgressBar(num_questions, stage.name)) as progress_bar:
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
    if not probed:
        if settings.probe:
            raise ConfigError("--probe: found no labels, expected some to compare with")
        return phases
    # One sample per pair is enough for the probe.
    small = dataclasses.replace(stage, examples=probed, num_samples=1)

    def judge() -> None:
        keys = [task.key for task in small.tasks()]
        answered = journal.outcomes(keys)
        found = [answered[key] for key in keys if key in answered]  # in the order of the file
        if (num_read := sum(outcome.ok for outcome in found)) < len(probed):
            (print if settings.probe else logger.info)(f"{num_read} of {len(probed)} answers could be read")
        rows = (row for outcome in found if outcome.ok for row in scheduler.rows_of(outcome))
        if num_read:
            _check_labels(probe(thought_from(row) for row in rows), settings, show=settings.probe)

    first = scheduler.Phase(tasks=small.tasks, after=judge)
    return [first] if settings.probe else [first, *phases]


def _check_labels(report: ProbeReport, settings: Namespace, *, where: str = "", show: bool = False) -> None:
    """Print or log a probe's report; unless `--yes`, stop if labels or definitions do not fit the answers."""
    do_not_fit = report.labels_reversed or report.lopsided
    if do_not_fit or show:
        print(report)
    else:
        logger.info(report.headline())
    if not do_not_fit or settings.yes:
        return
    remedy, page = "define them with --definitions FILE, then --probe again", "What the labels mean"
    if report.labels_reversed:
        remedy, page = report.exchange(settings.label_map), "Reversed labels"
    elif report.below_chance:
        remedy = f"labels may be reversed too: {report.exchange(settings.label_map)}; then {remedy}"
    raise TeacherLopsided(
        f"{where}{report.headline()}; {remedy} (docs/teacher.md, '{page}'), or continue with --yes"
    )


def _next_command(command: str, settings: Namespace, *, any_wrong: bool) -> str:
    """Return the command that goes on, with the flags of this one that it needs."""
    following = NEXT_COMMAND[command if any_wrong or command != "generate" else "generate, all right"]
    defaults, names = parse(command, []), ["root"]
    if following[0] in STAGES:
        names.append("split")
        if any(settings[name] != defaults[name] for name in ("backend", "server_url")):
            # Another server does not know the recipe's models.
            names += ["backend", "server_url", "send_key", "model", "request_field", "price", "prices"]
    names += [f"definitions.{name}" for name in ("file", "entailment", "no_entailment")]
    words = ["python", "-m", "nlicot", *following]
    if command == "score":
        words += ["--builder_args", f"min_score={settings.threshold}"]
    for name in names:
        if (value := settings.get(name)) is None or value == defaults.get(name):
            continue
        if isinstance(value, Price):
            value = f"{value.input},{value.output}"
        values = (
            value if name == "request_field" else [",".join(value) if isinstance(value, tuple) else value]
        )
        for text in values:
            shown = str(text).lower() if isinstance(text, bool) else str(text)
            words += [f"--{name.removesuffix('.file')}", shown]
    return shlex.join(words + PairFormat.of(settings).flags())


def _has_content(path: Path, *, at_least: int = 1) -> bool:
    return path.exists() and path.stat().st_size >= at_least


def _is_ours(path: Path, stage: Stage[Any], journal: Journal) -> bool:
    """Return True if the journal has each line of an output as a record: writing it again loses nothing."""
    found = scheduler.outcomes(journal, stage.tasks(), Tally())
    lines = {json.dumps(row, ensure_ascii=False) for outcome in found if outcome.ok for row in outcome.rows}
    text = path.read_text(encoding="utf-8", errors="replace") if _has_content(path) else ""
    written = text.split("\n")  # not `splitlines`: a text may contain U+2028
    return set(written[1:] if stage.part else written) <= lines | {""}


def _write_output(
    split: str,
    stage: Stage[Any],
    path: Path,
    found: list[Outcome],
    report: RunReport,
    used: Consumption,
    log: Path,
) -> None:
    """Write the records in the order of the inputs, the failures next to them, and the summary."""
    is_empty = bool(found) and not any(outcome.ok for outcome in found)
    if not is_empty:  # else it would replace an earlier output, or pass for a finished one
        rows = [row for outcome in found if outcome.ok for row in outcome.rows]
        if stage.part:
            num_failures = sum(not outcome.ok for outcome in found)
            rows.insert(0, stage.part.first_line(len(rows), num_failures))
        write_jsonl(path, rows, overwrite=True)  # refused at the start if it may not be replaced
    failed_path = failures_path(path)
    failed_path.unlink(missing_ok=True)
    if failures := [to_json_dict(scheduler.failure_of(outcome)) for outcome in found if not outcome.ok]:
        write_jsonl(failed_path, failures, overwrite=True)
    content, text = summarise(stage.name, found, report, used)
    stem = f"{log.stem}-{split}.summary"
    write_json(log.with_name(f"{stem}.json"), content)
    write_text(log.with_name(f"{stem}.txt"), text + "\n", overwrite=True)
    run_log.info("%s: %s", split, text.splitlines()[0])
    print(f"{split}: {text}\n\n{split:<13}{'no output: every pair failed' if is_empty else path}")
    if failures:
        others = "" if is_empty else " (all other pairs are complete; --retry_failures asks again)"
        print(f"failures     {failed_path}{others}")


def _open_journal(journal_path: Path, settings: Namespace, job: str = "") -> Journal:
    return Journal(journal_path, job=job, interrupted_are_paid=not BACKENDS[settings.backend].runs_jobs)


def _dry_run(
    stages: Mapping[str, Stage[Any]], settings: Namespace, root: DataRoot, journal_path: Path
) -> None:
    """Print what a run would cost; nothing is sent, and no key is needed."""
    as_of = None if settings.price else load_prices(settings.prices).as_of
    dollars, spent = [0.0, 0.0], 0.0
    with contextlib.ExitStack() as stack:
        journal = None
        if journal_path.exists():
            job = _job(stages, settings, root)
            journal = stack.enter_context(_open_journal(journal_path, settings, job))
            _report_interrupted(journal, runs_jobs=BACKENDS[settings.backend].runs_jobs)
            spent = journal.spent_usd()
        for split, stage in stages.items():
            new = _unanswered(stage, journal, failed_too=settings.retry_failures)
            cost = estimate(new, _prices(settings, stage.models))
            print(f"{split}: {format_estimate(cost, as_of=as_of)}")
            dollars = [sum(pair) for pair in zip(dollars, cost.usd or (0.0, 0.0), strict=True)]
    if stages and next(iter(stages.values())).name == "score" and settings.rounds:
        print("(without rewrites: each round asks twice more about a text that scores low)")
    low, high = (spent + usd for usd in dollars)
    if settings.budget is not None and high > settings.budget:
        certainly = "is less than" if low > settings.budget else "may be less than"
        earlier = f", of which ${spent:.2f} are spent" if spent else ""
        print(f"--budget {settings.budget:g} {certainly} this run costs: ${low:.2f} to ${high:.2f}{earlier}")


def _unanswered(stage: Stage[Any], journal: Journal | None, *, failed_too: bool) -> Iterator[Request]:
    """Yield the first requests that a run would send."""
    for _, request, suffix in stage.questions():
        if journal is None or journal.reply(request.key()) is None:
            yield request
        elif failed_too:
            key = task_key(request, suffix)
            is_ok, _ = journal.statuses([key]).get(key, (True, None))
            if not is_ok:
                yield request


def _export_journal(path: Path, settings: Namespace) -> None:
    if not path.exists():
        raise ConfigError(f"--export_journal: found no journal {path}, expected one of an earlier run")
    with _open_journal(path, settings) as journal:
        _report_interrupted(journal, runs_jobs=BACKENDS[settings.backend].runs_jobs)
        write_jsonl(settings.export_journal, journal.export(), overwrite=settings.overwrite)
    print(f"journal      {settings.export_journal}")


def _report_interrupted(journal: Journal, *, runs_jobs: bool) -> None:
    for key, pair in journal.interrupted:
        run_log.info("%s: in flight when an earlier run ended (request %s)", pair, key)
    if num := len(journal.interrupted):
        pairs = ", ".join(pair for _, pair in journal.interrupted[:MAX_PAIRS_LISTED])
        more = f" and {num - MAX_PAIRS_LISTED} more" if num > MAX_PAIRS_LISTED else ""
        action = "looked up in its batch jobs" if runs_jobs else "sent again"
        message = "an earlier run ended with %d requests in flight, possibly billed; they are %s: %s%s"
        logger.info(message, num, action, pairs, more)


class _ProgressBar:
    """A `tqdm` bar that follows a tally; it appears with the first `update`."""

    def __init__(self, total: int, title: str) -> None:
        self._total, self._title = total, title
        self._bar: Any = None

    def update(self, tally: Tally, budget: Budget) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._total, desc=self._title, unit="pair", mininterval=0.2)
            return
        self._bar.set_postfix_str(describe(tally, budget), refresh=False)
        self._bar.update(tally.num_finished - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def describe(tally: Tally, budget: Budget) -> str:
    """Summarise a tally in a few words.

    >>> describe(Tally(num_judged=4, num_correct=3, prompt_tokens=1200), Budget(prices={}))
    'right 75 %, failed 0, tokens 1,200'
    """
    parts = [f"failed {tally.num_failed}", f"tokens {tally.prompt_tokens + tally.completion_tokens:,}"]
    if tally.num_judged:
        parts.insert(0, f"right {tally.num_correct / tally.num_judged:.0%}".replace("%", " %"))
    if tally.waiting_s:
        parts.append(f"429: waiting {tally.waiting_s:.0f} s")
    if budget.spent_usd:
        parts.append(f"cost ${budget.spent_usd:.4f}")
    return ", ".join(parts)


def summarise(
    stage: str, outcomes: Sequence[Outcome], report: RunReport, used: Consumption
) -> tuple[dict[str, Any], str]:
    """Summarise a split of a finished run, for a JSON file and for the terminal; `used` is its part."""
    rows = [row for outcome in outcomes if outcome.ok for row in outcome.rows]
    failures = Counter(str(outcome.rows[0]["kind"]) for outcome in outcomes if not outcome.ok)
    origins = [row.get("provenance", {}) for row in rows]
    num_failed = failures.total()
    content: dict[str, Any] = {
        "stage": stage,
        "num_records": len(rows),
        "num_failed": num_failed,
        "failures": dict(failures),
        "faults_on_the_way": dict(used.faults),
        "by_model": dict(Counter(str(origin.get("model", "")) for origin in origins)),
        "num_repaired": sum(bool(origin.get("params", {}).get("repaired")) for origin in origins),
        "num_requests": used.num_requests,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "cost_usd": round(used.cost_usd, 6) if report.cost_known else None,
        "run_cost_usd": round(report.spent_usd, 6) if report.cost_known else None,
        "duration_s": round(used.duration_s, 2),
    }
    cost = "of unknown price"
    if report.cost_known:  # of all splits, with earlier starts
        cost = f"${used.cost_usd:.4f} of ${report.spent_usd:.4f} in all"
    kinds = ", ".join(f"{kind}: {num}" for kind, num in failures.most_common())
    parts = [
        f"{len(rows)} records, {num_failed} failed{f' ({kinds})' if kinds else ''}; "
        f"{used.num_requests} requests, {used.prompt_tokens:,} + {used.completion_tokens:,} tokens, "
        f"{cost}, {used.duration_s:.1f} s"
    ]
    texts = [row for row in rows if "score" not in row]
    thoughts = [row for row in texts if "improved_thought_process" not in row]
    first = [row for row in thoughts if not row.get("round")]  # rewrites are of those that scored low
    if judged := [row for row in first if row.get("true_label") is not None]:
        parts.append(_teacher_metrics(judged, content))
    if texts:
        lengths = sorted(map(_num_words, texts))
        quartiles = [lengths[round(quarter / 4 * (len(lengths) - 1))] for quarter in range(5)]
        names = ("least", "first_quartile", "median", "third_quartile", "most")
        content["thought_words"] = dict(zip(names, quartiles, strict=True))
    if scored := [row for row in rows if "score" in row]:
        parts.append(_scores(scored, content))
    return content, "\n\n".join(parts)


def _num_words(row: dict[str, Any]) -> int:
    return len((row.get("improved_thought_process") or row["thought_process"]).split())


def _teacher_metrics(thoughts: list[dict[str, Any]], content: dict[str, Any]) -> str:
    true, predicted = ([row[name] for row in thoughts] for name in ("true_label", "predicted_label"))
    # With many thoughts, intervals need fewer resamples.
    num_resamples = 2000 if len(true) < 10_000 else 200
    found = metrics.classification_metrics(true, predicted, num_resamples=num_resamples)
    content["teacher"] = metrics.metrics_to_dict(found)
    correct = [label == answer for label, answer in zip(true, predicted, strict=True)]
    groups = metrics.accuracy_by(metrics.length_bins(list(map(_num_words, thoughts))), correct)
    by_length = {group.name: {"num": group.num, "accuracy": group.accuracy} for group in groups}
    content["accuracy_by_length"] = by_length
    lines = [
        metrics.format_table(found, "the teacher against the true labels"),
        "",
        "by length of the thought",
    ]
    lines += [f"  {group.name:<16}{group.accuracy:>7.1%} of {group.num}" for group in groups]
    return "\n".join(lines)


def _scores(rows: list[dict[str, Any]], content: dict[str, Any]) -> str:
    rounds: dict[str, dict[str, int]] = {}
    scores = Counter((row["target"], row.get("round", 0), row["score"]) for row in rows)
    for (target, round_, score), num in sorted(scores.items()):
        rounds.setdefault(f"{target}, round {round_}", {})[str(score)] = num
    content["scores"] = rounds
    lines = [("scores", list(range(1, 6)))]
    lines += [(name, [counts.get(str(score), 0) for score in range(1, 6)]) for name, counts in rounds.items()]
    return "\n".join(f"{name:<24}" + "".join(f"{value:>7}" for value in values) for name, values in lines)
