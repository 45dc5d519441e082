"""An exported model in transformers: its own tokenizer, its own chat template, plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nlicot.export.agreement import Question, Reading
from nlicot.model.loaded_model import causal_lm
from nlicot.prediction.decoding import choice_probabilities


class TransformersConsumer:
    """A model of transformers, adapted by peft or not, and the tokenizer in an export's folder."""

    def __init__(self, name: str, model: Any, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.name = name
        self._model = model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def read(self, questions: Sequence[Question], label_ids: Sequence[int]) -> list[Reading]:
        """Answer one question at a time."""
        head = causal_lm(self._model).lm_head
        found = []
        for question in questions:
            chat = [{"role": "user", "content": question.prompt}]
            ids = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            row = torch.tensor([[*ids, *question.completion_ids]], device=head.weight.device)
            output = self._model(row, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            two = choice_probabilities(head, output.hidden_states[-1][0, -1], label_ids)
            found.append(Reading(prompt_ids=list(ids), p_entailment=float(two[1])))
        return found
