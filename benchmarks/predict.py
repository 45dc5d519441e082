"""Prediction speed against `generate` and llama.cpp, on the same model, pairs and thought budget.

Contenders, interleaved, each in a process of its own:

    nlicot           the project's decoder, default settings: NF4 values in dense matrices, the adapter merged
    nlicot-dense     the same, from a base that was never quantised
    generate         transformers' `generate`, default settings: NF4, batch 16, in arrival order, parsed after
    generate-dense   the same on the project's dense matrices, the adapter merged
    generate-forced  `generate` sorted by length, the scaffold forced, the label from its two tokens: the slow
                     reference for labels
    llama.cpp        the merged model in BF16, one row after the other (needs benchmarks/requirements.txt)
    forward          with `--form label_only`: plain forward passes of transformers on the same dense, merged
                     matrices, sorted by length, at the best of several batch sizes

    python benchmarks/predict.py --adapter checkpoints/RUN --quick --json predict.json
    python benchmarks/predict.py --adapter checkpoints/RUN --form label_only --pairs 1000
    python benchmarks/predict.py --shape mistral-7b --pairs 256 --generate_batch 128      (on a GPU)

Pairs are real ones if NLICOT_REAL_DATA is set, else the sample's. The bundled model runs on the cores.
`--shape` takes random weights (`shapes.py`) and the GPU if there is one, and repeats pairs if there are too
few. Speeds are those of decoding; load times are separate. Peak memory is the process's, which holds torch
and transformers even for llama.cpp, or on a GPU what torch allocated. GEMM share is 2 x weights of the linear
layers x tokens per second (prompt and generated, no padding), as a fraction of the rate of a matrix product
measured in the same process. `closed` is the proportion of thoughts that ended by themselves; for `generate`,
of answers that parsed. The JSON is written after each process, so an interrupted run still reports.

In bfloat16 the order of sums decides near ties, so the thoughts of two contenders diverge;
`--dtype float32 --only nlicot generate-forced` shows whether their labels differ for any other reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circumstances import PROJECT, matrix_rate, now, peak_mb, processor, versions
from shapes import BUNDLED, SHAPES, resolved_base

PROCESS_STARTED = time.perf_counter()
CONTENDERS = (
    "nlicot",
    "generate",
    "generate-dense",
    "generate-forced",
    "nlicot-dense",
    "llama.cpp",
    "forward",
)
CONTENDERS_BY_FORM = {
    "thought_first": tuple(name for name in CONTENDERS if name != "forward"),
    "label_only": ("nlicot", "forward", "generate", "generate-dense"),
}
FORWARD_BATCHES, GPU_FORWARD_BATCHES = (4, 8, 16, 32, 64), (32, 64, 128, 256)
NEEDS = ("llama_cpp",)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "llama_cpp_python", "gguf")
LEAST_COSINE = 0.999
"""Lowest cosine of llama.cpp's and transformers' logits; q and k in the wrong order give 0.9 or less."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One pair's prediction; `label` is None if it did not parse, `num_tokens` counts generated tokens."""

    label: int | None
    thought: str
    closed: bool
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process: its speed, memory and answers."""

    note: str
    load_s: float
    seconds: float
    wall_s: float
    pairs_per_s: float
    thought_tokens_per_s: float
    gemm_share: float
    peak_mb: float
    accuracy: float
    closed_share: float
    labels: list[int | None]


# ------------------------------------------------------------------ shared


def read_pairs(num_pairs: int, *, repeated: bool = False) -> list[Any]:
    """Return labelled pairs of the real data, else of the sample: those of dev, then those of train.

    If there are fewer and they may be `repeated`, they start again from the first.
    """
    from nlicot.config_files import SAMPLE
    from nlicot.data.pairs import read_examples

    real = os.environ.get("NLICOT_REAL_DATA")
    folder = Path(real) / "comp34812" if real else SAMPLE / "original_data"
    dev, train = (read_examples(folder / f"{split}.csv") for split in ("dev", "train"))
    pairs = [*dev, *train]
    num_read = num_pairs if repeated else min(num_pairs, len(pairs))
    return [pairs[index % len(pairs)] for index in range(num_read)]


def read_prompts(adapter: Path | None) -> Any:
    """Return the prompts of the run, else the default ones."""
    from nlicot.prompts import LabelDefinitions, StudentPrompts

    if adapter is None:
        return StudentPrompts()
    import yaml

    config = yaml.safe_load((adapter / "config.yaml").read_text(encoding="utf-8"))["data"]
    worded = dict(config.get("prompts") or {})
    definitions = config.get("definitions") or worded.get("definitions") or {}
    return StudentPrompts(**{**worded, "definitions": LabelDefinitions(**definitions)})


def load(options: argparse.Namespace, *, quantization: str = "nf4", dense: bool | None = None) -> Any:
    """Load the model with its adapter, not merged, in eval mode, and its prompt format."""
    from nlicot.model import loaded_model
    from nlicot.model.prompt_format import load_prompt_format

    resolved = resolved_base(options.shape)
    model = loaded_model.load_base(
        resolved, quantization=quantization, dtype=options.dtype, for_training=False, dense=dense
    )
    if options.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(options.adapter / "adapter"))
    return model.eval(), load_prompt_format(resolved.folder)


def load_merged(options: argparse.Namespace) -> Any:
    """Load the unquantised model with its adapter merged, and its prompt format."""
    model, prompt_format = load(options, quantization="none")
    return (model if options.adapter is None else model.merge_and_unload()), prompt_format


def encoded(options: argparse.Namespace, pairs: Sequence[Any]) -> list[list[int]]:
    """Return the encoded prompts of the pairs."""
    from nlicot.completion import Form
    from nlicot.model.prompt_format import load_prompt_format

    wording, form = read_prompts(options.adapter), Form(options.form)
    encode = load_prompt_format(resolved_base(options.shape).folder).encode_prompt
    return [encode(wording.render(pair.premise, pair.hypothesis, form=form)) for pair in pairs]


def num_weights(shape: str) -> tuple[int, int]:
    """Count the weights of the linear layers and of the LM head, without the adapter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolved_base(shape).folder))
    linear = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    head: int = model.get_output_embeddings().weight.numel()
    return sum(linear) - head, head


# -------------------------------------------------------------------- contenders


def with_nlicot(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """Prepare the project's decoder."""
    from nlicot.completion import Form
    from nlicot.model.loaded_model import merge_dense
    from nlicot.prediction.decoding import Decoder, by_length
    from nlicot.settings import DecodingSettings

    if options.contender == "nlicot-dense":
        model, prompt_format = load_merged(options)
    else:
        model, prompt_format = load(options)
        merge_dense(model)
    decoder = Decoder(model, prompt_format, DecodingSettings(max_thought_tokens=options.budget))

    def answer(found: Any) -> Answer:
        thought, cut_off = found.thought_process or "", found.status == "truncated"
        return Answer(
            label=found.predicted_label,
            thought=thought,
            closed=found.status == "closed",
            num_tokens=options.budget if cut_off else prompt_format.count_thought_tokens(thought),
        )

    def run() -> list[Answer]:
        batch = by_length([str(index) for index in range(len(prompts))], prompts)
        found = {int(one.id): one for one in decoder.decode(batch, form=Form(options.form))}
        return [answer(found[index]) for index in range(len(prompts))]

    return run


def with_generate(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """Prepare `generate` with default settings, on matrices in 4 bits or on dense ones."""
    import torch

    from nlicot import completion
    from nlicot.model.loaded_model import causal_lm, merge_dense

    is_dense, form = options.contender == "generate-dense", completion.Form(options.form)
    model, prompt_format = load(options, dense=is_dense)
    if is_dense:
        merge_dense(model)
    device = causal_lm(model).lm_head.weight.device
    with_thought = form is not completion.Form.LABEL_ONLY
    scaffold = completion.render("" if with_thought else None, 1, form)
    num_new = len(prompt_format.encode_segment(scaffold, first=True)) + 1
    num_new += options.budget if with_thought else 0

    @torch.inference_mode()
    def run() -> list[Answer]:
        answers = []
        for start in range(0, len(prompts), options.generate_batch):
            part = prompts[start : start + options.generate_batch]
            ids, mask = (each.to(device) for each in padded(part, prompt_format.pad_id))
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=num_new,
                do_sample=False,
                eos_token_id=prompt_format.eos_id,
                pad_token_id=prompt_format.pad_id,
            )[:, ids.shape[1] :]
            answers += [_parsed(prompt_format, row.tolist()) for row in written]
        return answers

    return run


def kernel_note() -> str:
    """Name the kernel that multiplies 4-bit matrices; bitsandbytes looks for a second one on the hub."""
    import torch
    from bitsandbytes.functional import has_avx512bf16

    if torch.cuda.is_available():
        return "bitsandbytes' 4-bit kernels for GPUs"
    if not has_avx512bf16():
        return "4-bit matrices are dequantised before each product: no AVX512-BF16 here"
    if importlib.util.find_spec("kernels") is None:
        return "bitsandbytes' fused 4-bit kernel; the package `kernels`, for the hub's, is not installed"
    return "bitsandbytes' fused 4-bit kernel, the hub's if it can be fetched"


def _parsed(prompt_format: Any, ids: list[int]) -> Answer:
    from nlicot import completion

    if prompt_format.eos_id in ids:
        ids = ids[: ids.index(prompt_format.eos_id)]
    text = prompt_format.decode_inner(ids).strip()
    parsed = completion.parse(text)
    if parsed is not None:
        return Answer(
            label=parsed.label, thought=parsed.thought_process or "", closed=True, num_tokens=len(ids)
        )
    lenient = re.search(r'"predicted_label":\s*"?([01])', text)
    label = int(lenient[1]) if lenient else None
    return Answer(label=label, thought=text, closed=False, num_tokens=len(ids))


def with_forced_generate(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """Prepare `generate` with the thought's grammar, sorted by length, then one pass for the label.

    It stops at any closing token, even after a backslash; the project's decoder continues there.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    from nlicot import completion
    from nlicot.prediction.grammar import ThoughtGrammar

    model, prompt_format = load(options)
    device = model.get_output_embeddings().weight.device
    grammar = ThoughtGrammar(prompt_format, model.get_output_embeddings().weight.shape[0]).to(device)
    opening = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
    closing = grammar.closing_ids[0]

    class Held(LogitsProcessor):
        def __init__(self, width: int) -> None:
            self.width = width
            self.escaping = torch.zeros(0, dtype=torch.bool, device=device)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == self.width:
                self.escaping = torch.zeros(len(input_ids), dtype=torch.bool, device=device)
            else:
                self.escaping = grammar.escaping_after(input_ids[:, -1], self.escaping)
            return scores.float() + grammar.mask(self.escaping)

    @torch.inference_mode()
    def run() -> list[Answer]:
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), 16):
            part = order[start : start + 16]
            rows = [[*prompts[index], *opening] for index in part]
            ids, mask = (each.to(device) for each in padded(rows, prompt_format.pad_id))
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options.budget + 1,  # a whole budget may still close
                do_sample=False,
                eos_token_id=closing,
                pad_token_id=prompt_format.pad_id,
                logits_processor=LogitsProcessorList([Held(ids.shape[1])]),
            )[:, ids.shape[1] :].tolist()
            closed = [closing in row for row in written]
            said = [
                row[: row.index(closing) if ends else options.budget]
                for row, ends in zip(written, closed, strict=True)
            ]
            whole = [[*row, *text, *grammar.closing_ids] for row, text in zip(rows, said, strict=True)]
            ids, mask = (each.to(device) for each in padded(whole, prompt_format.pad_id))
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
            ).logits[:, -1]
            labels = logits[:, list(grammar.label_ids)].float().argmax(-1).tolist()
            for index, text, ends, label in zip(part, said, closed, labels, strict=True):
                thought = completion.unescape(prompt_format.decode_inner(text))
                found[index] = Answer(label=label, thought=thought, closed=ends, num_tokens=len(text))
        return [found[index] for index in range(len(prompts))]

    return run


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
    """Return `[B, T]` ids padded on the left, and their mask."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def with_forward(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """Prepare plain forward passes up to the label, at the batch size that is fastest for some prompts."""
    import torch

    from nlicot.completion import LABEL_OPENING
    from nlicot.model.loaded_model import causal_lm, merge_dense
    from nlicot.prediction.grammar import ThoughtGrammar

    adapted, prompt_format = load(options)
    merge_dense(adapted)
    model = causal_lm(adapted)
    device = model.lm_head.weight.device
    grammar = ThoughtGrammar(prompt_format, model.get_output_embeddings().weight.shape[0])
    opening = prompt_format.encode_segment(LABEL_OPENING, first=True)
    rows = [[*prompt, *opening] for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))

    @torch.inference_mode()
    def labels(indices: Sequence[int], size: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            batch = padded([rows[index] for index in part], prompt_format.pad_id)
            ids, mask = (each.to(device) for each in batch)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits[:, -1]
            two = logits[:, list(grammar.label_ids)].float().argmax(-1)
            found.update(zip(part, two.tolist(), strict=True))
        return found

    batches = GPU_FORWARD_BATCHES if torch.cuda.is_available() else FORWARD_BATCHES

    def seconds(size: int) -> float:
        some = order[:: max(1, len(order) // max(batches))]
        labels(some[:size], size)
        started = time.perf_counter()
        labels(some, size)
        return time.perf_counter() - started

    started = time.perf_counter()
    options.forward_batch = min(batches, key=seconds)
    options.not_counted_s = time.perf_counter() - started
    options.note = f"batches of {options.forward_batch}, the fastest of {batches}"

    def run() -> list[Answer]:
        found = labels(order, options.forward_batch)
        return [
            Answer(label=found[index], thought="", closed=True, num_tokens=0) for index in range(len(rows))
        ]

    return run


def convert(options: argparse.Namespace) -> None:
    """Write the merged model in BF16 for llama.cpp, and transformers' logits after the first prompt.

    Runs in a process of its own, so that its time and memory do not count for llama.cpp.
    """
    import numpy as np
    import torch

    from nlicot.export.gguf_file import write_model
    from nlicot.export.gguf_vocabulary import vocabulary_of
    from nlicot.model.base_model import resolve

    model, prompt_format = load_merged(options)
    vocabulary = vocabulary_of(prompt_format, resolve("bundled").folder, model.config.vocab_size)
    write_model(model, vocabulary, options.gguf, dtype="bfloat16", name="bundled")
    prompt = encoded(options, read_pairs(1))[0]
    with torch.inference_mode():
        logits = model.float()(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
    np.save(options.gguf.with_suffix(".npy"), logits.numpy())


def with_llamacpp(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """Prepare llama.cpp on the merged model: greedy, with the same scaffold."""
    import numpy as np
    import torch
    from llama_cpp import Llama

    from nlicot import completion
    from nlicot.model import base_model as base
    from nlicot.model.prompt_format import load_prompt_format
    from nlicot.prediction.grammar import ThoughtGrammar

    server = Llama(
        str(options.gguf),
        n_ctx=1024,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_batch=options.llama_batch,
        n_ubatch=options.llama_batch,
        verbose=False,
    )
    prompt_format = load_prompt_format(base.resolve("bundled").folder)
    grammar = ThoughtGrammar(prompt_format, server.n_vocab())
    opening = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
    closing = grammar.closing_ids[0]
    masks = [grammar.mask(torch.tensor([escaping]))[0].numpy() for escaping in (False, True)]

    def last() -> Any:
        return np.ctypeslib.as_array(server._ctx.get_logits_ith(-1), shape=(server.n_vocab(),))

    server.eval(prompts[0])
    expected = np.load(options.gguf.with_suffix(".npy"))
    cosine = float(last() @ expected / np.linalg.norm(last()) / np.linalg.norm(expected))
    if cosine < LEAST_COSINE:
        raise SystemExit(f"logits' cosine with transformers': found {cosine:.4f}, expected {LEAST_COSINE}")

    def answer(prompt: list[int]) -> Answer:
        server.reset()
        server.eval([*prompt, *opening])
        said: list[int] = []
        escaping = torch.tensor([False])
        while True:
            token = int((last() + masks[int(escaping)]).argmax())
            closed = token == closing and not escaping
            if closed or len(said) == options.budget:
                break
            said.append(token)
            escaping = grammar.escaping_after(torch.tensor([token]), escaping)
            server.eval([token])
        server.eval(list(grammar.closing_ids))
        zero, one = (last()[token] for token in grammar.label_ids)
        thought = completion.unescape(prompt_format.decode_inner(said))
        return Answer(label=int(one >= zero), thought=thought, closed=bool(closed), num_tokens=len(said))

    def run() -> list[Answer]:
        return [answer(prompt) for prompt in prompts]

    return run


# ----------------------------------------------------------------- one process each


def measure(options: argparse.Namespace) -> None:
    """Run one contender in this process, and write its measurement."""
    import torch

    torch.set_num_threads(options.threads)
    pairs = read_pairs(options.pairs, repeated=options.shape != BUNDLED)
    prompts = encoded(options, pairs)
    prepare = {
        "generate": with_generate,
        "generate-dense": with_generate,
        "generate-forced": with_forced_generate,
        "llama.cpp": with_llamacpp,
        "forward": with_forward,
    }.get(options.contender, with_nlicot)
    started = time.perf_counter()
    run = prepare(options, prompts)
    load_s = time.perf_counter() - started
    ready = time.perf_counter()
    rate = matrix_rate(options.dtype)
    started = now()
    answers = run()
    seconds = now() - started
    # Without the search for a batch size, which only the benchmark needs.
    before_s = ready - PROCESS_STARTED - getattr(options, "not_counted_s", 0.0)
    notes = {
        "generate": lambda: f"batches of {options.generate_batch}, {kernel_note()}",
        "generate-dense": lambda: f"batches of {options.generate_batch}",
        "llama.cpp": lambda: f"n_batch {options.llama_batch}, one sequence",
        "forward": lambda: options.note,
    }
    found = Measurement(
        note=notes.get(options.contender, str)(),
        load_s=load_s,
        seconds=seconds,
        wall_s=before_s + seconds,
        pairs_per_s=len(pairs) / seconds,
        thought_tokens_per_s=_num_thought_tokens(options, answers) / seconds,
        gemm_share=_flops(options, prompts, answers) / seconds / rate,
        peak_mb=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_mb(),
        accuracy=sum(a.label == pair.label for a, pair in zip(answers, pairs, strict=True)) / len(pairs),
        closed_share=sum(answer.closed for answer in answers) / len(answers),
        labels=[answer.label for answer in answers],
    )
    options.out.write_text(json.dumps(asdict(found)), encoding="utf-8")


def _num_thought_tokens(options: argparse.Namespace, answers: Sequence[Answer]) -> int:
    """Count the tokens of the thoughts only: `generate` writes its scaffold too."""
    from nlicot.model.prompt_format import load_prompt_format

    prompt_format = load_prompt_format(resolved_base(options.shape).folder)
    return sum(prompt_format.count_thought_tokens(answer.thought) for answer in answers)


def _flops(options: argparse.Namespace, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> float:
    """Count operations: prompt tokens do not reach the LM head, generated tokens do."""
    body, head = num_weights(options.shape)
    num_generated = sum(answer.num_tokens for answer in answers)
    return 2.0 * (body * (sum(map(len, prompts)) + num_generated) + head * num_generated)


def in_own_process(options: argparse.Namespace, *flags: str) -> None:
    """Run one step of this file in a process of its own.

    Raises:
        ChildFailed: it exited with an error.
    """
    command = [sys.executable, __file__, *flags, "--dtype", options.dtype]
    command += ["--pairs", str(options.pairs), "--budget", str(options.budget)]
    command += ["--threads", str(options.threads), "--form", options.form, "--shape", options.shape]
    command += ["--generate_batch", str(options.generate_batch)]
    if options.adapter:
        command += ["--adapter", str(options.adapter)]
    own = {"OMP_NUM_THREADS": str(options.threads)}
    own["PYTHONPATH"] = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    if options.shape == BUNDLED:  # it is compared on this machine's cores
        own["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, check=False, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise ChildFailed(f"exit code {done.returncode}: {said[-1]}")


class ChildFailed(Exception):
    """A contender's process failed."""


def measured(options: argparse.Namespace, contender: str, folder: Path) -> Measurement:
    """Measure one contender; if llama.cpp crashes, try it again with batches of one row."""
    out = folder / f"{contender}.json"
    flags = ["--contender", contender, "--out", str(out), "--gguf", str(folder / "merged.gguf")]
    if contender == "llama.cpp" and not (folder / "merged.npy").exists():
        in_own_process(options, "--contender", "convert", *flags[2:])
    # On some virtual machines AMX kernels of llama.cpp crash with more rows than one.
    for num_rows in ("512", "1") if contender == "llama.cpp" else ("",):
        try:
            in_own_process(options, *flags, *(["--llama_batch", num_rows] if num_rows else []))
            break
        except ChildFailed:
            if num_rows != "512":
                raise
    print(f"{contender}: done", file=sys.stderr)
    return Measurement(**json.loads(out.read_text(encoding="utf-8")))


def main() -> int:
    """Print the table; `--json` also writes it to a file."""
    parser = make_parser()
    options = parser.parse_args()
    if options.adapter and not (options.adapter / "adapter").is_dir():
        parser.error(f"--adapter {options.adapter}: no adapter/ in it; name the folder of a run")
    if options.adapter and options.shape != BUNDLED:
        parser.error("--adapter: a random model has none, leave out --shape")
    if options.quick:
        options.pairs, options.repeats = min(options.pairs, 48), 1
    if options.contender == "convert":
        convert(options)
        return 0
    if options.contender:
        measure(options)
        return 0
    runs, skipped = _interleaved(options)
    _print_table(options, runs, skipped)
    return 0


def _write_report(
    options: argparse.Namespace, runs: dict[str, list[Measurement]], skipped: dict[str, str]
) -> None:
    """Write what was measured until now to the file of `--json`."""
    from nlicot.data.atomic_write import write_json

    if options.json:
        content = {
            **_figures(runs),
            **_circumstances(options, runs),
            "skipped": skipped,
            "runs": {name: [asdict(one) for one in found] for name, found in runs.items()},
        }
        write_json(options.json, content)


def _interleaved(options: argparse.Namespace) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """Measure the contenders in turn; also return why llama.cpp was left out, if it was."""
    contenders = [name for name in CONTENDERS_BY_FORM[options.form] if name in options.only]
    skipped = {}
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if "llama.cpp" in contenders and options.shape != BUNDLED:
        skipped["llama.cpp"] = "it takes the bundled model's file only"
    elif missing and "llama.cpp" in contenders:
        skipped["llama.cpp"] = f"{', '.join(missing)} not installed (benchmarks/requirements.txt)"
    runs: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory(prefix="nlicot-predict-") as folder:
        for _ in range(options.repeats):
            for name in contenders:
                if name in skipped:
                    continue
                try:
                    runs.setdefault(name, []).append(measured(options, name, Path(folder)))
                except ChildFailed as error:
                    if name != "llama.cpp":
                        raise SystemExit(f"{name}: {error}") from error
                    skipped[name] = str(error)
                    runs.pop(name, None)
                _write_report(options, runs, skipped)
    return runs, skipped


def _print_table(
    options: argparse.Namespace, runs: dict[str, list[Measurement]], skipped: dict[str, str]
) -> None:
    for name, value in _circumstances(options, runs).items():
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in value.items()) if name == 'versions' else value}")
    print(
        f"\n{'':<16}{'pairs/s':>9}{'range':>14}{'thought tok/s':>15}{'GEMM share':>12}{'load s':>8}"
        f"{'peak MB':>9}{'closed':>8}{'accuracy':>10}"
    )
    for name, found in runs.items():
        speeds = [one.pairs_per_s for one in found]
        first = found[0]
        print(
            f"{name:<16}{statistics.median(speeds):>9.2f}{f'{min(speeds):.2f}-{max(speeds):.2f}':>14}"
            f"{statistics.median(one.thought_tokens_per_s for one in found):>15.0f}"
            f"{statistics.median(one.gemm_share for one in found):>12.1%}"
            f"{statistics.median(one.load_s for one in found):>8.1f}"
            f"{max(one.peak_mb for one in found):>9.0f}{first.closed_share:>8.1%}{first.accuracy:>10.1%}"
        )
    for name, found in runs.items():
        if found[0].note:
            print(f"{name}: {found[0].note}")
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}")
    print()
    for name, value in _figures(runs).items():
        print(f"{name:<26}{'-' if value is None else f'{value:.3f}'}")


def _figures(runs: dict[str, list[Measurement]]) -> dict[str, float | None]:
    return {
        "speedup_vs_generate": _speedup(runs, "nlicot", "generate"),
        "speedup_vs_generate_dense": _speedup(runs, "nlicot", "generate-dense"),
        "speedup_vs_forward": _speedup(runs, "nlicot", "forward"),
        "whole_speedup_vs_forward": _speedup(runs, "nlicot", "forward", whole=True),
        "forward_label_agreement": _agreement(runs, "nlicot", "forward"),
        "speedup_vs_llamacpp": _speedup(runs, "nlicot-dense", "llama.cpp"),
        "label_agreement": _agreement(runs, "nlicot", "generate-forced"),
        "closed_share": runs["nlicot"][0].closed_share if "nlicot" in runs else None,
        "llamacpp_label_agreement": _agreement(runs, "nlicot-dense", "llama.cpp"),
    }


def _speedup(
    runs: dict[str, list[Measurement]], one: str, other: str, *, whole: bool = False
) -> float | None:
    """Return the ratio of speeds, on request of whole processes, from their start to their end."""
    if one not in runs or other not in runs:
        return None
    fast, slow = (
        statistics.median(run.wall_s if whole else run.seconds for run in runs[name]) for name in (one, other)
    )
    return slow / fast


def _agreement(runs: dict[str, list[Measurement]], one: str, other: str) -> float | None:
    if one not in runs or other not in runs:
        return None
    pairs = list(zip(runs[one][0].labels, runs[other][0].labels, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def _circumstances(options: argparse.Namespace, runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    from nlicot.model.loaded_model import compute_dtype

    on_gpu = options.shape != BUNDLED and torch.cuda.is_available()
    real = os.environ.get("NLICOT_REAL_DATA")
    labels = next((found[0].labels for found in runs.values()), [])
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else processor(),
        "versions": versions(PACKAGES),
        "command": shlex.join(["python", *sys.argv]),
        "pairs": f"{len(labels)} {'real' if real else 'sample'} pairs",
        "shape": options.shape,
        "form": options.form,
        "adapter": options.adapter.name if options.adapter else "none",
        "budget": options.budget,
        "repeats": options.repeats,
        "threads": options.threads,
        "dtype": compute_dtype(options.dtype),
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Prediction speed against generate and llama.cpp.")
    parser.add_argument("--adapter", type=Path, help="a run's folder (default: the bundled model)")
    parser.add_argument("--shape", choices=(BUNDLED, *SHAPES), default=BUNDLED)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--generate_batch", type=int, default=16, help="batch size of generate")
    parser.add_argument("--budget", type=int, default=120, help="maximum tokens of a thought")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="48 pairs, once: under 10 minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--form", choices=CONTENDERS_BY_FORM, default="thought_first")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--contender", choices=(*CONTENDERS, "convert"), help=argparse.SUPPRESS)
    parser.add_argument("--llama_batch", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
