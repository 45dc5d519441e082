from __future__ import annotations

import pytest

from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, StudentPrompts


def test_the_thinking_prompt_asks_for_a_thought_and_a_label() -> None:
    assert StudentPrompts().render("It rains.", "It is wet.") == (
        "Does the hypothesis hold, given the premise? Answer 1 if it follows from the premise for a careful "
        "reader with common sense, 0 if it does not. Think in short steps first, then answer in JSON: "
        '{"thought_process": "...", "predicted_label": 0 or 1}\n'
        "\n"
        "Premise: It rains.\n"
        "Hypothesis: It is wet."
    )


def test_the_label_only_prompt_asks_only_for_the_label() -> None:
    assert StudentPrompts().render("It rains.", "It is wet.", form=Form.LABEL_ONLY) == (
        "Does the hypothesis hold, given the premise? Answer 1 if it follows from the premise for a careful "
        'reader with common sense, 0 if it does not. Answer in JSON: {"predicted_label": 0 or 1}\n'
        "\n"
        "Premise: It rains.\n"
        "Hypothesis: It is wet."
    )


@pytest.mark.parametrize(
    "text",
    [
        "{hypothesis}",
        "{premise}",
        "{entailment}",
        "{unknown}",
        "{",
        "}",
        "{}",
        "{{premise}}",
        "{0!r}",
        "%s",
        "\\1",
    ],
)
def test_braces_in_the_texts_are_kept(text: str) -> None:
    prompts = StudentPrompts(thinking="P {premise} H {hypothesis} .")
    assert prompts.render(text, "h") == f"P {text} H h ."
    assert prompts.render("p", text) == f"P p H {text} ."


def test_definitions_fill_their_placeholders_in_both_templates() -> None:
    prompts = StudentPrompts(
        thinking="{premise}/{hypothesis}: 1 {entailment}, 0 {no_entailment}, again {entailment}",
        label_only="{no_entailment}? {hypothesis} {premise}",
        definitions=LabelDefinitions(entailment="it fits", no_entailment="it {premise} clashes"),
    )
    assert prompts.render("p", "h") == "p/h: 1 it fits, 0 it {premise} clashes, again it fits"
    assert prompts.render("p", "h", form=Form.LABEL_ONLY) == "it {premise} clashes? h p"


@pytest.mark.parametrize("template", ["thinking", "label_only", "label_first", "draft_first"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{hypothesis}", "{premise} 0 times"),
        ("{premise}", "{hypothesis} 0 times"),
        ("{premise} {premise} {hypothesis}", "{premise} 2 times"),
        ("{premise} {hypothesis} {hypothesis}", "{hypothesis} 2 times"),
        ("{Premise} {hypothesis}", "{premise} 0 times"),
    ],
)
def test_a_template_without_a_placeholder_or_with_a_repeated_one_is_refused(
    template: str, text: str, found: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        StudentPrompts(**{template: text})
    assert str(raised.value) == f"data.prompts.{template}: found {found}, expected once"


def test_the_hash_changes_with_definitions_and_templates_and_with_nothing_else() -> None:
    places = "{premise} {hypothesis}"
    prompts = [
        StudentPrompts(),
        StudentPrompts(definitions=LabelDefinitions(entailment="it fits")),
        StudentPrompts(definitions=LabelDefinitions(no_entailment="it clashes")),
        StudentPrompts(thinking=places),
        StudentPrompts(label_only=places),
    ]
    assert len({each.sha256 for each in prompts}) == len(prompts)
    assert StudentPrompts().sha256 == StudentPrompts(definitions=LabelDefinitions()).sha256


def test_prompts_are_restored_from_a_checkpoint() -> None:
    prompts = StudentPrompts(
        thinking="{hypothesis} {premise}?",
        definitions=LabelDefinitions(entailment="ja", no_entailment="nein"),
    )
    restored = StudentPrompts.from_dict(prompts.to_dict())
    assert restored == prompts
    assert restored.sha256 == prompts.sha256
