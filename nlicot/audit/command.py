"""The `audit` command: what is wrong with a data root, before training is paid for."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from nlicot.audit.checks import audit
from nlicot.audit.prompt_examples import read_prompts
from nlicot.audit.reading import KINDS, SPLITS, read_root
from nlicot.audit.rendering import as_markdown, as_text, to_json
from nlicot.builders import BUILDERS, find_builder
from nlicot.data.atomic_write import refuse_overwriting, write_json, write_text
from nlicot.data.root import SAMPLE_ROOT, DataRoot, parse_label_map
from nlicot.errors import ConfigError

logger = logging.getLogger(__name__)


def main(args: Sequence[str]) -> int:
    """The `audit` command; the exit code is 1 where something is wrong enough to mend before training."""
    given = _parser().parse_args(args)
    outputs = [path for path in (given.json, given.markdown) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ConfigError("--json and --markdown: found one file for both, expected two")
    refuse_overwriting(*outputs, overwrite=given.overwrite)
    single = {
        (split, kind): path.expanduser()
        for split in SPLITS
        for kind in KINDS
        if (path := getattr(given, f"{split}_{kind}", None)) is not None
    }
    if given.root is None and not single:
        logger.info(
            "SAMPLE DATA: no --root was given, so this looks at the small sample. For your own pairs: "
            "python -m nlicot split PAIRS.csv, then add --root data (see data/README.md)."
        )
    root = DataRoot((given.root or SAMPLE_ROOT).expanduser())
    builder = find_builder(given.builder, flag="--builder")
    found = audit(
        read_root(
            root,
            builder,
            single=single,
            single_only=given.root is None and bool(single),
            label_map=given.label_map,
            prompts=read_prompts(given.prompt),
        )
    )
    print(as_text(found))
    if given.json is not None:
        write_json(given.json, to_json(found))
    if given.markdown is not None:
        write_text(given.markdown, as_markdown(found), overwrite=True)
    return found.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlicot audit",
        description="Look for what would spoil training: leaks between splits, labels that a model could "
        "guess without reading, thoughts and reflections that contradict or betray themselves. Exit codes: "
        "0 nothing that must wait, 1 mend the errors before training, 2 a mistake in files or flags.",
        epilog="example: python -m nlicot audit --root data --json audit.json",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", type=Path, help="the data root (default: the sample)")
    for split in SPLITS:
        for kind in KINDS if split != "test" else ("pairs",):
            add(
                f"--{split}-{kind}",
                f"--data.{split}_{kind}",
                dest=f"{split}_{kind}",
                type=Path,
                metavar="FILE",
                help=f"{kind} of {split}, in place of the root's",
            )
    add("--builder", default="reflected", help=f"whose targets: {', '.join(BUILDERS)} (default reflected)")
    add(
        "--prompt",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a prompt of yours; again for more",
    )
    add("--label-map", type=parse_label_map, help="entailment=1,neutral=0,contradiction=0")
    add("--json", type=Path, metavar="FILE", help="write everything, all ids included, as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the same text as Markdown")
    add("--overwrite", action="store_true", help="replace FILEs that are there")
    return parser
