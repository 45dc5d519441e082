"""The settings of `fit`, the commands on a run, and `inspect`, with their types, defaults and help.

Nothing here needs torch, so help and configuration errors come at once. `run.config` reads these settings
from flags and YAML; a dataclass's field is a key and a flag of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nlicot.builders.base import Builder
from nlicot.command_line import (
    BatchInterval,
    Devices,
    Dropout,
    Limit,
    NonNegativeFloat,
    NonNegativeInt,
    NumBatches,
    PositiveFloat,
    PositiveInt,
    Proportion,
    Seed,
    TopP,
)
from nlicot.config_files import SAMPLE
from nlicot.data.pairs import PairFormat
from nlicot.data.shards import Shard
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, StudentPrompts

# jsonargparse reads defaults with vars(), so these dataclasses have no slots.


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The LoRA adapter (Hu et al. 2021).

    Args:
        r: rank of the adapter's matrices.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout on the adapter's input.
        target_modules: names of the projections that get an adapter.
    """

    r: PositiveInt = 32
    alpha: PositiveInt = 64
    dropout: Dropout = 0.05
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self) -> None:
        if not self.target_modules:
            raise ConfigError(
                "--model.lora.target_modules: found [], expected names such as [q_proj,k_proj,v_proj,o_proj]"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentWeights:
    """Weight of each token in the loss, by segment; all 1 is the plain mean over tokens.

    Args:
        thought_weight: weight of a token of the thought, its closing quote included; in the first step, if
            final_thought_weight is given.
        final_thought_weight: the same in the last step and in the dev loss; it changes linearly from step to
            step. null: no change.
        scaffold_weight: weight of a token of the JSON around thought and label.
        label_weight: weight of the label's token, and of a draft's.
    """

    thought_weight: NonNegativeFloat = 1.0
    final_thought_weight: NonNegativeFloat | None = None
    scaffold_weight: NonNegativeFloat = 1.0
    label_weight: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        has_thoughts_only = not self.scaffold_weight and not self.label_weight
        if has_thoughts_only and 0 in (self.thought_weight, self.final_thought_weight):
            raise ConfigError(
                "--model.segment_weights: found 0 for scaffold, label and thought in the same step, "
                "expected a weight above 0 for one of them in every step"
            )


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How predictions are made.

    Args:
        batch_size: number of rows decoded together; null: 128 with `fast` on a CPU, else 64.
        max_thought_tokens: maximum length of a thought; the label follows then.
        think: write a thought before the label; null does if the run was trained on nothing else.
        merge: merge the adapter into the base's dense matrices before decoding: faster, rounded once more.
        votes: number of thoughts per pair, whose probabilities are averaged; more than 1 needs a temperature.
        temperature: sampling temperature; 0 is greedy.
        top_p: nucleus sampling (Holtzman et al. 2020), used if the temperature is above 0.
        seed: seed for sampling.
        fast: on a CPU, decode Llama and Mistral models by nlicot's own forward pass; false: transformers'.
    """

    batch_size: PositiveInt | None = None
    max_thought_tokens: PositiveInt = 160
    think: bool | None = None
    merge: bool = True
    votes: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0
    fast: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model, its adapter, and how both are trained.

    Args:
        base: a hub name, a local folder, or `bundled`.
        fallback_base: used instead on the sample data if there is no NVIDIA device; null for none.
        prompt_format: markers around the prompt: mistral, chat, or auto for those of the tokenizer.
        quantization: nf4 loads the base in 4 bits, none in 16 or 32.
        dtype: number format for computing; auto takes bfloat16 if the machine multiplies it in hardware.
        gradient_checkpointing: recompute activations in the backward pass: a third slower, much less memory.
        shard_base: share the frozen base among the devices of a machine: less memory, more traffic.
        compile_kernels: fuse operations with torch.compile, which takes half a minute once on a machine.
        lora: the adapter.
        learning_rate: peak learning rate; decays linearly to 0.
        weight_decay: weight decay of AdamW.
        warmup_ratio: proportion of the optimizer steps in which the learning rate rises linearly.
        max_grad_norm: gradients are clipped to this L2 norm.
        segment_weights: weight of each token in the loss, by segment.
        decoding: how predictions are made.
    """

    base: str = "mistralai/Mistral-7B-v0.3"
    fallback_base: str | None = "bundled"
    prompt_format: str = "auto"
    quantization: Literal["nf4", "none"] = "nf4"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    gradient_checkpointing: bool = False
    shard_base: bool = False
    compile_kernels: bool = True
    lora: LoraSettings = LoraSettings()
    learning_rate: PositiveFloat = 2e-4
    weight_decay: NonNegativeFloat = 0.01
    warmup_ratio: Proportion = 0.03
    max_grad_norm: PositiveFloat = 1.0
    segment_weights: SegmentWeights = SegmentWeights()
    decoding: DecodingSettings = DecodingSettings()


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which files are read, what a builder makes of them, and how training reads the result.

    Args:
        train_pairs: CSV or JSON lines of pairs to train on.
        train_thoughts: thoughts for the training pairs.
        train_reflections: reflections on the wrong training thoughts.
        train_scores: a judge's scores of the training texts, with the rewritten texts.
        dev_pairs: pairs to evaluate on while training.
        dev_thoughts: thoughts for the dev pairs, for the dev loss.
        dev_reflections: reflections for the dev pairs, for the dev loss.
        dev_scores: scores of the dev texts, for the dev loss.
        test_pairs: pairs to predict.
        soft_labels: predictions with p_entailment of training pairs, which learn it instead of a label; by
            default, that of the column p_entailment.
        soft_label_temperature: below 1, soft labels become harder, above 1 softer.
        unlabelled_pairs: more training pairs, with soft labels only; predictions may be given as they are.
        blind_test: refuse soft labels of pairs of the test split, as the rules of a shared task may demand.
        prepared: a file of training examples written by `prepare`, instead of a builder and thoughts.
        builder: correct_only, reflected, unmodified, label_only, label_first, draft_first, multitask,
            or a class path.
        prompts: your own prompt templates.
        allow_overlap: allow dev or test pairs that are in train too.
        effective_batch: examples per optimizer step, over all devices and micro-batches.
        micro_batch_tokens: tokens that go through the model at once; a shared prefix counts once.
        share_prefix: encode the prompts' common prefix once per micro-batch, with one dropout mask for all.
        max_length: maximum number of tokens of prompt and completion.
        over_budget: a longer example loses its last sentences (cut) or is left out (drop).
        limit_train: use only the first N training pairs.
        limit_dev: use only the first N dev pairs.
    """

    train_pairs: str | None = None
    train_thoughts: str | None = None
    train_reflections: str | None = None
    train_scores: str | None = None
    dev_pairs: str | None = None
    dev_thoughts: str | None = None
    dev_reflections: str | None = None
    dev_scores: str | None = None
    test_pairs: str | None = None
    soft_labels: str | None = None
    soft_label_temperature: PositiveFloat = 1.0
    unlabelled_pairs: str | None = None
    blind_test: bool = False
    prepared: str | None = None
    builder: Builder | str = "reflected"
    prompts: StudentPrompts | None = None
    allow_overlap: bool = False
    effective_batch: PositiveInt = 64
    micro_batch_tokens: PositiveInt = 2048
    share_prefix: bool = True
    max_length: PositiveInt = 768
    over_budget: Literal["cut", "drop"] = "cut"
    limit_train: PositiveInt | None = None
    limit_dev: PositiveInt | None = None


SINGLE_FILES = tuple(
    each.name for each in fields(DataSettings) if each.name.startswith(("train_", "dev_", "test_"))
)
"""Settings of `DataSettings` that replace one file of the data root."""
SOFT_FILES = ("soft_labels", "unlabelled_pairs")
"""Settings of `DataSettings` that add files with soft labels."""


MONITORED = (
    *("dev/loss", "dev/loss_thought", "dev/loss_scaffold", "dev/loss_label", "dev/loss_draft"),
    "dev/teacher_forced_label_accuracy",
    *(f"dev_generated/{name}" for name in ("accuracy", "precision", "recall", "f1", "closed_share")),
)
"""Figures that `fit` measures, by their names in TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings:
    """When training stops early: arguments of Lightning's EarlyStopping.

    Args:
        monitor: the logged figure to watch.
        patience: number of evaluations without improvement before training stops.
        mode: whether lower (min) or higher (max) is better.
    """

    monitor: str = "dev/loss"
    min_delta: NonNegativeFloat = 0.0
    patience: PositiveInt = 3
    verbose: bool = False
    mode: Literal["min", "max"] = "min"
    strict: bool = True
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_on_train_epoch_end: bool | None = None
    log_rank_zero_only: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Which checkpoints are kept.

    Args:
        monitor: the logged figure that decides: dev/..., or dev_generated/... (measured once an epoch).
        mode: whether lower (min) or higher (max) is better.
        every_n_steps: how often last.ckpt is written, besides after each evaluation.
    """

    monitor: str = "dev/loss"
    mode: Literal["min", "max"] = "min"
    every_n_steps: PositiveInt = 50


@dataclass(frozen=True, kw_only=True)
class GeneratedMetricsSettings:
    """Accuracy of generated predictions on a sample of dev pairs, measured while training.

    Args:
        every_n_epochs: how often the sample is decoded; 0 for never.
        num_pairs: size of the sample.
        num_texts: number of generated thoughts shown in TensorBoard.
    """

    every_n_epochs: NonNegativeInt = 1
    num_pairs: PositiveInt = 200
    num_texts: NonNegativeInt = 5


Precision = Literal["bf16-mixed", "32-true", "bf16", "32"]
"""Not those that convert the adapter, nor 16-mixed, whose scaled gradients `training_step` would clip."""
PRECISIONS: dict[str, Precision] = {"bfloat16": "bf16-mixed", "float32": "32-true"}
"""Lightning's name for computing in each dtype; an adapter's own weights are float32 in both."""


SET_BY_FIT: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": ((1,), "set --data.effective_batch instead"),
    "gradient_clip_val": ((None,), "set --model.max_grad_norm instead"),
    "gradient_clip_algorithm": ((None, "norm"), "the norm is clipped, at --model.max_grad_norm"),
    "overfit_batches": ((0,), "use --data.limit_train instead"),  # Lightning would take a sampler of its own
    "logger": ((None, True), "a run has files of TensorBoard"),
    "enable_checkpointing": ((None, True), "a run has best.ckpt and last.ckpt"),
    "enable_model_summary": ((None, False), "fit has no table of layers"),
    "num_sanity_val_steps": ((None, 0), "try a fit with --preflight true"),
    "default_root_dir": ((None,), "set --checkpoints_root and --run instead"),
    "limit_test_batches": ((None,), "name a file with fewer pairs"),
    "limit_predict_batches": ((None,), "name a file with fewer pairs"),
}
"""Arguments of the Trainer that `fit` sets itself: the values that say the same, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Arguments of Lightning's Trainer: lightning.ai/docs/pytorch/stable/common/trainer.html.

    `fit` sets those of `SET_BY_FIT` itself; commands that predict use only those of devices and precision.
    """

    accelerator: str | dict[str, Any] = "auto"
    strategy: str | dict[str, Any] = "auto"
    devices: Devices = "auto"
    num_nodes: PositiveInt = 1
    precision: Precision | None = None
    logger: Any = None
    callbacks: list[Any] | dict[str, Any] | str | None = None
    fast_dev_run: bool | NonNegativeInt = False
    max_epochs: Limit | None = None
    min_epochs: NonNegativeInt | None = None
    max_steps: Limit = -1
    min_steps: NonNegativeInt | None = None
    max_time: str | dict[str, int] | None = None
    limit_train_batches: NumBatches | None = None
    limit_val_batches: NumBatches | None = None
    limit_test_batches: NumBatches | None = None
    limit_predict_batches: NumBatches | None = None
    overfit_batches: NumBatches = 0.0
    val_check_interval: BatchInterval | None = None
    check_val_every_n_epoch: PositiveInt | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: NonNegativeInt | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: Any = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Any = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: NonNegativeInt = 0
    default_root_dir: str | None = None
    enable_autolog_hparams: bool = True
    model_registry: str | None = None

    def __post_init__(self) -> None:
        for name, (same, instead) in SET_BY_FIT.items():
            if (value := getattr(self, name)) not in same:
                shown = value if isinstance(value, str | int | float) else "an object"
                expected = "null" if same[0] is None else same[0]
                raise ConfigError(f"--trainer.{name}: found {shown}, expected {expected}; {instead}")


@dataclass(frozen=True, kw_only=True)
class RunSettings(PairFormat):
    """Settings of every command that works on a run.

    Args:
        seed_everything: seed for the adapter's initial weights, dropout and the order of examples.
        root: the data root (see data/README.md).
        definitions: what the labels mean on this data: a YAML file, or one text each.
        model: the base model, its adapter, and how both are trained.
        data: which files are read, and how.
        trainer: arguments of Lightning's Trainer.
        early_stopping: when training stops early.
        checkpoint: which checkpoints are kept.
        generated_metrics: accuracy of generated predictions while training.
        checkpoints_root: folder of all runs.
    """

    seed_everything: Seed = 0
    root: Path = SAMPLE
    definitions: LabelDefinitions = field(default_factory=LabelDefinitions)
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    trainer: TrainerSettings = TrainerSettings()
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    generated_metrics: GeneratedMetricsSettings = GeneratedMetricsSettings()
    checkpoints_root: str = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class FitSettings(RunSettings):
    """Settings of `fit`.

    Args:
        run: name of the run; default: the builder and the time.
        resume: folder of a run to continue.
        start_from: the adapter to start with, of a run or in a PEFT folder; short: --from.
        preflight: measure memory and time, and the largest micro-batch that fits; then stop.
        final_evaluation: decode every dev pair after training.
    """

    run: str | None = None
    resume: str | None = None
    start_from: str | None = None
    preflight: bool = False
    final_evaluation: bool = True


@dataclass(frozen=True, kw_only=True)
class PredictionSettings(RunSettings):
    """Settings of `test`, and of the other commands that predict.

    Args:
        weights: weights of an ensemble's members, such as 2,1.
        split: the split to predict.
        output: folder for predictions, metrics and tuned threshold; default: the run's own.
        engine: the program that runs the model: transformers, openai (a server), vllm.
        server_url: with --engine openai: a server of the exported model, such as http://localhost:8080.
        server_model: the model's name on the server; default: the run's name, or the only one.
        send_key: send OPENAI_API_KEY to any server, or to none; asked for if in doubt.
    """

    weights: str | None = None
    split: str = "test"
    output: str | None = None
    engine: str = "transformers"
    server_url: str | None = None
    server_model: str | None = None
    send_key: bool | None = None

    @property
    def predicted_by(self) -> str:
        """The engine, and the server's model: predictions of others are not continued."""
        return f"{self.engine} {self.server_model}" if self.server_model else self.engine


@dataclass(frozen=True, kw_only=True)
class PredictSettings(PredictionSettings):
    """Settings of `predict`.

    Args:
        shard: work on part I of N; merge-shards puts the parts together.
    """

    shard: Shard | None = None


@dataclass(frozen=True, kw_only=True)
class ValidateSettings(PredictionSettings):
    """Settings of `validate`.

    Args:
        split: the split to predict.
        tune_threshold: pick a threshold and a temperature on this split, which test and predict then use.
        probe_thoughts: measure how often the label changes without its thought, or without the premise.
    """

    split: str = "dev"
    tune_threshold: bool = False
    probe_thoughts: bool = False


ExportFormat: TypeAlias = Literal["peft", "merged", "gguf", "gguf-adapter"]
ExportDtype: TypeAlias = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ExportSettings(RunSettings):
    """Settings of `export`.

    Args:
        format: adapter for peft; model for transformers; model, or adapter only, for llama.cpp.
        out: the folder to make; default: one named after the format, in the run's folder.
        dtype: number format of the weights; auto: float32 for an adapter, that of training for a model.
        check_pairs: number of dev pairs on which the export must predict what the run predicts.
        unchecked: write the export without loading it and comparing its predictions.
        force: keep an export whose predictions differ from the run's by more than rounding explains.
    """

    format: ExportFormat | None = None
    out: Path | None = None
    dtype: ExportDtype = "auto"
    check_pairs: PositiveInt = 50
    unchecked: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class InspectSettings(RunSettings):
    """Settings of `inspect`.

    Args:
        split: the split to show.
        num: number of examples to show, from the first.
        id: pairs to show instead.
        json: print one JSON document with everything, token ids included.
        color: colour the tokens; auto does on a terminal, unless NO_COLOR is set.
    """

    split: Literal["train", "dev"] = "train"
    num: NonNegativeInt = 2
    id: list[str] = field(default_factory=list)
    json: bool = False
    color: Literal["auto", "always", "never"] = "auto"
