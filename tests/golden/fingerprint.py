"""Record hashes of the program's behaviour, to show that a restructuring changed nothing.

Run it on a checkout before the change and on one after it, on the same machine, and compare:

    python tests/golden/fingerprint.py --code OLD --output before.json --keep-runs runs
    python tests/golden/fingerprint.py --code NEW --output after.json --use-runs runs
    python tests/golden/fingerprint.py --compare before.json after.json

Each part runs commands as a user types them, with `PYTHONPATH` set to the checkout, in a temporary folder.
No module of `nlicot` is imported here, because modules are what a restructuring renames. What tests check in
detail is left to the tests; this checks that every byte of the outputs is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from asyncio import Server
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.teacher import fake_answers  # noqa: E402
from tests.teacher.fake_batch_server import FakeBatchServer  # noqa: E402
from tests.teacher.fake_server import FakeServer  # noqa: E402

# ------------------------------------------------------------------------ commands and their flags

BUILDERS = (
    *("correct_only", "reflected", "unmodified"),
    *("label_only", "label_first", "draft_first", "multitask"),
)
FORMATS = ("text", "prompt-completion", "messages")
COMMANDS = {
    "split": "split {file} --dev 0.1 --seed {seed} --out {out}",
    "prepare": "prepare --root {root} --builder {builder} --format {format}",
    "inspect": "inspect --root {root} --config configs/{builder}.yaml --model.base {base} --num 300 --json",
    "audit": "audit --root {root} --json {out} --markdown {markdown}",
    "fit": "fit --config configs/{run}.yaml --config configs/overlays/sample.yaml --root small --run {run} "
    "--trainer.limit_train_batches {steps} --trainer.max_epochs 1 --trainer.val_check_interval 1.0 "
    "--data.effective_batch 8 --model.decoding.max_thought_tokens 64 "
    "--trainer.enable_progress_bar false --final_evaluation false",
    "resume": "fit --resume {folder} --trainer.max_epochs 2",
    "predict": "predict --ckpt_path {folder}/best.ckpt --root small --output {out}",
    "validate": "validate --ckpt_path {folder}/best.ckpt --root small",
    "generate": "generate --root {root} --split train --limit 40 --temperature 0.3 --seed 7 --yes",
    "reflect": "reflect --root {root} --split train --temperature 0.3 --seed 7 --next-models teacher",
    "score": "score --root {root} --split train --seed 7 --threshold 4 --rounds 2 --regenerate-with teacher",
    "report": "report {runs} --split {split} --json {out} --markdown {markdown}",
}
PREPARE_VARIANTS = {
    "chatml": "--prompt-format chatml",
    "balanced": "--builder-args balance=true --shuffle-seed 3 --limit 50",
    "defined": '--entailment "it follows" --no-entailment "it conflicts"',
}
INSPECTED = {
    "bundled": ("reflected", "label_first", "multitask", "dev", "cut", "dropped"),
    "mistral_base": ("reflected", "label_first", "cut"),
}
"""Builders and variants by base: one for each prompt format; a call takes 8 s, so not all are combined."""
INSPECT_VARIANTS = {
    "dev": "--split dev",
    "cut": "--data.max_length 220",
    "dropped": "--data.max_length 220 --data.over_budget drop",
}
PREDICT_VARIANTS = {
    "reflected": "--votes 2 --model.decoding.temperature 0.7",
    "multitask": "--think true",
    "label_only": "--ckpt_path checkpoints/multitask/best.ckpt",
}
"""More flags of `predict`, for one more call with each run: votes, a thought, an ensemble."""
VALIDATE_FLAGS = {"reflected": "--probe-thoughts", "label_only": "--tune-threshold", "multitask": ""}
BACKENDS = {"openai": "--samples 2", "mistral": "--prompt-type relation", "mistral-batch": ""}
"""Backends of the teacher, each with more flags of `generate`."""
RUNS = {"reflected": 4, "label_only": 2, "multitask": 2}
"""Runs by the name of their configuration, with the optimizer steps of each."""

# ------------------------------------------------------------------------ what may differ

VOLATILE_FIELDS = frozenset(
    {
        "created_at",
        "started_at",
        "received_at",
        "intended_at",
        "number",
        "duration_s",
        "latency_s",
        "wall_time",
        "base_model_name_or_path",
    }
)
"""Fields and columns that depend on the time, the machine or the order of concurrent requests."""
VOLATILE_SCALARS = ("per_s", "second", "time", "memory")
"""Parts of the names of TensorBoard's scalars that measure the machine."""
NUM_PAIRS = 20
PORT = 18_473
"""The fake server's: fixed, because the key of a request in the journal contains the server's address."""
TEACHER_FOLDER = Path(tempfile.gettempdir()) / "nlicot_fingerprint_teacher"
"""The teacher's data roots: fixed, because the name of a job in the journal contains the root's path."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHDYNAMO_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MISTRAL_API_KEY": "the-key",
    "NO_COLOR": "1",
    "COLUMNS": "110",
    "PYTHONHASHSEED": "0",
}

Items = dict[str, Any]


class CommandFailed(Exception):
    """A command of the checkout that ended with an unexpected exit code."""


@dataclass(slots=True, kw_only=True)
class Workspace:
    """The temporary folder in which all commands run, and the checkout that they run.

    `folder` contains `configs` (a link to the checkout's), the data roots `sample` (a copy of the checkout's)
    and `small` (the same with 20 pairs in dev and test), the real roots `blind`, `defined` and `original`,
    and `checkpoints`. All paths given to commands are relative to it, so no output depends on its name.
    """

    code: Path
    folder: Path
    old_runs: Path | None
    keep_runs: Path | None
    fitted: set[str] = field(default_factory=set)

    def run(self, name: str, *more: str, allowed: Sequence[int] = (0,), **values: Any) -> str:
        """Run one of `COMMANDS`; returns its standard output."""
        command = shlex.split(COMMANDS[name].format(**values)) + [
            part for text in more for part in shlex.split(text)
        ]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(self.code)}
        environment["NLICOT_CACHE"] = str(self.folder / "cache")
        done = subprocess.run(
            [sys.executable, "-m", "nlicot", *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in allowed:
            last = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise CommandFailed(f"nlicot {shlex.join(command)}: exit code {done.returncode}: {last}")
        return f"{done.returncode}\n" + done.stdout

    def fit(self, run: str) -> Path:
        """Return a run's folder, relative; train it on the first call."""
        folder = Path("checkpoints") / run
        if run not in self.fitted:
            self.run("fit", run=run, steps=RUNS[run])
            self.fitted.add(run)
            if self.keep_runs is not None:
                shutil.copytree(self.folder / folder, self.keep_runs / run, dirs_exist_ok=True)
        return folder

    def validate(self, run: str) -> Path:
        """Return a run's folder, relative, with predictions of dev; make them on the first call."""
        folder = self.fit(run)
        if not (self.folder / folder / "predictions").is_dir():
            self.run("validate", VALIDATE_FLAGS[run], folder=folder)
        return folder

    @property
    def real_roots(self) -> list[str]:
        """The data roots made of real data, if there is any."""
        return [name for name in ("blind", "defined", "original") if (self.folder / name).is_dir()]


# ------------------------------------------------------------------------ parts


def fingerprint_prepare(work: Workspace) -> Iterator[tuple[str, Any]]:
    """Every builder in every format, on the sample and on real data."""
    for root in ("sample", *work.real_roots):
        for builder in BUILDERS:
            for format_ in FORMATS:
                yield from _prepared(work, f"{root}/{builder}/{format_}", root, builder, format_)
    for name, flags in PREPARE_VARIANTS.items():
        for builder in ("reflected", "label_first"):
            if name != "balanced" or builder == "reflected":
                yield from _prepared(work, f"sample/{builder}/{name}", "sample", builder, "text", flags)


def _prepared(
    work: Workspace, item: str, root: str, builder: str, format_: str, flags: str = ""
) -> Iterator[tuple[str, Any]]:
    folder = work.folder / root / "finetune"
    shutil.rmtree(folder, ignore_errors=True)
    work.run("prepare", flags, root=root, builder=builder, format=format_)
    for path in sorted(folder.rglob("*.jsonl")):
        yield f"{item}/{path.name}", hash_file(path)


def fingerprint_encoding(work: Workspace) -> Iterator[tuple[str, Any]]:
    """Token ids and kinds of the first 300 examples, in both prompt formats."""
    mistral = work.folder / "mistral_base"
    mistral.mkdir()
    (mistral / "config.json").write_text('{"model_type": "mistral", "vocab_size": 32768}')
    for base, names in INSPECTED.items():
        for name in names:
            builder, flags = (name, "") if name in BUILDERS else ("reflected", INSPECT_VARIANTS[name])
            yield from _encoded(
                work, f"{base}/sample/{name}", flags, root="sample", builder=builder, base=base
            )
        for root in work.real_roots[:1]:
            yield from _encoded(work, f"{base}/{root}/reflected", root=root, builder="reflected", base=base)


def _encoded(work: Workspace, item: str, flags: str = "", **values: Any) -> Iterator[tuple[str, Any]]:
    found = json.loads(work.run("inspect", flags, **values).partition("\n")[2])
    examples = found.pop("examples")
    found.pop("base")
    yield f"{item}/num", len(examples)
    yield f"{item}/ids", hash_json([[each["id"], each.get("input_ids")] for each in examples])
    yield f"{item}/kinds", hash_json([[each["id"], each.get("kinds")] for each in examples])
    yield f"{item}/pieces", hash_json(examples)
    yield f"{item}/lengths", hash_json(found)


def fingerprint_adapter(work: Workspace) -> Iterator[tuple[str, Any]]:
    """A few optimizer steps: each tensor bit for bit, the dev loss, what is logged and stored."""
    for run in RUNS:
        yield from _run_folder(work.folder / work.fit(run), run)


def _run_folder(folder: Path, run: str) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = json.loads((folder / "fit.json").read_text())
    yield f"{run}/dev loss", fit["best"]
    yield f"{run}/fit.json", hash_json(normalized(fit))
    yield f"{run}/config.yaml", hash_file(folder / "config.yaml")
    yield (
        f"{run}/files",
        sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and "tfevents" not in path.name
        ),
    )
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    yield f"{run}/adapter_config.json", hash_json(normalized(config))
    with safe_open(folder / "adapter" / "adapter_model.safetensors", framework="np") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            described = f"{tensor.dtype} {tensor.shape} ".encode()
            yield f"{run}/tensor/{name}", hash_bytes(described + tensor.tobytes())
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in sorted(events.Tags()["scalars"]):
        if not any(part in tag.lower() for part in VOLATILE_SCALARS):
            yield f"{run}/scalar/{tag}", [[event.step, event.value] for event in events.Scalars(tag)]


def fingerprint_predictions(work: Workspace) -> Iterator[tuple[str, Any]]:
    """Predictions of 20 pairs by the adapters of a few steps, thoughts included, and dev metrics."""
    for run in RUNS:
        yield from _predicted(work, work.fit(run), run)
    for run, flags in PREDICT_VARIANTS.items():
        yield from _predicted(work, work.fit(run), f"{run} {flags}", flags)
    for run in RUNS:
        folder = work.folder / work.validate(run)
        for path in (*sorted((folder / "predictions").iterdir()), *sorted(folder.glob("*.json"))):
            yield f"{run}/validate/{path.name}", hash_text_file(path)
    # `predict` reads the tuned threshold from the folder above its output.
    tuned = work.fit("label_only") / "predictions"
    work.run("predict", folder=tuned.parent, out=tuned)
    for suffix in ("csv", "jsonl"):
        yield f"label_only/tuned/test.{suffix}", hash_text_file(work.folder / tuned / f"test.{suffix}")


def _predicted(work: Workspace, folder: Path, item: str, flags: str = "") -> Iterator[tuple[str, Any]]:
    out = work.folder / "predicted"
    shutil.rmtree(out, ignore_errors=True)
    work.run("predict", flags, folder=folder, out=out.name)
    for path in sorted(out.iterdir()):
        yield f"{item}/{path.name}", hash_text_file(path)


def fingerprint_report(work: Workspace) -> Iterator[tuple[str, Any]]:
    """The comparison of two runs."""
    for run in RUNS:
        work.validate(run)
    yield from _reported(work, "two runs", " ".join(RUNS))
    yield from _reported(work, "one run", "reflected")


def _reported(work: Workspace, item: str, runs: str) -> Iterator[tuple[str, Any]]:
    paths = [work.folder / name for name in ("report.json", "report.md")]
    for path in paths:
        path.unlink(missing_ok=True)
    work.run("report", runs=runs, split="dev", out=paths[0].name, markdown=paths[1].name)
    yield f"{item}/json", hash_text_file(paths[0])
    yield f"{item}/markdown", hash_text_file(paths[1])


def fingerprint_teacher(work: Workspace) -> Iterator[tuple[str, Any]]:
    """The three teacher commands against a server that also fails: their outputs and the journal."""
    shutil.rmtree(TEACHER_FOLDER, ignore_errors=True)
    for backend, flags in BACKENDS.items():
        root = TEACHER_FOLDER / backend
        shutil.copytree(work.folder / "sample" / "original_data", root / "original_data")
        asked = f"--backend {backend} --server-url http://127.0.0.1:{PORT} --model teacher --concurrency 4"
        asked += " --send-key true"
        stages = ("generate",) if backend == "mistral-batch" else ("generate", "reflect", "score")
        with _fake_server(backend, root) as server:
            for stage in stages:
                work.run(stage, asked, flags if stage == "generate" else "", root=root)
            yield f"{backend}/requests", hash_json(sorted(server.counts.items()))
        for path in sorted(root.rglob("*")):
            item = f"{backend}/{path.relative_to(root)}"
            if path.suffix == ".sqlite":
                yield from ((f"{item}/{table}", found) for table, found in hash_tables(path))
            elif path.name.endswith(".summary.json"):
                yield f"{backend}/summary/{path.parent.name}", hash_text_file(path)
            elif path.suffix in (".jsonl", ".json") and "logs" not in path.parts:
                yield item, hash_text_file(path)
    shutil.rmtree(TEACHER_FOLDER)


def _fake_server(backend: str, root: Path) -> FakeServer:
    """A server on the fixed port, that fails for a few of the pairs."""

    async def listen_on_port(self: FakeServer, port: int = PORT) -> Server:
        return await FakeServer.listen(self, port)

    base = FakeBatchServer if backend == "mistral-batch" else FakeServer
    server: FakeServer = type("FixedPortServer", (base,), {"listen": listen_on_port})()
    if backend != "mistral-batch":
        with (root / "original_data" / "train.csv").open(newline="") as file:
            premises = [row["premise"] for row in csv.DictReader(file)]
        troubles = {
            "FENCED": 1,
            "NOT_JSON": 1,
            "LABEL_2": 20,
            "LENGTH": 1,
            "TWO_OBJECTS": 1,
            "MISSING_FIELD": 1,
            "TRUNCATED": 1,
            "DROP": 1,
        }
        for index, (name, num) in enumerate(troubles.items()):
            server.script(premises[2 + 3 * index], [getattr(fake_answers, name)] * num)
    return server


def fingerprint_audit(work: Workspace) -> Iterator[tuple[str, Any]]:
    """All findings on the sample and on real data, and the exit codes."""
    for root in ("sample", *work.real_roots):
        paths = [work.folder / f"audit_{root}.{suffix}" for suffix in ("json", "md")]
        output = work.run("audit", root=root, out=paths[0].name, markdown=paths[1].name, allowed=(0, 1))
        yield f"{root}/exit code", int(output.partition("\n")[0])
        yield f"{root}/json", hash_text_file(paths[0])
        yield f"{root}/markdown", hash_text_file(paths[1])


def fingerprint_split(work: Workspace) -> Iterator[tuple[str, Any]]:
    """One CSV into train and dev."""
    for root in ("sample", *work.real_roots):
        for seed in (0, 1):
            out = f"split_{root}_{seed}"
            work.run("split", file=f"{root}/original_data/train.csv", seed=seed, out=out)
            for path in sorted((work.folder / out).rglob("*.csv")):
                yield f"{root}/seed {seed}/{path.name}", hash_file(path)


def fingerprint_old_runs(work: Workspace) -> Iterator[tuple[str, Any]]:
    """Run folders of an earlier version: predict, compare, and train on from their checkpoints."""
    if work.old_runs is None:
        return
    for run in RUNS:
        name = f"old_{run}"
        shutil.copytree(work.old_runs / run, work.folder / "checkpoints" / name)
        folder = Path("checkpoints") / name
        yield from _predicted(work, folder, f"{run}/predict")
        work.run("validate", folder=folder)
        yield f"{run}/validate", hash_text_file(work.folder / folder / "predictions" / "dev.jsonl")
        yield f"{run}/metrics", hash_text_file(work.folder / folder / "metrics.json")
    yield from _reported(work, "report", " ".join(f"old_{run}" for run in RUNS))
    work.run("resume", folder="checkpoints/old_reflected")
    yield from _run_folder(work.folder / "checkpoints" / "old_reflected", "reflected/resumed")


PARTS: dict[str, Callable[[Workspace], Iterator[tuple[str, Any]]]] = {
    "split": fingerprint_split,
    "prepare": fingerprint_prepare,
    "audit": fingerprint_audit,
    "encoding": fingerprint_encoding,
    "teacher": fingerprint_teacher,
    "adapter": fingerprint_adapter,
    "old_runs": fingerprint_old_runs,
    "predictions": fingerprint_predictions,
    "report": fingerprint_report,
}

# ------------------------------------------------------------------------ hashes


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    return hash_bytes(path.read_bytes())


def hash_json(content: Any) -> str:
    return hash_bytes(json.dumps(content, ensure_ascii=False).encode())


def hash_text_file(path: Path) -> str:
    """Hash a file without its volatile fields, if it is JSON; the order of fields counts."""
    if path.suffix == ".jsonl":
        return hash_json([normalized(json.loads(line)) for line in path.read_text().splitlines()])
    if path.suffix == ".json":
        return hash_json(normalized(json.loads(path.read_text())))
    return hash_file(path)


def hash_tables(path: Path) -> Iterator[tuple[str, str]]:
    """Hash each table of an SQLite file: its columns and its rows, in no order."""
    with closing(sqlite3.connect(path)) as database:
        for (table,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        ).fetchall():
            cursor = database.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            rows = sorted(
                json.dumps(normalized(dict(zip(columns, map(_parsed, row), strict=True)))) for row in cursor
            )
            yield table, hash_json([columns, rows])


def _parsed(cell: Any) -> Any:
    """Parse a cell that is a JSON document, so that its fields can be normalized."""
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(cell)
    return cell


def normalized(content: Any) -> Any:
    """Copy JSON content without its volatile fields.

    >>> normalized({"id": "a", "created_at": "now", "usage": [{"duration_s": 2, "tokens": 3}]})
    {'id': 'a', 'usage': [{'tokens': 3}]}
    """
    if isinstance(content, Mapping):
        return {name: normalized(each) for name, each in content.items() if name not in VOLATILE_FIELDS}
    if isinstance(content, list):
        return [normalized(each) for each in content]
    return content


# ------------------------------------------------------------------------ the command line


def prepare_workspace(work: Workspace, real_data: Path | None) -> None:
    """Lay out the data roots in the temporary folder."""
    (work.folder / "configs").symlink_to(work.code / "configs")
    (work.folder / "checkpoints").mkdir()
    shutil.copytree(work.code / "data" / "sample", work.folder / "sample")
    shutil.copytree(work.folder / "sample", work.folder / "small")
    for split in ("dev", "test"):
        _shorten(work.folder / "small", split)
    if real_data is None:
        return
    comp = real_data / "comp34812"
    for root, infix in (("blind", ""), ("defined", "_defined")):
        for split in ("train", "dev", "test"):
            _copy(comp / f"{split}.csv", work.folder / root / "original_data" / f"{split}.csv")
        for split in ("train", "dev"):
            for kind, folder in (("thoughts", "original_thoughts"), ("reflections", "reflected_thoughts")):
                _copy(comp / f"{kind}{infix}_{split}.jsonl", work.folder / root / folder / f"{split}.jsonl")
    original = real_data / "original"
    for name, target in (
        ("sample.csv", "original_data/train.csv"),
        ("sample_thoughts.json", "original_thoughts/train.jsonl"),
        ("sample_reflections.json", "reflected_thoughts/train.jsonl"),
    ):
        _copy(original / name, work.folder / "original" / target)


def _shorten(root: Path, split: str) -> None:
    """Keep the first pairs of a split, and the thoughts and reflections of these pairs."""
    pairs_path = root / "original_data" / f"{split}.csv"
    lines = pairs_path.read_text().splitlines(keepends=True)[: NUM_PAIRS + 1]
    pairs_path.write_text("".join(lines))
    ids = {line.partition(",")[0] for line in lines[1:]}
    for path in root.glob(f"*/{split}.jsonl"):
        kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["id"] in ids]
        path.write_text("".join(kept))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def check_imported_code(work: Workspace) -> None:
    """Refuse to record another copy of the package than the checkout's, an installed one for example."""
    imported = subprocess.run(
        [sys.executable, "-c", "import nlicot; print(nlicot.__file__)"],
        cwd=work.folder,
        env=os.environ | {"PYTHONPATH": str(work.code)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not Path(imported).is_relative_to(work.code):
        sys.exit(f"--code {work.code}: python imports {imported} instead")


def record(options: argparse.Namespace) -> int:
    """Run the parts and write what they found; the exit code is 1 if a command failed."""
    named = os.environ.get("NLICOT_REAL_DATA")
    real_data = Path(named).resolve() if named else None
    found: dict[str, Items] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = Workspace(
            code=options.code.resolve(),
            folder=Path(folder),
            old_runs=options.use_runs or options.keep_runs,
            keep_runs=options.keep_runs,
        )
        prepare_workspace(work, real_data)
        check_imported_code(work)
        for name in [part for part in PARTS if part in (options.only or PARTS)]:
            start, items = time.monotonic(), found.setdefault(name, {})
            try:
                if name == "old_runs" and options.keep_runs is not None:
                    for run in RUNS:
                        work.fit(run)
                for item, value in PARTS[name](work):
                    items[item] = value
            except (CommandFailed, OSError, ValueError, KeyError) as error:
                failed = True
                items["FAILED"] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
            print(f"{name:<12} {len(items):>5} items {time.monotonic() - start:>6.0f} s", flush=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(failed)


def compare(before_path: Path, after_path: Path) -> int:
    """Print the items that differ between two outputs; the exit code is 1 if any do."""
    before, after = (json.loads(path.read_text()) for path in (before_path, after_path))
    num_compared = num_different = 0
    for part in [*before, *(part for part in after if part not in before)]:
        if part not in before or part not in after:
            print(f"{part}: not in {before_path if part not in before else after_path}, not compared")
            continue
        old, new = before[part], after[part]
        for item in sorted({*old, *new}):
            num_compared += 1
            if old.get(item) != new.get(item):
                num_different += 1
                print(f"{part}: {item}: {_shown(old.get(item))} -> {_shown(new.get(item))}")
    print(f"{num_compared} items compared, {num_different} different")
    return int(num_different > 0)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text[:200]


def main() -> int:
    """Record the behaviour of a checkout, or compare two outputs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, metavar="DIR", help="the checkout whose behaviour is recorded")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--keep-runs", type=Path, metavar="FOLDER", help="keep the run folders there")
    parser.add_argument("--use-runs", type=Path, metavar="FOLDER", help="run folders that --keep-runs kept")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="print the differences")
    options = parser.parse_args()
    if options.compare:
        return compare(*options.compare)
    if options.code is None or options.output is None:
        parser.error("expected --code and --output, or --compare")
    return record(options)


if __name__ == "__main__":
    sys.exit(main())
