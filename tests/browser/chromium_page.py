"""Pages in a headless Chromium: Debian's `chromium`, or the one that NLICOT_CHROMIUM names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nlicot.cli import main

NAMES = ("chromium", "chromium-browser", "google-chrome")
Row = dict[str, Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="requirements-dev.txt is not installed")
    path = os.environ.get("NLICOT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"found none of {', '.join(NAMES)}; install one or name it in NLICOT_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # Containers and root have no sandbox, and the pages are our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page from disk; at the end of the test it must have no errors and no requests."""
    pages, problems = [], []

    def open_page(path: Path, hash_: str = "", **settings: Any) -> Any:
        page = browser.new_page(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **settings}
        )
        pages.append(page)
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.partition("#")[0] == path.as_uri() or request.url.startswith("blob:")
                else problems.append(f"request: {request.url}")
            ),
        )
        page.goto(path.as_uri() + hash_)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def write_report(folder: Path, runs: Mapping[str, Sequence[Row]], *flags: str) -> Path:
    """Write the page of some runs' predictions by the command."""
    for name, rows in runs.items():
        path = folder / name / "predictions" / "dev.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page_path = folder / "report.html"
    named = [str(folder / name) for name in runs]
    assert main(["report", *named, "--html", str(page_path), *flags]) == 0
    return page_path
