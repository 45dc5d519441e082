"""A run's folder: its files, and the metadata that its checkpoints carry next to their weights."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlicot import ranks
from nlicot.completion import Form
from nlicot.data.atomic_write import check_folder
from nlicot.data.checksums import sha256_of
from nlicot.errors import CheckpointError, ConfigError
from nlicot.prompts import StudentPrompts

if TYPE_CHECKING:
    from nlicot.model.loaded_model import ResolvedModel

logger = logging.getLogger(__name__)

CONFIG, FIT_SUMMARY, METRICS, DECISION = "config.yaml", "fit.json", "metrics.json", "decision.json"
AGREEMENT = "agreement.json"
"""In an export's folder: how it predicts, next to the run."""
QUESTIONS = "questions"
"""Key in `agreement.json`: ids before a label, in one text, and the run's p(entailment)."""
BEST, LAST, PEFT_FOLDER, PREDICTIONS = "best.ckpt", "last.ckpt", "adapter", "predictions"
METADATA_KEY = "nlicot"
NUM_STEPS = "optimizer_steps"
"""Key in `fit.json`: the number of steps, once training has ended."""
TUNED_WITH = "tuned_with"
"""Key in `decision.json`: what made the probabilities; the files of earlier versions lack it."""
SLURM_JOB = "slurm_job"
"""Key in `fit.json`: the job that started the run."""
RUN_FOLDER = "NLICOT_RUN_FOLDER"
"""Environment variable with the folder that the first process made, for those that Lightning starts."""
EVENTS = "events."
"""TensorBoard's files start with this."""
LONGEST_NAME = 255
"""Maximum bytes of a file's name in common file systems."""


def predictions_path(folder: Path, split: str = "dev") -> Path:
    """Return the file with a run's predictions of a split."""
    return folder / PREDICTIONS / f"{split}.jsonl"


def check_new_run(name: str | None, root: Path) -> None:
    """Refuse a run whose folder cannot be made in `root`, before any work is done."""
    check_folder(root, label=f"--checkpoints_root {root}")
    if name is None or not ranks.is_first():  # the first process makes the folder
        return
    if not name or Path(name).name != name or name == ".." or len(os.fsencode(name)) > LONGEST_NAME:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:40]}..."
        raise ConfigError(
            f"--run {shown}: expected the name of a folder, without '/' and of at most {LONGEST_NAME} bytes "
            "(--checkpoints_root says in which folder it is made)"
        )
    if (root / name).exists() and not never_trained(root / name):
        raise ConfigError(
            f"--run {name}: a run of that name exists in {root}; choose another name, "
            f"or continue it with: fit --resume {root / name}"
        )


def never_trained(folder: Path) -> bool:
    """Return whether a folder is that of a fit that ended before it had saved a step."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.startswith((".", EVENTS))}
    return names <= {CONFIG, FIT_SUMMARY, "hparams.yaml"}


@contextlib.contextmanager
def hold_run(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Keep other processes from training a run; remove a new folder if the fit ends before saving a step."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system ends it with the process
        except BlockingIOError:
            raise CheckpointError(f"{folder}: another process trains this run; wait until it ends") from None
        except OSError:  # some network file systems have no locks
            logger.debug("%s: not locked", folder)
        try:
            yield
        except BaseException:
            if is_new and never_trained(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def run_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a run's folder must have."""
    path = folder / name
    if path.is_file():
        return path
    if folder.is_file():
        raise CheckpointError(f"{folder}: found a file, expected the run's folder, such as {folder.parent}")
    runs = sorted(other.parent.name for other in folder.parent.glob(f"*/{name}"))
    near = [folder.parent / other for other in difflib.get_close_matches(folder.name, runs, n=1)]
    if len(folder.parts) == 1:  # a run's name, without the folder of all runs
        near = [other.parent for other in Path().glob(f"*/{folder}/{name}")] or near
    if near:
        raise CheckpointError(f"{path}: no such file; did you mean {near[0]}?")
    raise CheckpointError(f"{path}: no such file; runs that have one: {', '.join(runs) or 'none'}")


def weights_id(checkpoint: Path) -> str:
    """Return the first digits of a checkpoint's SHA-256."""
    return sha256_of(checkpoint)[:12]


def is_of_other_weights(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """Return whether something was made with other adapters than the run's, as after a resume."""
    checkpoint = next((path for name in (BEST, LAST) if (path := folder / name).is_file()), None)
    made_by = made_with.get("checkpoints", ())
    return bool(made_by) and checkpoint is not None and weights_id(checkpoint) not in made_by


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the `fit.json` of a run; empty if it has none, as a run that an earlier version did not finish."""
    path = folder / FIT_SUMMARY
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: found no JSON object as `fit` writes it; delete the file") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMetadata:
    """The settings that a checkpoint was trained with."""

    base: str
    prompt_format: str  # mistral or chat
    tokenizer_sha256: str
    prompts: Mapping[str, Any]  # `StudentPrompts` as a dict; older versions lack some of its keys
    forms: frozenset[Form]  # the forms of completion that it was trained to write

    @classmethod
    def of(cls, model: ResolvedModel, prompts: StudentPrompts, forms: Iterable[Form]) -> CheckpointMetadata:
        """Describe what is about to be trained, or used."""
        return cls(
            base=model.base.name,
            prompt_format=model.prompt_format.name,
            tokenizer_sha256=model.prompt_format.fingerprint,
            prompts=prompts.to_dict(),
            forms=frozenset(forms),
        )

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], *, label: str) -> CheckpointMetadata:
        """Read the metadata of a loaded checkpoint; one that `fit` did not write has none."""
        try:
            found = content[METADATA_KEY]
            # Versions before 0.2 only stored whether the run writes thoughts.
            forms = found.get("forms") or ["thought_first" if found.get("thinks") else "label_only"]
            kept = {name: found[name] for name in ("base", "prompt_format", "tokenizer_sha256", "prompts")}
            return cls(**kept, forms=frozenset(map(Form, forms)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            is_missing = isinstance(error, KeyError)
            problem = f"it has no {error}" if is_missing else f"its metadata cannot be read ({error})"
            raise CheckpointError(f"{label}: not a checkpoint of nlicot: {problem}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as it is stored in a checkpoint."""
        return {**asdict(self), "forms": sorted(form.value for form in self.forms)}

    def check(self, here: CheckpointMetadata) -> None:
        """Refuse to continue with a different base, tokenizer or prompt; forms may differ."""
        mine, theirs = ({**each.prompts, **each.to_dict()} for each in (self, here))
        differences = [
            f"{name}: here {value!r}, in the checkpoint {mine[name]!r}"
            for name, value in theirs.items()
            if name not in ("forms", "prompts") and name in mine and value != mine[name]
        ]
        if differences:
            raise CheckpointError(
                f"the checkpoint was trained with different settings: {'; '.join(differences)} "
                "(leave these flags out, or pass the checkpoint that was trained with them)"
            )
