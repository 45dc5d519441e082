"""An exported model in llama.cpp, by its Python bindings: its own tokenizer, its own chat template.

llama.cpp runs in a process of its own, since an error in it may end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nlicot.errors import ExportError
from nlicot.export.agreement import Question, Reading

PIP = "pip install llama-cpp-python"
NEEDS = {"llama_cpp": PIP}
CONTEXT_MULTIPLE = 256
NUM_ROWS = (512, 1)
"""Tokens at once; on some virtual machines llama.cpp's kernels for AMX end the process with more than one."""


class LlamaCppConsumer:
    """A GGUF model, with an adapter or without."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        self.name = f"llama-cpp-python {version('llama-cpp-python')}"
        self._model, self._adapter = model, adapter

    def read(self, questions: Sequence[Question], label_ids: Sequence[int]) -> list[Reading]:
        """Answer one question at a time; raises `ExportError` if llama.cpp cannot."""
        for num_rows in NUM_ROWS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                task = pool.submit(
                    _read,
                    self._model,
                    self._adapter,
                    list(questions),
                    list(label_ids),
                    num_rows,
                    torch.get_num_threads(),
                )
                try:
                    return task.result()
                except BrokenProcessPool:
                    continue
                except ValueError as error:  # of a file that it does not load
                    raise ExportError(f"{self._model.name}: llama.cpp refuses it: {error}") from error
                except ImportError as error:
                    raise ExportError(f"llama.cpp's bindings cannot be loaded: {error}; run {PIP}") from error
        raise ExportError(
            f"{self._model.name}: llama.cpp ended without an answer; --unchecked skips the check"
        )


def _read(
    path: Path,
    adapter: Path | None,
    questions: list[Question],
    label_ids: list[int],
    num_rows: int,
    num_threads: int,
) -> list[Reading]:
    import numpy as np
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    longest = max(len(each.prompt_ids) + len(each.completion_ids) for each in questions)
    model = Llama(
        str(path),
        lora_path=None if adapter is None else str(adapter),
        n_ctx=CONTEXT_MULTIPLE * (longest // CONTEXT_MULTIPLE + 2),  # its prompts may be longer
        n_batch=num_rows,
        n_ubatch=num_rows,
        n_threads=num_threads,
        n_threads_batch=num_threads,
        verbose=False,
    )

    def text_of(token: int) -> str:
        return "" if token == -1 else str(model._model.token_get_text(token))

    chat = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        bos_token=text_of(model.token_bos()),
        eos_token=text_of(model.token_eos()),
    )

    def answer(question: Question) -> Reading:
        rendered: Any = chat(messages=[{"role": "user", "content": question.prompt}])
        ids = model.tokenize(
            rendered.prompt.encode("utf-8"), add_bos=not rendered.added_special, special=True
        )
        model.reset()
        model.eval([*ids, *question.completion_ids])
        logits = np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),))
        zero, one = (float(logits[token]) for token in label_ids)
        return Reading(prompt_ids=ids, p_entailment=float(1.0 / (1.0 + np.exp(zero - one))))

    return [answer(question) for question in questions]
