"""Reads training examples that `prepare` wrote, so that `fit` can train on an exported file."""

from __future__ import annotations

import re
from pathlib import Path

from nlicot import completion
from nlicot.errors import DataError
from nlicot.files import read_rows
from nlicot.records import TrainingExample

_OPENING, _CLOSING, _EOS = "[INST] ", "[/INST]", "</s>"


def read_prepared(path: Path) -> list[TrainingExample]:
    """The examples of a prepared file: `prompt` and `completion`, or both in `text`.

    Raises:
        DataError: a row holds neither, or its completion is not one of ours.
    """
    built = []
    for number, row in enumerate(read_rows(path), start=1):
        text = row.optional_text("text")
        if text is not None:
            prompt, answer = _halves(text)
            if not answer:
                raise row.error("a text of another form", "[INST] prompt [/INST] completion")
        else:
            prompt, answer = row.text("prompt"), row.text("completion")
        parsed = completion.parse(answer)
        if parsed is None:
            raise row.error(
                "a completion that is not thought_process and predicted_label in JSON", "both, in order"
            )
        built.append(
            TrainingExample(
                id=row.identifier() or f"row-{number}",
                prompt=prompt,
                completion=completion.render(parsed.thought_process, parsed.label),
                label=parsed.label,
                source=row.optional_text("source") or "prepared",
            )
        )
    if not built:
        raise DataError("no rows", "a row for each training example", path=path)
    return built


def _halves(text: str) -> tuple[str, str]:
    """Prompt and completion of a rendered text; both empty where it is none.

    The texts inside may hold the markers too, so the border is the first one behind which a whole
    completion stands.
    """
    text = text.strip().removeprefix("<s>").removesuffix(_EOS).strip()
    if not text.startswith(_OPENING):
        return "", ""
    borders = [match.start() for match in re.finditer(re.escape(_CLOSING), text)]
    halves = [
        (text[len(_OPENING) : at].removesuffix(" "), text[at + len(_CLOSING) :].strip()) for at in borders
    ]
    whole = [half for half in halves if completion.parse(half[1]) is not None]
    return (whole or halves or [("", "")])[0]
