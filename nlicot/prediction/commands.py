"""What `validate`, `test` and `predict` do.

What a finished run was made with stands in its `config.yaml`; these commands start from there, so a
checkpoint's path is all they need. Several checkpoints make an ensemble on one loaded base.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from nlicot.errors import CheckpointError, ConfigError
from nlicot.evaluation.metrics import format_table
from nlicot.prediction import calibration as threshold
from nlicot.prediction.faithfulness import Probe, format_probe, probe_thoughts
from nlicot.prediction.metrics_file import (
    format_groups,
    label_summary,
    measure,
    record_faithfulness,
    record_metrics,
)
from nlicot.prediction.resume import PartialPredictions
from nlicot.prediction.submission import in_order_of, write_predictions
from nlicot.prediction.votes import ensemble
from nlicot.prompts import StudentPrompts
from nlicot.records import Example, Prediction
from nlicot.run.config import CommandLine
from nlicot.run.config_errors import read_config
from nlicot.run.folder import (
    CONFIG,
    METRICS,
    RECIPE,
    run_file,
    say_which_data,
    stored_entry,
    value_of,
    values_of,
)
from nlicot.training.callbacks.checkpoints import BEST
from nlicot.training.callbacks.generated_metrics import gather
from nlicot.training.datamodule import SINGLE_FILES, PairsData
from nlicot.training.module import ThoughtTuner


def evaluate(command: str, args: Sequence[str]) -> int:
    """Decode a split with one tuned adapter or several, write predictions; measure them where labelled."""
    checkpoints = [Path(name).expanduser() for name in values_of(args, "--ckpt_path")]
    _check_checkpoints(command, args, checkpoints)
    runs = [_Run(command, _without_checkpoints(args), checkpoint) for checkpoint in checkpoints]
    first = runs[0]
    say_which_data(first.data)
    split = first.cli.config["split"]
    examples = first.data.read_pairs(split) if command == "predict" else first.data.read_labelled(split)
    first.data.check_apart_from_train(split)
    weights = _weights(first.cli.config["weights"], len(runs))
    tunes, probes = (command == "validate" and first.cli.config[name] for name in _OF_VALIDATE)
    if tunes and split == "test":
        raise ConfigError("--tune-threshold: found split test, expected dev: never tuned on test")
    for run in runs:
        run.prepare(examples, split)

    folder = _output_folder(first, checkpoints)
    members: list[list[Prediction]] = []
    for index, run in enumerate(runs):
        loaded = runs[index - 1] if index else None
        members.append(run.decode(command, examples, split, folder, loaded=loaded))
    if not first.trainer.is_global_zero:
        return 0
    predictions = members[0] if len(members) == 1 else ensemble(members, weights)
    run_folder = folder.parent
    decision = None if command == "validate" else threshold.load(run_folder)
    if decision is not None:
        predictions = [decision.apply(prediction) for prediction in predictions]
        print(
            f"threshold {decision.threshold:.3f} and temperature {decision.temperature:.2f}, "
            f"as tuned on dev ({run_folder / threshold.FILE})"
        )

    csv_path, jsonl_path = write_predictions(folder, split, examples, predictions)
    for run in runs:
        run.partial.remove()
    metrics_path = run_folder / METRICS
    if command == "predict":
        print(f"{len(examples)} predictions; {label_summary(predictions, metrics_path)}")
    else:
        metrics = measure(examples, predictions)
        entry = record_metrics(metrics_path, split, metrics, examples, predictions)
        print(
            format_table(metrics, f"{split}: {len(examples)} pairs of {first.data.path_of(split, 'pairs')}")
        )
        print(format_groups(entry))
        print(f"\nmetrics      {metrics_path}")
    print(f"predictions  {csv_path}\nthoughts     {jsonl_path}")
    if tunes:
        _tune(run_folder, split, examples, predictions)
    if probes:
        _probe(runs, examples, members, metrics_path, split)
    return 0


_OF_VALIDATE = ("tune_threshold", "probe_thoughts")


class _Run:
    """One checkpoint on its way: its configuration, data and module, and what it has decoded."""

    def __init__(self, command: str, args: Sequence[str], checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.stored = stored_entry(checkpoint)
        self.cli = _from_run(command, args, checkpoint, self.stored["base"])
        self.data: PairsData = self.cli.datamodule
        self.module: ThoughtTuner = self.cli.model
        if not any(arg.startswith(("--data.prompts", "--data.definitions", "--config")) for arg in args):
            # As it was trained, whatever this version's own words are.
            self.data.prompts = StudentPrompts.from_dict(self.stored["prompts"])
        self.trainer: Trainer
        self.partial: PartialPredictions

    def prepare(self, examples: Sequence[Example], split: str) -> None:
        """Find the base and take over what the checkpoint was trained for; nothing heavy yet."""
        self.data.pairs = {split: list(examples)}
        self.module.resolve_base(on_sample=self.data.on_sample)
        self.module.prompts = self.data.prompts
        self.module.take_over(self.stored)
        self.module.check_decoding()
        self.module.only_decodes = True

    def decode(
        self, command: str, examples: Sequence[Example], split: str, folder: Path, *, loaded: _Run | None
    ) -> list[Prediction]:
        """A prediction for each example, in their order; those that a killed process left are not made again.

        Args:
            loaded: a run whose base this one can share.
        """
        if loaded is not None and self._shares_base(loaded):
            self.module.model = loaded.module.hand_on_model()
        self.trainer = self.cli.make_trainer(
            logger=False, callbacks=[], default_root_dir=str(self.checkpoint.parent)
        )
        self.partial = PartialPredictions(
            folder, split, self._fingerprint(examples), self.trainer.global_rank
        )
        left = self.partial.read()
        if left and self.trainer.is_global_zero:
            print(f"{len(left)} of {len(examples)} predictions were made before; going on with the others")
        self.data.decoded = {prediction.id for prediction in left}
        starts: dict[str, Callable[..., Any]] = {
            "validate": self.trainer.validate,
            "test": self.trainer.test,
            "predict": self.trainer.predict,
        }
        options: dict[str, Any] = (
            {"return_predictions": False} if command == "predict" else {"verbose": False}
        )
        with self.partial.writer() as keep:
            self.module.keep = keep
            starts[command](
                self.module,
                datamodule=self.data,
                ckpt_path=str(self.checkpoint),
                weights_only=True,
                **options,
            )
        predictions = [*left, *gather(self.module.predictions, self.trainer.world_size)]
        return in_order_of(examples, predictions) if self.trainer.is_global_zero else []

    def _shares_base(self, other: _Run) -> bool:
        mine, others = (
            (
                run.module.resolved_base,
                run.module.quantization,
                run.module.dtype_name,
                run.module.lora,
            )
            for run in (self, other)
        )
        return mine == others

    def _fingerprint(self, examples: Sequence[Example]) -> str:
        """Of all that decides a prediction: the weights, how they are decoded, and the pairs."""
        digest = hashlib.sha256(self.checkpoint.read_bytes())
        digest.update(repr((self.module.decoding, sorted(form.value for form in self.module.forms))).encode())
        digest.update(repr((self.module.quantization, self.module.dtype_name)).encode())
        for example in examples:
            digest.update(f"{example.id}\x1f{example.premise}\x1f{example.hypothesis}\x1e".encode())
        return digest.hexdigest()


def _check_checkpoints(command: str, args: Sequence[str], checkpoints: Sequence[Path]) -> None:
    if not checkpoints:
        if {"-h", "--help", "--print_config"} & set(args):
            CommandLine(command, args, RECIPE)  # prints, and exits
        raise ConfigError(f"{command}: found no --ckpt_path, expected checkpoints/<run>/{BEST}")
    for checkpoint in checkpoints:
        if not checkpoint.is_file():
            raise CheckpointError(
                f"--ckpt_path {checkpoint}: found no such file, expected checkpoints/<run>/{BEST}; "
                f"there are: {', '.join(map(str, sorted(Path('checkpoints').glob(f'*/{BEST}')))) or 'none'}"
            )


def _without_checkpoints(args: Sequence[str]) -> list[str]:
    """The flags that belong to all runs of an ensemble."""
    left, skips = [], False
    for arg in args:
        if skips or arg == "--ckpt_path" or arg.startswith("--ckpt_path="):
            skips = arg == "--ckpt_path" and not skips
            continue
        left.append(arg)
    return left


def _weights(given: str | None, num_runs: int) -> list[float]:
    if given is None:
        return [1.0] * num_runs
    try:
        weights = [float(part) for part in given.split(",")]
    except ValueError:
        weights = []
    if len(weights) != num_runs or min(weights) < 0 or not sum(weights):
        raise ConfigError(
            f"--weights: found {given!r}, expected {num_runs} numbers with commas between, one for each "
            "--ckpt_path, none below 0 and not all 0"
        )
    return weights


def _output_folder(first: _Run, checkpoints: Sequence[Path]) -> Path:
    if first.cli.config["output"]:
        return Path(first.cli.config["output"])
    if len(checkpoints) == 1:
        return checkpoints[0].parent / "predictions"
    name = "+".join(checkpoint.parent.name for checkpoint in checkpoints)
    return checkpoints[0].parent.parent / name / "predictions"


def _tune(folder: Path, split: str, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    tuned = threshold.tune(
        [int(example.label or 0) for example in examples],
        [float(prediction.p_entailment or 0.0) for prediction in predictions],
    )
    path = threshold.store(folder, tuned, split=split, num_pairs=len(examples))
    print(f"\n{threshold.format_tuned(tuned)}\n\nstored in   {path}; `test` and `predict` use it")


def _probe(
    runs: Sequence[_Run],
    examples: Sequence[Example],
    members: Sequence[Sequence[Prediction]],
    metrics_path: Path,
    split: str,
) -> None:
    if len(runs) > 1:
        raise ConfigError("--probe-thoughts: found several --ckpt_path, expected one")
    (run,), (predictions,) = runs, members
    module = run.module

    def encode(premise: str, hypothesis: str) -> list[int]:
        prompt = run.data.prompts.render(premise, hypothesis, form=module.prompt_form)
        return module.prompt_format.encode_prompt(prompt)

    # Lightning hands a module back on the CPU.
    module.to(run.trainer.strategy.root_device)
    with run.trainer.precision_plugin.forward_context():
        table: list[Probe] = probe_thoughts(
            module.decoder, encode, examples, predictions, form=module.answer_form
        )
    record_faithfulness(metrics_path, split, table)
    print(f"\n{format_probe(table)}")


def _from_run(command: str, args: Sequence[str], checkpoint: Path, base: str) -> CommandLine:
    """The run's own configuration, with the base it really took, and this command's flags over it."""
    config = read_config(run_file(checkpoint.parent, CONFIG))
    for key in ("run", "resume", "preflight", "final_evaluation"):
        config.pop(key, None)
    if value_of(args, "--data.root") is not None:
        # Another root's files, not the single paths of the run; those named now stand in `args`.
        for name in SINGLE_FILES:
            config["data"][name] = None
    if value_of(args, "--model.base") is None:  # a fallback may have stood in for the configured one
        config["model"]["base"] = base
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as merged:
        yaml.safe_dump(config, merged)
        merged.flush()
        return CommandLine(command, [*args, "--ckpt_path", str(checkpoint)], Path(merged.name))
