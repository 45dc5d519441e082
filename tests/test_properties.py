"""Properties of any input: round trips, invariants of the builders, and the journal under any cut."""

from __future__ import annotations

import contextlib
import csv
import shutil
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlicot import completion
from nlicot.builders import BUILDERS, find_builder
from nlicot.builders.base import CHOICES
from nlicot.command_line import Names
from nlicot.completion import Completion, Form
from nlicot.data.atomic_write import write_csv, write_jsonl
from nlicot.data.pairs import ALIASES, ColumnNames, LabelMap
from nlicot.data.rows import read_rows
from nlicot.errors import ConfigError
from nlicot.model.encoding import TokenKind
from nlicot.model.prompt_format import MistralFormat, PromptFormat, load_prompt_format
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample
from nlicot.teacher.backends.base import Reply
from nlicot.teacher.engine.journal import Journal
from tests.encoded import encode_completion
from tests.small_tokenizers import TEMPLATES, byte_level, write_chat_model
from tests.teacher.engine.test_journal import REPLY, request

# The same examples each time, and no folder of earlier ones.
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
few = settings(quick, max_examples=15)

ANY_TEXT = st.text(max_size=60)
WRITABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
LABELS = st.sampled_from([0, 1])


# ---------------------------------------------------------------- completions


@quick
@given(thought=st.none() | ANY_TEXT, label=LABELS, draft=LABELS, form=st.sampled_from(Form))
def test_a_completion_parses_back(thought: str | None, label: int, draft: int, form: Form) -> None:
    parsed = completion.parse(completion.render(thought, label, form, draft))
    if thought is None or form is Form.LABEL_ONLY:
        assert parsed == Completion(thought_process=None, label=label, form=Form.LABEL_ONLY)
    else:
        kept = draft if form is Form.DRAFT_FIRST else None
        assert parsed == Completion(thought_process=thought, label=label, form=form, draft=kept)


@quick
@given(ANY_TEXT)
def test_only_a_whole_completion_parses(text: str) -> None:
    whole = completion.render(text, 1)
    for cut in range(1, len(whole), 7):
        assert completion.parse(whole[:cut]) is None
    found = completion.parse(text)
    assert found is None or text.strip().startswith("{")


@quick
@given(ANY_TEXT)
def test_escaping_is_undone_and_sentences_join(text: str) -> None:
    assert completion.unescape(completion.escape(text)) == text
    assert "".join(completion.sentences(text)) == text


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> list[PromptFormat]:
    folder = tmp_path_factory.mktemp("chat")
    write_chat_model(folder, byte_level(), TEMPLATES["zephyr"])
    return [MistralFormat(), load_prompt_format(folder)]


@pytest.mark.parametrize("index", [0, 1])
@quick
@given(thought=WRITABLE, label=LABELS, form=st.sampled_from([form for form in Form if form.thinks]))
def test_tokens_decode_to_the_completion(
    index: int, formats: list[PromptFormat], thought: str, label: int, form: Form
) -> None:
    prompt_format = formats[index]
    ids, kinds = encode_completion(prompt_format, thought, label, form)
    decoded = prompt_format.decode_inner(ids[:-1]).removeprefix(prompt_format.dummy_prefix)
    assert decoded == completion.render(thought, label, form)
    assert ids[-1] == prompt_format.eos_id
    assert not prompt_format.special_ids & set(ids[:-1])
    assert kinds.count(TokenKind.LABEL) == 1


# ----------------------------------------------------------------------- files


@quick
@given(st.lists(st.tuples(WRITABLE, WRITABLE), min_size=1, max_size=5))
def test_csv_and_jsonl_round_trips(rows: list[tuple[str, str]]) -> None:
    named = [{"id": f"p{number}", "a": a, "b": b} for number, (a, b) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "a.csv", ["id", "a", "b"], [list(row.values()) for row in named])
        write_jsonl(folder / "a.jsonl", named)
        for path in (folder / "a.csv", folder / "a.jsonl"):
            assert [row.fields for row in read_rows(path)] == named
        with (folder / "a.csv").open(newline="", encoding="utf-8") as file:
            assert list(csv.DictReader(file)) == named


# -------------------------------------------------------------------- builders

TEXTS = st.text("ab .!", min_size=1, max_size=12).filter(str.strip)


@st.composite
def joined(draw: st.DrawFn) -> tuple[list[Example], list[Thought], list[Reflection], list[Score]]:
    """Draw pairs with up to two thoughts each, reflections on the wrong ones, and scores."""
    examples, thoughts, reflections, scores = [], [], [], []
    for number in range(draw(st.integers(0, 6))):
        id_, label = f"p{number}", draw(st.none() | LABELS)
        pair = {"id": id_, "premise": f"P{number}", "hypothesis": f"H{number}"}
        soft = draw(st.none() | st.floats(0, 1))
        examples.append(Example(**pair, label=label, p_entailment=soft))
        for sample in range(draw(st.integers(0, 2))):
            answer, text = draw(LABELS), draw(TEXTS)
            shared = {**pair, "sample": sample, "thought_process": text}
            thoughts.append(Thought(**shared, predicted_label=answer, true_label=label))
            target = "thought"
            if label is not None and answer != label and draw(st.booleans()):
                target = "reflection"
                texts = {"error_analysis": "E", "improved_thought_process": draw(TEXTS)}
                reflections.append(Reflection(**shared, **texts, true_label=label, reflected_label=label))
            if draw(st.booleans()):
                scores.append(
                    Score(
                        id=id_,
                        sample=sample,
                        target=target,
                        round=0,
                        score=draw(st.integers(1, 5)),
                        analysis="",
                    )
                )
    return examples, thoughts, reflections, scores


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "balance": st.booleans(),
        "max_thought_words": st.integers(1, 3),
        "min_score": st.integers(1, 5),
        **{option: st.sampled_from(words) for option, words in CHOICES.items()},
        "shuffle_thoughts": st.booleans(),
        "seed": st.integers(0, 3),
    },
)


@pytest.mark.parametrize("name", BUILDERS)
@quick
@given(texts=joined(), options=OPTIONS)
def test_builders(
    name: str,
    texts: tuple[list[Example], list[Thought], list[Reflection], list[Score]],
    options: dict[str, object],
) -> None:
    examples, thoughts, reflections, scores = texts
    builder = find_builder(name, options)
    try:
        built = builder.build(examples, thoughts, reflections, scores)
    except ConfigError as error:
        assert "shuffle_thoughts: found one pair" in str(error)
        return
    assert built == find_builder(name, options).build(examples, thoughts, reflections, scores)
    position = {example.id: index for index, example in enumerate(examples)}
    order = [position[each.id] for each in built]
    assert order == sorted(order)
    pair_of = {example.id: example for example in examples}
    known = {thought.thought_process for thought in thoughts}
    known |= {reflection.improved_thought_process for reflection in reflections}
    for each in built:
        parsed = completion.parse(each.completion)
        assert parsed is not None
        assert parsed.label == each.label
        pair, text = pair_of[each.id], parsed.thought_process
        if text is not None:
            assert any(text in whole for whole in known)
            assert len(text.split()) <= int(str(options.get("max_thought_words", 99)))
        if parsed.form.thinks_before_label:
            assert each.p_entailment is None
        else:
            assert each.p_entailment == pair.p_entailment
        if pair.label is None and text is None:
            assert pair.p_entailment is not None
            assert each.label == (pair.p_entailment >= 0.5)
        elif name != "unmodified":
            assert each.label == pair.label
    if options.get("balance"):
        assert len({_count(built, label) for label in (0, 1)}) == 1


def _count(built: list[TrainingExample], label: int) -> int:
    return sum(each.label == label and not each.variant for each in built)


# --------------------------------------------------------------------- journal


@contextlib.contextmanager
def _cut_journal(num_replies: int, cut: int) -> Iterator[Path]:
    """Yield a journal as a process leaves it that dies at byte `cut` of its write-ahead log."""
    with tempfile.TemporaryDirectory() as name:
        path, copy = Path(name, "generate.sqlite"), Path(name, "copy.sqlite")
        with Journal(path) as journal:
            for number in range(num_replies):
                journal.start_attempt(f"k{number}", request(), "p", 0.1)
                journal.save_reply(f"k{number}", REPLY, 0.1)
            shutil.copy(path, copy)
            log = path.with_name(path.name + "-wal").read_bytes()
        copy.with_name(copy.name + "-wal").write_bytes(log[: cut * len(log) // 1000])
        yield copy


@few
@given(num_replies=st.integers(1, 12), cut=st.integers(0, 1000))
def test_a_journal_that_is_cut_anywhere_has_the_first_replies(num_replies: int, cut: int) -> None:
    with _cut_journal(num_replies, cut) as path, Journal(path) as journal:
        replies = [journal.reply(f"k{number}") for number in range(num_replies)]
        num_kept = num_replies - replies.count(None)
        assert replies == [REPLY] * num_kept + [None] * (num_replies - num_kept)
        if cut == 1000:
            assert num_kept == num_replies
        # At most the one that was in flight is listed as possibly paid.
        assert len(journal.interrupted) <= 1


@quick
@given(text=ANY_TEXT, raw=ANY_TEXT)
def test_a_reply_survives_the_journal(text: str, raw: str) -> None:
    reply = Reply(text=text, finish_reason="stop", usage=None, raw=raw)
    assert Reply.from_json(reply.to_json()) == reply


# -------------------------------------------------------------------- settings


NAMES = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters=","), min_size=1)


@quick
@given(
    names=st.lists(NAMES, unique_by=str.lower, min_size=6, max_size=6), labels=st.lists(LABELS | st.none())
)
def test_settings_of_our_own_types_are_read_back(names: list[str], labels: list[int | None]) -> None:
    assert Names.parse(",".join(names)) == tuple(names)
    columns = ColumnNames(zip(ALIASES, names, strict=True))
    assert ColumnNames.parse(str(columns)) == columns
    if label_map := LabelMap(zip(names, labels, strict=False)):
        assert LabelMap.parse(str(label_map)) == label_map


@quick
@given(st.text(string.printable, max_size=20))
def test_texts_for_settings_of_our_own_types_are_read_or_refused(text: str) -> None:
    for kind in (Names, LabelMap, ColumnNames):
        with contextlib.suppress(ValueError, ConfigError):
            kind.parse(text)
