"""A format of `export`: what it writes, how large that is, and the program that it is checked with."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from nlicot.errors import ConfigError
from nlicot.export.agreement import Consumer
from nlicot.prediction.predictor import Member
from nlicot.report.card import Package

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
SMALL_FILES = 32_000_000
"""Bytes of a tokenizer, a card and a config, generously."""
PROMPT_TEMPLATE = "prompt_template.json"
ASK = f"""\
tokenizer = AutoTokenizer.from_pretrained(folder)
template = json.load(open(folder + "/{PROMPT_TEMPLATE}"))["prompt"]
prompt = template.replace("{{premise}}", "A dog runs.").replace("{{hypothesis}}", "An animal moves.")
chat = tokenizer.apply_chat_template(
    [{{"role": "user", "content": prompt}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
answer = model.generate(**chat, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))"""
"""Code for a card: asks a model of transformers that is in a folder."""


class Format(ABC):
    """One format; a subclass in a file of its own, named in `command.FORMATS` and `settings.ExportFormat`.

    Raises:
        ConfigError: `--dtype` is not one of the format's.
        ExportError: the format does not support the base.
    """

    name: ClassVar[str]
    weights: ClassVar[str] = "*.safetensors"
    """Pattern of the files that get a checksum; the others may be edited."""
    dtypes: ClassVar[tuple[str, ...]]
    """Number formats of its weights."""
    has_lm_eval_task: ClassVar[bool] = False
    """True if lm-evaluation-harness loads the folder."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Modules that the check needs besides those of nlicot, with the command that installs them."""

    def __init__(self, member: Member, dtype: str) -> None:
        if dtype == "auto":
            dtype = self.default_dtype(member)
        if dtype not in self.dtypes:
            expected = " or ".join(self.dtypes)
            raise ConfigError(f"--dtype: found {dtype}, expected {expected} with --format {self.name}")
        self.member, self.dtype = member, dtype

    @classmethod
    def missing_package(cls) -> str | None:
        """Return the command that installs what the check needs; None if it is installed."""
        return next((pip for module, pip in cls.needs.items() if not importlib.util.find_spec(module)), None)

    @classmethod
    @abstractmethod
    def default_dtype(cls, member: Member) -> str:
        """Return the number format for `--dtype auto`."""

    @abstractmethod
    def num_bytes(self, *, checked: bool) -> int:
        """Return the size of what is written, and of files that only the check needs."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the weights, and whatever else the program loads, into an empty folder."""

    @abstractmethod
    def load(self, folder: Path) -> Consumer:
        """Load what was written in the program that it is for."""

    @abstractmethod
    def package(self) -> Package:
        """Return what the model card says about the format."""

    @abstractmethod
    def next_step(self, folder: Path) -> str:
        """Return a command or an expression that uses the export."""


class WholeModel(Format):
    """A format of the base with the adapter merged into it."""

    dtypes = ("bfloat16", "float16", "float32")
    library: ClassVar[str]
    """The program that loads it, by the hub's name."""
    usage: ClassVar[str]
    """How it is loaded, for the card."""

    @classmethod
    def default_dtype(cls, member: Member) -> str:
        """The run's number format."""
        return dtype_of_training(member)

    def num_bytes(self, *, checked: bool) -> int:
        """The base's size in this number format."""
        return num_base_weights(self.member.resolved.base.folder) * BYTES[self.dtype] + SMALL_FILES

    def package(self) -> Package:
        """A model."""
        what = "A merged LoRA adapter in"
        return Package(what=what, usage=self.usage, library=self.library, relation="finetune")


def dtype_of_training(member: Member) -> str:
    """Return the run's number format; bfloat16 if it is that of the machine, so that exports are alike."""
    return "bfloat16" if member.settings.dtype == "auto" else member.settings.dtype


def num_adapter_weights(member: Member) -> int:
    """Count the adapter's weights."""
    return sum(weight.numel() for weight in member.weights.values())


def num_base_weights(folder: Path) -> int:
    """Count the weights of a base, without loading any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in model.parameters())
