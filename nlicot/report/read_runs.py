"""Read what a run left: predictions, configuration and learning curves."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlicot.config_files import read_yaml, renamed, section
from nlicot.data.root import ensemble_path
from nlicot.data.rows import Row, read_rows, shown
from nlicot.data.soft_labels import SoftLabelSummary
from nlicot.errors import ConfigError, DataError
from nlicot.evaluation.drafts import DraftSummary, summarize_drafts
from nlicot.evaluation.metrics import MADE_WITH, ClassificationMetrics, classification_metrics, entails
from nlicot.run.folder import BEST, CONFIG, FIT_SUMMARY, PREDICTIONS, predictions_path
from nlicot.run.starting_adapter import Origin
from nlicot.text_tables import printable

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import ScalarEvent

NOT_IN_RECIPE = frozenset(
    ("seed_everything", "run", "resume", "preflight", "checkpoints_root", "final_evaluation", "config")
)
"""Keys of a configuration that do not make another ablation."""
TEXTS = ("premise", "hypothesis", "phenomenon", "thought_process", "status")
"""Optional fields of a prediction."""
CURVES = {
    "dev/loss": "dev loss",
    "train/loss": "train loss",
    "dev_generated/accuracy": "dev accuracy, generated",
    "dev/loss_label": "dev loss of the label",
    "train/loss_label": "train loss of the label",
    "dev/teacher_forced_label_accuracy": "dev label accuracy, teacher-forced",
}
"""Titles of the TensorBoard tags that are shown if they were logged, most informative first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A labelled pair and a run's prediction for it; fields that a file of labels lacks are None."""

    id: str
    true_label: int
    predicted_label: int | None
    p_entailment: float | None
    premise: str | None = None
    hypothesis: str | None = None
    phenomenon: str | None = None
    thought_process: str | None = None
    status: str | None = None
    draft_label: int | None = None

    def answered(self, predicted_label: int | None, p_entailment: float | None) -> Answer:
        """Return another system's answer to the same pair, without a thought."""
        return Answer(
            id=self.id,
            true_label=self.true_label,
            predicted_label=predicted_label,
            p_entailment=p_entailment,
            premise=self.premise,
            hypothesis=self.hypothesis,
            phenomenon=self.phenomenon,
        )

    @property
    def correct(self) -> bool:
        """True if the run predicted the true label; no answer is not correct."""
        return self.predicted_label == self.true_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A run in an ensemble, as it was when the ensemble predicted."""

    checkpoint: str
    weight: float
    origin: Origin | None
    soft_labels: SoftLabelSummary | None

    def __str__(self) -> str:
        return f"{printable(self.checkpoint)} (weight {self.weight:g})"


@dataclass(frozen=True, kw_only=True)  # no slots: they leave no room for a cached property
class Run:
    """A run's answers on one split.

    `folder` is None, and `config` empty, for predictions outside of a run's folder; `predictions_path` is
    None for a baseline.
    """

    name: str
    split: str
    predictions_path: Path | None
    folder: Path | None
    config: dict[str, Any]
    answers: Sequence[Answer]

    @cached_property
    def metrics(self) -> ClassificationMetrics:
        """The metrics of the answers."""
        columns = ("true_label", "predicted_label", "p_entailment")
        return classification_metrics(*([getattr(each, name) for each in self.answers] for name in columns))

    @cached_property
    def drafts(self) -> DraftSummary | None:
        """Counts of drafts and of the labels after them; None for a run without drafts."""
        columns = ("true_label", "draft_label", "predicted_label")
        return summarize_drafts(*([getattr(each, name) for each in self.answers] for name in columns))

    @cached_property
    def builder(self) -> str:
        """The short name or class name of the builder; empty if it is not recorded."""
        builder = section(self.config, "data").get("builder")
        if isinstance(builder, dict):
            builder = str(builder.get("class_path", "")).rpartition(".")[2]
        return str(builder or self.read_json(FIT_SUMMARY).get("builder") or "")

    @property
    def made_with(self) -> dict[str, Any]:
        """The adapters that the predictions were measured with, and how; empty if an earlier version did."""
        return section(section(self.read_json("metrics.json"), self.split), MADE_WITH)

    @property
    def is_baseline(self) -> bool:
        """True for answers that were made for the report."""
        return self.predictions_path is None

    @property
    def seed(self) -> int | None:
        """The seed in the configuration."""
        return self.config.get("seed_everything")

    @property
    def recipe(self) -> str | None:
        """The configuration without seed and names, as canonical JSON, which seeds of one ablation share."""
        if not self.config:
            return None
        # Settings that an earlier version did not have are null in a later one's configuration.
        items = [(name, value) for name, value in self.config.items() if value is not None]
        recipe = {name: value for name, value in items if name not in NOT_IN_RECIPE}
        for part in ("model", "data"):
            items = [*section(self.config, part).items()]
            recipe[part] = {name: value for name, value in items if name != "seed" and value is not None}
        if "start_from" in recipe:  # a sweep's experiment starts from the run of the same seed
            recipe["start_from"] = str(recipe["start_from"]).removesuffix(f"-{self.seed}")
        return json.dumps(recipe, sort_keys=True, default=str)

    @cached_property
    def origin(self) -> Origin | None:
        """The adapter that the run started from; None for a fresh one."""
        return Origin.in_summary(self.read_json(FIT_SUMMARY))

    @cached_property
    def soft_labels(self) -> SoftLabelSummary | None:
        """The soft labels that the run learnt from."""
        return SoftLabelSummary.in_summary(self.read_json(FIT_SUMMARY))

    @cached_property
    def members(self) -> Sequence[Member]:
        """The runs whose predictions were averaged; none for a run of its own."""
        path = self.predictions_path and ensemble_path(self.predictions_path)
        if path is None or not path.is_file():
            return []
        members = read_json(path).get("members", [])
        with interpreting(path):
            return [
                Member(
                    checkpoint=str(member["checkpoint"]),
                    weight=float(member["weight"]),
                    origin=Origin.in_summary(member["fit"]),
                    soft_labels=SoftLabelSummary.in_summary(member["fit"]),
                )
                for member in members
            ]

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run's folder; empty if there is none."""
        path = self.folder and self.folder / name
        return read_json(path) if path and path.is_file() else {}


def answering(name: str, run: Run, p_entailment: Sequence[float]) -> Run:
    """Return other answers to a run's pairs: the labels of these probabilities, without thoughts."""
    answers = [
        answer.answered(int(entails(p)), p) for answer, p in zip(run.answers, p_entailment, strict=True)
    ]
    return Run(name=name, split=run.split, predictions_path=None, folder=None, config={}, answers=answers)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError):
        raise DataError("no JSON", "a JSON object", path=path) from None
    if not isinstance(content, dict):
        raise DataError(shown(content), "a JSON object", path=path)
    return content


@contextmanager
def interpreting(path: Path) -> Iterator[None]:
    """Refuse a file that the program wrote itself if its content turns out to be damaged."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"missing {error}" if isinstance(error, KeyError) else error
        message = f"not as `fit`, `validate` or `generate` writes it ({problem}); delete it or make it again"
        raise DataError(message, path=path) from error


def read_runs(runs: Sequence[str], split: str, root: Path) -> list[Run]:
    """Read runs given by their folders, their names within `root`, or predictions files.

    A run has its folder's name; if two folders have the same name, both are named as they were given. All
    answers are in the first run's order, so that the bootstrap draws the same pairs for every run.
    """
    found = [_read_run(run, split, root) for run in runs]
    found = named_apart(found, runs)
    return [replace(run, answers=_in_order_of(found[0], run)) for run in found]


def named_apart(runs: Sequence[Run], given: Sequence[str]) -> list[Run]:
    """Return the runs under different names, those that share one as they were given; refuse repetitions."""
    paths = [run.predictions_path and run.predictions_path.resolve() for run in runs]
    num_named = Counter(run.name for run in runs)
    for name, path in zip(given, paths, strict=True):
        if path is not None and paths.count(path) > 1:
            raise ConfigError(f"{name}: found it twice, expected different runs")
    return [
        replace(run, name=name) if num_named[run.name] > 1 else run
        for run, name in zip(runs, given, strict=True)
    ]


def _in_order_of(first: Run, run: Run) -> list[Answer]:
    expected = {answer.id: answer.true_label for answer in first.answers}
    by_id = {answer.id: answer for answer in run.answers}
    labels = {id_: answer.true_label for id_, answer in by_id.items()}
    differing = [id_ for id_ in expected | labels if expected.get(id_) != labels.get(id_)]
    if differing:
        id_, *others = differing
        here, there = (f"labelled {of[id_]}" if id_ in of else "missing" for of in (expected, labels))
        more = f" and {len(others)} more pairs that differ" if others else ""
        raise ConfigError(
            f"{run.name}: found pair {id_!r} {there} and {here} in {first.name}{more}, "
            "expected predictions of the same pairs"
        )
    return [by_id[id_] for id_ in expected]


def _read_run(given: str, split: str, root: Path) -> Run:
    path = Path(given).expanduser()
    folder: Path | None
    if path.suffix == ".jsonl":
        folder = path.parent.parent if path.parent.name == PREDICTIONS else None
    else:
        folder = _find_folder(given, root)
        path = predictions_path(folder, split)
        if not path.is_file():
            others = ", ".join(sorted(other.stem for other in path.parent.glob("*.jsonl")))
            command = {"dev": "validate", "test": "test"}.get(split, f"test --split {split}")
            raise ConfigError(
                f"{given}: found no {path}"
                + (f" (there are predictions of {others})" if others else "")
                + f", expected predictions of {split}; make them with: "
                f"python -m nlicot {command} --ckpt_path {folder / BEST}"
            )
    return _run(folder, path, _read_answers(path))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_yaml(path, label=str(path)) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: found {shown(config)}, expected the configuration that `fit` wrote")
    return renamed(config)


def read_run(folder: Path, split: str) -> Run:
    """Read a run's folder; without predictions of the split, the run has no answers."""
    path = predictions_path(folder, split)
    return _run(folder, path, _read_answers(path) if path.is_file() else ())


def _run(folder: Path | None, path: Path, answers: Sequence[Answer]) -> Run:
    return Run(
        name=path.stem if folder is None else folder.resolve().name,
        split=path.stem,
        predictions_path=path,
        folder=folder,
        config=_read_config(folder) if folder else {},
        answers=answers,
    )


def _find_folder(given: str, root: Path) -> Path:
    candidates = [path for path in (Path(given).expanduser(), root / given) if path.is_dir()]
    if not candidates:
        known = ", ".join(sorted({path.parent.parent.name for path in root.glob("*/predictions/*.jsonl")}))
        raise ConfigError(
            f"{given}: found no such run, expected a run's folder, its name in {root} or a "
            f".jsonl file of predictions (in {root}: {known or 'none has predictions'})"
        )
    # A folder in the working directory may have the name of a run: the one with predictions is meant.
    return next((path for path in candidates if (path / PREDICTIONS).is_dir()), candidates[0])


def _read_answers(path: Path) -> list[Answer]:
    answers: dict[str, Answer] = {}
    for row in read_rows(path):
        answer = _answer(row)
        if answer.id in answers:
            raise row.error(f"the id {shown(answer.id)} a second time", "each pair once")
        answers[answer.id] = answer
    if not answers:
        raise DataError("no predictions", "one for each pair", path=path)
    return list(answers.values())


def _answer(row: Row) -> Answer:
    id_, true_label = row.identifier(), row.optional_label("true_label")
    if id_ is None:
        raise row.error("a prediction without an id", "the id of its pair")
    if true_label is None:
        raise row.error(
            f"no true_label of {shown(id_)}",
            "predictions of labelled pairs",
            remedy="`validate` writes them for dev, `test` for labelled test pairs",
        )
    return Answer(
        id=id_,
        true_label=true_label,
        predicted_label=row.optional_label("predicted_label"),
        p_entailment=row.probability("p_entailment"),
        draft_label=row.optional_label("draft_label"),
        **{name: row.optional_text(name) for name in TEXTS},
    )


def read_curves(folder: Path) -> dict[str, list[ScalarEvent]]:
    """Read the tags of `CURVES` from a run's TensorBoard event files; empty if there are none."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a tail left by a killed run is expected
    # Read all points, even those that tensorboard attributes to a restart: `without_repeats` decides.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    logged = events.Tags()["scalars"]
    return {tag: without_repeats(events.Scalars(tag)) for tag in CURVES if tag in logged}


def without_repeats(points: Iterable[ScalarEvent]) -> list[ScalarEvent]:
    """Keep the points of the run as it ended: steps repeated after a resume replace the earlier ones."""
    kept: list[ScalarEvent] = []
    for point in sorted(points, key=lambda point: point.wall_time):
        while kept and kept[-1].step >= point.step:
            kept.pop()
        kept.append(point)
    return kept
