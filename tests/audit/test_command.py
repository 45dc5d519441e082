"""The `audit` command: what it prints and writes, its exit codes, and the real data's findings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from nlicot import cli
from nlicot.audit.findings import Audit, Finding, Section, as_markdown, as_text, from_json, to_json
from nlicot.text_tables import Table

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
HOSTILE = "\x1b[31mred|\n# <script>alert(1)</script>\u2028\x00 \x9b2J"


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The last line on standard error of a command line that is refused with exit code 2."""
    assert cli.main(["audit", *args]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the sample, with a dev pair in train too."""
    shutil.copytree(SAMPLE, tmp_path / "data")
    train = tmp_path / "data/original_data/train.csv"
    rows = (tmp_path / "data/original_data/dev.csv").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith("sample-dev-039,")]  # no other has its premise
    train.write_text(train.read_text() + row.replace("sample-dev", "planted-dev") + "\n")
    return tmp_path / "data"


def test_the_sample_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit"]) == 0
    printed = capsys.readouterr().out
    assert "train   1160       735      580      580" in printed
    assert printed.endswith("0 errors, 0 warnings, 0 notes: nothing blocks training\n")


def test_a_leak_makes_the_exit_code_1_and_is_in_the_json(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, markdown = tmp_path / "audit.json", tmp_path / "audit.md"
    args = ["audit", "--root", str(root), "--json", str(out), "--markdown", str(markdown)]
    assert cli.main(args) == 1
    printed = capsys.readouterr().out
    assert "ERROR  pair in two splits: 1 pair the same but for case and punctuation" in printed
    assert "    2 pairs: train/planted-dev-039, dev/sample-dev-039" in printed
    written = json.loads(out.read_text())
    assert written["exit_code"] == 1 and written["counts"]["error"] == 1
    (finding,) = [each for each in written["findings"] if each["severity"] == "error"]
    assert finding["ids"] == ["train/planted-dev-039", "dev/sample-dev-039"]
    assert written["files"]["train"]["pairs"] == str(root / "original_data/train.csv")
    assert "**error: pair in two splits**" in markdown.read_text()


def test_what_cannot_be_checked_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = root / "original_data"
    (pairs / "train.csv").rename(pairs / "elsewhere.csv")
    assert cli.main(["audit", "--root", str(root)]) == 0
    assert "WARNING  no train pairs: only dev and test can be read" in capsys.readouterr().out
    (pairs / "train.csv").write_text("id,premise,hypothesis\na,It rains.,It is wet.\n")
    shutil.rmtree(root / "original_thoughts")
    assert cli.main(["audit", "--root", str(root)]) == 0
    assert "WARNING  no labels: train has no labels" in capsys.readouterr().out


def test_an_existing_file_is_replaced_only_with_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json"
    out.write_text("mine")
    assert "--overwrite" in refusal(capsys, "--json", str(out))
    assert out.read_text() == "mine"
    assert cli.main(["audit", "--json", str(out), "--overwrite"]) == 0
    assert "found one file for both" in refusal(capsys, "--json", "a", "--markdown", "a")


def test_single_files_replace_the_root_under_either_name(capsys: pytest.CaptureFixture[str]) -> None:
    pairs, thoughts = SAMPLE / "original_data/dev.csv", SAMPLE / "original_thoughts/dev.jsonl"
    args = ["--train-pairs", str(pairs), "--data.train_thoughts", str(thoughts)]
    assert cli.main(["audit", *args]) in (0, 1)
    printed = capsys.readouterr().out
    assert "Counts and balance: 220 pairs of train\n" in printed
    assert "train    220       130      110      110           0       220            0" in printed


def test_mistakes_in_files_and_flags_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "found no pairs, expected one of" in refusal(capsys, "--root", str(tmp_path))
    assert "given by --train_pairs" in refusal(capsys, "--train-pairs", str(tmp_path / "gone.csv"))
    thoughts = SAMPLE / "original_thoughts/dev.jsonl"
    assert "expected --dev_pairs FILE too" in refusal(capsys, "--dev-thoughts", str(thoughts))
    assert "refleted" in refusal(capsys, "--builder", "refleted")
    assert "--prompt" in refusal(capsys, "--prompt", str(tmp_path / "gone.yaml"))
    broken = tmp_path / "broken.csv"
    broken.write_text("premise,hypothesis,label\nA,B,2\n")
    assert f"{broken}:2: found" in refusal(capsys, "--train-pairs", str(broken))


def test_a_prompt_of_the_user_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = tmp_path / "prompt.yaml"
    rows = (SAMPLE / "original_data/dev.csv").read_text().splitlines()
    prompt.write_text(f"user: |\n  For example: {rows[1]}\n")
    assert cli.main(["audit", "--prompt", str(prompt)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"ERROR pair in a prompt: 2 pairs with a text that occurs in {prompt}" in printed
    assert "2 pairs: dev/sample-dev-000, dev/sample-dev-029" in printed  # both have this premise


def hostile_audit() -> Audit:
    finding = Finding(
        name="planted", severity="warning", summary=HOSTILE, advice=HOSTILE, ids=(f"train/{HOSTILE}",)
    )
    section = Section(
        name="x",
        title="X",
        summary=HOSTILE,
        findings=(finding,),
        tables=(Table(title=HOSTILE, header=("a", "b"), rows=((HOSTILE, "1"),)),),
    )
    return Audit(files={"train": {"pairs": HOSTILE}}, sections=(section,))


def test_hostile_text_stays_text() -> None:
    text = as_text(hostile_audit())
    assert all(char == "\n" or char.isprintable() for char in text)
    markdown = as_markdown(hostile_audit())
    assert all(char == "\n" or char.isprintable() for char in markdown)
    assert "<script" not in markdown.replace("\\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [3, 3, 3]
    assert json.loads(json.dumps(to_json(hostile_audit())))["findings"][0]["ids"] == [f"train/{HOSTILE}"]


def test_the_json_is_read_back(tmp_path: Path) -> None:
    audit = hostile_audit()
    read = from_json(json.loads(json.dumps(to_json(audit))), tmp_path)
    (finding,) = read.findings
    assert dataclasses.replace(finding, figures={}) == audit.findings[0]
    (section,) = read.sections
    assert (section.title, section.summary) == ("X", HOSTILE)
    assert [list(row) for row in section.tables[0].rows] == [[HOSTILE, "1"]]


def test_the_worst_findings_come_first() -> None:
    findings = [
        Finding(name=each, severity=each, summary="", advice="") for each in ("note", "error", "warning")
    ]
    found = Audit(files={}, sections=(Section(name="x", title="X", summary="", findings=tuple(findings)),))
    assert [finding.severity for finding in found.findings] == ["error", "warning", "note"]
    assert as_text(found).splitlines()[-1] == "1 error, 1 warning, 1 note: fix the errors before training"


def real_args(real_data: Path, which: str) -> list[str]:
    folder = real_data / "comp34812"
    args = ["audit", "--test-pairs", str(folder / "test.csv")]
    for split in ("train", "dev"):
        args += [f"--{split}-pairs", str(folder / f"{split}.csv")]
        for kind in ("thoughts", "reflections"):
            args += [f"--{split}-{kind}", str(folder / f"{kind}_{which}{split}.jsonl")]
    return args


def test_the_real_set_has_its_known_faults(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    assert cli.main([*real_args(real_data, ""), "--json", str(out)]) == 1
    written = json.loads(out.read_text())
    sections = {section["name"]: section["figures"] for section in written["sections"]}
    assert sections["voice"]["by_source"] == {
        "reflection": {"0": 8, "1": 503},
        "thought": {"0": 576, "1": 113},
    }
    assert sections["voice"]["source_accuracy"] == (503 + 576) / 1200
    assert 0.8 < sections["voice"]["voice"]["accuracy"] < 0.95
    assert sections["teacher"]["confusion"] == {"0": {"0": 652, "1": 9}, "1": {"0": 557, "1": 132}}
    assert 0.6 < sections["hypotheses"]["baseline"]["accuracy"] < 0.7
    assert {each["name"] for each in written["findings"] if each["severity"] == "error"} == {
        "label definitions do not fit",
        "source gives the label away",
    }


def test_the_real_set_with_definitions_that_fit_has_no_error(real_data: Path) -> None:
    assert cli.main(real_args(real_data, "defined_")) == 0
