from __future__ import annotations

import json

import pytest

from nlicot import completion
from nlicot.completion import Completion, Form

THOUGHTS = {
    "empty": "",
    "blank": "  ",
    "quotes": 'He said "no", she said \'yes\', and "\\".',
    "backslashes": "C:\\new\\table \\ \\\\ \\u0041 ends in \\",
    "newlines": "Step 1: It rains.\nStep 2:\r\n\tIt is wet.\n",
    "control characters": "\x00\x01\x1f\x7f",
    "non-ASCII": "naïve Zürich, 漢字, مرحبا, e\u0301 and é",
    "emoji": "😀 👩‍👩‍👧 🇬🇧",
    "line separators": "a\u2028b\u2029c\ufeff",
    "prompt markers": "[INST] ignore [/INST] <s> </s> <|im_start|> <|im_end|>",
    "a completion": '{"thought_process": "x", "predicted_label": 1}',
    "SentencePiece's space": "a▁b ▁▁",
    "half a surrogate pair": "\ud83d alone",
}


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS.keys())
def test_a_rendered_completion_parses_back_to_its_thought_and_label(thought: str, label: int) -> None:
    rendered = completion.render(thought, label)
    assert completion.parse(rendered) == Completion(thought_process=thought, label=label)
    assert json.loads(rendered) == {"thought_process": thought, "predicted_label": label}


@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS.keys())
def test_a_thought_is_read_back_from_between_its_quotes(thought: str) -> None:
    assert completion.unescape(completion.escape(thought)) == thought


@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS)
def test_a_label_before_its_thought_parses_back(thought: str) -> None:
    rendered = completion.render(thought, 1, Form.LABEL_FIRST)
    assert rendered.startswith('{"predicted_label": 1, "thought_process": "')
    found = completion.parse(rendered)
    assert found == Completion(thought_process=thought, label=1, form=Form.LABEL_FIRST)


@pytest.mark.parametrize("draft", [0, 1])
@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS)
def test_a_draft_before_a_thought_parses_back(thought: str, draft: int) -> None:
    rendered = completion.render(thought, 1, Form.DRAFT_FIRST, draft)
    assert json.loads(rendered) == {"draft_label": draft, "thought_process": thought, "predicted_label": 1}
    assert list(json.loads(rendered)) == ["draft_label", "thought_process", "predicted_label"]
    assert completion.parse(rendered) == Completion(
        thought_process=thought, label=1, form=Form.DRAFT_FIRST, draft=draft
    )


@pytest.mark.parametrize("label", [0, 1])
def test_a_completion_of_only_a_label_parses_back_without_a_thought(label: int) -> None:
    assert completion.render(None, label) == f'{{"predicted_label": {label}}}'
    assert completion.parse(completion.render(None, label)) == Completion(
        thought_process=None, label=label, form=Form.LABEL_ONLY
    )


def test_an_empty_thought_differs_from_a_missing_one() -> None:
    assert completion.render("", 1) == '{"thought_process": "", "predicted_label": 1}'
    assert completion.parse('{"thought_process": "", "predicted_label": 1}') == Completion(
        thought_process="", label=1
    )


def test_the_segments_are_scaffold_thought_and_label_in_order() -> None:
    assert [(segment.kind.value, segment.text) for segment in completion.segments('a "b"', 0)] == [
        ("scaffold", '{"thought_process": "'),
        ("thought", 'a \\"b\\"'),
        ("scaffold", '", "predicted_label": '),
        ("label", "0"),
        ("scaffold", "}"),
    ]


def test_each_form_has_a_scaffold_around_each_of_its_parts() -> None:
    for form in Form:
        kinds = [segment.kind.value for segment in completion.segments("t", 1, form)]
        assert set(kinds[::2]) == {"scaffold"}
        assert (
            kinds[1::2]
            == {
                Form.THOUGHT_FIRST: ["thought", "label"],
                Form.LABEL_ONLY: ["label"],
                Form.LABEL_FIRST: ["label", "thought"],
                Form.DRAFT_FIRST: ["draft", "thought", "label"],
            }[form]
        )
        assert form.thinks == ("thought" in kinds)
        assert form.thinks_before_label == (kinds[-2] == "label" and "thought" in kinds)


def test_characters_that_a_tokenizer_cannot_give_back_are_written_as_escapes() -> None:
    assert completion.escape("▁ \ud83d 😀 é") == "\\u2581 \\ud83d 😀 é"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("Step 1: so 1", id="no JSON"),
        pytest.param('{"thought_process": "x", "predicted_label": 1', id="unclosed"),
        pytest.param('{"thought_process": "x"}', id="no label"),
        pytest.param('{"thought_process": "x", "predicted_label": 1, "sure": true}', id="extra key"),
        pytest.param('{"predicted_label": 1, "sure": 1}', id="extra key after a label alone"),
        pytest.param('{"predicted_label": 0, "predicted_label": 1}', id="key twice"),
        pytest.param('{"Thought_process": "x", "predicted_label": 1}', id="key in another case"),
        pytest.param('{"thought_process": "x", "predicted_label": true}', id="bool label"),
        pytest.param('{"predicted_label": false}', id="bool label alone"),
        pytest.param('{"thought_process": "x", "predicted_label": 2}', id="label 2"),
        pytest.param('{"thought_process": "x", "predicted_label": -1}', id="label -1"),
        pytest.param('{"thought_process": "x", "predicted_label": 1.0}', id="float label"),
        pytest.param('{"thought_process": "x", "predicted_label": "1"}', id="string label"),
        pytest.param('{"thought_process": "x", "predicted_label": null}', id="null label"),
        pytest.param('{"predicted_label": %s}' % ("1" * 5000), id="number too long to read"),
        pytest.param('{"thought_process": null, "predicted_label": 1}', id="null thought"),
        pytest.param('{"thought_process": ["x"], "predicted_label": 1}', id="list thought"),
        pytest.param('{"thought_process": {"a": "x"}, "predicted_label": 1}', id="object thought"),
        pytest.param('{"thought_process": "two\nlines", "predicted_label": 1}', id="raw newline"),
        pytest.param('{"thought_process": "x", "predicted_label": 1} so', id="trailing text"),
        pytest.param('so {"thought_process": "x", "predicted_label": 1}', id="leading text"),
        pytest.param('{"predicted_label": 1}{"predicted_label": 1}', id="two objects"),
        pytest.param('{"predicted_label": 1}\n{"predicted_label": 1}', id="two lines"),
        pytest.param('[{"predicted_label": 1}]', id="object in an array"),
        pytest.param('[["predicted_label", 1]]', id="array of pairs"),
        pytest.param('[["thought_process", "x"], ["predicted_label", 1]]', id="array of two pairs"),
        pytest.param('{"draft_label": 2, "thought_process": "x", "predicted_label": 1}', id="draft 2"),
        pytest.param('{"draft_label": true, "thought_process": "x", "predicted_label": 1}', id="bool draft"),
        pytest.param('{"draft_label": 1, "predicted_label": 1}', id="draft without a thought"),
        pytest.param('{"draft_label": 1, "thought_process": "x"}', id="draft without a label"),
        pytest.param('"predicted_label"', id="string"),
        pytest.param("1", id="number"),
        pytest.param("[" * 100_000, id="nested too deeply"),
    ],
)
def test_text_that_is_not_exactly_a_completion_parses_to_none(text: str) -> None:
    assert completion.parse(text) is None


@pytest.mark.parametrize(
    ("thought", "parts"),
    [
        ("", []),
        ("One.", ["One."]),
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("One.\nTwo.", ["One.\n", "Two."]),
        ('He said "no." Then (so it goes.) He left.', ['He said "no." ', "Then (so it goes.) ", "He left."]),
        ("3.5 metres, no end here", ["3.5 metres, no end here"]),
        ("One.  ", ["One.  "]),
    ],
)
def test_sentences_are_cut_after_their_ends(thought: str, parts: list[str]) -> None:
    assert completion.sentences(thought) == parts


@pytest.mark.parametrize("thought", THOUGHTS.values(), ids=THOUGHTS.keys())
def test_joined_sentences_equal_the_thought(thought: str) -> None:
    assert "".join(completion.sentences(thought)) == thought
