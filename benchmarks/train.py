"""Training speed, memory and dev loss against TRL's SFTTrainer and transformers' Trainer.

All contenders train the same 4-bit base with the same adapter, optimizer, schedule, effective batch and
number of optimizer steps on the same encoded examples, interleaved, each in a process of its own:

    nlicot                  NliModule under Lightning, as in `fit`
    trainer/4               transformers' Trainer, batches of 4 grouped by length
    trl/8/checkpointing     TRL's SFTTrainer, batches of 8 grouped by length, gradient checkpointing
    trl/4/padding_free      the examples of a batch in one row instead of padded
    trl/4/liger             with Liger's kernels
    trl/default             SFTTrainer as it is: batches of 8, gradient checkpointing, in any order

    python benchmarks/train.py --quick --json train.json
    python benchmarks/train.py --search --json search.json                (every setting of the peers)
    python benchmarks/train.py --shape mistral-7b --examples 512          (on a GPU)

Pairs and thoughts are real ones if NLICOT_REAL_DATA is set, else the sample's. Speeds are taken from the end
of the first optimizer step to the end of the last; tokens are those of the examples, without padding, and a
prefix that examples share counts once per example. The dev loss is computed after training by one function
for all. GEMM share is (4 N_base + 6 N_LoRA + 4 N_head x supervised proportion) x tokens per second, as a
fraction of the measured rate of matrix products in the number format that all compute in: bfloat16 if the
machine has such products, else float32.

`--shape mistral-7b` takes random weights (`shapes.py`): its losses only show that all contenders computed the
same. The JSON is written after each process, so an interrupted run still reports.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circumstances import PROJECT, matrix_rate, now, peak_mb, processor, versions
from shapes import BUNDLED, SHAPES, flash_attention_installed, peers_tokenizer, resolved_base

CONTENDERS = ("nlicot", "trainer/4", "trl/4", "trl/default")
PEER_OPTIONS = ("checkpointing", "padding_free", "liger")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl", "liger-kernel", "flash-attn")
LEARNING_RATE, WARMUP_RATIO, DROPOUT, RANK = 2e-4, 0.03, 0.05, 32


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process."""

    setting: str
    wall_s: float
    seconds: float
    examples_per_s: float
    tokens_per_s: float
    supervised_tokens_per_s: float
    gemm_share: float
    peak_mb: float
    dev_loss: float


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library and how it is set."""

    library: str  # trl or trainer
    batch: int
    options: tuple[str, ...] = ()  # of PEER_OPTIONS
    default: bool = False  # the library's own settings, but for what all contenders have in common

    @classmethod
    def parse(cls, name: str) -> Peer:
        """Read a contender's name.

        >>> Peer.parse("trl/8/checkpointing")
        Peer(library='trl', batch=8, options=('checkpointing',), default=False)
        """
        library, setting, *options = name.split("/")
        if library not in ("trl", "trainer") or not set(options) <= set(PEER_OPTIONS):
            raise ValueError(name)
        if setting == "default":
            return cls(library=library, batch=8, default=True)
        return cls(library=library, batch=int(setting), options=tuple(options))

    def arguments(self) -> dict[str, Any]:
        """Return the part of the trainer's arguments that differs between settings."""
        if self.default:
            return {}
        found: dict[str, Any] = {
            "train_sampling_strategy": "group_by_length",
            "gradient_checkpointing": "checkpointing" in self.options,
            "use_liger_kernel": "liger" in self.options,
        }
        return found | ({"padding_free": "padding_free" in self.options} if self.library == "trl" else {})


def contender(name: str) -> str:
    """Check a name given on the command line."""
    if name != "nlicot":
        Peer.parse(name)
    return name


def searched_settings() -> list[str]:
    """Return every setting of the peers that is worth a try."""
    names = []
    for batch in (2, 4, 8, 16):
        names += [f"{library}/{batch}" for library in ("trainer", "trl")]
        names += [f"{library}/{batch}/checkpointing" for library in ("trainer", "trl")]
        names += [f"trl/{batch}/padding_free", f"trl/{batch}/padding_free/checkpointing"]
    return [*names, "trl/default", "trainer/4/liger", "trl/4/liger"]


# -------------------------------------------------------------------------- work


def encoded(options: argparse.Namespace) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Return the prompt format, the training data set and the dev rows."""
    import datasets

    from nlicot.builders import find_builder
    from nlicot.config_files import SAMPLE
    from nlicot.data.pairs import read_examples
    from nlicot.data.root import DataRoot
    from nlicot.data.thoughts import TextFiles, read_joined
    from nlicot.model.base_model import cache_folder
    from nlicot.model.encoding import encode_dataset
    from nlicot.model.prompt_format import load_prompt_format
    from nlicot.prompts import LabelDefinitions, StudentPrompts

    datasets.disable_progress_bars()
    real = os.environ.get("NLICOT_REAL_DATA")
    root = Path(real) / "comp34812" if real else SAMPLE
    files = DataRoot(root) if not real else None
    prompts = StudentPrompts(
        definitions=LabelDefinitions(
            entailment="it follows from the premise or fits it as a plausible reading",
            no_entailment="it conflicts with the premise or is ruled out by it",
        )
    )
    prompt_format = load_prompt_format(resolved_base(options.shape).folder)

    def built(split: str) -> Any:
        pairs = read_examples(files.pairs(split) if files else root / f"{split}.csv")
        thoughts = files.thoughts(split) if files else root / f"thoughts_defined_{split}.jsonl"
        reflections = files.reflections(split) if files else root / f"reflections_defined_{split}.jsonl"
        found = read_joined(pairs, TextFiles.found(thoughts, reflections, root / "no scores", needed=set()))
        examples = find_builder("reflected").build(pairs, found.thoughts, found.reflections, prompts=prompts)
        wanted = options.examples if split == "train" else options.dev
        repeated = [examples[index % len(examples)] for index in range(wanted)]
        rows, _ = encode_dataset(
            prompt_format, repeated, max_length=768, over_budget="cut", cache=cache_folder()
        )
        return rows

    return prompt_format, built("train"), list(built("dev"))


def loaded(options: argparse.Namespace) -> Any:
    """Load the 4-bit base."""
    from nlicot.model.loaded_model import load_base

    return load_base(resolved_base(options.shape), for_training=True)


# -------------------------------------------------------------------- contenders


def with_nlicot(options: argparse.Namespace, prompt_format: Any, train: Any) -> tuple[Any, list[float], str]:
    """Train the project's module under Lightning's trainer."""
    import lightning.pytorch as lightning
    from torch.utils.data import DataLoader

    from nlicot.model.loaded_model import ResolvedModel, compute_dtype, load_model
    from nlicot.prompts import StudentPrompts
    from nlicot.run.folder import CheckpointMetadata
    from nlicot.settings import PRECISIONS, LoraSettings, ModelSettings
    from nlicot.training.module import NliModule
    from nlicot.training.windows import WindowDataset, WindowSampler

    ends: list[float] = []

    class Clock(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            ends.append(now())

    base = resolved_base(options.shape)
    settings = ModelSettings(
        base=base.name,
        lora=LoraSettings(r=RANK, alpha=2 * RANK, dropout=DROPOUT),
        learning_rate=LEARNING_RATE,
        warmup_ratio=WARMUP_RATIO,
        gradient_checkpointing=options.checkpointing,
        compile_kernels=not options.eager,
    )
    resolved = ResolvedModel(base=base, prompt_format=prompt_format)
    loaded = load_model(resolved, settings, for_training=True, seed=0)
    module = NliModule(loaded, settings, CheckpointMetadata.of(resolved, StudentPrompts(), ()))
    slots = [[index] for index in range(len(train))]
    sampler = WindowSampler(slots, window_size=options.effective_batch, seed=0, shuffle=True)
    windows = WindowDataset(train, token_budget=options.micro_batch_tokens)
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision=PRECISIONS[compute_dtype()],
        logger=False,
        callbacks=[Clock()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
        devices=1,
    )
    trainer.fit(
        module, DataLoader(windows, batch_size=None, sampler=sampler, collate_fn=lambda window: window)
    )
    return module.model, ends, f"{options.micro_batch_tokens} tokens to a micro-batch"


def with_peer(options: argparse.Namespace, prompt_format: Any, train: Any) -> tuple[Any, list[float], str]:
    """Train with TRL's SFTTrainer or transformers' Trainer on the same examples."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    from nlicot.model.loaded_model import multiplies_bfloat16

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(now())

    peer = Peer.parse(options.contender)
    size = min(peer.batch, options.effective_batch)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": options.effective_batch // size,
        "max_steps": options.steps,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": max(1, round(WARMUP_RATIO * options.steps)),
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "bf16": multiplies_bfloat16(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "optim": "adamw_torch",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        **peer.arguments(),
    }
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=DROPOUT,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    tokenizer = peers_tokenizer(options.shape)
    labelled = train.map(
        lambda row: {
            "labels": [
                token if kind else -100 for token, kind in zip(row["input_ids"], row["kinds"], strict=True)
            ]
        },
        remove_columns=[name for name in train.column_names if name != "input_ids"],
    )
    torch.manual_seed(0)
    base = loaded(options)
    if "padding_free" in peer.options and torch.cuda.is_available() and flash_attention_installed():
        base.set_attn_implementation("flash_attention_2")
    if peer.library == "trainer":
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        model = get_peft_model(base, adapter)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**common),
            train_dataset=labelled,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[Clock()],
        )
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=base,
            args=SFTConfig(**common, max_length=None, shuffle_dataset=False),
            train_dataset=labelled,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Clock()],
        )
    trainer.train()
    order = "" if peer.default else " by length"
    return trainer.model, ends, ", ".join([f"batches of {size}{order}", *peer.options])


# ----------------------------------------------------------------- one process each


def measure(options: argparse.Namespace) -> None:
    """Run one contender in this process, and write its measurement."""
    import torch

    started = time.perf_counter()
    if options.memory_gb:
        if not torch.cuda.is_available():
            raise SystemExit("--memory_gb: torch finds no GPU here, leave it out")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb * 1e9 / total))
    prompt_format, train, dev = encoded(options)
    run = with_nlicot if options.contender == "nlicot" else with_peer
    model, ends, setting = run(options, prompt_format, train)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mb()
    seconds = ends[-1] - ends[0]
    num_examples = options.effective_batch * (len(ends) - 1)
    mean_tokens = statistics.mean(train["length"])
    counts = [sum(column) for column in zip(*train["num_by_kind"], strict=True)]
    supervised_share = sum(counts[1:]) / sum(counts)
    tokens_per_s = num_examples * mean_tokens / seconds
    found = Measurement(
        setting=setting,
        wall_s=time.perf_counter() - started,
        seconds=seconds,
        examples_per_s=num_examples / seconds,
        tokens_per_s=tokens_per_s,
        supervised_tokens_per_s=tokens_per_s * supervised_share,
        gemm_share=flops_per_token(model, supervised_share) * tokens_per_s / matrix_rate(),
        peak_mb=peak,
        dev_loss=dev_loss(model, dev),
    )
    options.out.write_text(json.dumps(asdict(found)), encoding="utf-8")


def dev_loss(model: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Return the mean loss over supervised tokens, by transformers' forward pass, one example at a time."""
    import torch
    from torch.nn import functional

    from nlicot.model.loaded_model import causal_lm, multiplies_bfloat16

    # Lightning returns a module on the CPU.
    inner = causal_lm(model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(inner.device.type, torch.bfloat16, enabled=multiplies_bfloat16()):
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=inner.device)
            wanted = [index for index, kind in enumerate(row["kinds"]) if kind]
            hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits = inner.lm_head(hidden[[index - 1 for index in wanted]]).float()
            total += float(functional.cross_entropy(logits, ids[0, wanted], reduction="sum"))
            count += len(wanted)
    return total / count


def flops_per_token(model: Any, supervised_share: float) -> float:
    """Count operations: frozen matrices, the adapter, and the head at supervised positions."""
    import torch

    from nlicot.model.loaded_model import causal_lm

    config = causal_lm(model).config
    with torch.device("meta"):
        plain = type(causal_lm(model))(config)
    head = plain.lm_head.weight.numel()
    body = sum(
        module.weight.numel()
        for name, module in plain.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    adapter = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4.0 * body + 6.0 * adapter + 4.0 * head * supervised_share


def in_own_process(options: argparse.Namespace, name: str, out: Path) -> Measurement:
    """Measure one contender in a process of its own."""
    command = [sys.executable, __file__, *options.passed_on, "--contender", name, "--out", str(out)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    }
    environment |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    started = time.perf_counter()
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found = json.loads(out.read_text(encoding="utf-8")) | {"wall_s": time.perf_counter() - started}
    print(
        f"{name}: {found['tokens_per_s']:.0f} tokens/s, {found['peak_mb']:.0f} MB",
        file=sys.stderr,
        flush=True,
    )
    return Measurement(**found)


def main() -> int:
    """Print the table; `--json` also writes it to a file."""
    options = _parse_flags()
    options.passed_on = sys.argv[1:]
    if options.quick:
        options.steps, options.repeats, options.dev = 3, 1, 32
    if options.search:
        options.steps, options.repeats, options.dev, options.effective_batch = 2, 1, 8, 32
        options.only = options.only or searched_settings()
    options.only = options.only or CONTENDERS
    if options.contender:
        measure(options)
        return 0
    skipped = {name: reason for name in options.only if (reason := missing_package(name))}
    runs: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory(prefix="nlicot-train-") as folder:
        for _ in range(options.repeats):
            for name in options.only:
                if name in skipped:
                    continue
                try:
                    runs.setdefault(name, []).append(
                        in_own_process(options, name, Path(folder) / "measured.json")
                    )
                except RuntimeError as error:
                    if name == "nlicot":
                        raise SystemExit(str(error)) from error
                    skipped[name] = str(error).strip().splitlines()[-1]
                write_report(options, runs, skipped)
    print_table(options, runs, skipped)
    return 0


def missing_package(name: str) -> str | None:
    """Return why a contender cannot run here: the package that it needs is not installed."""
    installed = versions(PACKAGES)
    needed = {"trl": name.startswith("trl/"), "liger-kernel": name.endswith("/liger")}
    missing = [package for package, is_needed in needed.items() if is_needed and package not in installed]
    return f"not installed: pip install {' '.join(missing)}" if missing else None


def write_report(
    options: argparse.Namespace, runs: dict[str, list[Measurement]], skipped: dict[str, str]
) -> None:
    """Write what was measured until now to the file of `--json`."""
    from nlicot.data.atomic_write import write_json

    if options.json:
        content = {
            **figures(runs),
            **circumstances(options),
            "skipped": skipped,
            "runs": {name: [asdict(one) for one in found] for name, found in runs.items()},
        }
        write_json(options.json, content)


def figures(runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Return the ratios to the fastest peer setting, and to the one that needs the least memory."""

    def median(quantity: str, name: str) -> float:
        return statistics.median(getattr(run, quantity) for run in runs[name])

    peers = [name for name in runs if name != "nlicot"]
    if not peers:
        return {}
    fastest = max(peers, key=lambda name: median("tokens_per_s", name))
    smallest = min(peers, key=lambda name: median("peak_mb", name))
    found: dict[str, Any] = {"fastest_peer": fastest, "smallest_peer": smallest}
    if "nlicot" in runs:
        found |= {
            "speedup_vs_best_peer": median("tokens_per_s", "nlicot") / median("tokens_per_s", fastest),
            "memory_vs_best_peer": median("peak_mb", "nlicot") / median("peak_mb", smallest),
            "memory_vs_fastest_peer": median("peak_mb", "nlicot") / median("peak_mb", fastest),
            "dev_loss_vs_fastest_peer": median("dev_loss", "nlicot") / median("dev_loss", fastest),
            "share_of_gemm": median("gemm_share", "nlicot"),
        }
    return found


def print_table(
    options: argparse.Namespace, runs: dict[str, list[Measurement]], skipped: dict[str, str]
) -> None:
    """Print the circumstances, the measurements and the ratios."""
    for name, value in circumstances(options).items():
        print(f"{name}: {value}")
    print(
        f"\n{'':<30}{'examples/s':>11}{'tokens/s':>10}{'range':>14}{'supervised/s':>14}{'GEMM share':>12}"
        f"{'peak MB':>9}{'dev loss':>10}{'wall s':>8}  setting"
    )
    for name, found in runs.items():
        speeds = [one.tokens_per_s for one in found]
        middle = sorted(found, key=lambda one: one.tokens_per_s)[len(found) // 2]
        print(
            f"{name:<30}{middle.examples_per_s:>11.2f}{statistics.median(speeds):>10.0f}"
            f"{f'{min(speeds):.0f}-{max(speeds):.0f}':>14}{middle.supervised_tokens_per_s:>14.0f}"
            f"{middle.gemm_share:>12.1%}{max(one.peak_mb for one in found):>9.0f}{middle.dev_loss:>10.4f}"
            f"{middle.wall_s:>8.0f}  {middle.setting}"
        )
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}")
    print()
    for name, value in figures(runs).items():
        print(f"{name:<26}{value if isinstance(value, str) else f'{value:.3f}'}")


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    from nlicot.model.loaded_model import compute_dtype

    on_gpu = torch.cuda.is_available()
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else processor(),
        "computes in": compute_dtype(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions(PACKAGES).items()),
        "command": shlex.join(["python", *sys.argv]),
        "data": f"{'real' if os.environ.get('NLICOT_REAL_DATA') else 'sample'} thoughts, builder reflected",
        "shape": options.shape,
        "steps": f"{options.steps} of {options.effective_batch} examples, the first not timed",
        "repeats": options.repeats,
    }


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the flags of a model, its examples and nlicot's steps."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--shape", choices=(BUNDLED, *SHAPES), default=BUNDLED)
    add("--examples", type=int, default=512)
    add("--dev", type=int, default=100)
    add("--effective_batch", type=int, default=32)
    add("--micro_batch_tokens", type=int, default=2048)
    add("--eager", action="store_true", help="nlicot without compiled kernels")
    return parser


def _parse_flags() -> argparse.Namespace:
    parser = make_parser("Training speed and memory against TRL and Trainer.")
    add = parser.add_argument
    add("--steps", type=int, default=6)
    add("--checkpointing", action="store_true", help="gradient checkpointing for nlicot")
    add("--memory_gb", type=float, help="limit of a GPU's memory, in 10^9 bytes: more fails")
    add("--repeats", type=int, default=3)
    add("--quick", action="store_true", help="three steps, once: under 10 minutes on two cores")
    add(
        "--search", action="store_true", help="every setting of the peers: one timed step of 32 examples each"
    )
    add(
        "--only",
        nargs="+",
        type=contender,
        metavar="CONTENDER",
        help="nlicot, trainer/4, trl/8/checkpointing ...",
    )
    add("--json", type=Path, metavar="FILE")
    add("--contender", type=contender, help=argparse.SUPPRESS)
    add("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
