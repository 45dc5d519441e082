"""The report's page and its parts, without a browser; `tests/browser` opens it in one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from nlicot.cli import main
from nlicot.report.compare import breakdowns, calibration
from nlicot.report.read_runs import Answer, read_curves

NOTICE = "This page would be too large with all predictions"
HOSTILE = "</script><b>|\u2028\x1b[2J$x_1$ {{ 7 * 54321 }} ﬁ"


def _answer(number: int, true: int, p: float | None, **texts: str) -> Answer:
    label = None if p is None else int(p > 0.5)
    return Answer(id=f"p{number}", true_label=true, predicted_label=label, p_entailment=p, **texts)


def _write_run(root: Path, name: str, answers: Sequence[dict[str, Any]], config: str = "") -> Path:
    path = root / name / "predictions" / "dev.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
    if config:
        (root / name / "config.yaml").write_text(config, encoding="utf-8")
    return root / name


ANSWERS = [
    {
        "id": f"p{number}",
        "premise": "one two three",
        "hypothesis": "two",
        "true_label": number % 2,
        "predicted_label": int(number > 3),
        "p_entailment": 0.1 + 0.1 * number,
        "thought_process": "Step 1: x.",
    }
    for number in range(8)
]


def _page(tmp_path: Path, *args: str | Path) -> str:
    path = tmp_path / "report.html"
    assert main(["report", *map(str, args), "--html", str(path), "--overwrite"]) == 0
    return path.read_text(encoding="utf-8")


def _payload(page: str) -> Any:
    found = re.search(
        r'<script type="application/json" id="predictions-json">(.*?)</script>', page, re.DOTALL
    )
    assert found
    return json.loads(found[1])


def test_one_run_has_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _page(tmp_path, _write_run(tmp_path, "single", ANSWERS))
    assert "<h1>single</h1>" in page
    assert "McNemar</th>" not in page
    assert capsys.readouterr().out.endswith(f"page         {tmp_path / 'report.html'}\n")


def test_the_page_holds_every_prediction_of_the_file(tmp_path: Path) -> None:
    hostile = [{**ANSWERS[0], "id": HOSTILE, "premise": HOSTILE, "thought_process": HOSTILE}, *ANSWERS[1:]]
    page = _page(
        tmp_path, _write_run(tmp_path, "a", hostile), _write_run(tmp_path, "b", ANSWERS[:0] + hostile)
    )
    found = _payload(page)
    assert found["pairs"]["id"][0] == found["pairs"]["premise"][0] == HOSTILE
    assert found["runs"][1]["thought"][0] == HOSTILE
    assert found["pairs"]["label"] == [0, 1] * 4
    assert found["runs"][0]["label"] == [0] * 4 + [1] * 4
    assert [run["name"] for run in found["runs"]] == ["a", "b"]


def test_a_page_for_too_many_pairs_says_so_and_holds_the_same_part_of_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlicot.report.page.MAX_PAIRS", 5)
    other = [{**answer, "thought_process": f"of {answer['id']}"} for answer in ANSWERS]
    runs = [_write_run(tmp_path, "a", ANSWERS), _write_run(tmp_path, "b", other[::-1])]
    audit = tmp_path / "audit.json"
    ids = [answer["id"] for answer in ANSWERS]
    audit.write_text(json.dumps({"findings": [{"name": "all", "severity": "note", "ids": ids}]}))
    page = _page(tmp_path, *runs, "--audit", audit)
    assert "it holds those of 5 of the 8 pairs, drawn at random with seed 0" in " ".join(page.split())
    found = _payload(page)
    held = found["pairs"]["id"]
    assert len(set(held)) == 5
    assert held == sorted(held)  # as in the file
    assert found["runs"][1]["thought"] == [f"of {id_}" for id_ in held]
    assert re.findall(r'<a href="#pair=(p\d)">', page) == held  # no link to a pair that is left out
    assert NOTICE in page
    assert "8 pairs of dev" in page
    assert _payload(_page(tmp_path, *runs)) == found


def test_a_page_that_holds_all_pairs_says_nothing_about_it(tmp_path: Path) -> None:
    assert NOTICE not in _page(tmp_path, _write_run(tmp_path, "a", ANSWERS))


def test_hostile_texts_end_no_element_and_no_line(tmp_path: Path) -> None:
    answers = [{**answer, "phenomenon": HOSTILE} for answer in ANSWERS]
    page = _page(tmp_path, _write_run(tmp_path, "a", answers))
    assert page.count("</script>") == 3
    assert "<b>|" not in page
    assert "\u2028" not in page
    assert str(7 * 54321) not in page  # not evaluated


def test_the_page_names_no_address_that_a_browser_would_load(tmp_path: Path) -> None:
    page = _page(tmp_path, _write_run(tmp_path, "a", ANSWERS))
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    assert re.findall(r"@import|url\((?!#)|<link|<img|<iframe|\ssrc=", page) == []


def test_figures_are_drawn_in_the_pages_colours_with_text_as_text(tmp_path: Path) -> None:
    answers = [{**answer, "phenomenon": "$cost$ & <tax>"} for answer in ANSWERS]
    page = _page(tmp_path, _write_run(tmp_path, "a", answers), _write_run(tmp_path, "b", answers))
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 5  # accuracies, calibration, three breakdowns
    for drawing in drawings:
        assert "var(--series-1)" in drawing
        assert "var(--series-2)" in drawing
        assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
        assert "<text" in drawing
    assert "$cost$ &amp; &lt;tax&gt; (8)" in page
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_write_run(tmp_path, "a", ANSWERS))
    page, audit = str(tmp_path / "p.html"), tmp_path / "audit.json"
    assert main(["report", run, "--html", page, "--json", page]) == 2
    assert "one file named twice" in capsys.readouterr().err
    for content, expected in (
        ("{", "found no JSON, expected a JSON object"),
        ("[]", "found [], expected a JSON object"),
        ("{}", "found findings null, expected a list"),
    ):
        audit.write_text(content)
        assert main(["report", run, "--html", page, "--audit", str(audit)]) == 2
        error = capsys.readouterr().err
        assert f"{audit}: {expected}" in error
        assert error.count("\n") == 1
    assert main(["report", run, "--html", page, "--audit", str(tmp_path / "gone.json")]) == 2
    assert "gone.json: cannot be read: No such file" in capsys.readouterr().err
    assert not Path(page).exists()
    assert main(["report", run, "--html", page]) == 0
    assert main(["report", run, "--html", page]) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err


# ------------------------------------------------------------------ breakdowns


def test_accuracy_by_phenomenon_and_lengths_is_that_computed_by_hand() -> None:
    def of_run(labels: Sequence[int], thoughts: Sequence[str | None]) -> list[Answer]:
        return [
            Answer(
                id=str(place),
                true_label=1,
                predicted_label=label,
                p_entailment=None,
                premise="w " * (1 + place),
                phenomenon=("dates", "dates", "negation", None)[place],
                thought_process=thought,
            )
            for place, (label, thought) in enumerate(zip(labels, thoughts, strict=True))
        ]

    found = breakdowns(
        {"a": of_run([1, 0, 1, 1], ["x", "x", "x x", "x x"]), "b": of_run([0, 0, 1, 0], [None] * 4)}
    )
    by_title = {breakdown.title: breakdown for breakdown in found}
    phenomena = by_title["By phenomenon"]
    assert phenomena.names == ["dates", "negation", "(none)"]
    assert [group.accuracy for group in phenomena.by_run["a"]] == [0.5, 1.0, 1.0]
    assert [group.accuracy for group in phenomena.by_run["b"]] == [0.0, 1.0, 0.0]
    thoughts = by_title["By length of the thought"]
    assert list(thoughts.by_run) == ["a"]  # the other has no thoughts
    assert [(group.name, group.num, group.accuracy) for group in thoughts.by_run["a"]] == [
        ("1 word", 2, 0.5),
        ("2 words", 2, 1.0),
    ]
    assert by_title["By length of the premise"].names == ["1 word", "2 words", "3 words", "4 words"]


def test_groups_without_pairs_are_not_shown() -> None:
    assert breakdowns({"a": [_answer(0, 1, 0.9)]}) == []


def test_calibration_counts_entailments_by_tenths() -> None:
    bins = calibration(
        [_answer(n, true, p) for n, (true, p) in enumerate([(1, 0.02), (0, 0.1), (1, 0.95), (1, 1.0)])]
    )
    assert [(found.num, found.proportion) for found in bins] == [(2, 0.5), (2, 1.0)]
    assert [found.mean_p for found in bins] == [pytest.approx(0.06), pytest.approx(0.975)]
    assert bins[1].interval.high == 1.0
    assert calibration([_answer(0, 1, 0.3), _answer(1, 1, None)]) == []


# ------------------------------------------------------------------ curves


def _log(folder: Path, points: Sequence[tuple[str, int, float, float]]) -> None:
    writer = EventFileWriter(str(folder), filename_suffix=f".{points[0][3]}")
    for tag, step, value, wall_time in points:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(step=step, wall_time=wall_time, summary=summary))
    writer.close()


def test_curves_follow_a_resumed_run(tmp_path: Path) -> None:
    _log(
        tmp_path,
        [
            ("dev/loss", 2, 3.0, 10.0),
            ("dev/loss", 4, 2.5, 11.0),
            ("dev/loss", 6, 9.0, 12.0),
            ("own", 1, 1.0, 1.0),
        ],
    )
    _log(tmp_path, [("dev/loss", 6, 2.0, 20.0), ("train/loss", 6, 0.5, 20.0)])  # resumed after step 4
    found = read_curves(tmp_path)
    assert list(found) == ["dev/loss", "train/loss"]
    assert [(point.step, point.value) for point in found["dev/loss"]] == [(2, 3.0), (4, 2.5), (6, 2.0)]


def test_a_run_without_or_with_broken_event_files_has_the_curves_that_can_be_read(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    _log(tmp_path, [("dev/loss", 2, 3.0, 10.0)])
    (tmp_path / "events.out.tfevents.9999999999.broken").write_bytes(b"no events at all")
    assert [point.value for point in read_curves(tmp_path)["dev/loss"]] == [3.0]


# ------------------------------------------------------------------ teacher and audit


def test_the_newest_summary_of_the_teacher_is_shown(tmp_path: Path) -> None:
    logs = tmp_path / "data" / "logs" / "thoughts"
    logs.mkdir(parents=True)
    for stamp, accuracy in (("20260101-000000", 0.2), ("20260202-000000", 0.75)):
        teacher = {
            "accuracy": {"value": accuracy, "low": 0.7, "high": 0.8},
            "confusion": {"tp": 31, "fp": 5, "fn": 7, "tn": 57},
        }
        content = {
            "num_records": 1234,
            "by_model": {"mistral-<large>": 1234},
            "cost_usd": 0.5,
            "accuracy_by_length": {"5 words": {"num": 10, "accuracy": 0.8}},
            "teacher": teacher,
        }
        (logs / f"{stamp}-train.summary.json").write_text(json.dumps(content))
    run = _write_run(tmp_path, "a", ANSWERS, config=f"data: {{root: {tmp_path / 'data'}}}")
    page = _page(tmp_path, run)
    assert "generate, train" in page
    assert "75.0 % (70.0 to 80.0)" in page
    assert "20.0 %" not in page
    assert "mistral-&lt;large&gt;" in page
    assert "1,234" in page
    assert re.search(r'style="--proportion: 0.919">57<small>92 %', page)
    assert "80.0 % of 10" in page


TEACHER = {
    "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
    "confusion": {"tp": 1, "fp": 2, "fn": 3, "tn": 4},
}


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ({"accuracy": {"value": 0.5, "high": 0.6}}, "missing 'low'"),
        ({"accuracy": {"value": "half", "low": 0.4, "high": 0.6}}, "Unknown format code"),
        ({"confusion": {"tp": 1, "fp": 2, "tn": 4}}, "missing 'fn'"),
        ({"confusion": {"tp": 1, "fp": None, "fn": 3, "tn": 4}}, "unsupported operand"),
    ],
)
def test_a_damaged_summary_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "data" / "logs" / "thoughts" / "20260101-000000-train.summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"teacher": TEACHER | damaged}))
    run = _write_run(tmp_path, "a", ANSWERS, config=f"root: {tmp_path / 'data'}")
    page = tmp_path / "report.html"
    assert main(["report", str(run), "--html", str(page)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: not as `fit`, `validate` or `generate` writes it (" in line
    assert expected in line
    assert line.endswith("); delete it or make it again")
    assert not page.exists()


def test_an_audit_is_shown_most_severe_first_with_links_to_its_pairs(tmp_path: Path) -> None:
    audit = tmp_path / "audit.json"
    audit.write_text(
        json.dumps(
            {
                "findings": [
                    {"name": "long thoughts", "severity": "note"},
                    {"name": "voice", "severity": "WARNING", "summary": "90 %", "advice": "rewrite"},
                    {"name": "twins", "severity": "error", "ids": ["p1", "dev/p2", "train/p3", 8]},
                    "not a finding",
                    {},
                ],
                "sections": [
                    {
                        "title": "Lengths",
                        "summary": "longer is wronger",
                        "tables": [
                            {"title": "by length", "header": ["length", "right"], "rows": [["5", "72.7 %"]]}
                        ],
                    },
                    {"tables": [{}], "figures": 1},
                    None,
                ],
                "more": 1,
            }
        )
    )
    page = _page(tmp_path, _write_run(tmp_path, "a", ANSWERS), "--audit", audit)
    names = re.findall(r'class="severity">(.*?)</span> (.*?)</h3>', page)
    assert names == [
        ("error", "twins"),
        ("warning", "voice"),
        ("note", "long thoughts"),
        ("note", "(unnamed)"),
    ]
    assert '<a href="#pair=p1">p1</a>' in page
    assert '<a href="#pair=p2">dev/p2</a>' in page
    assert "<span>train/p3</span>" in page
    assert "4 ids" in page
    assert "<summary>Lengths</summary>" in page
    assert '<th scope="col">right</th>' in page
    assert "<td>72.7 %</td>" in page
