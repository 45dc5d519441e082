"""The report's page in a browser. Run by `make browser`."""
# ruff: noqa: F811 (an imported fixture has the name of the argument that uses it)

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium_page import Row, browser, opened, write_report  # noqa: F401 (two are fixtures)
from tests.browser.take_screenshots import take_screenshots

pytestmark = pytest.mark.browser

Opened = Callable[..., Any]
WORDS = ["harbour", "lamp", "orchard", "violin", "ferry", "letter", "winter", "not", "all", "some", "three"]
HOSTILE = '</script><img src=x onerror="window.pwned = 1"><b>{{ 7 * 7 }}\u2028\x1b[31m&amp;\'"`=1+1 😀'


def make_rows(seed: int, num: int, *, thinks: bool = True) -> list[Row]:
    """Predictions on the same pairs for every seed, with different answers."""
    texts, answers = random.Random(0), random.Random(seed)
    rows = []
    for index in range(num):
        premise, hypothesis = (" ".join(texts.choices(WORDS, k=length)) for length in (30, 12))
        p = round(answers.random(), 3)
        rows.append(
            {
                "id": f"dev-{index}",
                "premise": f"{premise}.",
                "hypothesis": f"{hypothesis}.",
                "phenomenon": texts.choice(["negation", "numbers"]),
                "true_label": texts.randrange(2),
                "predicted_label": int(p > 0.5),
                "p_entailment": p,
                "status": "closed" if thinks else "label_only",
            }
        )
        if thinks:
            steps = (f"Step {n}: {' '.join(answers.choices(WORDS, k=18))}." for n in (1, 2, 3))
            rows[-1]["thought_process"] = " ".join([*steps, f"It is rare-{index % 7}."])
    return rows


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Row]]:
    return {"first": make_rows(1, 60), "second": make_rows(2, 60, thinks=False)}


@pytest.fixture(scope="module")
def page_path(runs: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), runs)


def exported(page: Any) -> list[dict[str, str]]:
    """The rows of the CSV that the page exports: all that are listed, in their order."""
    with page.expect_download() as download:
        page.click("#export")
    return list(csv.DictReader(Path(download.value.path()).read_text("utf-8-sig").splitlines(keepends=True)))


def listed(page: Any) -> list[str]:
    return [row["id"] for row in exported(page)]


def assert_soon(locator: Any, text: str) -> None:
    """The target of a link is shown by an event, a moment later."""
    from playwright.sync_api import expect

    expect(locator).to_have_text(text)


def chosen(page: Any) -> str:
    return str(page.inner_text("#detail .pair-link"))


def ids_where(rows: list[Row], test: Callable[[Row], bool]) -> list[str]:
    return [row["id"] for row in rows if test(row)]


def right(row: Row) -> bool:
    return bool(row["predicted_label"] == row["true_label"])


def confidence(row: Row) -> float:
    p: float = row["p_entailment"]
    return p if row["predicted_label"] else 1 - p


def test_it_opens_from_disk_and_asks_for_nothing_else(page_path: Path, opened: Opened) -> None:
    page = opened(page_path)
    assert page.title() == "first, second: dev"
    assert page.inner_text("#count") == "60 pairs"
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.get_attribute("meta[http-equiv]", "content").startswith("default-src 'none';")


@pytest.mark.parametrize("filter_", ["right", "wrong", "flipped", "unsure"])
def test_each_filter_lists_its_pairs(
    filter_: str, page_path: Path, runs: dict[str, list[Row]], opened: Opened
) -> None:
    first, second = runs["first"], runs["second"]
    other = {row["id"]: row["predicted_label"] for row in second}
    expected = {
        "right": ids_where(first, right),
        "wrong": ids_where(first, lambda row: not right(row)),
        "flipped": ids_where(first, lambda row: row["predicted_label"] != other[row["id"]]),
        "unsure": ids_where(first, lambda row: confidence(row) < 0.75),
    }[filter_]
    page = opened(page_path)
    page.click(f'[data-filter="{filter_}"]')
    assert 0 < len(expected) < 60
    assert listed(page) == expected
    assert page.inner_text("#count") == f"{len(expected)} of 60 pairs"
    assert page.get_attribute(f'[data-filter="{filter_}"]', "aria-pressed") == "true"


def test_filters_join_and_follow_the_chosen_run(
    page_path: Path, runs: dict[str, list[Row]], opened: Opened
) -> None:
    page = opened(page_path)
    page.select_option("#run", label="2 second")
    page.click('[data-filter="right"]')
    page.click('[data-filter="wrong"]')  # replaces the filter before
    page.select_option("#phenomenon", "negation")
    page.select_option("#truth", "1")
    expected = ids_where(
        runs["second"],
        lambda row: not right(row) and row["phenomenon"] == "negation" and row["true_label"] == 1,
    )
    assert 0 < len(expected) < 30
    assert listed(page) == expected
    page.click("#clear")
    assert len(listed(page)) == 60


def test_search_finds_all_words_in_texts_thoughts_and_ids(
    page_path: Path, runs: dict[str, list[Row]], opened: Opened
) -> None:
    page = opened(page_path)
    page.fill("#search", "RARE-2.  vioLIN\tstep")
    texts = {
        row["id"]: f"{row['premise']} {row['hypothesis']} {row['thought_process']}" for row in runs["first"]
    }
    words = ("rare-2.", "violin", "step")
    expected = [id_ for id_, text in texts.items() if all(word in text.lower() for word in words)]
    assert 0 < len(expected) < 20
    assert listed(page) == expected
    page.fill("#search", "dev-17")
    assert listed(page) == ["dev-17"]
    page.fill("#search", "no such word")
    assert page.inner_text("#count") == "0 of 60 pairs"
    assert page.is_disabled("#export")
    assert page.inner_text("#detail") == "Nothing to show."


def test_sorting(page_path: Path, runs: dict[str, list[Row]], opened: Opened) -> None:
    rows = runs["first"]
    keys: dict[str, Callable[[Row], float]] = {
        "unsure": confidence,
        "sure": lambda row: -confidence(row),
        "mistaken": lambda row: row["p_entailment"] if row["true_label"] else 1 - row["p_entailment"],
        "premise": lambda row: -len(row["premise"]),
        "thought": lambda row: -len(row["thought_process"]),
    }
    page = opened(page_path)
    for name, key in keys.items():
        page.select_option("#sort", name)
        assert listed(page) == [row["id"] for row in sorted(rows, key=key)], name


def test_a_pair_is_shown_with_its_thoughts_and_shared_words(
    page_path: Path, runs: dict[str, list[Row]], opened: Opened
) -> None:
    page = opened(page_path)
    row = runs["first"][0]
    premise, hypothesis = (page.locator("#detail .pair p").nth(place) for place in (0, 1))
    assert (premise.text_content(), hypothesis.text_content()) == (row["premise"], row["hypothesis"])
    thought = "".join(page.locator("#detail .answer").nth(0).locator(".step").all_text_contents())
    assert thought == row["thought_process"]
    assert "No thought." in page.locator("#detail .answer").nth(1).inner_text()
    in_premise = set(row["premise"].rstrip(".").split())
    marked = hypothesis.locator("mark").all_text_contents()
    assert marked == [word for word in row["hypothesis"].rstrip(".").split() if word in in_premise]
    assert 0 < len(marked) < 12


def test_the_keyboard_moves_searches_and_marks(page_path: Path, opened: Opened) -> None:
    page = opened(page_path)
    keys = page.keyboard
    for key, expected in (("j", "dev-1"), ("j", "dev-2"), ("k", "dev-1"), ("k", "dev-0"), ("k", "dev-0")):
        keys.press(key)
        assert chosen(page) == expected
    page.focus("#list")
    for key, expected in (
        ("ArrowDown", "dev-1"),
        ("End", "dev-59"),
        ("ArrowUp", "dev-58"),
        ("Home", "dev-0"),
    ):
        keys.press(key)
        assert chosen(page) == expected
        active = page.get_attribute("#list", "aria-activedescendant")
        assert page.get_attribute(f"#{active}", "aria-selected") == "true"
        box, frame = page.locator(f"#{active}").bounding_box(), page.locator("#list").bounding_box()
        assert frame["y"] <= box["y"] and box["y"] + box["height"] <= frame["y"] + frame["height"]
    keys.press("j")
    keys.press("x")
    keys.press("/")
    keys.type("dev-1 jkx")
    assert page.input_value("#search") == "dev-1 jkx"
    page.fill("#search", "")
    keys.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.click('[data-filter="marked"]')
    assert listed(page) == ["dev-1"]


def test_every_control_is_reached_by_tab_and_has_a_name(page_path: Path, opened: Opened) -> None:
    page = opened(page_path)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const e = document.activeElement;
            return [e.id || e.dataset.filter || e.dataset.action || e.tagName,
              e.getAttribute("aria-label") || (e.labels?.[0] ?? e).textContent.trim()]; }"""
        )
        if found[0] == "BODY":
            break
        reached.append(found)
    names = [name for name, _ in reached]
    wanted = [
        "theme",
        "search",
        "run",
        "right",
        "wrong",
        "flipped",
        "unsure",
        "marked",
        "phenomenon",
        "truth",
    ]
    wanted += ["sort", "export", "list", "mark", "previous", "next"]
    assert [name for name in names if name in wanted] == wanted
    assert all(label for _, label in reached), reached


def test_a_link_leads_to_its_pair(page_path: Path, opened: Opened) -> None:
    page = opened(page_path, "#pair=dev-41")
    assert chosen(page) == "dev-41"
    assert page.locator('.row[aria-selected="true"]').is_visible()
    page.fill("#search", "dev-17")
    page.evaluate("location.hash = 'pair=dev-5'")
    assert_soon(page.locator("#detail .pair-link"), "dev-5")
    assert page.input_value("#search") == ""
    page.evaluate("location.hash = 'pair=gone'")
    assert chosen(page) == "dev-5"
    assert page.get_attribute("#detail .pair-link", "href") == "#pair=dev-5"


def test_hostile_text_stays_text(tmp_path: Path, opened: Opened) -> None:
    row = {
        name: f"{name} {HOSTILE}" for name in ("id", "premise", "hypothesis", "phenomenon", "thought_process")
    }
    rows = [{**row, "true_label": 1, "predicted_label": 0, "p_entailment": 0.2}, *make_rows(1, 5)]
    # Of the second pair no word is shared, so that no mark cuts its texts up.
    rows[1] |= {"premise": HOSTILE, "hypothesis": "lamp", "thought_process": HOSTILE.upper()}
    audit = {"findings": [{"name": HOSTILE, "severity": HOSTILE, "summary": HOSTILE, "advice": HOSTILE}]}
    audit["findings"][0]["ids"] = [row["id"], HOSTILE]
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    name = HOSTILE.replace("/", "∕")
    report = write_report(tmp_path, {name: rows, "b": rows}, "--audit", str(tmp_path / "audit.json"))
    page = opened(report)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, body b:not(td b), script:not([type])").count() == 2  # the page's own scripts
    assert page.locator("#detail .pair p").all_text_contents() == [row["premise"], row["hypothesis"]]
    assert page.locator("#detail .step").nth(0).text_content() == row["thought_process"]
    assert page.locator("#detail .answer .name").nth(0).text_content() == name
    assert page.locator("#audit .advice").text_content() == HOSTILE
    page.locator("#detail .pair-link").click()
    page.keyboard.press("j")
    assert page.locator("#detail .pair p").all_text_contents() == [HOSTILE, "lamp"]
    assert page.locator("#detail img").count() == 0
    page.locator("#audit summary").click()
    page.locator("#audit .ids a").click()  # leads to the pair with the hostile id
    assert_soon(page.locator("#detail .moves .quiet"), "1 / 6")
    assert page.locator("#detail .pair-link").text_content() == row["id"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", " =", "＝", "\r"])
def test_no_exported_cell_begins_like_a_formula(start: str, tmp_path: Path, opened: Opened) -> None:
    rows = make_rows(1, 3)
    rows[0]["hypothesis"] = f'{start}HYPERLINK("https://example.org", "a ""b""")\nnext'
    found = exported(opened(write_report(tmp_path, {"only": rows})))
    assert [row["id"] for row in found] == ["dev-0", "dev-1", "dev-2"]
    assert found[0]["hypothesis"].lstrip("\ufeff").startswith("'")
    assert found[1]["hypothesis"] == rows[1]["hypothesis"]
    assert found[1]["predicted_label"] == str(rows[1]["predicted_label"])
    assert float(found[1]["p_entailment"]) == rows[1]["p_entailment"]


def test_two_thousand_predictions_filter_within_100_ms_in_under_5_mb(tmp_path: Path, opened: Opened) -> None:
    path = write_report(tmp_path, {"a": make_rows(1, 2000), "b": make_rows(2, 2000)})
    assert path.stat().st_size < 5e6
    page = opened(path)
    took_ms = page.evaluate(
        """() => {
          const search = document.getElementById("search"), list = document.getElementById("list"), took = {};
          const measure = (name, act) => {
            const start = performance.now();
            act();
            list.getBoundingClientRect(); // so that the layout is counted too
            took[name] = performance.now() - start;
          };
          const type = (text) => { search.value = text; search.dispatchEvent(new Event("input")); };
          for (const text of ["v", "violin", "violin ferry", "nothing like it", ""]) {
            measure(`search ${text}`, () => type(text));
          }
          for (const button of document.querySelectorAll("[data-filter]")) {
            measure(button.dataset.filter, () => button.click());
            button.click();
          }
          const sort = document.getElementById("sort");
          for (const option of sort.options) {
            sort.value = option.value;
            measure(option.value, () => sort.dispatchEvent(new Event("change")));
          }
          return took;
        }"""
    )
    print({name: round(ms, 1) for name, ms in took_ms.items()}, f"{path.stat().st_size / 1e6:.1f} MB")
    assert max(took_ms.values()) < 100, took_ms
    assert page.locator(".row").count() < 60  # only rows in sight are drawn


CONTRAST = """() => {
  const luminance = (colour) => {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const probe = document.body.appendChild(document.createElement("i"));
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return luminance(getComputedStyle(probe).color);
  };
  const found = {};
  for (const [text, ground] of [
    ...["ink", "muted"].flatMap((text) => ["paper", "card", "sunk"].map((ground) => [text, ground])),
    ["accent", "card"], ["right", "card"], ["wrong", "card"], ["ink", "shared"],
    ...[1, 2, 3, 4, 5, 6, 7, 8].map((n) => ["card", `series-${n}`])]) {
    const [low, high] = [colour(text), colour(ground)].sort((a, b) => a - b);
    found[`${text} on ${ground}`] = (high + 0.05) / (low + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(scheme: str, page_path: Path, opened: Opened) -> None:
    found = opened(page_path, color_scheme=scheme).evaluate(CONTRAST)
    # WCAG 2.2, success criterion 1.4.3
    assert {name: round(ratio, 2) for name, ratio in found.items() if ratio < 4.5} == {}


def test_light_and_dark_follow_the_system_and_the_button(page_path: Path, opened: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = opened(page_path, color_scheme="dark")
    assert page.evaluate(ground) == "rgb(20, 21, 24)"
    page.click("#theme")
    assert page.evaluate(ground) == "rgb(247, 246, 242)"
    page.reload()
    assert page.evaluate(ground) == "rgb(247, 246, 242)"


def test_it_fits_a_phone(page_path: Path, opened: Opened) -> None:
    page = opened(page_path, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_screenshots_are_taken_in_light_and_in_dark(page_path: Path, tmp_path: Path, browser: Any) -> None:
    paths = take_screenshots(browser, page_path, tmp_path)
    assert [path.name for path in paths] == ["report-light.png", "report-dark.png"]
    light, dark = (path.read_bytes() for path in paths)
    assert light[:4] == dark[:4] == b"\x89PNG"
    assert light != dark
