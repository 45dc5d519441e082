"""`inspect` shows what `fit` trains on: the same examples, ids and counts, in the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from nlicot import cli, completion
from nlicot.completion import Form
from nlicot.inspection.view import KINDS, bars, measure, pieces_of, render, visible, wants_color
from nlicot.model.base_model import choose_for_inspection, resolve
from nlicot.model.encoding import encode_dataset
from nlicot.model.prompt_format import MistralFormat, PromptFormat, load_prompt_format, prompt_format_of_base
from nlicot.records import TrainingExample
from nlicot.run.data import RunData
from nlicot.settings import DataSettings, RunSettings
from tests.encoded import encode_example

PROJECT = Path(__file__).parents[2]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
THOUGHT = "Step 1: \U0001f600 e\u0301. Step 2: \x1b[31mred\x1b[0m \u2028 <s>[INST] \u2581. Step 3: yes."
HOSTILE = TrainingExample(
    id="a\x1b[2J",
    prompt="Premise: \x1b]0;gone\x07 <|im_end|> \U0001f469\u200d\U0001f680\nHypothesis: \x00 | <b>",
    completion=completion.render(THOUGHT, 1, Form.DRAFT_FIRST),
    label=1,
    source="thought",
)


@pytest.fixture(scope="module", params=["chat", "mistral"])
def prompt_format(request: pytest.FixtureRequest) -> PromptFormat:
    return load_prompt_format(resolve("bundled").folder) if request.param == "chat" else MistralFormat()


def printed(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert cli.main(["inspect", *args]) == code
    return capsys.readouterr().out


def test_a_builder_that_counts_the_students_tokens_can_be_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "short.yaml"
    config.write_text(
        "data: {builder: {class_path: nlicot.builders.reflected.Reflected, init_args: "
        "{max_thought_tokens: 40}}}"
    )
    found = json.loads(printed(capsys, f"--config={config}", "--model.base=bundled", "--json"))
    assert 0 < found["num_examples"] < 560


def test_pieces_hold_every_token_once_and_spell_the_completion(prompt_format: PromptFormat) -> None:
    encoded = encode_example(prompt_format, HOSTILE, max_length=4096, over_budget="drop")
    assert encoded is not None
    pieces = pieces_of(prompt_format, encoded)
    assert [token for piece in pieces for token in piece.ids] == encoded.input_ids
    assert sum(len(piece.ids) for piece in pieces if piece.supervised) == sum(
        kind != 0 for kind in encoded.kinds
    )
    spelt = "".join(piece.text for piece in pieces if piece.supervised and piece.kind != "control")
    assert spelt.strip() == HOSTILE.completion
    assert {piece.kind for piece in pieces} == set(KINDS)
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert "\U0001f600" in "".join(piece.text for piece in pieces if piece.kind == "thought")
    assert [piece.text for piece in pieces if piece.kind == "label"] == ["1"]


def test_markers_of_the_template_are_control_and_those_in_a_text_are_not(prompt_format: PromptFormat) -> None:
    encoded = encode_example(prompt_format, HOSTILE, max_length=4096, over_budget="drop")
    assert encoded is not None
    names = [piece.text for piece in pieces_of(prompt_format, encoded) if piece.kind == "control"]
    expected = {
        "mistral": ["<s>", "[INST]", "[/INST]", "</s>"],
        "chat": ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"],
    }
    assert names == expected[prompt_format.name]


@pytest.mark.parametrize("color", [True, False])
def test_no_text_moves_the_cursor_or_changes_a_colour(prompt_format: PromptFormat, color: bool) -> None:
    encoded = encode_example(prompt_format, HOSTILE, max_length=4096, over_budget="drop")
    assert encoded is not None
    text = render(pieces_of(prompt_format, encoded), color=color)
    plain = ESCAPE.sub("", text)
    assert all(char == "\n" or char.isprintable() for char in plain)
    assert "\\x1b]0;gone\\x07" in plain
    assert (plain != text) == color


def test_each_kind_has_its_colour_and_what_is_not_learnt_is_dim(prompt_format: PromptFormat) -> None:
    encoded = encode_example(prompt_format, HOSTILE, max_length=4096, over_budget="drop")
    assert encoded is not None
    pieces = pieces_of(prompt_format, encoded)
    text = render(pieces, color=True)
    codes = {"control": "33|93", "prompt": "36|96", "thought": "32|92", "scaffold": "34|94", "label": "31|91"}
    codes["draft"] = "35|95"
    for piece in pieces:
        shown = re.escape(visible(piece.text).split("\n")[0])
        dim = "" if piece.supervised else r"\x1b\[2m"
        pattern = rf"\x1b\[(?:1;)?(?:{codes[piece.kind]})m{dim}{shown}\x1b\[0m"
        assert not shown or re.search(pattern, text), piece


def test_a_draft_that_is_only_read_is_not_learnt_and_not_of_the_prompt(prompt_format: PromptFormat) -> None:
    example = dataclasses.replace(HOSTILE, learns_draft=False)
    encoded = encode_example(prompt_format, example, max_length=4096, over_budget="drop")
    assert encoded is not None
    pieces = pieces_of(prompt_format, encoded)
    assert [(piece.text, piece.supervised) for piece in pieces if piece.kind == "draft"] == [("1", False)]
    headings = [line for line in render(pieces, color=False).splitlines() if line.startswith("[")]
    assert [heading.split(",")[0] for heading in headings] == [
        *("[prompt", "[scaffold", "[draft", "[scaffold", "[thought", "[scaffold", "[label", "[scaffold"),
        "[control",
    ]
    assert headings[2] == "[draft, 1 token, not trained on]"


def test_cut_and_dropped_are_those_of_fit(prompt_format: PromptFormat, tmp_path: Path) -> None:
    data = RunData(RunSettings())
    data.read_for_fit()
    for max_length in (180, 230):
        for over_budget in ("cut", "drop"):
            built = data.built["train"]
            lengths = measure(prompt_format, built, max_length=max_length, over_budget=over_budget)
            _, report = encode_dataset(
                prompt_format, built, max_length=max_length, over_budget=over_budget, cache=tmp_path
            )
            assert lengths.report == report
            assert len(lengths.cut) == report.num_cut
            assert len(lengths.dropped) == report.num_dropped
            assert len(lengths.lengths) == len(built)


def test_the_histogram_counts_every_example_and_parts_at_the_budget() -> None:
    found = bars([10, 11, 100, 101, 102, 250], 101)
    assert sum(bar.num for bar in found) == 6
    assert [(bar.low, bar.high, bar.num, bar.over) for bar in found if bar.num] == [
        (0, 31, 2, False),
        (96, 101, 2, False),
        (102, 127, 1, True),
        (224, 255, 1, True),
    ]
    assert all(later.low == bar.high + 1 for bar, later in itertools.pairwise(found))


def test_the_json_has_the_ids_that_fit_trains_on(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config", str(PROJECT / "configs/overlays/sample.yaml"), "--json", "--id", "sample-dev-003"]
    told = json.loads(printed(capsys, *args, "--split", "dev", "--data.max_length", "220"))
    data = RunData(RunSettings(data=DataSettings(max_length=220)))
    data.read_for_fit()
    (example,) = [each for each in data.built["dev"] if each.id == "sample-dev-003"]
    prompt_format = load_prompt_format(resolve("bundled").folder)
    encoded = encode_example(prompt_format, example, max_length=220, over_budget="cut")
    assert encoded is not None
    (shown,) = told["examples"]
    assert shown["input_ids"] == encoded.input_ids
    assert shown["cut"] == encoded.was_cut
    assert len(shown["kinds"]) == len(encoded.kinds)
    assert told["base"] == "bundled" and told["built"] == data.reports["dev"]


def test_a_run_on_the_sample_says_so_and_shows_as_many_as_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(capsys, "--num", "3", "--config", str(PROJECT / "configs/label_only.yaml"))
    assert text.startswith("SAMPLE DATA")
    first = [f"sample-train-{number}" for number in (600, 601, 602)]  # the plain pairs come first
    assert re.findall(r"^pair (\S+)  source label", text, re.MULTILINE) == first
    assert "[label, 1 token]" in text and "[thought" not in text
    assert text.rstrip().endswith("all fit into --data.max_length 768: 0 cut, 0 left out")
    assert "\x1b" not in text
    assert "\x1b[" in printed(capsys, "--num", "1", "--color", "always")


def test_ones_own_data_need_no_device_and_no_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "original_data"
    folder.mkdir()
    (folder / "train.csv").write_text("id,premise,hypothesis,label\nx,A b.,B.,1\ny,C d.,D.,0\n")
    (folder / "dev.csv").write_text("premise,hypothesis,label\nE f.,F.,1\n")
    args = ["--root", str(tmp_path), "--config", str(PROJECT / "configs/label_only.yaml"), "--id", "y"]
    text = printed(capsys, *args)
    assert "tokens of mistralai/Mistral-7B-v0.3 (mistral)" in text
    assert "<s>[INST] Does the hypothesis hold" in text.replace("\n    ", "")
    assert "Premise: C d." in text


def test_no_weights_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundled = resolve("bundled").folder
    for path in bundled.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert f"tokens of {tmp_path} (chat)" in printed(capsys, "--num", "1", "--model.base", str(tmp_path))


def test_the_bundled_tokenizer_is_the_same_unpacked_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = prompt_format_of_base("bundled")
    monkeypatch.setenv("NLICOT_CACHE", str(tmp_path))
    assert prompt_format_of_base("bundled").fingerprint == unpacked.fingerprint
    assert list(tmp_path.iterdir()) == []


def test_what_fit_would_refuse_for_want_of_a_device_is_looked_at_all_the_same() -> None:
    name = "mistralai/Mistral-7B-v0.3"
    assert choose_for_inspection(name, None, on_sample=False) == name
    assert prompt_format_of_base(name).fingerprint == MistralFormat().fingerprint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--id", "nowhere"], "--id nowhere: no such pair in train"),
        (["--id", "sample-train-0000"], "did you mean sample-train-000"),
        (["--id", "sample-dev-003"], "it is in dev: add --split dev"),
        (["--config", str(PROJECT / "configs/correct_only.yaml"), "--id", "sample-train-003"], "CorrectOnly"),
        (["--num", "-1"], "--num"),
        (["--data.buidler", "x"], "did you mean --data.builder?"),
        (["--color", "blue"], "--color"),
    ],
)
def test_mistakes_are_told_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", *args]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_runs_own_config_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--run", "mine", "--data.max_length", "777", "--print_config"])
    config = tmp_path / "config.yaml"
    config.write_text(capsys.readouterr().out)
    assert "run: mine" in config.read_text() and "final_evaluation: true" in config.read_text()
    assert "all fit into --data.max_length 777" in printed(capsys, "--num", "0", "--config", str(config))


def test_color_follows_the_terminal_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_color("auto", sys.stdout) == sys.stdout.isatty()

    class Terminal:
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    assert wants_color("auto", terminal)  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color("auto", terminal)  # type: ignore[arg-type]
    assert wants_color("always", terminal)  # type: ignore[arg-type]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_color("auto", terminal)  # type: ignore[arg-type]


def test_the_histogram_draws_over_budget_otherwise() -> None:
    example = TrainingExample(
        id="a", prompt="P", completion=completion.render(None, 1), label=1, source="label"
    )
    long = TrainingExample(
        id="b", prompt="P " * 60, completion=completion.render(None, 0), label=0, source="label"
    )
    lengths = measure(MistralFormat(), [example, long], max_length=50, over_budget="cut")
    assert lengths.dropped == ["b"]
    drawn = [line.split() for line in lengths.summary("lengths").splitlines()]
    assert [parts[1][0] for parts in drawn if len(parts) == 3 and parts[2].isdigit()] == ["#", "!"]
