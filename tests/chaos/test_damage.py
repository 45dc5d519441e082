"""Every kind of file, damaged: refused in one line, set aside, or made again; never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from nlicot.cli import main
from nlicot.data.checksums import CHECKSUMS, _damage_once, damage
from nlicot.model.base_model import resolve
from nlicot.model.encoding import encode_dataset
from nlicot.model.loaded_model import load_base
from nlicot.model.prompt_format import MistralFormat
from tests.chaos.commands import finish, start
from tests.chaos.damage import damages, restore
from tests.chaos.test_kills import FIT
from tests.model.test_encoding import training_example
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
NUM_ASKED = 60


def outcome(args: Sequence[object]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it printed on stderr."""
    _damage_once.cache_clear()  # a new process looks at its caches
    errors, handler_output = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(handler_output)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(list(map(str, args)))
    finally:
        logging.getLogger().removeHandler(handler)
    return code, errors.getvalue() + handler_output.getvalue()


def check(path: Path, args: Sequence[object], *, home: Path, codes: Sequence[int] = (0, 2)) -> dict[int, int]:
    """Damage a file in each way and run the command; return how often it ended with which code."""
    copy = home.with_name(f"{home.name}-copy")
    shutil.copytree(home, copy)
    problems, counts = [], dict.fromkeys(codes, 0)
    for name, do_damage in damages(path):
        do_damage()
        try:
            code, errors = outcome(args)
        except BaseException as error:  # noqa: BLE001 (the point of the test)
            problems.append(f"{name}: {type(error).__name__}: {error}")
        else:
            lines = [line for line in errors.splitlines() if line.startswith("nlicot: ")]
            if code not in codes or (code and len(lines) != 1) or "Traceback" in errors:
                problems.append(f"{name}: exit code {code}: {errors[-500:]}")
            elif code:
                counts[code] += 1
                # A file whose letters changed may be whole, and refused for what it says now.
                is_whole = name.startswith("four bytes")
                names = path.name, path.parent.name, path.parent.parent.name
                if not is_whole and not any(part in lines[0] for part in names):
                    problems.append(f"{name}: the file is not named: {lines[0]}")
            else:
                counts[0] += 1
        restore(home, copy)
    shutil.rmtree(copy)
    assert problems == [], "\n".join(problems)
    return counts


# --------------------------------------------------------------------- data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "root")
    return tmp_path / "root"


@pytest.mark.parametrize(
    "name",
    ["original_data/train.csv", "original_thoughts/train.jsonl", "reflected_thoughts/train.jsonl"],
)
@pytest.mark.parametrize("command", ["prepare", "audit"])
def test_data(command: str, name: str, root: Path, tmp_path: Path) -> None:
    args = [command, "--root", root]
    if command == "prepare":
        args += ["--split", "train", "--out", tmp_path / "out.jsonl", "--overwrite"]
    counts = check(root / name, args, home=root, codes=(0, 1, 2))
    assert counts[2] >= 10


def write_table(path: Path) -> None:
    """Write 40 pairs in the format that a path's ending names."""
    rows = [{"premise": f"Premise {n}.", "hypothesis": f"It is {n}.", "label": n % 2} for n in range(40)]
    if path.suffix == ".gz":
        lines = [",".join(map(str, row.values())) for row in rows]
        path.write_bytes(gzip.compress("\n".join([",".join(rows[0]), *lines]).encode()))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    else:
        pairs = [
            f'<pair id="{n}" value="{row["label"]}"><t>{row["premise"]}</t><h>{row["hypothesis"]}</h></pair>'
            for n, row in enumerate(rows)
        ]
        path.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n<corpus>{"".join(pairs)}</corpus>\n')


@pytest.mark.parametrize("name", ["pairs.csv.gz", "pairs.parquet", "pairs.arrow", "pairs.xml"])
def test_other_formats_of_pairs(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_table(home / name)
    args = ["split", home / name, "--out", home / "out"]
    assert outcome(args)[0] == 0
    counts = check(home / name, [*args, "--overwrite"], home=home)
    assert counts[2] >= 10


@pytest.mark.chaos
def test_prepared_examples(root: Path, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    path = home / "prepared.jsonl"
    assert outcome(["prepare", "--root", root, "--split", "train", "--out", path])[0] == 0
    flags = ["--data.prepared", path, "--model.base", "bundled", "--num", "1"]
    counts = check(path, ["inspect", "--root", root, *flags], home=home)
    assert counts[2] >= 10


# ------------------------------------------------------------------ teacher


@dataclass
class Teacher:
    """A data root whose pairs were all asked about, and the command that did so."""

    root: Path
    server: FakeServer
    args: list[object]

    @property
    def journal(self) -> Path:
        return self.root / "journal" / "generate.sqlite"

    @property
    def output(self) -> Path:
        return self.root / "original_thoughts" / "train.jsonl"

    def num_outputs(self) -> int:
        return self.output.read_text(errors="replace").count("\n")


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[Teacher]:
    root = tmp_path / "root"
    (root / "original_data").mkdir(parents=True)
    lines = (SAMPLE / "original_data" / "train.csv").read_text().splitlines()[: NUM_ASKED + 1]
    (root / "original_data" / "train.csv").write_text("\n".join(lines) + "\n")
    with FakeServer(keep_seen=False) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        yield Teacher(root=root, server=server, args=["generate", "--root", root, *flags])


@pytest.mark.chaos
@pytest.mark.parametrize("again", ["", "--reparse", "--retry_failures", "--dry_run", "--export_journal"])
def test_journal(again: str, teacher: Teacher, tmp_path: Path) -> None:
    assert outcome(teacher.args)[0] == 0
    more: list[object] = [again] if again else []
    if again == "--export_journal":
        more.append(tmp_path / "journal.jsonl")
    check(teacher.journal, [*teacher.args, *more, "--overwrite"], home=teacher.root)


@pytest.mark.chaos
def test_a_damaged_journal_costs_the_answers_that_cannot_be_read(teacher: Teacher) -> None:
    args = [*teacher.args, "--overwrite"]
    assert outcome(args)[0] == 0
    num_read = 0
    for name, do_damage in damages(teacher.journal):
        do_damage()
        before = teacher.server.num_requests
        code, errors = outcome(args)
        if code == 0:
            num_read += 1
            assert teacher.num_outputs() == NUM_ASKED
            num_requests = teacher.server.num_requests - before
            assert not num_requests or re.search(
                "(others|they) are asked again|every answer is asked and paid again", errors
            ), (name, errors)
        shutil.rmtree(teacher.journal.parent)
        outcome(args)
    assert num_read


@pytest.mark.parametrize("problem", ["missing", "empty"])
def test_a_journal_that_is_lost_is_reported_before_anything_is_paid_again(
    problem: str, teacher: Teacher
) -> None:
    assert outcome(teacher.args)[0] == 0
    shutil.rmtree(teacher.journal.parent)
    if problem == "empty":
        teacher.journal.parent.mkdir()
        teacher.journal.touch()
    num_requests, output = teacher.server.num_requests, teacher.output.read_bytes()
    code, errors = outcome(teacher.args)
    assert (code, teacher.server.num_requests) == (2, num_requests)
    assert "exists already; add --overwrite" in errors

    teacher.server.key = "a key that this command lacks"  # so nothing can be paid for
    code, errors = outcome([*teacher.args, "--overwrite"])
    assert code == 3
    warning = (
        f"{teacher.journal}: {problem}, though {teacher.output} is finished: every answer is asked and paid"
    )
    assert warning in errors
    assert teacher.output.read_bytes() == output


@pytest.mark.parametrize(
    "name",
    [
        *("original_thoughts/train.jsonl", "original_thoughts/train.failures.jsonl"),
        *("journal/generate.sqlite", "journal/generate.lock", "original_data/train.csv"),
    ],
)
def test_a_folder_in_the_place_of_a_teachers_file(name: str, teacher: Teacher) -> None:
    (teacher.root / name).unlink(missing_ok=True)
    (teacher.root / name).mkdir(parents=True)
    _assert_refused(name, teacher)


@pytest.mark.parametrize("name", ["journal", "logs", "original_thoughts", "logs/thoughts"])
def test_a_file_in_the_place_of_a_teachers_folder(name: str, teacher: Teacher) -> None:
    (teacher.root / name).parent.mkdir(exist_ok=True)
    (teacher.root / name).touch()
    _assert_refused(name, teacher)


def _assert_refused(name: str, teacher: Teacher) -> None:
    code, errors = outcome(teacher.args)
    assert code == 2
    assert errors.startswith("nlicot: ") and errors.count("\n") == 1
    assert str(teacher.root / name) in errors
    assert teacher.server.num_requests == 0


@pytest.mark.chaos
def test_the_log_that_a_killed_teacher_left(teacher: Teacher) -> None:
    """SQLite's write-ahead log has the last answers; those that are lost with it are asked again."""
    teacher.server.delay_s = 0.1
    with start([*teacher.args, "--concurrency", "4"]) as process:
        while sum(teacher.server.answered.values()) < NUM_ASKED // 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    teacher.server.delay_s = 0.0
    for name in ("generate.sqlite-wal", "generate.sqlite-shm"):
        path = teacher.journal.with_name(name)
        assert path.stat().st_size
        check(path, teacher.args, home=teacher.root)
    assert outcome(teacher.args)[0] == 0
    assert teacher.num_outputs() == NUM_ASKED


# --------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base, a run with all its files, and a cache."""
    folder = tmp_path_factory.mktemp("home")
    base = write_small_model(folder / "base")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NLICOT_CACHE", str(folder / "cache"))
        flags = [f"--checkpoints_root={folder / 'runs'}", f"--model.base={base}", "--trainer.max_steps=4"]
        assert outcome(["fit", *FIT, *flags, "--final_evaluation=false"])[0] == 0
        run = folder / "runs" / "run"
        assert outcome(["validate", "--ckpt_path", run / "best.ckpt", "--data.limit_dev=8"])[0] == 0
        assert outcome(["audit", "--json", run / "audit.json"])[0] == 0
        (run / "decision.json").write_text('{"threshold": 0.4, "temperature": 1.5}')
        yield folder


RESUME = ["fit", "--resume", "RUN", "--trainer.max_steps=5", "--final_evaluation=false"]
TEST = ["test", "--split", "dev", "--ckpt_path", "RUN/best.ckpt", "--data.limit_dev=4"]
REPORT = ["report", "RUN", "--html", "RUN/page.html", "--card", "RUN/card.md", "--overwrite"]
AUDITED = [*REPORT, "--audit", "RUN/audit.json"]
READERS = {
    "last.ckpt": [RESUME],
    "best.ckpt": [TEST],
    "config.yaml": [RESUME, TEST, REPORT],
    "fit.json": [RESUME, TEST, REPORT],
    "metrics.json": [TEST, REPORT],
    "decision.json": [TEST, REPORT],
    "predictions/dev.jsonl": [REPORT],
    "audit.json": [AUDITED],
    "../../base/config.json": [RESUME, TEST],
    "../../base/tokenizer.json": [RESUME, TEST],
    "../../base/model.safetensors": [RESUME, TEST],
}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("name", "args"), [(name, args) for name, readers in READERS.items() for args in readers]
)
def test_run(name: str, args: list[str], home: Path) -> None:
    run = home / "runs" / "run"
    counts = check((run / name).resolve(), [arg.replace("RUN", str(run)) for arg in args], home=home)
    if name.endswith(".ckpt"):
        assert counts[0] <= 2  # bytes between the tensors, which nothing reads


@pytest.mark.chaos
@pytest.mark.parametrize("args", [RESUME, REPORT])
def test_event_files(args: list[str], home: Path) -> None:
    run = home / "runs" / "run"
    paths = list(run.glob("events.*"))
    assert paths
    for path in paths:
        check(path, [arg.replace("RUN", str(run)) for arg in args], home=home)


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", CHECKSUMS])
def test_adapter(name: str, home: Path) -> None:
    run = home / "runs" / "run"
    (home / "pairs.csv").write_text("id,premise,hypothesis,label\na,It rains.,It is wet.,1\n")
    (home / "root" / "original_data").mkdir(parents=True, exist_ok=True)
    shutil.copy(home / "pairs.csv", home / "root" / "original_data" / "train.csv")
    args = ["generate", "--root", home / "root", "--backend", "local", "--model", run, "--yes", "--overwrite"]
    counts = check(run / "adapter" / name, args, home=home, codes=(0, 2, 3, 7))
    if name != "adapter_config.json":  # which may be edited: some values have no effect here
        assert counts[0] <= (name == CHECKSUMS)  # its last line break


@pytest.mark.chaos
def test_partial_predictions(home: Path) -> None:
    run = home / "runs" / "run"
    args = [arg.replace("RUN", str(run)) for arg in TEST]
    cache = home / "cache"
    finish(args, code=5, max_file_bytes=600, cache=cache)  # what was predicted before the disk was full
    (partial,) = (run / "predictions").glob("*.partial")
    check(partial, args, home=home)


# ------------------------------------------------------------------- caches


def test_cache_is_made_again(tmp_path: Path) -> None:
    prompt_format = MistralFormat()
    examples = [training_example("Step 1: It rains. Step 2: Rain is wet.", 1, id=f"p{n}") for n in range(20)]

    def encoded() -> list[list[int]]:
        _damage_once.cache_clear()
        options: dict[str, Any] = {"max_length": 768, "over_budget": "drop", "cache": tmp_path}
        rows, _ = encode_dataset(prompt_format, examples, **options)
        return list(rows["input_ids"])

    expected = encoded()
    (folder,) = (tmp_path / "encoded").iterdir()
    for path in sorted(folder.iterdir()):
        for name, do_damage in damages(path):
            do_damage()
            assert encoded() == expected, (path, name)
    assert list((tmp_path / "encoded").iterdir()) == [folder]


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_4_bit_model_is_made_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unpacked = resolve("bundled").folder
    shutil.copytree(unpacked, tmp_path / unpacked.name)
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path))

    def loaded() -> str:
        _damage_once.cache_clear()
        load_base(resolve("bundled"), for_training=True)
        (folder,) = tmp_path.glob("*-nf4-*")
        assert damage(folder) is None
        return (folder / CHECKSUMS).read_text()

    expected = loaded()
    (path,) = tmp_path.glob(f"*-nf4-*/{name}")
    for number, (how, do_damage) in enumerate(damages(path), start=1):
        do_damage()
        assert loaded() == expected, how
        assert caplog.text.count("it is made again") == number
