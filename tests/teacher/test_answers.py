"""Parsing a teacher's answer: strictly, then with its syntax repaired, and never by guessing."""

import json
import random
import time

import pytest

from nlicot.teacher.answers import SCHEMAS, Answer, Unparsable, parse_answer, without_reasoning
from nlicot.teacher.prompt import PromptType

THOUGHT = PromptType.INITIAL_GENERATION
REFLECTION = PromptType.REFLECTION
SCORE = PromptType.SCORING
RELATION = PromptType.RELATION
STEPS = "Step 1: It rains. Step 2: Streets get wet. Step 3: So this one is wet."


def answer(text: str, kind: PromptType = THOUGHT) -> Answer:
    return parse_answer(text, kind)


def refusal(text: str, kind: PromptType = THOUGHT) -> str:
    with pytest.raises(Unparsable) as caught:
        parse_answer(text, kind)
    assert "\n" not in caught.value.message
    return caught.value.kind


def thought(text: str = STEPS, label: object = 1) -> str:
    return json.dumps({"thought_process": text, "predicted_label": label})


# ------------------------------------------------------------------ schemas


@pytest.mark.parametrize("kind", PromptType)
def test_each_schema_closes_its_object_as_strict_modes_ask(kind: PromptType) -> None:
    schema = SCHEMAS[kind].schema
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    assert {keyword for field in schema["properties"].values() for keyword in field} <= {"type", "enum"}


def test_schemas_ask_for_the_text_before_the_label() -> None:
    assert {kind.value: list(SCHEMAS[kind].schema["properties"]) for kind in PromptType} == {
        "initial_generation": ["thought_process", "predicted_label"],
        "relation": ["thought_process", "relation"],
        "reflection": ["error_analysis", "improved_thought_process", "reflected_label"],
        "scoring": ["analysis", "score"],
        "regeneration": ["thought_process", "predicted_label"],
        "reflection_regeneration": ["error_analysis", "improved_thought_process", "reflected_label"],
    }


# ------------------------------------------------------------------ strict


@pytest.mark.parametrize("label", [0, 1])
def test_valid_object_is_accepted_as_it_is(label: int) -> None:
    assert answer(thought(label=label)) == Answer(
        fields={"thought_process": STEPS, "predicted_label": label}, repaired=False
    )


def test_fields_come_in_the_order_of_the_schema() -> None:
    found = answer('{"score": 3, "analysis": "Step 2 is asserted."}', SCORE)
    assert list(found.fields.items()) == [("analysis", "Step 2 is asserted."), ("score", 3)]
    assert not found.repaired


def test_blanks_around_the_object_are_not_a_repair() -> None:
    assert not answer(f"\n\t {thought()}  \r\n").repaired
    assert not answer(thought().replace('", "', '",\n\n\t"')).repaired


def test_blanks_around_a_text_are_dropped() -> None:
    assert answer(thought(f"  {STEPS}\n")).fields["thought_process"] == STEPS


def test_extra_fields_are_ignored() -> None:
    text = json.dumps(
        {"confidence": 0.9, "thought_process": STEPS, "predicted_label": 0, "notes": {"a": [1]}}
    )
    assert answer(text) == Answer(fields={"thought_process": STEPS, "predicted_label": 0}, repaired=False)


@pytest.mark.parametrize(
    "text",
    [
        'He said "no".',
        "a\\b",
        "two\nlines",
        "tab\there",
        "{braces} and [brackets], 1: 2",
        "Ünïcode 猫 🐈",
        "\u2028x",
    ],
)
def test_the_content_of_a_text_is_returned_unchanged(text: str) -> None:
    for ascii_only in (True, False):
        raw = json.dumps({"thought_process": text, "predicted_label": 1}, ensure_ascii=ascii_only)
        assert answer(raw) == Answer(
            fields={"thought_process": text.strip(), "predicted_label": 1}, repaired=False
        )


def test_every_kind_of_answer_is_read() -> None:
    reflected = {"error_analysis": "E.", "improved_thought_process": STEPS, "reflected_label": 0}
    for kind in (REFLECTION, PromptType.REFLECTION_REGENERATION):
        assert answer(json.dumps(reflected), kind).fields == reflected
    assert answer(thought(), PromptType.REGENERATION).fields["predicted_label"] == 1
    related = {"thought_process": STEPS, "relation": "neutral"}
    assert answer(json.dumps(related), RELATION) == Answer(fields=related, repaired=False)
    for score in range(1, 6):
        assert answer(json.dumps({"analysis": "A.", "score": score}), SCORE).fields["score"] == score


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "whitespace"),
        (" \n\t ", "whitespace"),
        ("\u00a0\u2003", "whitespace"),
        ("The hypothesis follows, so 1.", "no_json"),
        ("1", "no_json"),
        ("null", "no_json"),
        ("[]", "no_json"),
        ('"thought_process"', "no_json"),
        (json.dumps(thought()), "no_json"),
        ("{'thought_process': 'It rains.', 'predicted_label': 1}", "no_json"),
        ("{thought_process: It rains., predicted_label: 1}", "no_json"),
        ('"thought_process": "It rains.", "predicted_label": 1', "no_json"),
        ("{}", "missing_field"),
        ('{"thought_process": "It rains."}', "missing_field"),
        ('{"predicted_label": 1}', "missing_field"),
        ('{"thought": "It rains.", "label": 1}', "missing_field"),
        ('{"answer": {"thought_process": "It rains.", "predicted_label": 1}}', "missing_field"),
        ('```json\n{"answer": {"thought_process": "It rains.", "predicted_label": 1}}\n```', "missing_field"),
    ],
)
def test_text_without_the_fields_is_refused(text: str, kind: str) -> None:
    assert refusal(text) == kind


@pytest.mark.parametrize(
    "label", [0.5, "0.5", None, [1], {"label": 1}, "entailment", "yes", "1.0.0", "one", "1e0"]
)
def test_label_of_another_type_is_refused(label: object) -> None:
    assert refusal(thought(label=label)) == "wrong_type"
    assert refusal(f"```json\n{thought(label=label)}\n```") == "wrong_type"


@pytest.mark.parametrize("label", [2, -1, 10, 10**12, "2", "-1", 2.0, "2.0", 1e300])
def test_label_outside_0_and_1_is_refused(label: object) -> None:
    assert refusal(thought(label=label)) == "label_outside"


@pytest.mark.parametrize("score", [0, 6, "6", 6.0, "0.0"])
def test_score_outside_the_scale_is_refused(score: object) -> None:
    assert refusal(json.dumps({"analysis": "A.", "score": score}), SCORE) == "label_outside"


@pytest.mark.parametrize("score", [4.5, "4/5", "four", None, True, "true"])
def test_score_that_is_not_a_whole_number_is_refused(score: object) -> None:
    assert refusal(json.dumps({"analysis": "A.", "score": score}), SCORE) == "wrong_type"


@pytest.mark.parametrize(("relation", "kind"), [("unrelated", "label_outside"), (1, "wrong_type")])
def test_unknown_relation_is_refused(relation: object, kind: str) -> None:
    assert refusal(json.dumps({"thought_process": STEPS, "relation": relation}), RELATION) == kind


@pytest.mark.parametrize("text", ["", "   ", "\n", "...", "—", "\u200b\ufeff", '"'])
def test_text_without_a_word_is_refused(text: str) -> None:
    assert refusal(thought(text)) == "empty_text"


@pytest.mark.parametrize("text", ["a\x00b", "a\ud83d b", "\udc00"])
def test_characters_that_no_file_can_hold_are_refused(text: str) -> None:
    assert refusal(thought(text)) == "wrong_type"


@pytest.mark.parametrize("text", [None, 1, True, ["Step 1", "Step 2"], {"step": "1"}])
def test_text_of_another_type_is_refused(text: object) -> None:
    raw = json.dumps({"thought_process": text, "predicted_label": 1})
    assert refusal(raw) == "wrong_type"
    assert refusal(f"Here: {raw}") == "wrong_type"


@pytest.mark.parametrize("between", ["", "\n", "\nand\n", ", ", "\n```\n```json\n"])
def test_two_objects_are_refused_even_if_they_are_equal(between: str) -> None:
    assert refusal(thought() + between + thought()) == "two_objects"
    assert refusal(thought(label=0) + between + thought(label=1)) == "two_objects"


def test_another_object_next_to_the_answer_is_refused() -> None:
    assert refusal(thought() + ' {"note": 1}') == "two_objects"
    assert refusal('{"note": 1} ' + thought()) == "two_objects"
    assert refusal(f"[{thought()}, {thought()}]") == "two_objects"
    assert refusal(f"{thought()} {{}}") == "two_objects"


def test_duplicate_field_is_refused() -> None:
    assert refusal('{"thought_process": "A.", "predicted_label": 0, "predicted_label": 1}') == "two_objects"
    assert (
        refusal('```{"thought_process": "A.", "predicted_label": 0, "predicted_label": 1}```')
        == "two_objects"
    )


# ------------------------------------------------------------------ repaired


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{thought()}\n```",
        f"```\n{thought()}```",
        f"```JSON\r\n{thought()}\r\n```\r\n",
        f"Here is my answer:\n```json\n{thought()}\n```\nI hope that this helps.",
        f"Sure! {thought()}",
        f"{thought()} Let me know.",
        f"The set {{a, b}} is odd. {thought()}",
        f"<think>It rains, so {{wet}}.</think>\n{thought()}",
        f"\ufeff{thought()}",
        f"{thought()}}}",
        f"{thought()}]",
        f"{thought()}`",
        f"[{thought()}]",
        thought()[:-1] + ",}",
        thought()[:-1] + " , \n}",
        thought()[:-1],
        f"```json\n{thought()[:-1]}\n```",
        thought()[:-1] + ",",
        thought().replace('", "', '" "'),
        thought(label="1"),
        thought(label=" 1 "),
        thought(label="1")[:-1],
        thought(label="1")[:-2],
        thought(label="1").replace('1"}', "1}"),
    ],
)
def test_broken_syntax_around_whole_fields_is_repaired(text: str) -> None:
    assert answer(text) == Answer(fields={"thought_process": STEPS, "predicted_label": 1}, repaired=True)


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        ("one\ntwo", "one\ntwo"),
        ("one\r\n\ttwo", "one\r\n\ttwo"),
        ("bell \x07 and \x1b[0m", "bell \x07 and \x1b[0m"),
        ("it\\'s wet", "it's wet"),
        ("half\\\\\\' way\n", "half\\' way"),
        ('He said "no" twice.', 'He said "no" twice.'),
        ('"No" is what he said.', '"No" is what he said.'),
        ('He said "no"', 'He said "no"'),
        ('The word "not", then "never": both deny.', 'The word "not", then "never": both deny.'),
        ('Some \\"escaped\\" and "not".', 'Some "escaped" and "not".'),
        ('A {"key"} in braces.', 'A {"key"} in braces.'),
        ('quoted: \\\\"both\\\\".', 'quoted: \\"both\\".'),
    ],
)
def test_broken_syntax_inside_a_text_is_repaired(raw: str, meant: str) -> None:
    for text in (
        f'{{"thought_process": "{raw}", "predicted_label": 0}}',
        f'```json\n{{"thought_process": "{raw}",\n"predicted_label": 0,\n}}\n```',
    ):
        assert answer(text) == Answer(fields={"thought_process": meant, "predicted_label": 0}, repaired=True)


def test_unescaped_quotes_are_repaired_in_both_texts_of_a_reflection() -> None:
    text = (
        '{"error_analysis": "It read "some" as "all".", '
        '"improved_thought_process": "Step 1: "Some" is less.", "reflected_label": 1}'
    )
    assert answer(text, REFLECTION) == Answer(
        fields={
            "error_analysis": 'It read "some" as "all".',
            "improved_thought_process": 'Step 1: "Some" is less.',
            "reflected_label": 1,
        },
        repaired=True,
    )


def test_unescaped_quotes_in_a_last_text_are_repaired() -> None:
    text = '{"score": 2, "analysis": "Step 2 bends "not"."}'
    assert answer(text, SCORE).fields == {"analysis": 'Step 2 bends "not".', "score": 2}


def test_extra_fields_are_also_ignored_in_repair() -> None:
    text = f'{{"note": "n", "thought_process": "{STEPS}", "sure": [true, {{"a": 1}}], "predicted_label": 1,}}'
    assert answer(text) == Answer(fields={"thought_process": STEPS, "predicted_label": 1}, repaired=True)


@pytest.mark.parametrize("spelt", ["Neutral", " neutral ", "NEUTRAL"])
def test_spelling_of_a_relation_is_repaired(spelt: str) -> None:
    found = answer(json.dumps({"thought_process": STEPS, "relation": spelt}), RELATION)
    assert found == Answer(fields={"thought_process": STEPS, "relation": "neutral"}, repaired=True)


def test_relation_without_its_last_quote_is_repaired() -> None:
    text = f'{{"thought_process": "{STEPS}", "relation": "contradiction'
    assert answer(text, RELATION).fields["relation"] == "contradiction"
    assert answer(text + "}", RELATION).repaired
    assert refusal(text[:-3], RELATION) == "no_json"


# ------------------------------------------------------------------ not repaired


@pytest.mark.parametrize("length", range(1, len(thought()) - 1))
def test_answer_truncated_anywhere_before_its_label_is_refused(length: int) -> None:
    cut = thought()[:length]
    assert refusal(cut) == "no_json"


@pytest.mark.parametrize(
    "text",
    [
        '{"predicted_label": 1, "thought_process": "It rains and the str',
        '{"predicted_label": 1, "thought_process": "It rains and the str}',
        '{"predicted_label": 1, "thought_process": "He said "no" and wen',
        '{"predicted_label": 1, "thought_process": "He said "no"',
        '{"predicted_label": 1, "thought_process": "It rains.\\"}',
    ],
)
def test_truncated_text_is_never_completed(text: str) -> None:
    assert refusal(text) == "no_json"


@pytest.mark.parametrize(
    "text",
    [
        # One quote too many: any of them may be the end of the text.
        '{"thought_process": "He said "no.", "predicted_label": 1}',
        '{"thought_process": "She is 5\'7" tall.", "predicted_label": 1}',
        # The text may end after `a` or after the last quote.
        '{"predicted_label": 1, "thought_process": "say "a"} or "b"}',
        '{"predicted_label": 1, "thought_process": "It rains."} I hope that answers "it"',
        # An entry inside: an extra field, or words of the text.
        '{"thought_process": "say "a".", "note": "n", "predicted_label": 1}',
        '{"thought_process": "a \\x b", "predicted_label": 1}',
        '{"thought_process": "a \\u12 b", "predicted_label": 1}',
    ],
)
def test_text_that_can_be_read_in_two_ways_is_refused(text: str) -> None:
    assert refusal(text) == "no_json"


def test_answer_that_quotes_its_own_field_is_refused() -> None:
    text = '{"thought_process": "It says "x", "predicted_label": 1 there.", "predicted_label": 0}'
    assert refusal(text) == "two_objects"


def test_object_that_starts_again_inside_itself_is_refused() -> None:
    assert refusal('{"thought_process": "It ra' + thought()) == "two_objects"


@pytest.mark.parametrize(
    "value",
    [
        "01",
        "+1",
        "1.",
        "0 or 1",
        "1 (entailment)",
        "entailment",
        "NaN",
        "1" * 5000,
        "[" * 9999,
    ],
)
def test_label_that_is_not_a_number_is_not_repaired(value: str) -> None:
    text = f'```json\n{{"thought_process": "{STEPS}", "predicted_label": {value}}}\n```'
    assert refusal(text) == "wrong_type"


def test_long_answers_are_refused_quickly() -> None:
    start = time.process_time()
    for text in (
        '{"thought_process": "' + 'say "a" ' * 20_000,
        '{"thought_process": "a"' + " " * 200_000,
        "{" * 100_000,
        '{ "' * 50_000,
        '{"thought_process": "' + "\\" * 100_001 + '", "predicted_label": 1}',
        '{"predicted_label": 1, "thought_process": "' + '"}' * 20_000,
    ):
        assert refusal(text) in ("no_json", "two_objects")
    assert time.process_time() - start < 2


def test_damaged_answers_are_read_correctly_or_refused() -> None:
    """Characters of a good answer are dropped, doubled or swapped; no other error is raised."""
    choice = random.Random(7)
    good = thought('He said "no", and {it} is 50 % \\ wet.\nSo: it rained.')
    for _ in range(3000):
        characters = list(good)
        for _ in range(choice.randint(1, 4)):
            at = choice.randrange(len(characters))
            characters[at] = choice.choice(["", characters[at] * 2, *'{}":,\\\n01 ]`'])
        try:
            found = answer("".join(characters))
        except Unparsable as unparsable:
            assert unparsable.kind in (
                "no_json",
                "two_objects",
                "missing_field",
                "wrong_type",
                "label_outside",
                "empty_text",
            )
        else:
            assert found.fields["predicted_label"] in (0, 1)
            assert str(found.fields["thought_process"]).strip()


# ------------------------------------------------------------------ reasoning


DRAFT = thought("A draft.", 0)


@pytest.mark.parametrize(
    "block",
    [
        f"<think>{DRAFT}</think>",
        f"<think>\n{DRAFT}\n</think>\n\n",
        f"\n<Thinking>{DRAFT}</Thinking>",
        f"<thought>{DRAFT}</thought>",
        f"<reasoning>{DRAFT}</reasoning>",
        f"<reason>{DRAFT}</reason>",
        f"<seed:think>{DRAFT}</seed:think>",
        f"[THINK]{DRAFT}[/THINK]",
        f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>",
        f"<|START_THINKING|>{DRAFT}<|END_THINKING|>",
        f"◁think▷{DRAFT}◁/think▷",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>",
        f"{DRAFT}</think>",
        f"It may be {DRAFT}\n</think>\n",
        f"[/THINK]{DRAFT}</think>",
        f"Well. <think>{DRAFT}</think>",
        f"<think></think><think>{DRAFT}</think>",
        f"<think><think>{DRAFT}</think>",
        f"<think>I end with </think>, then {DRAFT}</think>",
        f"<think>{DRAFT}</thinking>",
    ],
)
def test_reasoning_before_the_answer_is_cut_off(block: str) -> None:
    assert without_reasoning(block + thought()) == thought()
    assert without_reasoning(f"{block}```json\n{thought()}\n```") == f"```json\n{thought()}\n```"


@pytest.mark.parametrize("text", ["<think>", f"<think>{DRAFT}", f"[THINK]{DRAFT}", f"Well. <think>{DRAFT}"])
def test_reasoning_that_does_not_end_leaves_nothing(text: str) -> None:
    assert without_reasoning(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        thought(),
        thought("The page shows </think> and <think>."),
        f"```json\n{thought('The tag <think> opens.')}\n```",
        f"\n{thought()}\n<think>Right?</think>",
        " \n No.",
        "I think <b>so</b>.",
    ],
)
def test_a_text_without_reasoning_before_it_is_kept(text: str) -> None:
    assert without_reasoning(text) == text


@pytest.mark.parametrize("text", ["</think>", "<think>", "<think>{ ", '{"a": 1}</think>', '"</think>'])
def test_tags_without_end_are_read_quickly(text: str) -> None:
    start = time.process_time()
    assert len(without_reasoning(text * 20_000)) < len(text)
    assert time.process_time() - start < 2


# ------------------------------------------------------------------ numbers of other spellings


@pytest.mark.parametrize(
    ("given", "label"),
    [
        *((one, 1) for one in (1.0, "1.0", True, "true", "True", " TRUE ")),
        *((zero, 0) for zero in (0.0, "0.0", False, "false")),
    ],
)
def test_other_spellings_of_a_label_are_read(given: object, label: int) -> None:
    for text in (thought(label=given), f"```json\n{thought(label=given)}\n```"):
        found = answer(text)
        assert (repr(found.fields["predicted_label"]), found.repaired) == (str(label), True)


@pytest.mark.parametrize("given", [4.0, "4.0", "4"])
def test_other_spellings_of_a_score_are_read(given: object) -> None:
    found = answer(json.dumps({"analysis": "A.", "score": given}), SCORE)
    assert (repr(found.fields["score"]), found.repaired) == ("4", True)
