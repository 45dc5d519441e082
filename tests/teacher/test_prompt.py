"""The teacher's prompts: those that ship, the user's own files, and how placeholders are filled."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions
from nlicot.teacher.answers import SCHEMAS
from nlicot.teacher.prompt import (
    ALLOWED,
    REQUIRED,
    PromptType,
    TeacherPrompt,
    load_prompt,
)

OURS = LabelDefinitions(entailment="the premise leaves it standing", no_entailment="the premise rules it out")
FILLING = {
    "premise": "A dog runs.",
    "hypothesis": "An animal moves.",
    "true_label": "1",
    "predicted_label": "0",
    "thought_process": "Step 1: A dog is named.",
    "score": "2",
    "analysis": "Step 2 is missing.",
}


def own_file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path, kind: PromptType = PromptType.INITIAL_GENERATION) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompt(kind, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(prompt: TeacherPrompt, **places: str) -> str:
    return "\n".join(message.content for message in prompt.render(**places))


# ------------------------------------------------------------------ what ships


@pytest.mark.parametrize("kind", PromptType)
def test_shipped_prompt_leaves_no_placeholder_open(kind: PromptType) -> None:
    prompt = load_prompt(kind)
    places = {name: FILLING[name] for name in ALLOWED[kind]}
    system, user = prompt.render(**places)
    assert (system.role, user.role) == ("system", "user")
    for name in REQUIRED[kind]:
        assert places[name] in user.content
    for name in (*FILLING, "entailment", "no_entailment"):
        assert f"{{{name}}}" not in system.content + user.content


@pytest.mark.parametrize("kind", [kind for kind in PromptType if kind is not PromptType.RELATION])
def test_shipped_prompt_says_what_the_labels_mean(kind: PromptType) -> None:
    asked = words(load_prompt(kind, definitions=OURS), **{name: FILLING[name] for name in ALLOWED[kind]})
    assert (
        "label 1 if the premise leaves it standing; it gets the label 0 if the premise rules it out." in asked
    )


@pytest.mark.parametrize("kind", PromptType)
def test_shipped_prompt_asks_for_the_fields_of_its_schema_in_order(kind: PromptType) -> None:
    form = load_prompt(kind).user.rpartition("nothing around it:")[2]
    assert re.findall(r'"(\w+)":', form) == list(SCHEMAS[kind].schema["properties"])


@pytest.mark.parametrize(
    "kind", [PromptType.INITIAL_GENERATION, PromptType.RELATION, PromptType.REGENERATION]
)
def test_prompt_for_blind_thoughts_does_not_show_the_true_label(kind: PromptType) -> None:
    assert "true_label" not in ALLOWED[kind]
    shown = [words(load_prompt(kind), **{**FILLING, "true_label": label}) for label in ("0", "1")]
    assert shown[0] == shown[1]


# ------------------------------------------------------------------ rendering


def test_braces_in_texts_stay_as_they_are() -> None:
    prompt = TeacherPrompt(
        type=PromptType.INITIAL_GENERATION, system="", user='{premise} / {hypothesis} / {"a": {b c}}'
    )
    places = {"premise": "{hypothesis} {entailment}", "hypothesis": "\\1 {premise}"}
    (asked,) = prompt.render(**places)
    assert asked.content == '{hypothesis} {entailment} / \\1 {premise} / {"a": {b c}}'
    assert asked.role == "user"


def test_placeholder_without_a_text_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"no text for \{hypothesis\} in the prompt initial_generation"):
        load_prompt(PromptType.INITIAL_GENERATION).render(premise="A dog runs.")


def test_hash_changes_with_any_wording() -> None:
    prompt = load_prompt(PromptType.REFLECTION)
    changed = [
        prompt,
        dataclasses.replace(prompt, type=PromptType.SCORING),
        dataclasses.replace(prompt, system=prompt.system + " "),
        dataclasses.replace(prompt, user=prompt.user + " "),
        dataclasses.replace(prompt, definitions=OURS),
        dataclasses.replace(prompt, definitions=dataclasses.replace(OURS, no_entailment="not")),
    ]
    assert len({one.sha256 for one in changed}) == len(changed)
    assert load_prompt(PromptType.REFLECTION).sha256 == prompt.sha256
    assert len(prompt.sha256) == 64


# ------------------------------------------------------------------ the user's own file


def test_own_file_replaces_the_shipped_one(tmp_path: Path) -> None:
    path = own_file(
        tmp_path,
        "system: |\n  Judge.\nuser: |\n  {premise} / {hypothesis}: 1 if {entailment}, 0 if {no_entailment}\n"
        "definitions:\n  entailment: it is so.\n  no_entailment: >\n    it is\n    not so\n",
    )
    prompt = load_prompt(PromptType.INITIAL_GENERATION, path)
    assert prompt.definitions == LabelDefinitions(entailment="it is so", no_entailment="it is not so")
    assert [message.content for message in prompt.render(premise="P", hypothesis="H")] == [
        "Judge.",
        "P / H: 1 if it is so, 0 if it is not so",
    ]
    assert load_prompt(PromptType.INITIAL_GENERATION, path, OURS).definitions == OURS


def test_own_file_needs_no_system_and_no_definitions(tmp_path: Path) -> None:
    prompt = load_prompt(
        PromptType.INITIAL_GENERATION, own_file(tmp_path, "user: '{premise} {hypothesis}'\n")
    )
    assert [message.role for message in prompt.render(premise="P", hypothesis="H")] == ["user"]
    assert prompt.definitions == LabelDefinitions()


def test_every_shipped_file_can_be_given_as_own_file(tmp_path: Path) -> None:
    for kind in PromptType:
        shipped = load_prompt(kind)
        path = own_file(tmp_path, yaml.safe_dump({"system": shipped.system, "user": shipped.user}))
        assert load_prompt(kind, path) == shipped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user: {premise\n", ":2: not valid YAML: expected ',' or '}'"),
        ("system: a\n\tuser: b\n", ":2: not valid YAML: "),
        ("- a\n- b\n", ": found ['a', 'b'], expected the keys system, user, definitions"),
        ("", ": found null, expected the keys"),
        (
            "system: s\nusre: '{premise} {hypothesis}'\n",
            ":2: unknown key 'usre' (did you mean user?)",
        ),
        (
            "user: u\nmodel: m\n",
            ":2: unknown key 'model' (available: system, user, definitions)",
        ),
        ("user: [a]\n", ":1: found user ['a'], expected text"),
        (
            "system: '{premise} {hypothesis}'\n",
            ": the key user is missing: it holds the text",
        ),
        ("user: '{premise}'\n", ": {hypothesis} missing, expected in system or user"),
        ("user: 'Is it so?'\n", ": {premise} and {hypothesis} missing, expected in system or user"),
        (
            "# {hypotesis}\nuser: |\n  {premise} {hypothesis}\n  {hypotesis}\n",
            ":4: initial_generation has no placeholder {hypotesis} (did you mean hypothesis?)",
        ),
        (
            "user: '{premise} {hypothesis} {true_label}'\n",
            ":1: initial_generation has no placeholder {true_label} (available: premise, ",
        ),
        (
            "user: '{premise} {hypothesis}'\ndefinitions: {entailment: a, no_entailment: b}\n",
            ": the label definitions would have no effect without {entailment} and {no_entailment}",
        ),
        (
            "user: '{premise} {hypothesis} {entailment}'\ndefinitions: {entailment: a}\n",
            ":2: found no text for no_entailment, expected text that completes 'Answer 0 if ...'",
        ),
        (
            "user: '{premise} {hypothesis}'\ndefinitions:\n  entailment: a\n  no_entailmnt: b\n",
            ":2: unknown key 'no_entailmnt'; did you mean no_entailment?",
        ),
        (
            "user: '{premise} {hypothesis}'\ndefinitions: yes\n",
            ":2: expected the keys entailment and no_entailment",
        ),
    ],
)
def test_mistake_in_an_own_file_is_reported_with_its_remedy(tmp_path: Path, text: str, expected: str) -> None:
    path = own_file(tmp_path, text)
    assert f"{path}{expected}" in complaint(path)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml").endswith("none.yaml: cannot be read: No such file or directory")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"user: caf\xe9\n")
    assert complaint(path).endswith("latin.yaml: not valid UTF-8")


def test_definitions_that_a_prompt_would_drop_are_refused(tmp_path: Path) -> None:
    path = own_file(tmp_path, "user: '{premise} {hypothesis}'\n")
    with pytest.raises(ConfigError, match=r"would have no effect without \{entailment\}"):
        load_prompt(PromptType.INITIAL_GENERATION, path, OURS)
    assert load_prompt(PromptType.RELATION, path, OURS).definitions == OURS
