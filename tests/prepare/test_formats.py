from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlicot import completion
from nlicot.completion import Form
from nlicot.errors import DataError
from nlicot.prepare.formats import FORMATS, MARKERS, read_prepared, to_row
from nlicot.records import TrainingExample

COMPLETION = '{"thought_process": "Step 1: \\"rain\\".\\nSo 1.", "predicted_label": 1}'
PARSED = TrainingExample(id="row-1", prompt="Premise: P", completion=COMPLETION, label=1, source="prepared")


def prepared_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_prompt_and_completion_are_read(tmp_path: Path) -> None:
    path = prepared_file(
        tmp_path,
        {"prompt": "Premise: P", "completion": COMPLETION},
        {"id": "b", "prompt": "Q", "completion": '{"predicted_label": 0}', "source": "label"},
    )
    assert read_prepared(path) == [
        PARSED,
        TrainingExample(id="b", prompt="Q", completion='{"predicted_label": 0}', label=0, source="label"),
    ]


def test_a_builders_output_is_read_back_unchanged(tmp_path: Path) -> None:
    built = [
        TrainingExample(
            id=f"pair-{label}",
            prompt=" Premise: a  b\n[INST] [/INST] {x} ",
            completion=completion.render('Step 1: "é 😀" \\ \n </s> [/INST]', label, form, 0),
            label=label,
            source="reflection",
            learns_draft=label == 1,
        )
        for label in (0, 1)
        for form in Form
    ]
    for row_format in FORMATS:
        rows = [to_row(example, row_format, MARKERS["mistral"]) for example in built]
        assert read_prepared(prepared_file(tmp_path, *rows)) == built
        assert [row.get("learns_draft") for row in rows] == [False] * 4 + [None] * 4


@pytest.mark.parametrize(
    "text",
    [
        f"<s>[INST] Premise: P [/INST] {COMPLETION} </s>",
        f"<s>[INST] Premise: P[/INST] {COMPLETION}</s>",
        f"[INST] Premise: P [/INST]{COMPLETION}",
        f"[INST] Premise: P [/INST] {COMPLETION}",
    ],
)
def test_markers_are_removed_from_rows_of_rendered_text(tmp_path: Path, text: str) -> None:
    assert read_prepared(prepared_file(tmp_path, {"text": text})) == [PARSED]


@pytest.mark.parametrize(
    ("prompt", "thought"),
    [
        ("he wrote [/INST] {twice} [INST] and more", "Step 1."),
        ("Premise: P", "he wrote [/INST] and then </s> [INST]"),
        ("Premise: P", "he wrote [/INST] {x}"),
        ("Premise:\n\nP", "two\nlines"),
    ],
)
def test_markers_inside_the_texts_do_not_cut_a_rendered_text(
    tmp_path: Path, prompt: str, thought: str
) -> None:
    answer = completion.render(thought, 0)
    (built,) = read_prepared(prepared_file(tmp_path, {"text": f"[INST] {prompt} [/INST] {answer}"}))
    assert (built.prompt, built.completion, built.label) == (prompt, answer, 0)


def test_a_source_does_not_make_a_row_of_another_tool_ours(tmp_path: Path) -> None:
    row = {"text": f"[INST] Premise: P [/INST] {COMPLETION}", "source": "mine"}
    (built,) = read_prepared(prepared_file(tmp_path, row))
    assert (built.prompt, built.source) == ("Premise: P", "mine")


def test_a_completion_with_other_whitespace_is_normalised(tmp_path: Path) -> None:
    path = prepared_file(
        tmp_path, {"prompt": "p", "completion": ' {"thought_process":"x",\n"predicted_label":1} '}
    )
    assert read_prepared(path)[0].completion == '{"thought_process": "x", "predicted_label": 1}'


@pytest.mark.parametrize(
    "answer",
    [
        "1",
        '{"thought_process": "x"}',
        '{"thought_process": "x", "predicted_label": 2}',
        '{"thought_process": "x", "predicted_label": 1, "sure": true}',
    ],
)
def test_a_bad_completion_is_refused_with_its_line(tmp_path: Path, answer: str) -> None:
    path = prepared_file(
        tmp_path, {"prompt": "p", "completion": COMPLETION}, {"prompt": "p", "completion": answer}
    )
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value) == (
        f"{path}:2: found a completion that is not JSON with thought_process and predicted_label, "
        "expected both, in order"
    )


@pytest.mark.parametrize("answer", ["so 1", '{"predicted_label": 3}'])
def test_a_bad_completion_in_a_rendered_text_is_refused_with_its_line(tmp_path: Path, answer: str) -> None:
    path = prepared_file(tmp_path, {"text": f"[INST] p [/INST] {answer}"})
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value).startswith(f"{path}:1: found a completion that is not")


@pytest.mark.parametrize("text", ["p => 1", f"p [/INST] {COMPLETION}", f"[INST] p {COMPLETION}"])
def test_a_text_of_another_format_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = prepared_file(tmp_path, {"text": text})
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value) == (
        f"{path}:1: found a text of another format, expected [INST] prompt [/INST] completion"
    )


def test_a_row_without_a_completion_is_refused_with_its_line(tmp_path: Path) -> None:
    path = prepared_file(tmp_path, {"prompt": "p"})
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value).startswith(f"{path}:1: found no completion among 'prompt'")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = prepared_file(tmp_path)
    with pytest.raises(DataError) as raised:
        read_prepared(path)
    assert str(raised.value) == f"{path}: found no rows, expected a row for each training example"


def test_the_predecessors_prepared_file_loads_unchanged(real_data: Path) -> None:
    path = real_data / "original" / "sample_ft.jsonl"
    built = read_prepared(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(built) == 100
    for example, row in zip(built, rows, strict=True):
        assert example.id == str(row["id"])
        assert row["text"] == f"<s>[INST] {example.prompt} [/INST] {example.completion} </s>"
