"""Pairs that stand in a prompt: a teacher or student that was shown a pair there does not infer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from nlicot.audit.findings import Finding, Section, place, unique
from nlicot.audit.minhash import contained_share, normalised
from nlicot.audit.reading import AuditData
from nlicot.errors import ConfigError
from nlicot.prompts import StudentPrompts
from nlicot.teacher.stages.prompts import FOLDER
from nlicot.text_tables import counted

LEAST_SHARE = 0.8
FEWEST_WORDS = 6
"""Shorter texts may stand in a prompt by chance."""


def read_prompts(own: Sequence[Path]) -> Mapping[str, str]:
    """The texts of the prompts that ship, the student's and the teacher's, and of a person's own files.

    Raises:
        ConfigError: a file cannot be read.
    """
    student = StudentPrompts()
    found = {f"prompt {name}": getattr(student, name) for name in ("thinking", "label_only", "label_first")}
    for path in (*sorted(FOLDER.glob("*.yaml")), *own):
        try:
            found[path.name if path.parent == FOLDER else str(path)] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt {path}: cannot be read ({error}), expected a text file") from None
    return found


def check_prompt_examples(data: AuditData) -> Section | None:
    """Look for premises and hypotheses that stand in a prompt, or nearly."""
    if not data.prompts:
        return None
    ids_of: dict[str, list[str]] = {}
    bigrams_of = {name: set(pairwise(normalised(text).split())) for name, text in data.prompts.items()}
    for split in data.splits:
        for example in split.examples:
            texts = (normalised(example.premise).split(), normalised(example.hypothesis).split())
            for name, bigrams in bigrams_of.items():
                if any(
                    len(words) >= FEWEST_WORDS and contained_share(words, bigrams) >= LEAST_SHARE
                    for words in texts
                ):
                    ids_of.setdefault(name, []).append(place(split.name, example.id))
    findings = []
    if ids_of:
        ids = unique(id_ for found in ids_of.values() for id_ in found)
        findings.append(
            Finding(
                name="pair in a prompt",
                severity="error",
                summary=f"{counted(len(ids), 'pair')} with a text that stands in {', '.join(ids_of)}",
                advice="take other examples for the prompt, or leave these pairs out of what is measured",
                ids=ids,
                figures={"by_prompt": ids_of},
            )
        )
    return Section(
        name="prompt_examples",
        title="Prompt examples",
        summary=f"{len(data.prompts)} prompts, {len(findings[0].ids) if findings else 0} pairs in them",
        findings=tuple(findings),
    )
