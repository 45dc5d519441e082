"""GGUF files of Llama and Mistral models and of LoRA adapters, as llama.cpp reads them.

llama.cpp rotates neighbouring elements of queries and keys, transformers the two halves of a head: the rows
of these projections are put in llama.cpp's order, and so are the rows of an adapter's B for them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from nlicot.errors import ExportError
from nlicot.export.gguf_vocabulary import Vocabulary

ARCHITECTURE = "llama"
MODEL_TYPES = ("llama", "mistral")
ROTATIONS = ("default", "linear", "llama3")
"""Rotary embeddings that a file can describe: their frequencies are fixed, and attention is not scaled."""
NUMBERS = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor of a file; `values` are read when it is written."""

    name: str
    values: torch.Tensor
    number: GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        _, size = gguf.GGML_QUANT_SIZES[self.number]
        return int(size) * self.values.numel()

    def array(self) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(gguf.quants.quantize(self.values.float().cpu().numpy(), self.number))


def check_shape(config: Any, *, name: str) -> None:
    """Raise `ExportError` if llama.cpp's `llama` is not this model; `name` is the base's."""
    rope = config.rope_parameters or {}
    problems = {
        f"the model type {config.model_type!r}": config.model_type not in MODEL_TYPES,
        f"the activation {config.hidden_act!r}": config.hidden_act != "silu",
        f"the rotary embedding {rope.get('rope_type')!r}": rope.get("rope_type") not in ROTATIONS,
        "a partly rotated head": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if problem := next((each for each, holds in problems.items() if holds), None):
        raise ExportError(
            f"{name}: found {problem}, expected a Llama or Mistral model; export --format merged and convert "
            "it with llama.cpp's convert_hf_to_gguf.py"
        )


def write_model(model: Any, vocabulary: Vocabulary, path: Path, *, dtype: str, name: str) -> None:
    """Write a causal language model of transformers; vectors stay in float32."""
    config = model.config
    number, file_type = NUMBERS[dtype]
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    # llama.cpp's `llama` has no sliding window: within its length, attention is the same.
    lengths = config.max_position_embeddings, getattr(config, "sliding_window", None)
    writer.add_context_length(min(filter(None, lengths)))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_size = model.model.layers[0].self_attn.head_dim
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary.add_to(writer)
    _write(writer, list(_model_tensors(model, number)))


def _model_tensors(model: Any, number: GGMLQuantizationType) -> Iterator[_Tensor]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        found = f"{names.get_name(module)}.{kind}"
        values = _in_llama_cpp_order(values, module, config)
        yield _Tensor(
            name=found, values=values, number=number if values.ndim > 1 else GGMLQuantizationType.F32
        )
    factors = _frequency_factors(model)
    if not torch.allclose(factors, torch.ones_like(factors)):
        yield _Tensor(name="rope_freqs.weight", values=factors, number=GGMLQuantizationType.F32)


def _frequency_factors(model: Any) -> torch.Tensor:
    """Return `[D / 2]`: by what llama.cpp divides the frequencies of `rope_theta`."""
    used: torch.Tensor = model.model.rotary_emb.inv_freq.double().cpu()
    exponents = torch.arange(0, 2 * len(used), 2, dtype=torch.float64) / (2 * len(used))
    plain = model.config.rope_parameters["rope_theta"] ** -exponents
    factors: torch.Tensor = plain / used
    return factors.float()


def _in_llama_cpp_order(values: torch.Tensor, module: str, config: Any) -> torch.Tensor:
    """Reorder the rows of query and key projections, or of their bias: `[H, 2, D / 2]` to `[H, D / 2, 2]`."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(module.rpartition(".")[2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_adapter(
    weights: Mapping[str, torch.Tensor], config: Any, path: Path, *, alpha: int, dtype: str, name: str
) -> None:
    """Write a LoRA adapter: `weights` are A and B by the names of the modules they are on."""
    number, _ = NUMBERS[dtype]
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # Without it llama.cpp takes 1 for alpha / rank.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = []
    for key, values in weights.items():
        module, _, matrix = key.rpartition(".")
        if matrix == "lora_b":
            values = _in_llama_cpp_order(values, module, config)
        tensors.append(
            _Tensor(name=f"{names.get_name(module)}.weight.{matrix}", values=values, number=number)
        )
    _write(writer, tensors)


def _write(writer: GGUFWriter, tensors: Sequence[_Tensor]) -> None:
    """Write one tensor after the other, so that one of them is in memory twice."""
    for each in tensors:
        shape, kind = tuple(each.values.shape), np.dtype(np.float32)
        writer.add_tensor_info(each.name, shape, kind, each.num_bytes, raw_dtype=each.number)
    with _full_disk_of_numpy():
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for each in tensors:
                writer.write_tensor_data(each.array())
        finally:
            writer.close()


@contextmanager
def _full_disk_of_numpy() -> Iterator[None]:
    """Raise the error of a full disk if numpy cannot write; its own has no errno."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, str(error)) from error
