"""The teacher's settings: the recipe, files laid over it, flags, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nlicot.config_files import TEACHER_RECIPE
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions
from nlicot.teacher.options import (
    STAGES,
    definitions_name,
    label_definitions,
    parse,
    relation_map,
    request_fields,
)

OPENAI = ("--backend", "openai", "--server_url", "http://localhost:8000")


def config(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return f"--config={path}"


def refusal(stage: str, *args: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(stage, args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_the_recipe_is_used_by_default(stage: str) -> None:
    recipe = yaml.safe_load(TEACHER_RECIPE.read_text(encoding="utf-8"))[stage]
    settings = parse(stage, [])
    for name, value in recipe.items():
        assert settings[name] == (tuple(value) if isinstance(value, list) else value)


def test_a_file_wins_over_the_recipe_and_flags_win_over_both(tmp_path: Path) -> None:
    file = config(tmp_path, "generate: {max_tokens: 7, temperature: 0.5, seed: 1}\nscore: {threshold: 2}\n")
    settings = parse("generate", [file, "--max-tokens", "9"])
    assert (settings.max_tokens, settings.temperature, settings.seed) == (9, 0.5, 1)
    assert parse("score", [file]).threshold == 2


def test_a_file_without_sections_holds_the_settings_of_the_command(tmp_path: Path) -> None:
    assert parse("reflect", [config(tmp_path, "max_tokens: 7\n")]).max_tokens == 7


def test_printed_settings_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--price",
        "1,1",
        "--prompt_type",
        "relation",
        "--relation_map",
        "entailment=1,neutral=0,contradiction=0",
        "--ids",
        "001,5e-4",
    ]
    given += ["--definitions.entailment", "as follows: it holds"]
    with pytest.raises(SystemExit) as stopped:
        parse("generate", [*given, "--print_config"])
    assert stopped.value.code == 0
    again = parse("generate", [config(tmp_path, capsys.readouterr().out)])
    settings = parse("generate", given)
    assert dict(again.pop("relation_map")) == dict(settings.pop("relation_map"))
    assert again == settings
    assert again.ids == ("001", "5e-4")


@pytest.mark.parametrize("flag", ["--model", "--backend"])
@pytest.mark.parametrize(("stage", "names"), [("reflect", ["next_models"]), ("score", ["regenerate_with"])])
def test_another_teacher_drops_the_models_next_to_the_recipes_own(
    stage: str, names: list[str], flag: str
) -> None:
    chosen = [f"{flag}=local"] + (["--model=m"] if flag == "--backend" else [])
    for name in names:
        assert parse(stage, [])[name]
        assert parse(stage, chosen)[name] == ()
        assert parse(stage, [*chosen, f"--{name}=a,b"])[name] == ("a", "b")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--modl", "x"], "--modl: unknown setting; did you mean --model?"),
        (["--samples", "0"], "--samples: found 0, expected a whole number from 1 to 1000"),
        (["--limit", "x"], "--limit: found 'x', expected a whole number, 1 or more"),
        (["--backend", "x"], "--backend: found 'x', expected one of mistral, openai, local, mistral-batch"),
        (["--backend", "openai"], "--backend openai: found no --server_url, expected the server's address"),
        (["--model="], "--model: found none, expected the teacher's name"),
        (["--price", "1"], "--price: found [1.0], expected two amounts"),
        (["--prices", "nowhere.yaml"], "--prices nowhere.yaml: cannot be read"),
        (
            ["--relation_map", "neutral=1"],
            "--relation_map: found {'neutral': 1}, expected 0 or 1 for",
        ),
        (["--prompt", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--definitions", "nowhere.yaml"], "--definitions nowhere.yaml: cannot be read"),
        (["--definitions.entailment", " . "], "--definitions: found no text for entailment, expected text"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--print_config"]])
def test_a_setting_that_cannot_be_used_is_refused(args: list[str], expected: str, more: list[str]) -> None:
    assert refusal("generate", *args, *more).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generat: {}\nscore: {}\n", "generat: unknown section; did you mean generate?"),
        ("generate: {modle: x}\n", "modle: unknown setting; did you mean --model?"),
        ("generate: 5\n", "generate: expected settings with values under it"),
        ("generate: {threshold: 4}\n", "threshold: unknown setting"),
        ("- a\n", "expected keys with values"),
    ],
)
def test_a_mistake_in_a_file_is_refused_with_its_name(tmp_path: Path, text: str, expected: str) -> None:
    assert f"my.yaml: {expected}" in refusal("generate", config(tmp_path, text))


def test_rounds_and_threshold_have_their_range() -> None:
    assert refusal("score", "--threshold", "6") == "--threshold: found '6', expected one of 1, 2, 3, 4, 5"
    assert refusal("score", "--rounds", "11").startswith("--rounds: found '11', expected one of 0, 1, 2")


def test_definitions_come_from_a_file_or_from_texts_and_texts_win(tmp_path: Path) -> None:
    path = tmp_path / "definitions.yaml"
    path.write_text(
        "entailment: it follows.\nno_entailment: it does not\n"
        "relation_map: {entailment: 1, neutral: 1, contradiction: 0}\n"
    )
    settings = parse("generate", ["--definitions", str(path)])
    assert label_definitions(settings) == LabelDefinitions(
        entailment="it follows", no_entailment="it does not"
    )
    assert relation_map(settings) == {"entailment": 1, "neutral": 1, "contradiction": 0}
    assert definitions_name(settings) == str(path)

    texts = ["--definitions.entailment", "a: b.", "--definitions.no_entailment=5"]
    both = parse("generate", ["--definitions", str(path), *texts[:2]])
    assert label_definitions(both) == LabelDefinitions(entailment="a: b", no_entailment="it does not")
    in_file = config(tmp_path, "definitions: {entailment: 'a: b.', no_entailment: 5}\n")
    for args in (texts, [in_file]):
        assert label_definitions(parse("generate", args)) == LabelDefinitions(
            entailment="a: b", no_entailment="5"
        )
    assert label_definitions(parse("generate", [])) is None
    assert definitions_name(parse("generate", [])) == "None"
    assert definitions_name(both) not in (str(path), "None")


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_complete(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(stage, ["--help"])
    text = capsys.readouterr().out
    assert f"example: python -m nlicot {stage}" in text
    assert "--max_tokens" in text and ("--threshold" in text) == (stage == "score")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "entailment: a\n",
            "found no text for no_entailment, expected text that completes 'Answer 0 if ...'",
        ),
        (
            "entailment: ' . '\nno_entailment: b\n",
            "found no text for entailment, expected text that completes",
        ),
        ("entailment: 1\nno_entailment: b\n", "found no text for entailment, expected text that"),
        ("entailment: a\nno_entailement: b\n", "unknown key 'no_entailement'; did you mean no_entailment?"),
        ("- a\n", "expected the keys entailment and no_entailment"),
    ],
)
def test_incomplete_definitions_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "definitions.yaml"
    path.write_text(text)
    assert refusal("generate", "--definitions", str(path)).startswith(f"--definitions {path}: {expected}")


def test_definitions_are_folded_to_one_line(tmp_path: Path) -> None:
    path = tmp_path / "definitions.yaml"
    path.write_text("entailment: it follows,\n  or fits.\nno_entailment: it conflicts\n")
    settings = parse("reflect", ["--definitions", str(path)])
    assert label_definitions(settings) == LabelDefinitions(
        entailment="it follows, or fits", no_entailment="it conflicts"
    )


def test_definitions_need_no_map_of_relations(tmp_path: Path) -> None:
    path = tmp_path / "definitions.yaml"
    path.write_text("entailment: a\nno_entailment: b\n")
    assert relation_map(parse("generate", ["--definitions", str(path)])) is None
    assert relation_map(parse("generate", [])) is None


@pytest.mark.parametrize(
    "found",
    [
        "{entailment: 1, neutral: 0}",
        "{entailment: 1, neutral: 0, contradiction: 2}",
        "{entailment: true, neutral: false, contradiction: false}",
        "{entailment: 1, neutral: 0, contradiction: 0, other: 1}",
        "[1, 0, 0]",
    ],
)
def test_an_incomplete_map_of_relations_is_refused(tmp_path: Path, found: str) -> None:
    path = tmp_path / "definitions.yaml"
    path.write_text(f"entailment: a\nno_entailment: b\nrelation_map: {found}\n")
    message = refusal("generate", "--definitions", str(path))
    assert message.startswith(f"--definitions {path}: relation_map: found ")
    assert message.endswith("expected 0 or 1 for each of entailment, neutral, contradiction")


def test_request_fields_are_json_or_a_word_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    given = [
        "--request-field",
        "top_k=5",
        "--request_field=effort=low",
        "--request_field",
        "temperature=null",
    ]
    given += ["--request_field", 'extra={"a": [1, "b=c"]}', "--request_field", 'user="5"', "--request_field"]
    fields = {"top_k": 6, "effort": "low", "temperature": None, "extra": {"a": [1, "b=c"]}, "user": "5"}
    settings = parse("generate", [*OPENAI, *given, "top_k=6"])
    assert request_fields(settings) == fields

    file = config(tmp_path, 'request_field: [top_k=5, \'user="5"\', \'extra={"a": [1, "b=c"]}\']\n')
    fields = {"top_k": 5, "user": "5", "extra": {"a": [1, "b=c"]}}
    assert request_fields(parse("generate", [*OPENAI, file])) == fields
    assert request_fields(parse("generate", [])) == {}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("top_k", "--request_field: found 'top_k', expected NAME=VALUE or NAME=null"),
        ("=5", "--request_field: found '=5', expected NAME=VALUE"),
        ("top_k=", "--request_field: found 'top_k=', expected NAME=VALUE"),
        ("a={1}", "--request_field a: found '{1}', expected JSON, such as 5, true, null, "),
        ("a=None", "--request_field a: found 'None', expected JSON"),
        ("a=True", "--request_field a: found 'True', expected JSON"),
        ("a=NaN", "--request_field a: found 'NaN', expected JSON"),
        ("a=1e999", "--request_field a: found '1e999', expected JSON"),
        ("a=" + "[" * 9999, "--request_field a: found '[[[["),
        ("temperature=0.5", "--request_field temperature: found '0.5', expected null: --temperature sets it"),
        (
            "max_completion_tokens=9",
            "--request_field max_completion_tokens: found '9', expected null: --max_tok",
        ),
        ("model=null", "--request_field model: found 'null', expected another field: --model sets it"),
        ("stream=true", "--request_field stream: found 'true', expected another field: a reply is read"),
        ("n=2", "--request_field n: found '2', expected another field: --samples asks again"),
    ],
)
def test_a_request_field_that_cannot_be_used_is_refused(field: str, expected: str) -> None:
    assert refusal("generate", *OPENAI, "--request_field", field).startswith(expected)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_budget_needs_a_limit_of_each_answer(name: str) -> None:
    message = refusal("generate", *OPENAI, "--request_field", f"{name}=null", "--budget", "1")
    assert message == f"--budget: found --request_field {name}=null, expected a limit of every answer"


def test_request_fields_are_refused_for_a_model_in_this_process() -> None:
    message = refusal("generate", "--backend", "local", "--model", "m", "--request_field", "top_k=5")
    assert message.startswith("--request_field: --backend local sends nothing to a server; its settings are")


def test_request_fields_of_a_file_are_a_list(tmp_path: Path) -> None:
    message = refusal("generate", *OPENAI, config(tmp_path, "request_field: top_k=5\n"))
    assert message == "--request_field: found 'top_k=5', expected a list"
