"""The command `export`: refuse early, write next to the target, check in the real program, rename."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from nlicot.completion import Form
from nlicot.data.atomic_write import (
    check_disk_space,
    check_folder,
    disk_errors,
    make_folder,
    publish_folder,
    refuse_existing,
    scratch_folder,
)
from nlicot.data.checksums import write_checksums
from nlicot.errors import ConfigError, DataError, DiskFull, ExportError
from nlicot.export.agreement import (
    OwnPredictions,
    agreement_lines,
    allowed_differences,
    predict_own,
)
from nlicot.export.format import PROMPT_TEMPLATE, Format
from nlicot.export.gguf_adapter import GgufAdapter
from nlicot.export.gguf_model import GgufModel
from nlicot.export.lm_eval_task import TASK_FILE, lm_eval_task
from nlicot.export.merged import Merged
from nlicot.export.peft_folder import PeftFolder
from nlicot.model.loaded_model import silence_libraries
from nlicot.prediction.predictor import Member, answer_forms, read_member
from nlicot.records import Example
from nlicot.report.card import as_card
from nlicot.report.read_runs import read_run
from nlicot.run.config import TrainedRun
from nlicot.run.data import RunData
from nlicot.run.folder import AGREEMENT, QUESTIONS
from nlicot.settings import ExportSettings

FORMATS: dict[str, type[Format]] = {each.name: each for each in (PeftFolder, Merged, GgufModel, GgufAdapter)}
CARD = "README.md"


def export(run: TrainedRun) -> int:
    """Write a run's model in a format, check it, and print where it is; returns the exit code."""
    silence_libraries()
    settings = cast("ExportSettings", run.settings)
    format_class = FORMATS[str(settings.format)]
    target = (settings.out or run.checkpoint.parent / format_class.name).expanduser()
    refuse_existing(target)
    check_folder(target.parent, label=f"--out {target}")
    if not settings.unchecked and (pip := format_class.missing_package()):
        raise ConfigError(
            f"--format {format_class.name} cannot be checked: run {pip}, or write it unchecked with "
            "--unchecked"
        )
    examples = [] if settings.unchecked else _dev_sample(settings)
    member = read_member(run)
    exporter = format_class(member, settings.dtype)
    texts = _texts(exporter, run.checkpoint.parent)
    check_disk_space(target, exporter.num_bytes(checked=not settings.unchecked))
    own = None if settings.unchecked else predict_own(member, examples)
    make_folder(target.parent, label=f"--out {target}")
    try:
        with disk_errors(target), scratch_folder(target.parent.resolve() / target.name) as scratch:
            fresh = scratch / target.name
            exporter.write(fresh)
            if own is not None:
                _check(exporter, fresh, own, force=settings.force)
            for name, text in texts.items():
                (fresh / name).write_text(text, encoding="utf-8")
            write_checksums(fresh, exporter.weights)
            publish_folder(fresh, target)
    except DiskFull as error:  # of a file in the scratch folder
        raise DiskFull(target, error.reason, kept="nothing was written") from None
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"\nexport       {target} ({exporter.dtype}, {size / 1e6:.0f} MB{'' if own else ', not checked'})")
    print(f"next         {exporter.next_step(target)}")
    return 0


def _dev_sample(settings: ExportSettings) -> list[Example]:
    data = RunData(settings)
    data.announce_sample()
    path = data.path("dev", "pairs")
    if not path.is_file():
        raise DataError(
            "no such file, and the export is checked on dev pairs",
            path=path,
            remedy="name others with --root or --data.dev_pairs, or write it unchecked with --unchecked",
        )
    data.read_labelled("dev")
    return data.dev_sample(settings.check_pairs)


def _check(exporter: Format, folder: Path, own: OwnPredictions, *, force: bool) -> None:
    """Compare the export with the run, print and store the figures; refuse it if they differ."""
    found = own.compare(exporter.load(folder))
    print("", *agreement_lines(own, found), sep="\n")
    figures = {"export": asdict(found), "rounding": asdict(own.rounding), QUESTIONS: own.some_questions()}
    (folder / AGREEMENT).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if found.is_explained_by(own.rounding):
        return
    mean, largest = allowed_differences(own.rounding)
    message = (
        f"--format {exporter.name}: p(entailment) differs from the run's by {found.mean_difference:.4f} on "
        f"average and {found.largest_difference:.4f} at most; rounding explains {mean:.4f} and {largest:.4f}"
    )
    if found.num_same_prompts < found.num_pairs:
        message += f"; {found.num_pairs - found.num_same_prompts} prompts have other ids"
    if not force:
        raise ExportError(f"{message}; nothing was written (--force keeps it)")
    print(f"kept by --force: {message}")


def _texts(exporter: Format, run_folder: Path) -> dict[str, str]:
    """Return the files that go with the weights, by name: the card, the prompts, a task of lm-eval."""
    member = exporter.member
    form, _ = answer_forms(member.metadata.forms, member.settings.decoding.think)
    card = as_card(
        read_run(run_folder, "dev"), None, package=exporter.package(), form=form, prompts=member.prompts
    )
    template = json.dumps(prompt_template(member, form), indent=2, ensure_ascii=False)
    texts = {CARD: card, PROMPT_TEMPLATE: template + "\n"}
    max_tokens = member.settings.decoding.max_thought_tokens
    task = lm_eval_task(member.prompts, form, member.resolved.prompt_format, max_tokens)
    if task and exporter.has_lm_eval_task:
        texts[TASK_FILE] = task
    return texts


def prompt_template(member: Member, form: Form) -> dict[str, Any]:
    """Return the prompt of a form, and those of all forms that the run was trained on."""

    def template(each: Form) -> str:
        return member.prompts.render("{premise}", "{hypothesis}", form=each)

    known = sorted(member.metadata.forms, key=lambda each: each.value)
    return {
        "form": form.value,
        "prompt": template(form),
        "prompts": {each.value: template(each) for each in known},
    }
