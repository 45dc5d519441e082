"""The `audit` command: report what is wrong with a data root, before training is paid for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from nlicot.audit.counts import check_counts
from nlicot.audit.duplicates import check_duplicates, check_prompt_examples
from nlicot.audit.findings import Audit, Section, as_markdown, as_text, to_json
from nlicot.audit.inputs import KINDS, SPLITS, AuditData, read_prompts, read_splits
from nlicot.audit.label_leakage import check_hypotheses, check_voice
from nlicot.audit.teacher import check_lengths, check_teacher
from nlicot.builders import BUILDERS, find_builder
from nlicot.command_line import CommandParser
from nlicot.config_files import SAMPLE
from nlicot.data.atomic_write import refuse_overwriting, write_json, write_text
from nlicot.data.pairs import PairFormat
from nlicot.data.root import DataRoot
from nlicot.errors import ConfigError

logger = logging.getLogger(__name__)

CHECKS: Sequence[Callable[[AuditData], Section | None]] = (
    check_counts,
    check_duplicates,
    check_prompt_examples,
    check_hypotheses,
    check_teacher,
    check_lengths,
    check_voice,
)
"""In the order of the output. A check returns None if the data hold nothing for it to look at."""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 if there are errors to fix before training."""
    # `fit` calls the single files --data.train_pairs etc.; each --prompt adds to the ones before.
    args = [re.sub(r"^--prompt(?==|$)", "--prompt+", re.sub(r"^--data\.", "--", arg)) for arg in args]
    settings = _parser().parse(args)
    outputs = [path for path in (settings.json, settings.markdown) if path]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ConfigError("--json and --markdown: found one file for both, expected two")
    refuse_overwriting(*outputs, overwrite=settings.overwrite)
    files = {key: settings.get("_".join(key)) for key in product(SPLITS, KINDS)}
    single = {key: path.expanduser() for key, path in files.items() if path}
    if settings.root is None and not single:
        logger.info(
            "SAMPLE DATA: this looks at the small sample that comes with nlicot. For your own pairs: "
            "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
        )
    root = settings.root or (None if single else SAMPLE)
    builder = find_builder(settings.builder, flag="--builder")
    data_root = DataRoot(root.expanduser()) if root else None
    splits = read_splits(data_root, single, builder, PairFormat.of(settings))
    prompts = read_prompts(settings.prompt)
    found = AuditData(
        splits=splits, prompts=prompts, label_map=settings.label_map, of_root=data_root is not None
    )
    audit = run_checks(found)
    print(as_text(audit))
    if settings.json:
        write_json(settings.json, to_json(audit))
    if settings.markdown:
        write_text(settings.markdown, as_markdown(audit), overwrite=True)
    return audit.exit_code


def run_checks(data: AuditData) -> Audit:
    """Run every check."""
    sections = tuple(section for check in CHECKS if (section := check(data)) is not None)
    return Audit(files={split.name: split.files for split in data.splits}, sections=sections)


def _parser() -> CommandParser:
    parser = CommandParser(
        "audit",
        description="Look for what would spoil training: leaks between splits, labels that a model could "
        "guess without reading, thoughts and reflections whose source or wording gives the label away. "
        "Exit codes: 0 nothing blocks training, 1 fix the errors before training, 2 a mistake in files or "
        "flags.",
        example="python -m nlicot audit --root data --json audit.json",
    )
    add = parser.add_argument
    add("--root", type=Path | None, default=None, help="the data root (default: the sample)")
    for split in SPLITS:
        for kind in KINDS if split != "test" else ("pairs",):
            what = f"{kind} of {split}, instead of the root's"
            add(f"--{split}_{kind}", type=Path | None, default=None, metavar="FILE", help=what)
    add("--builder", type=str, default="reflected", help=f"makes the targets: {', '.join(BUILDERS)}")
    add("--prompt", type=list[Path], default=[], metavar="FILE", help="a prompt of yours; repeat for more")
    parser.add_class_arguments(PairFormat)
    for name, text in (("json", "everything, with all ids, as JSON"), ("markdown", "the text as Markdown")):
        add(f"--{name}", type=Path | None, default=None, metavar="FILE", help=f"write {text}")
    add("--overwrite", type=bool, default=False, help="replace existing FILEs")
    return parser
