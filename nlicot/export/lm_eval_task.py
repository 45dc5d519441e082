"""A task file with which EleutherAI's lm-evaluation-harness scores an export on labelled pairs.

The prompt is the run's, and goes through the export's own chat template. A label without a thought is read as
the run reads it: the likelier of two tokens after the scaffold. A thought is generated, and the label is
searched in the text; one that is cut off has no label and counts as wrong, unlike in nlicot.

The scaffold is a part of each choice: as the harness's `gen_prefix` it would be a turn of the assistant,
which chat templates render in different ways, or not at all.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from nlicot.completion import LABEL_OPENING, Form
from nlicot.model.prompt_format import PromptFormat
from nlicot.prompts import StudentPrompts
from nlicot.records import LABELS

TASK_FILE = "lm_eval.yaml"
PAIRS_FILE = "dev.csv"
"""A file of labelled pairs in the working directory, as `split` writes it; users edit its name."""
SCAFFOLD_TOKENS = 32
"""Tokens around a thought, generously."""
_COLUMN = re.compile("\0(premise|hypothesis)\0")


def lm_eval_task(
    prompts: StudentPrompts, form: Form, prompt_format: PromptFormat, max_thought_tokens: int
) -> str | None:
    """Return the task as YAML, for an answer in `form`.

    None if the tokenizer joins the blank before a label to it: the harness encodes prompt and choice as one
    text, and would read another token than the run.
    """
    if not form.thinks_before_label and not _keeps_labels_apart(prompt_format):
        return None
    template = prompts.render("\0premise\0", "\0hypothesis\0", form=form)
    task: dict[str, Any] = {
        "task": "nlicot",
        "dataset_path": "csv",
        # Else pandas reads a text such as None or NA as a missing one.
        "dataset_kwargs": {"data_files": {"test": PAIRS_FILE}, "keep_default_na": False},
        "test_split": "test",
        "doc_to_text": _as_jinja(template),
    }
    if form.thinks_before_label:
        label = r'"predicted_label": ([01])'
        task |= {
            "output_type": "generate_until",
            "doc_to_target": "{{label}}",
            "generation_kwargs": {
                "until": ["\n\n"],
                "do_sample": False,
                "max_gen_toks": max_thought_tokens + SCAFFOLD_TOKENS,
            },
            "filter_list": [
                {
                    "name": "label",
                    "filter": [
                        {"function": "regex", "regex_pattern": label},
                        {"function": "take_first"},
                    ],
                }
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    else:
        task |= {
            "output_type": "multiple_choice",
            "target_delimiter": "",
            "doc_to_choice": [f"{prompt_format.dummy_prefix}{LABEL_OPENING}{label}" for label in LABELS],
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    task["metadata"] = {"version": 1.0}
    return yaml.safe_dump(task, sort_keys=False, allow_unicode=True, width=10**6)


def _keeps_labels_apart(prompt_format: PromptFormat) -> bool:
    opening = prompt_format.encode_segment(LABEL_OPENING, first=True)
    return all(
        prompt_format.encode_segment(f"{LABEL_OPENING}{label}", first=True)
        == [*opening, *prompt_format.encode_segment(str(label), first=False)]
        for label in LABELS
    )


def _as_jinja(template: str) -> str:
    """Return a prompt as a template of the harness, which reads braces in a definition as they are.

    >>> _as_jinja('1 if {{x}}. \\0premise\\0')
    '{% raw %}1 if {{x}}. {% endraw %}{{premise}}'
    """
    parts = _COLUMN.split(template)
    return "".join(f"{{{{{part}}}}}" if index % 2 else _literal(part) for index, part in enumerate(parts))


def _literal(text: str) -> str:
    return f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]|\{$", text) else text
