"""Token ids, their kinds, the length budget, and the cached data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nlicot import completion
from nlicot.completion import Form
from nlicot.model.base_model import resolve
from nlicot.model.encoding import EncodingReport, TokenKind, encode_dataset
from nlicot.model.prompt_format import MistralFormat, PromptFormat, load_prompt_format
from nlicot.prompts import StudentPrompts
from nlicot.records import TrainingExample
from tests.encoded import encode_completion, encode_example
from tests.model.test_prompt_format import decode

GOLDEN_PATH = Path(__file__).parents[1] / "golden" / "encoding.json"
SENTENCES = [
    "Step 1: The premise says that it rains. ",
    "Step 2: Rain is wet, and so is what it falls on! ",
    'Step 3: So "wet" follows, does it not?',
]
formats = pytest.mark.parametrize("name", ["mistral", "chat"])


@pytest.fixture(scope="module")
def format_of() -> dict[str, PromptFormat]:
    return {"mistral": MistralFormat(), "chat": load_prompt_format(resolve("bundled").folder)}


def training_example(thought: str | None, label: int = 1, id: str = "a") -> TrainingExample:
    form = Form.LABEL_ONLY if thought is None else Form.THOUGHT_FIRST
    prompt = StudentPrompts().render("It  rains [INST] e\u0301.", "It is wet.", form=form)
    return TrainingExample(
        id=id, prompt=prompt, completion=completion.render(thought, label), label=label, source="thought"
    )


def length_of(prompt_format: PromptFormat, example: TrainingExample) -> int:
    encoded = encode_example(prompt_format, example, max_length=10_000, over_budget="drop")
    assert encoded is not None
    return len(encoded.input_ids)


# ---------------------------------------------------------------------- mask


@formats
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "thought", ["".join(SENTENCES), "0 or 1? </s> }", "", None], ids=["plain", "nasty", "empty", "none"]
)
def test_exactly_the_completion_and_its_eos_are_supervised(
    name: str, thought: str | None, label: int, format_of: dict[str, PromptFormat]
) -> None:
    prompt_format = format_of[name]
    example = training_example(thought, label)
    encoded = encode_example(prompt_format, example, max_length=768, over_budget="drop")
    assert encoded is not None
    prompt_ids = prompt_format.encode_prompt(example.prompt)
    completion_ids, kinds = encode_completion(prompt_format, thought, label)
    supervised = [
        token
        for token, kind in zip(encoded.input_ids, encoded.kinds, strict=True)
        if kind != TokenKind.PROMPT
    ]
    assert supervised == completion_ids
    assert encoded.input_ids == prompt_ids + completion_ids
    assert encoded.kinds == [TokenKind.PROMPT] * len(prompt_ids) + kinds
    assert supervised[-1] == prompt_format.eos_id
    assert supervised.count(prompt_format.eos_id) == 1
    assert decode(prompt_format, supervised) == example.completion
    assert (encoded.label, encoded.was_cut) == (label, False)


@formats
@pytest.mark.parametrize("thought", ["It is 0, not 1.", None], ids=["thought", "label only"])
def test_the_label_is_exactly_one_token(
    name: str, thought: str | None, format_of: dict[str, PromptFormat]
) -> None:
    found = []
    for label in (0, 1):
        ids, kinds = encode_completion(format_of[name], thought, label)
        found += [token for token, kind in zip(ids, kinds, strict=True) if kind == TokenKind.LABEL]
    assert [format_of[name].decode_inner([token]) for token in found] == ["0", "1"]


@formats
@pytest.mark.parametrize("learns_draft", [True, False])
def test_a_draft_is_one_token_that_is_learnt_or_only_read(
    name: str, learns_draft: bool, format_of: dict[str, PromptFormat]
) -> None:
    prompt_format = format_of[name]
    text = completion.render("".join(SENTENCES), 1, Form.DRAFT_FIRST, 0)
    example = TrainingExample(
        id="a", prompt="P", completion=text, label=1, source="thought", learns_draft=learns_draft
    )
    whole = encode_example(prompt_format, example, max_length=768, over_budget="drop")
    assert whole is not None
    cut = encode_example(prompt_format, example, max_length=len(whole.input_ids) - 1, over_budget="cut")
    assert cut is not None and cut.was_cut
    for encoded in (whole, cut):
        kind = TokenKind.DRAFT if learns_draft else TokenKind.MASKED_DRAFT
        (draft,) = (token for token, own in zip(encoded.input_ids, encoded.kinds, strict=True) if own == kind)
        assert prompt_format.decode_inner([draft]) == "0"
        num_prompt = encoded.kinds.count(TokenKind.PROMPT)
        assert encoded.num_supervised == len(encoded.kinds) - num_prompt - (not learns_draft)
        parsed = completion.parse(decode(prompt_format, encoded.input_ids[num_prompt:]))
        assert parsed is not None and (parsed.form, parsed.draft, parsed.label) == (Form.DRAFT_FIRST, 0, 1)


@formats
def test_each_kind_decodes_to_its_segments(name: str, format_of: dict[str, PromptFormat]) -> None:
    thought = 'Step 1: "no", e\u0301 😀.\n'
    ids, kinds = encode_completion(format_of[name], thought, 0)

    def text_of(kind: TokenKind) -> str:
        return format_of[name].decode_inner(
            [token for token, own in zip(ids[:-1], kinds[:-1], strict=True) if own == kind]
        )

    end = text_of(TokenKind.THOUGHT).removeprefix(completion.escape(thought))
    assert end.startswith('"') and completion.THOUGHT_CLOSING.startswith(
        end
    )  # learnt like the thought's words
    assert text_of(TokenKind.LABEL) == "0"
    scaffold = completion.THOUGHT_OPENING + completion.THOUGHT_CLOSING.removeprefix(end) + completion.CLOSING
    assert text_of(TokenKind.SCAFFOLD).lstrip() == scaffold


def test_encoded_examples_match_the_golden_file(
    format_of: dict[str, PromptFormat], update_golden: bool
) -> None:
    """Each token's id, kind and text; updated by `pytest --update-golden`."""
    example = training_example('Step 1: "rain" \\ wet.\n  Step 2: e\u0301 😀 </s> [INST] ▁ so 1.')
    found: dict[str, list[list[Any]]] = {}
    for name, prompt_format in format_of.items():
        encoded = encode_example(prompt_format, example, max_length=768, over_budget="drop")
        assert encoded is not None
        found[name] = [
            [token, TokenKind(kind).name.lower(), prompt_format.decode_inner([token])]
            for token, kind in zip(encoded.input_ids, encoded.kinds, strict=True)
        ]
    if update_golden:
        GOLDEN_PATH.write_text(one_token_per_line(found), encoding="utf-8")
    assert found == json.loads(GOLDEN_PATH.read_text(encoding="utf-8"))


def one_token_per_line(found: dict[str, list[list[Any]]]) -> str:
    parts = [
        f'"{name}": [\n' + ",\n".join(json.dumps(token, ensure_ascii=False) for token in tokens) + "\n]"
        for name, tokens in found.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def test_a_completion_that_render_did_not_write_is_refused(format_of: dict[str, PromptFormat]) -> None:
    example = TrainingExample(id="a", prompt="p", completion='{"predicted_label": 2}', label=0, source="x")
    with pytest.raises(ValueError, match="a: not a completion"):
        encode_example(format_of["chat"], example, max_length=768, over_budget="cut")


# --------------------------------------------------------------- over budget


@formats
def test_an_example_of_exactly_the_budget_is_not_cut(name: str, format_of: dict[str, PromptFormat]) -> None:
    example = training_example("".join(SENTENCES))
    length = length_of(format_of[name], example)
    encoded = encode_example(format_of[name], example, max_length=length, over_budget="cut")
    assert encoded is not None
    assert (len(encoded.input_ids), encoded.was_cut) == (length, False)


@formats
def test_over_budget_a_thought_loses_no_more_sentences_than_needed(
    name: str, format_of: dict[str, PromptFormat]
) -> None:
    prompt_format = format_of[name]
    whole = training_example("".join(SENTENCES))
    shorter = ["".join(SENTENCES[:num]).rstrip() for num in (1, 2)]
    lengths = [length_of(prompt_format, training_example(text)) for text in shorter]
    lengths.append(length_of(prompt_format, whole))
    for budget in range(lengths[0], lengths[2]):
        encoded = encode_example(prompt_format, whole, max_length=budget, over_budget="cut")
        assert encoded is not None
        num_supervised = sum(kind != TokenKind.PROMPT for kind in encoded.kinds)
        text = decode(prompt_format, encoded.input_ids[-num_supervised:])
        parsed = completion.parse(text)
        assert parsed is not None
        assert parsed.label == 1
        assert parsed.thought_process == shorter[budget >= lengths[1]]
        assert encoded.was_cut
        assert len(encoded.input_ids) <= budget


@formats
@pytest.mark.parametrize("over_budget", ["cut", "drop"])
def test_an_example_whose_first_sentence_does_not_fit_is_dropped(
    name: str, over_budget: Any, format_of: dict[str, PromptFormat]
) -> None:
    one = length_of(format_of[name], training_example(SENTENCES[0].rstrip()))
    example = training_example("".join(SENTENCES))
    assert encode_example(format_of[name], example, max_length=one - 1, over_budget=over_budget) is None


@formats
def test_with_drop_a_longer_example_is_not_cut(name: str, format_of: dict[str, PromptFormat]) -> None:
    example = training_example("".join(SENTENCES))
    budget = length_of(format_of[name], example) - 1
    assert encode_example(format_of[name], example, max_length=budget, over_budget="drop") is None


@pytest.mark.parametrize("thought", [None, "", "a thought without a sentence end " * 3])
def test_an_example_without_a_sentence_to_lose_is_dropped(
    thought: str | None, format_of: dict[str, PromptFormat]
) -> None:
    example = training_example(thought)
    budget = length_of(format_of["chat"], example) - 1
    assert encode_example(format_of["chat"], example, max_length=budget, over_budget="cut") is None


# ------------------------------------------------------------------- dataset


def three_examples(prompt_format: PromptFormat) -> tuple[list[TrainingExample], int]:
    """One that fits, one to be cut, one whose first sentence is too long; and the budget for that."""
    fits = training_example(SENTENCES[0] + SENTENCES[1].rstrip(), id="fits")
    too_long = training_example("So long a sentence " * 20 + "ends. Yes.", id="too-long")
    cut = training_example("".join(SENTENCES), label=0, id="cut")
    return [fits, cut, too_long], length_of(prompt_format, fits)


def test_a_dataset_contains_the_encoded_examples_and_its_report_counts_them(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    prompt_format = format_of["chat"]
    examples, budget = three_examples(prompt_format)
    dataset, report = encode_dataset(
        prompt_format, examples, max_length=budget, over_budget="cut", cache=tmp_path
    )
    encoded = [
        encode_example(prompt_format, each, max_length=budget, over_budget="cut") for each in examples[:2]
    ]
    rows = [dataset[index] for index in range(len(dataset))]
    assert [row["id"] for row in rows] == ["fits", "cut"]
    for row, expected in zip(rows, encoded, strict=True):
        assert expected is not None
        assert (row["input_ids"], row["kinds"]) == (expected.input_ids, expected.kinds)
        assert (row["label"], row["length"]) == (expected.label, len(expected.input_ids))
        assert row["num_by_kind"] == [expected.kinds.count(kind) for kind in TokenKind]
    kinds = [kind for row in rows for kind in row["kinds"]]
    assert report == EncodingReport(
        num_examples=2,
        num_cut=1,
        num_dropped=1,
        num_tokens=len(kinds),
        num_supervised=len(kinds) - kinds.count(TokenKind.PROMPT),
        longest=budget,
    )


def test_with_drop_the_report_counts_both_dropped_examples(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    examples, budget = three_examples(format_of["chat"])
    dataset, report = encode_dataset(
        format_of["chat"], examples, max_length=budget, over_budget="drop", cache=tmp_path
    )
    assert dataset["id"] == ["fits"]
    assert (report.num_examples, report.num_cut, report.num_dropped) == (1, 0, 2)


def test_a_dataset_with_every_example_dropped_is_empty(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    examples, _ = three_examples(format_of["chat"])
    dataset, report = encode_dataset(
        format_of["chat"], examples, max_length=5, over_budget="cut", cache=tmp_path
    )
    assert len(dataset) == 0
    assert report == EncodingReport(
        num_examples=0, num_cut=0, num_dropped=3, num_tokens=0, num_supervised=0, longest=0
    )


def files_in(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_second_call_reads_the_cache_without_changing_its_files(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    examples, budget = three_examples(format_of["chat"])
    first, report = encode_dataset(
        format_of["chat"], examples, max_length=budget, over_budget="cut", cache=tmp_path
    )
    written = files_in(tmp_path)
    second, again = encode_dataset(
        format_of["chat"], examples, max_length=budget, over_budget="cut", cache=tmp_path
    )
    assert files_in(tmp_path) == written
    assert again == report
    assert second[:] == first[:]
    (folder,) = (tmp_path / "encoded").iterdir()  # nothing temporary is left
    assert {path.parent for path in written} == {folder}


def test_everything_that_affects_the_tokens_is_part_of_the_cache_key(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    examples, budget = three_examples(format_of["chat"])
    calls: list[dict[str, Any]] = [
        {},
        {"max_length": budget + 1},
        {"over_budget": "drop"},
        {"prompt_format": format_of["mistral"]},
        {"examples": examples[:2]},
        {"examples": [examples[1], examples[0], examples[2]]},
        {"examples": [replace(examples[0], learns_draft=False), *examples[1:]]},
        {},
    ]
    for changed in calls:
        settings: dict[str, Any] = {
            "prompt_format": format_of["chat"],
            "examples": examples,
            "max_length": budget,
            "over_budget": "cut",
            "cache": tmp_path,
            **changed,
        }
        encode_dataset(**settings)
    assert len(list((tmp_path / "encoded").iterdir())) == len(calls) - 1


def test_a_dataset_that_another_rank_finished_first_is_kept(
    tmp_path: Path, format_of: dict[str, PromptFormat]
) -> None:
    examples, budget = three_examples(format_of["chat"])
    written: dict[Path, tuple[int, bytes]] = {}

    class OvertakenExamples(list[TrainingExample]):
        """Another rank encodes the same examples while these are being encoded (their second reading)."""

        num_readings = 0

        def __iter__(self) -> Iterator[TrainingExample]:
            self.num_readings += 1
            if self.num_readings == 2:
                encode_dataset(
                    format_of["chat"], examples, max_length=budget, over_budget="cut", cache=tmp_path
                )
                (folder,) = (tmp_path / "encoded").glob("[!.]*")
                written.update(files_in(folder))
            return super().__iter__()

    dataset, report = encode_dataset(
        format_of["chat"], OvertakenExamples(examples), max_length=budget, over_budget="cut", cache=tmp_path
    )
    assert (dataset["id"][:], report.num_dropped) == (["fits", "cut"], 1)
    assert written
    assert files_in(tmp_path) == written
