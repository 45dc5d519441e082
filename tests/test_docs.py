"""The docs name flags, files and results that exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest

from nlicot.cli import COMMANDS, main
from nlicot.config_files import OLD_NAMES

PROJECT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "checkpoints/README.md"]
PAGES += [f"docs/{path.name}" for path in sorted((PROJECT / "docs").glob("*.md"))]
RESULTS = sorted(f"benchmarks/results/{path.name}" for path in (PROJECT / "benchmarks/results").glob("*.md"))
ALL_PAGES = [*PAGES, "benchmarks/README.md", *RESULTS, "findings/README.md"]
FOLDERS = "nlicot|tests|configs|benchmarks|docs|data/sample"


def without_blocks(page: str) -> str:
    text = (PROJECT / page).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@functools.cache
def known_flags(command: str) -> set[str]:
    """Return the flags in a command's `--help`, and of `fit` in `--trainer.help`, with underscores."""
    printed = io.StringIO()
    for page in ["--help", "--trainer.help"] if command == "fit" else ["--help"]:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, page])
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-zA-Z][\w.-]*)", printed.getvalue())}
    flags |= {short for short, full in OLD_NAMES.items() if full in flags}
    # `--definitions FILE` sets `definitions.entailment` and its neighbour.
    return flags | {"definitions" for flag in flags if flag.startswith("definitions.")}


@pytest.mark.parametrize("page", PAGES)
def test_commands_use_flags_that_exist(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^python -m nlicot ([\w-]+ .*?)(?:  #.*)?$", text, flags=re.MULTILINE):
        command, *args = shlex.split(line)
        flags = {arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
        assert flags <= known_flags(command), line


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/results.md"])
def test_flags_in_the_text_exist_in_some_command(page: str) -> None:
    every = set().union(*map(known_flags, COMMANDS))
    for flag in re.findall(r"`--([a-zA-Z][\w.-]*)", without_blocks(page)):
        name = flag.replace("-", "_")
        assert name in every or name.rpartition(".")[0] in every, flag


@pytest.mark.parametrize("page", ALL_PAGES)
def test_commands_of_benchmarks_use_flags_that_exist(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for script, args in re.findall(r"python benchmarks/(\w+)\.py\b([^`#(>]*)", text):
        source = (PROJECT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
        known = set(re.findall(r'"--([\w-]+)"', source))
        assert set(re.findall(r"--([\w-]+)", args)) <= known, f"{script}.py {args}"


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_and_paths_lead_to_files(page: str) -> None:
    text = without_blocks(page)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (PROJECT / page).parent.joinpath(link).exists(), link
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text):
        assert (PROJECT / path).exists(), path


def test_results_have_their_files() -> None:
    names = re.findall(r"`([\w-]+\.json)`", without_blocks("docs/results.md"))
    missing = [name for name in names if not (PROJECT / "benchmarks" / "results" / name).is_file()]
    assert names
    assert set(missing) <= {"metrics.json"}  # a run's own
