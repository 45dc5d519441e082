"""Every kind of file, damaged: refused in one line, set aside, or made again; never a traceback."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main
from nlicot.data.checksums import _damage_once
from nlicot.model.encoding import encode_dataset
from nlicot.model.prompt_format import MistralFormat
from tests.chaos.commands import finish
from tests.chaos.damage import damages, restore
from tests.chaos.test_kills import FIT
from tests.model.test_encoding import training_example
from tests.small_model import write_small_model
from tests.teacher.fake_server import FakeServer

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


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


def check(path: Path, args: Sequence[object], *, home: Path, codes: Sequence[int] = (0, 2)) -> dict[str, int]:
    """Damage a file in each way and run the command; return how often it ended with which code."""
    copy = home.with_name(f"{home.name}-copy")
    shutil.copytree(home, copy)
    problems, counts = [], dict.fromkeys(codes, 0)
    for name, damage in damages(path):
        damage()
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
                # A pair whose text changed is found where its thought, which has the old text, is read.
                names = path.name, path.parent.name, "thought of pair"
                if not any(name in lines[0] for name in names):
                    problems.append(f"{name}: the file is not named: {lines[0]}")
            else:
                counts[0] += 1
        restore(home, copy)
    shutil.rmtree(copy)
    assert problems == [], "\n".join(problems)
    return counts


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


@pytest.mark.chaos
@pytest.mark.parametrize("again", ["", "--reparse", "--retry_failures", "--dry_run", "--export_journal"])
def test_journal(again: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "original_data").mkdir(parents=True)
    lines = (SAMPLE / "original_data" / "train.csv").read_text().splitlines()[:61]
    (root / "original_data" / "train.csv").write_text("\n".join(lines) + "\n")
    with FakeServer(keep_seen=False) as server:
        flags = ["--backend", "openai", "--server_url", server.url, "--model", "teacher", "--yes"]
        args = ["generate", "--root", root, *flags]
        assert outcome(args)[0] == 0
        output = root / "original_thoughts" / "train.jsonl"
        more: list[object] = [again] if again else []
        if again == "--export_journal":
            more.append(tmp_path / "journal.jsonl")
        check(root / "journal" / "generate.sqlite", [*args, *more, "--overwrite"], home=root)

        # Damage costs the answers that cannot be read, and no others.
        for _, damage in damages(root / "journal" / "generate.sqlite"):
            damage()
            before = server.num_requests
            code, errors = outcome([*args, "--overwrite"])
            if code == 0:
                assert output.read_text(errors="replace").count("\n") == 60
                if server.num_requests > before:
                    assert "asked" in errors or "sent again" in errors
            shutil.rmtree(root / "journal")
            outcome([*args, "--overwrite"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base, a run with all its files, and a cache."""
    folder = tmp_path_factory.mktemp("home")
    base = write_small_model(folder / "base")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NLICOT_CACHE", str(folder / "cache"))
        flags = [f"--checkpoints_root={folder / 'runs'}", f"--model.base={base}", "--trainer.max_steps=4"]
        assert outcome(["fit", *FIT, *flags, "--final_evaluation=false"])[0] == 0
        best = folder / "runs" / "run" / "best.ckpt"
        assert outcome(["validate", "--ckpt_path", best, "--data.limit_dev=8"])[0] == 0
        run = folder / "runs" / "run"
        (run / "decision.json").write_text('{"threshold": 0.4, "temperature": 1.5}')
        yield folder


RESUME = ["fit", "--resume", "RUN", "--trainer.max_steps=5", "--final_evaluation=false"]
TEST = ["test", "--split", "dev", "--ckpt_path", "RUN/best.ckpt", "--data.limit_dev=4"]
REPORT = ["report", "RUN", "--html", "RUN/page.html", "--card", "RUN/card.md", "--overwrite"]
READERS = {
    "last.ckpt": [RESUME],
    "best.ckpt": [TEST],
    "config.yaml": [RESUME, TEST, REPORT],
    "fit.json": [RESUME, TEST, REPORT],
    "metrics.json": [TEST, REPORT],
    "decision.json": [TEST, REPORT],
    "predictions/dev.jsonl": [REPORT],
}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("name", "args"), [(name, args) for name, readers in READERS.items() for args in readers]
)
def test_run(name: str, args: list[str], home: Path) -> None:
    run = home / "runs" / "run"
    counts = check(run / name, [arg.replace("RUN", str(run)) for arg in args], home=home)
    if name.endswith(".ckpt"):
        assert counts[0] <= 2  # bytes between the tensors, which nothing reads


@pytest.mark.chaos
def test_event_files(home: Path) -> None:
    run = home / "runs" / "run"
    for path in run.glob("events.*"):
        check(path, [arg.replace("RUN", str(run)) for arg in REPORT], home=home)


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_adapter(name: str, home: Path) -> None:
    run = home / "runs" / "run"
    (home / "pairs.csv").write_text("id,premise,hypothesis,label\na,It rains.,It is wet.,1\n")
    (home / "root" / "original_data").mkdir(parents=True, exist_ok=True)
    shutil.copy(home / "pairs.csv", home / "root" / "original_data" / "train.csv")
    args = ["generate", "--root", home / "root", "--backend", "local", "--model", run, "--yes", "--overwrite"]
    counts = check(run / "adapter" / name, args, home=home, codes=(0, 2, 3, 7))
    assert counts[0] == 0


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
        for name, damage in damages(path):
            damage()
            assert encoded() == expected, (path, name)
    assert list((tmp_path / "encoded").iterdir()) == [folder]


@pytest.mark.chaos
def test_partial_predictions(home: Path) -> None:
    run = home / "runs" / "run"
    args = [arg.replace("RUN", str(run)) for arg in TEST]
    cache = home / "cache"
    finish(args, code=5, max_file_bytes=600, cache=cache)  # what was predicted before the disk was full
    (partial,) = (run / "predictions").glob("*.partial")
    check(partial, args, home=home)
