"""Take the README's screenshots of a report: `python tests/browser/take_screenshots.py REPORT.html`.

They go to `screenshots/` next to this file and show runs on the sample data, never on other data.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "screenshots"


def take_screenshots(browser: Any, report: Path, folder: Path) -> list[Path]:
    """Take the explorer of a report in light and in dark; return the pictures' paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme=scheme)
        page.emulate_media(reduced_motion="reduce")
        page.goto(report.resolve().as_uri())
        page.locator("#predictions").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('predictions').scrollIntoView()")
        paths.append(folder / f"report-{scheme}.png")
        page.screenshot(path=paths[-1])
        page.close()
    return paths


if __name__ == "__main__":
    import shutil

    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture in take_screenshots(chromium, Path(sys.argv[1]), FOLDER):
            Image.open(picture).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
                picture, optimize=True
            )  # a third of the bytes
            print(picture)
