"""The commands `validate`, `test` and `predict`.

They start from the settings of the run that made the checkpoint, so its path is all they need. Several
checkpoints make an ensemble.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nlicot.data.atomic_write import make_folder, refuse_overwriting, write_json
from nlicot.data.root import ensemble_path
from nlicot.data.shards import Shard, ShardOfWork
from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import label_summary, read_metrics, record_metrics, reversed_labels_warning
from nlicot.model.loaded_model import silence_libraries
from nlicot.prediction.prediction_files import (
    final_paths,
    refuse_other_files,
    write_predictions,
    write_shard,
)
from nlicot.prediction.predictor import (
    BLOCK,
    Decoded,
    answer_forms,
    decode,
    decode_elsewhere,
    member_weights,
    read_member,
)
from nlicot.records import Prediction
from nlicot.run.config import TrainedRun, fitted_settings
from nlicot.run.data import RunData
from nlicot.run.engines import ENGINES, TRANSFORMERS
from nlicot.run.folder import DECISION, METRICS, read_summary, weights_id
from nlicot.settings import PredictionSettings, PredictSettings, ValidateSettings

if TYPE_CHECKING:
    from nlicot.prediction.calibration import Decision


def validate(runs: Sequence[TrainedRun]) -> int:
    """Predict a labelled split, by default dev, and measure; on request tune a threshold, probe thoughts."""
    settings = cast("ValidateSettings", runs[0].settings)
    if settings.tune_threshold and settings.split == "test":
        raise ConfigError("--tune_threshold refuses the test split: tune on dev")
    if settings.probe_thoughts and len(runs) > 1:
        raise ConfigError("--probe_thoughts takes one --ckpt_path")
    job = _Job(runs, labelled=True)
    if settings.tune_threshold:
        from nlicot.prediction import calibration

        calibration.check_labels([int(example.label or 0) for example in job.examples])
    decoded = job.decode()
    if not decoded.is_main:
        return 0
    predictions = decoded.predictions
    job.report(decoded, predictions)
    if settings.tune_threshold:
        tuned = calibration.tune(
            [int(example.label or 0) for example in job.examples],
            [float(prediction.p_entailment or 0.0) for prediction in predictions],
        )
        path = job.results_folder / DECISION
        calibration.store(
            path, tuned, split=settings.split, num_pairs=len(job.examples), tuned_with=job.made_with()
        )
        same = f" with --output {shlex.quote(settings.output)}" if settings.output else ""
        print(f"\n{calibration.format_tuned(tuned)}\n\nstored in   {path}; `test` and `predict` use it{same}")
    if settings.probe_thoughts:
        from nlicot.prediction.faithfulness import format_probe, probe_thoughts, record_faithfulness

        table = probe_thoughts(decoded.predictor, job.examples, predictions)
        record_faithfulness(job.metrics_path, settings.split, table)
        print(f"\n{format_probe(table)}")
    return 0


def test(runs: Sequence[TrainedRun]) -> int:
    """Predict a labelled split, by default test, and measure, with the threshold that `validate` tuned."""
    return _predict(_Job(runs, labelled=True, tuned=True))


def predict(runs: Sequence[TrainedRun]) -> int:
    """Predict a split without labels, by default test, with the threshold that `validate` tuned."""
    shard = cast("PredictSettings", runs[0].settings).shard
    return _predict(_Job(runs, labelled=False, tuned=True, shard=shard))


def _predict(job: _Job) -> int:
    decoded = job.decode()
    if decoded.is_main:
        job.report(decoded, job.with_tuned_threshold(decoded.predictions))
    return 0


class _Job:
    """The pairs to predict, the members that predict them, and the files that result.

    Everything that can be refused is refused here, before a model loads.
    """

    def __init__(
        self, runs: Sequence[TrainedRun], *, labelled: bool, tuned: bool = False, shard: Shard | None = None
    ) -> None:
        silence_libraries()
        self.settings = settings = cast("PredictionSettings", runs[0].settings)
        self.split, self.labelled = settings.split, labelled
        self.data = RunData(settings)
        self.data.announce_sample()
        every = (self.data.read_labelled if labelled else self.data.read_pairs)(self.split)
        self.data.announce_limit(self.split)
        self.examples = list(shard.of(every, multiple=BLOCK)) if shard else every
        own = [RunData(fitted_settings(run.checkpoint.parent)) for run in runs]  # whatever --root says now
        self.data.check_apart_from_train(self.split, own)
        for run in runs:
            RunData(run.settings).announce_transductive(self.examples, learner=run.checkpoint)
        self.weights = member_weights(settings.weights, len(runs))
        has_weights = ENGINES[settings.engine].has_weights_here
        self.members = [read_member(run, weights=has_weights) for run in runs]
        self.own_folder = _own_folder(runs)
        self.results_folder = Path(settings.output).expanduser() if settings.output else self.own_folder
        self.folder = self.results_folder if settings.output else self.own_folder / "predictions"
        make_folder(self.folder, label=f"--output {self.folder}" if settings.output else str(self.folder))
        self.whole_path = final_paths(self.folder, self.split)[1]
        written = [shard.path(self.whole_path)] if shard else final_paths(self.folder, self.split)
        refuse_overwriting(*written, overwrite=True)
        if settings.output:
            refuse_other_files(self.folder, self.split)
        self.metrics_path = self.results_folder / METRICS
        self.dev_metrics = read_metrics(self._recorded(METRICS)).get("dev")
        self.decision: Decision | None = None
        self.decision_path = self._recorded(DECISION)
        if tuned and self.decision_path.exists():
            from nlicot.prediction import calibration

            self.decision = calibration.load(self.decision_path, self.made_with())
        self.part: ShardOfWork | None = None
        if shard:
            hashes = [member.fingerprint((), settings.predicted_by) for member in self.members]
            same = hashes, self.weights, self.decision
            self.part = ShardOfWork.of(shard, "predict", every, *same)

    def _recorded(self, name: str) -> Path:
        """Where earlier commands recorded a file: among these results, else in the run's own folder."""
        path = self.results_folder / name
        return path if path.exists() else self.own_folder / name

    def made_with(self) -> dict[str, Any]:
        """Return what a threshold holds for: the adapters, their weights, and the form of the answers."""
        decoding = self.settings.model.decoding
        return {
            "checkpoints": [weights_id(member.checkpoint) for member in self.members],
            "weights": [round(weight / sum(self.weights), 6) for weight in self.weights],
            "answers": answer_forms(self.members[0].metadata.forms, decoding.think)[1].value,
            "votes": decoding.votes,
        }

    def decode(self) -> Decoded:
        name = f"{self.split}.{self.part.shard.name}" if self.part else self.split
        if self.settings.engine == TRANSFORMERS:
            return decode(self.members, self.weights, self.examples, name, self.folder)
        (member,) = self.members
        return decode_elsewhere(member, self.examples, name, self.folder, self.settings)

    def with_tuned_threshold(self, predictions: list[Prediction]) -> list[Prediction]:
        if (decision := self.decision) is None:
            return predictions
        print(
            f"threshold {decision.threshold:.3f} and temperature {decision.temperature:.2f}, "
            f"as `validate` tuned them ({self.decision_path})"
        )
        return [decision.apply(prediction) for prediction in predictions]

    def report(self, decoded: Decoded, predictions: Sequence[Prediction]) -> None:
        """Write the predictions and, of labelled pairs, the metrics; print both and where they are."""
        if self.part:
            paths = [self.part.shard.path(self.whole_path)]
            write_shard(paths[0], self.part, self.examples, predictions)
        else:
            paths = list(write_predictions(self.folder, self.split, self.examples, predictions))
        for partial in decoded.partials:
            partial.remove()
        ensemble = ensemble_path(paths[-1])
        if len(self.members) > 1:
            write_json(ensemble, {"members": self._members()})
        else:
            ensemble.unlink(missing_ok=True)
        if self.labelled:
            pairs_path = self.data.path(self.split, "pairs")
            made_with = self.made_with() | ({} if self.decision is None else asdict(self.decision))
            print(
                record_metrics(
                    self.metrics_path, self.split, pairs_path, self.examples, predictions, made_with=made_with
                )
            )
            answers = [prediction.predicted_label for prediction in predictions]
            if text := reversed_labels_warning(self.examples, answers, self.data.pair_format.label_map):
                print(f"\n{text}")
            print(f"\nmetrics      {self.metrics_path}")
        else:
            print(f"{len(predictions)} predictions; {label_summary(predictions, self.dev_metrics)}")
        has_thoughts = any(prediction.thought_process is not None for prediction in predictions)
        for title, path in zip(
            ("predictions", "thoughts" if has_thoughts else "details"), paths, strict=False
        ):
            print(f"{title:<12} {path}")
        if self.part:
            print(f"next         python -m nlicot merge-shards {shlex.quote(str(self.whole_path))}")

    def _members(self) -> list[dict[str, Any]]:
        paths = [member.checkpoint for member in self.members]
        return [
            {"checkpoint": str(path), "weight": weight, "fit": read_summary(path.parent)}
            for path, weight in zip(paths, self.weights, strict=True)
        ]


def _own_folder(runs: Sequence[TrainedRun]) -> Path:
    folders = [run.checkpoint.parent for run in runs]
    return folders[0].parent / "+".join(folder.name for folder in folders)
