"""The Lightning module: one optimizer step to a window, dev loss by segment, predictions.

Optimization is manual: `training_step` walks the micro-batches of a window and divides by the window's
supervised tokens over all ranks, so the loss is exact whatever the micro-batch or number of ranks
(Lightning's own accumulation averages per micro-batch: its issue 20350).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from tqdm import tqdm

from nlicot.completion import Form
from nlicot.errors import CheckpointError, ConfigError, NlicotError
from nlicot.model import base_model
from nlicot.model import lora as adapters
from nlicot.model.base_model import AUTO, compute_dtype
from nlicot.model.encoding import TokenKind
from nlicot.model.fast import kernels
from nlicot.model.fast.dropout import seed_dropout
from nlicot.model.fast.heap import trim_heap
from nlicot.model.fast.patch import patch_layers
from nlicot.model.prompt_format import PromptFormat, load_prompt_format
from nlicot.prediction.decoding import Decoder, PromptBatch, answer_forms
from nlicot.prompts import StudentPrompts
from nlicot.records import Prediction
from nlicot.settings import DecodingSettings, LoraSettings, SegmentWeights
from nlicot.training.batches import Window
from nlicot.training.gradients import add_up_gradients, clear_gradients
from nlicot.training.loss import num_right_labels, sum_by_kind, token_losses, weights_by_kind
from nlicot.training.ranks import sum_over_ranks
from nlicot.training.schedule import warm_up_and_decay

CHECKPOINT_KEY = "nlicot"


class ThoughtTuner(LightningModule):
    """A 4-bit base with a LoRA adapter that learns to think aloud and to label.

    Args:
        base: a hub name, a local folder, or `bundled`.
        fallback_base: taken on the sample data where there is no NVIDIA device; null for none.
        prompt_format: `auto`, `mistral` or `chat`.
        quantization: `nf4` or `none`.
        dtype: to compute in: `bfloat16`, `float32`, or `auto`, which takes bfloat16 where the machine
            multiplies it.
        gradient_checkpointing: trade a third more computing for most of the activations' memory.
        compile_kernels: let torch.compile make one loop of each chain of passes over memory. Half a minute
            the first time on a machine, then seconds; false where a run is shorter than that.
        lora: the adapter.
        learning_rate: at its peak; it falls linearly to 0.
        weight_decay: of AdamW.
        warmup_share: of all optimizer steps, during which the learning rate rises linearly.
        max_grad_norm: gradients are clipped to this L2 norm.
        segment_weights: how much a token of each segment weighs in the loss.
        decoding: how predictions are made.
        seed: of the adapter's initial weights and of dropout.
    """

    def __init__(
        self,
        base: str = "mistralai/Mistral-7B-v0.3",
        fallback_base: str | None = "bundled",
        prompt_format: str = "auto",
        quantization: str = "nf4",
        dtype: str = AUTO,
        gradient_checkpointing: bool = False,
        compile_kernels: bool = True,
        lora: LoraSettings = LoraSettings(),  # noqa: B008 (frozen)
        learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
        warmup_share: float = 0.03,
        max_grad_norm: float = 1.0,
        segment_weights: SegmentWeights = SegmentWeights(),  # noqa: B008 (frozen)
        decoding: DecodingSettings = DecodingSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the adapter only
        self.base = base
        self.fallback_base = fallback_base
        self.prompt_format_name = prompt_format
        self.quantization = quantization
        self.dtype_name = compute_dtype(dtype)
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_kernels = compile_kernels
        self.lora = lora
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_share = warmup_share
        self.max_grad_norm = max_grad_norm
        self.segment_weights = segment_weights
        self.decoding = decoding
        self.seed = seed

        self.only_decodes = False
        """Set by processes that will not train: bitsandbytes may then use kernels without gradients."""
        self.forms: set[Form] = {Form.THOUGHT_FIRST}
        self.prompts = StudentPrompts()
        self.model: Any = None
        self.predictions: list[Prediction] = []
        self.keep: Callable[[Prediction], object] = _nowhere
        """Called with each prediction as it is made."""
        self._resolved: base_model.ResolvedBase | None = None
        self._prompt_format: PromptFormat | None = None
        self._decoder: Decoder | None = None
        self._undo_merge: Callable[[], None] = _nothing_to_undo
        self._dev_sums = torch.zeros(len(TokenKind), dtype=torch.float64)
        self._dev_counts = torch.zeros(len(TokenKind), dtype=torch.float64)
        self._dev_labels = [0, 0]

    # ------------------------------------------------------------------ model

    def resolve_base(self, *, on_sample: bool) -> None:
        """Find the base and its tokenizer, or say what is wrong, before anything heavy happens.

        Raises:
            ModelError: the base cannot be had or run here.
        """
        device = base_model.device_state()
        name = base_model.choose(self.base, self.fallback_base, on_sample=on_sample, device=device)
        self._resolved = base_model.resolve(name)
        self._prompt_format = load_prompt_format(self._resolved.folder, self.prompt_format_name)

    @property
    def resolved_base(self) -> base_model.ResolvedBase:
        """The base that `resolve_base` found."""
        assert self._resolved is not None, "resolve_base comes first"
        return self._resolved

    @property
    def prompt_format(self) -> PromptFormat:
        """The format of the base's tokenizer."""
        assert self._prompt_format is not None, "resolve_base comes first"
        return self._prompt_format

    def configure_model(self) -> None:
        """Load the base and put a fresh adapter on it; Lightning calls this once or more."""
        if self.model is not None:
            return
        loaded = base_model.load(
            self.resolved_base,
            quantization=self.quantization,
            dtype=self.dtype_name,
            for_training=not self.only_decodes,
        )
        if self.gradient_checkpointing:
            loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            loaded.enable_input_require_grads()
        self.model = adapters.attach(loaded, self.lora, seed=self.seed)
        if not self.only_decodes:
            kernels.use_compiler(self.compile_kernels)
            patch_layers(self.model)
        # from_pretrained hands out a model in eval mode, and Lightning would keep it so.
        self.model.train()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter's float32 weights alone."""
        return {
            f"model.{name}": weight.detach()
            for name, weight in adapters.adapter_parameters(self.model).items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what predicting needs besides the weights."""
        checkpoint[CHECKPOINT_KEY] = {
            **self._made_with(),
            "forms": sorted(form.value for form in self.forms),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was made with another base, tokenizer or prompt."""
        stored = checkpoint.get(CHECKPOINT_KEY)
        if stored is None:
            raise CheckpointError("found no nlicot entry in the checkpoint, expected one written by `fit`")
        self.take_over(stored)

    def take_over(self, stored: dict[str, Any]) -> None:
        """Decode as the checkpoint with this entry was trained; needs no weights.

        Raises:
            CheckpointError: base, tokenizer or prompts are others here; each is named with both values.
        """
        here = self._made_with()
        given = {**here.pop("prompts"), **here}
        kept = {**stored["prompts"], **{name: stored[name] for name in here}}
        given = {name: value for name, value in given.items() if name in kept}
        differing = [
            f"{name}: found {given[name]!r}, expected {kept[name]!r}"
            for name in given
            if given[name] != kept[name]
        ]
        if differing:
            raise CheckpointError(
                "the checkpoint was made with something else ("
                + "; ".join(differing)
                + "); leave those flags out, or name the checkpoint that fits them"
            )
        # Checkpoints of versions before 0.2 say only whether they think.
        older = [Form.THOUGHT_FIRST if stored.get("thinks") else Form.LABEL_ONLY]
        self.forms = {Form(name) for name in stored.get("forms", older)}

    def _made_with(self) -> dict[str, Any]:
        return {
            "base": self.resolved_base.name,
            "prompt_format": self.prompt_format.name,
            "tokenizer_sha256": self.prompt_format.fingerprint,
            "prompts": self.prompts.to_dict(),
        }

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a plain PEFT folder."""
        name = self.resolved_base.name
        adapters.save_peft_folder(
            self.model, folder, str(self.resolved_base.folder) if name == base_model.BUNDLED else name
        )

    # --------------------------------------------------------------- training

    def configure_optimizers(self) -> Any:
        """AdamW on the adapter; linear warm-up, then linear decay to 0."""
        optimizer = torch.optim.AdamW(
            adapters.adapter_parameters(self.model).values(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        share = warm_up_and_decay(int(self.trainer.estimated_stepping_batches), self.warmup_share)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, window: Window, batch_idx: int) -> None:
        """One optimizer step on one window."""
        started = time.perf_counter()
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        parameters = list(adapters.adapter_parameters(self.model).values())
        clear_gradients(parameters)
        weights = weights_by_kind(self.segment_weights).to(self.device)
        weight_total = float((window.num_by_kind * weights_by_kind(self.segment_weights)).sum())
        sums = torch.zeros(len(TokenKind), dtype=torch.float64, device=self.device)
        # Gradients are added up over ranks below, once: a synchronising backward pass would wait for ranks
        # that have fewer micro-batches.
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
            for index, batch in enumerate(window.micro_batches):
                seed_dropout(self.seed, self.global_step, index, self.global_rank)
                trim_heap()  # freed blocks fragment the heap
                losses = token_losses(self.model, batch)[0]
                self.manual_backward((losses * weights[batch.kinds]).sum() / weight_total)
                sums += sum_by_kind(losses, batch.kinds)
                del losses  # and with it the graph, whose nodes would lie about in the next one's memory
        if self.trainer.world_size > 1:
            add_up_gradients(parameters)
            dist.all_reduce(sums)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not torch.isfinite(norm):
            raise NlicotError(
                f"step {self.global_step}: found a gradient norm of {float(norm)}, expected a finite one; "
                "lower --model.learning_rate"
            )
        self.log("train/learning_rate", float(schedule.get_last_lr()[0]))  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr, call-arg]
        self._log_step(window, sums, weight_total, float(norm), time.perf_counter() - started)

    def _log_step(
        self, window: Window, sums: Tensor, weight_total: float, norm: float, duration_s: float
    ) -> None:
        counts = window.num_by_kind.double()
        loss = float((sums.cpu() * weights_by_kind(self.segment_weights).double()).sum()) / weight_total
        self.log("train/loss", loss, prog_bar=True)
        for kind in (TokenKind.THOUGHT, TokenKind.SCAFFOLD, TokenKind.LABEL):
            if counts[kind]:
                self.log(f"train/loss_{kind.name.lower()}", float(sums[kind] / counts[kind]))
        self.log("train/grad_norm", norm)
        self.log("train/tokens_per_s", float(counts.sum()) / duration_s, prog_bar=True)
        self.log("train/supervised_tokens_per_s", float(counts[1:].sum()) / duration_s)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Windows move; prompts are lists of ids, which the decoder makes tensors of."""
        return batch.to(device) if isinstance(batch, Window) else batch

    # ------------------------------------------------------------- dev loss

    def on_validation_epoch_start(self) -> None:
        """Start the sums of an evaluation afresh."""
        self._dev_sums.zero_()
        self._dev_counts.zero_()
        self._dev_labels = [0, 0]

    def validation_step(self, batch: Window | PromptBatch, batch_idx: int) -> None:
        """In `fit` a window's dev loss; in `validate` the predictions of a batch of prompts."""
        if isinstance(batch, PromptBatch):
            self._decode_and_keep(batch)
            return
        for micro_batch in batch.micro_batches:
            losses, hidden = token_losses(self.model, micro_batch)
            self._dev_sums += sum_by_kind(losses, micro_batch.kinds).cpu()
            self._dev_counts += torch.bincount(micro_batch.kinds, minlength=len(TokenKind)).cpu()
            self._dev_labels[0] += num_right_labels(
                self.model, micro_batch, hidden, self.decoder.grammar.label_ids
            )
            self._dev_labels[1] += len(micro_batch)

    def on_validation_epoch_end(self) -> None:
        """Log the dev loss, whole and by segment; each rank saw its own share of every window."""
        sums, counts = self._dev_sums.clone(), self._dev_counts.clone()
        labels = torch.tensor(self._dev_labels, dtype=torch.float64)
        if self.trainer.world_size > 1:
            for part in (sums, counts, labels):
                sum_over_ranks(part, self.device)
        if not counts.sum():
            return
        weights = weights_by_kind(self.segment_weights).double()
        self.log("dev/loss", float((sums * weights).sum() / (counts * weights).sum()), prog_bar=True)
        for kind in (TokenKind.THOUGHT, TokenKind.SCAFFOLD, TokenKind.LABEL):
            if counts[kind]:
                self.log(f"dev/loss_{kind.name.lower()}", float(sums[kind] / counts[kind]))
        self.log("dev/teacher_forced_label_accuracy", float(labels[0] / labels[1]))

    # ------------------------------------------------------------ predictions

    @property
    def decoder(self) -> Decoder:
        """Made when first asked for; it holds no weights of its own."""
        if self._decoder is None:
            if self.only_decodes and self.decoding.merge:
                self._undo_merge = adapters.merge_dense(self.model)
            self._decoder = Decoder(self.model, self.prompt_format, self.decoding)
        return self._decoder

    def decode(self, batch: PromptBatch) -> list[Prediction]:
        """Predictions of a batch of prompts."""
        return self.decoder.decode(batch, form=self.answer_form)

    @property
    def prompt_form(self) -> Form:
        """What a prompt asks for."""
        return answer_forms(self.forms, self.decoding.think)[0]

    @property
    def answer_form(self) -> Form:
        """What an answer holds."""
        return answer_forms(self.forms, self.decoding.think)[1]

    def hand_on_model(self) -> Any:
        """The base with its adapter beside it, for another module to put its own weights in."""
        self._undo_merge()
        self._undo_merge, self._decoder = _nothing_to_undo, None
        return self.model

    def check_decoding(self) -> None:
        """Refuse settings that this run cannot decode by.

        Raises:
            ConfigError: it was not trained to answer so, or votes would all be the same.
        """
        settings, form = self.decoding, self.answer_form
        if settings.votes > 1 and (settings.temperature <= 0 or form is Form.LABEL_ONLY):
            raise ConfigError(
                f"--votes {settings.votes}: found "
                + (
                    "a label that is read at once, expected thoughts (--think true)"
                    if form is Form.LABEL_ONLY
                    else "temperature 0, expected above 0: --model.decoding.temperature 0.7"
                )
            )

    def _decode_and_keep(self, batch: PromptBatch) -> None:
        form = self.answer_form
        bar = tqdm(total=len(batch.ids), unit="pair", disable=not self.trainer.is_global_zero)
        with bar:
            for prediction in self.decoder.decode_all(batch.ids, batch.prompts, form=form):
                self.predictions.append(prediction)
                self.keep(prediction)
                bar.update()

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Predictions of a batch of prompts."""
        self._decode_and_keep(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Predictions of a batch of prompts."""
        self._decode_and_keep(batch)


def _nothing_to_undo() -> None:
    """Where no adapter was merged."""


def _nowhere(prediction: Prediction) -> None:
    """Where predictions are kept that nobody asked to keep."""
