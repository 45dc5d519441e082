"""Decoding gives every prompt a completion that parses, and the one that a plain loop would give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from nlicot import completion
from nlicot.completion import Form, render
from nlicot.model.base_model import resolve
from nlicot.model.loaded_model import load_base
from nlicot.model.prompt_format import MistralFormat, PromptFormat, load_prompt_format
from nlicot.prediction.decoding import Decoder, PromptBatch, average, by_length, choice_probabilities
from nlicot.prediction.grammar import ThoughtGrammar
from nlicot.prompts import StudentPrompts
from nlicot.records import Prediction
from nlicot.settings import DecodingSettings
from tests.encoded import encode_completion
from tests.small_model import write_small_model

BUDGET = 16
VOTING = {"temperature": 0.8, "top_p": 0.9, "votes": 2}
PAIRS = [
    ("A dog runs through the wet grass.", "An animal moves."),
    ("Nobody came.", "Somebody came."),
    ('She said "no" \\ and left, on 3 May 2024, with two of her four brothers.', "She left alone."),
    ("Ça sent bon 🙂.", "It smells."),
    ("All of the twelve jurors agreed.", "Most of the jurors agreed, and none of them was absent that day."),
    ("x", "y"),
    ("If it rains, the match is off. It rains.", "The match is off."),
]


@pytest.fixture(scope="module")
def prompt_format() -> PromptFormat:
    return load_prompt_format(resolve("bundled").folder)


@pytest.fixture(scope="module")
def small(prompt_format: PromptFormat, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights that like closing quotes and backslashes, so that thoughts end and escape."""
    opened = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)[0]
    backslashes = [
        token for token, text in enumerate(prompt_format.token_texts) if text in ("\\", '\\"', "\\\\")
    ]
    favoured = {opened: 2.5, **dict.fromkeys(backslashes, 2.5)}
    folder = write_small_model(tmp_path_factory.mktemp("base"), favoured=favoured)
    resolved = resolve(str(folder))
    return load_base(resolved, quantization="none", dtype="float32", for_training=False).eval()


@pytest.fixture(scope="module")
def bundled() -> Any:
    resolved = resolve("bundled")
    return load_base(resolved, quantization="none", dtype="float32", for_training=False).eval()


@pytest.fixture(params=["small", pytest.param("bundled", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def _prompts(
    prompt_format: PromptFormat, *, form: Form = Form.THOUGHT_FIRST, num: int = len(PAIRS)
) -> list[list[int]]:
    prompts = StudentPrompts()
    return [
        prompt_format.encode_prompt(prompts.render(premise, hypothesis, form=form))
        for premise, hypothesis in (PAIRS * 3)[:num]
    ]


def _batch(prompts: Sequence[list[int]]) -> PromptBatch:
    return PromptBatch(ids=[f"p{index}" for index in range(len(prompts))], prompts=list(prompts))


def _decode(
    model: Any,
    prompt_format: PromptFormat,
    prompts: Sequence[list[int]],
    *,
    form: Form = Form.THOUGHT_FIRST,
    **settings: Any,
) -> list[Prediction]:
    settings = {"max_thought_tokens": BUDGET, **settings}
    decoder = Decoder(model, prompt_format, DecodingSettings(**settings))
    return _in_order(decoder.decode(_batch(prompts), form=form))


def _in_order(found: Iterable[Prediction]) -> list[Prediction]:
    return sorted(found, key=lambda prediction: int(prediction.id.removeprefix("p")))


def _said(prediction: Prediction) -> tuple[Any, ...]:
    said = prediction.predicted_label, prediction.thought_process, prediction.status, prediction.completion
    return (*said, prediction.draft_label)


# ------------------------------------------------------- against slow references


def test_batched_is_the_same_as_one_by_one(model: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format)[:5]
    together = _decode(model, prompt_format, prompts)
    alone = [_decode(model, prompt_format, [prompt])[0] for prompt in prompts]
    assert [_said(found) for found in together] == [_said(found) for found in alone]
    for found, expected in zip(together, alone, strict=True):
        assert found.p_entailment == pytest.approx(expected.p_entailment, abs=1e-4)


@pytest.mark.parametrize("form", Form)
def test_no_prompts_give_no_predictions(form: Form, small: Any, prompt_format: PromptFormat) -> None:
    assert _decode(small, prompt_format, [], form=form) == []


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (Form.LABEL_ONLY, {}),
        (Form.THOUGHT_FIRST, VOTING),
        (Form.LABEL_FIRST, {}),
        (Form.DRAFT_FIRST, {}),
        pytest.param(Form.THOUGHT_FIRST, {}, marks=pytest.mark.slow),
        pytest.param(Form.LABEL_FIRST, VOTING, marks=pytest.mark.slow),
        pytest.param(Form.DRAFT_FIRST, VOTING, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_own_forward_pass_says_what_that_of_transformers_says(
    form: Form, settings: dict[str, Any], bundled: Any, prompt_format: PromptFormat
) -> None:
    prompts = _prompts(prompt_format, form=form, num=4)
    plain, own = (
        _decode(bundled, prompt_format, prompts, form=form, fast=fast, batch_size=3, **settings)
        for fast in (False, True)
    )
    assert [_said(found) for found in own] == [_said(found) for found in plain]
    for found, expected in zip(own, plain, strict=True):
        assert found.p_entailment == pytest.approx(expected.p_entailment, abs=1e-4)


@torch.inference_mode()
def _p_entailment(model: Any, prompt_format: PromptFormat, row: list[int]) -> float:
    zero, one = (prompt_format.encode_segment(digit, first=False)[0] for digit in "01")
    logits = model(input_ids=torch.tensor([row])).logits[0, -1]
    return float(logits[[zero, one]].float().softmax(-1)[1])


@torch.inference_mode()
def _reference(
    model: Any, prompt_format: PromptFormat, prompt: list[int], form: Form
) -> tuple[str, str, float, float | None]:
    """Thought, status, p(entailment) and a draft's: the whole row through the model for every token."""
    closing = prompt_format.encode_segment(completion.THOUGHT_CLOSING, first=False)
    thought, status, draft = [], "truncated", None
    if form is Form.DRAFT_FIRST:
        row = [*prompt, *prompt_format.encode_segment('{"draft_label": ', first=True)]
        draft = _p_entailment(model, prompt_format, row)
        row += prompt_format.encode_segment(str(int(draft >= 0.5)), first=False)
        row += prompt_format.encode_segment(', "thought_process": "', first=False)
    else:
        row = [*prompt, *prompt_format.encode_segment('{"thought_process": "', first=True)]
    while len(thought) < BUDGET:
        logits = model(input_ids=torch.tensor([row + thought])).logits[0, -1]
        written = "".join(prompt_format.token_texts[token] for token in thought)
        for token in logits.argsort(descending=True).tolist():
            if token == closing[0] and not _is_escaping(written):
                status = "closed"
                break
            if token not in prompt_format.special_ids and _may_follow(
                written, prompt_format.token_texts[token]
            ):
                thought.append(token)
                break
        if status == "closed":
            break
    share = _p_entailment(model, prompt_format, row + thought + closing)
    text = prompt_format.decode_inner(thought)
    return completion.unescape(text[:-1] if _is_escaping(text) else text), status, share, draft


def _is_escaping(written: str) -> bool:
    return (len(written) - len(written.rstrip("\\"))) % 2 == 1


def _may_follow(written: str, text: str) -> bool:
    """By `json` itself: whether a string goes on to be valid once what is open in it is closed."""
    longer = written + text
    try:
        json.loads('"' + longer + ("\\" if _is_escaping(longer) else "") + '"')
    except json.JSONDecodeError:
        return False
    return bool(text) and "\\u" not in longer.replace("\\\\", "")


@pytest.mark.parametrize("form", [Form.THOUGHT_FIRST, Form.DRAFT_FIRST])
def test_thought_and_label_are_those_of_a_loop_without_a_cache(
    model: Any, prompt_format: PromptFormat, form: Form
) -> None:
    prompts = _prompts(prompt_format, form=form)[:3]
    for prompt, found in zip(prompts, _decode(model, prompt_format, prompts, form=form), strict=True):
        thought, status, share, draft = _reference(model, prompt_format, prompt, form)
        assert (found.thought_process, found.status) == (thought, status)
        assert found.p_entailment == pytest.approx(share, abs=1e-4)
        assert found.predicted_label == int(share >= 0.5)
        assert found.draft_p_entailment == (draft and pytest.approx(draft, abs=1e-4))
        assert found.draft_label == (None if draft is None else int(draft >= 0.5))


def test_label_alone_is_read_behind_its_scaffold(model: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format, form=Form.LABEL_ONLY)
    opening = prompt_format.encode_segment(completion.LABEL_OPENING, first=True)
    for prompt, found in zip(
        prompts, _decode(model, prompt_format, prompts, form=Form.LABEL_ONLY), strict=True
    ):
        share = _p_entailment(model, prompt_format, [*prompt, *opening])
        assert found.p_entailment == pytest.approx(share, abs=1e-4)
        label = int(share >= 0.5)
        assert _said(found) == (label, None, "label_only", f'{{"predicted_label": {label}}}', None)


# ------------------------------------------------------------------- invariants


@pytest.mark.parametrize("budget", [1, 5, 60])
def test_every_completion_parses_within_its_budget(
    small: Any, prompt_format: PromptFormat, budget: int
) -> None:
    found = _decode(small, prompt_format, _prompts(prompt_format, num=20), max_thought_tokens=budget)
    for prediction in found:
        parsed = completion.parse(prediction.completion)
        assert parsed == completion.Completion(
            thought_process=prediction.thought_process, label=prediction.predicted_label
        )
    if budget == 60:  # the small model was made so that both happen, and escapes too
        assert {prediction.status for prediction in found} >= {"closed"}
        assert any("\\" in str(prediction.thought_process) for prediction in found)


@pytest.mark.parametrize("form", [form for form in Form if form.thinks])
def test_refilled_places_change_no_row(model: Any, prompt_format: PromptFormat, form: Form) -> None:
    prompts = _prompts(prompt_format, form=form, num=9)
    wide = _decode(model, prompt_format, prompts, form=form, batch_size=16)
    narrow = _decode(model, prompt_format, prompts, form=form, batch_size=2)
    assert [_said(found) for found in narrow] == [_said(found) for found in wide]
    for found, expected in zip(narrow, wide, strict=True):
        assert found.p_entailment == pytest.approx(expected.p_entailment, abs=1e-4)


def test_label_before_the_thought_is_the_label_alone(model: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format, form=Form.LABEL_FIRST)
    explained = _decode(model, prompt_format, prompts, form=Form.LABEL_FIRST)
    at_once = _decode(model, prompt_format, prompts, form=Form.LABEL_ONLY)
    for found, expected in zip(explained, at_once, strict=True):
        assert found.p_entailment == pytest.approx(expected.p_entailment, abs=1e-4)
        assert completion.parse(found.completion) == completion.Completion(
            thought_process=found.thought_process, label=found.predicted_label, form=Form.LABEL_FIRST
        )


def test_votes_share_the_draft_and_the_answer_keeps_it(small: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format, form=Form.DRAFT_FIRST, num=5)
    options: dict[str, Any] = {"form": Form.DRAFT_FIRST, "temperature": 1.0}
    voted = _decode(small, prompt_format, prompts, votes=3, **options)
    for found, alone in zip(voted, _decode(small, prompt_format, prompts, **options), strict=True):
        assert found.draft_p_entailment == pytest.approx(alone.draft_p_entailment, abs=1e-4)
        parsed = completion.parse(found.completion)
        assert parsed is not None
        assert (parsed.draft, parsed.label) == (found.draft_label, found.predicted_label)


def test_votes_are_the_mean_of_rows_that_were_sampled_alone(small: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format, num=5)
    settings = DecodingSettings(max_thought_tokens=BUDGET, temperature=1.0, votes=3, batch_size=8)
    voted = Decoder(small, prompt_format, settings).decode(_batch(prompts), form=Form.THOUGHT_FIRST)
    for prompt, found in zip(prompts, _in_order(voted), strict=True):
        decoder = Decoder(small, prompt_format, settings)
        opening, script = decoder._student_script(Form.THOUGHT_FIRST)
        answers = [answer for _, answer in decoder.run([[*prompt, *opening]], script, 3)]
        probabilities = [answer.probabilities[0][1] for answer in answers]
        assert len({answer.texts[0] for answer in answers}) > 1
        assert found.p_entailment == pytest.approx(sum(probabilities) / 3, abs=1e-4)
        assert found.thought_process in {answer.texts[0] for answer in answers}
        agreeing = sum((p >= 0.5) == bool(found.predicted_label) for p in probabilities)
        assert found.agreement == pytest.approx(agreeing / 3)


def test_sampled_rows_do_not_depend_on_the_rest_of_the_batch(small: Any, prompt_format: PromptFormat) -> None:
    prompts = _prompts(prompt_format)
    together = _decode(small, prompt_format, prompts, temperature=1.0)
    alone = [_decode(small, prompt_format, [prompt], temperature=1.0)[0] for prompt in prompts]
    assert [_said(found) for found in together] == [_said(found) for found in alone]


def test_budget_of_one_token_gives_a_thought_of_at_most_one(
    bundled: Any, prompt_format: PromptFormat
) -> None:
    for found in _decode(bundled, prompt_format, _prompts(prompt_format), max_thought_tokens=1):
        ids = prompt_format.encode_segment(completion.escape(str(found.thought_process)), first=False)
        assert len(ids) <= 1


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("num", [1, 6, 7])
def test_no_row_is_lost_or_reordered(small: Any, prompt_format: PromptFormat, num: int, form: Form) -> None:
    prompts = _prompts(prompt_format, form=form, num=num)
    found = _decode(small, prompt_format, prompts, form=form)
    assert [prediction.id for prediction in found] == [f"p{index}" for index in range(num)]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num", [1, 3, 4, 5, 17])
def test_ranks_take_each_prompt_once_in_batches_by_length(
    prompt_format: PromptFormat, num: int, world_size: int
) -> None:
    prompts = _prompts(prompt_format, num=num)
    ids = [f"p{index}" for index in range(num)]
    parts = [
        by_length(ids, prompts, batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    found = {id_: prompt for part in parts for id_, prompt in zip(part.ids, part.prompts, strict=True)}
    assert found == dict(zip(ids, prompts, strict=True))
    num_batches = -(-num // 4)
    for rank, part in enumerate(parts):
        batches = range(rank, num_batches, world_size)
        assert len(part.ids) == sum(min(4, num - 4 * batch) for batch in batches)
    in_turn = [parts[i % world_size].prompts[4 * (i // world_size) :][:4] for i in range(num_batches)]
    lengths = [len(prompt) for batch in in_turn for prompt in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_sampling_repeats_with_its_seed_and_differs_with_another(
    small: Any, prompt_format: PromptFormat
) -> None:
    prompts = _prompts(prompt_format)

    def thoughts(seed: int, **settings: Any) -> list[str | None]:
        found = _decode(small, prompt_format, prompts, temperature=1.0, seed=seed, **settings)
        assert all(completion.parse(prediction.completion) for prediction in found)
        return [prediction.thought_process for prediction in found]

    assert thoughts(1) == thoughts(1)
    assert thoughts(1) != thoughts(2)
    greedy = [prediction.thought_process for prediction in _decode(small, prompt_format, prompts)]
    assert thoughts(1) != greedy
    assert thoughts(1, top_p=1e-6) == greedy


# ---------------------------------------------------------------------- grammar


@pytest.fixture(scope="module")
def grammar(prompt_format: PromptFormat) -> ThoughtGrammar:
    return ThoughtGrammar(prompt_format, 49152)


def _token(prompt_format: PromptFormat, text: str) -> int:
    return prompt_format.token_texts.index(text)


def _allowed(grammar: ThoughtGrammar, token: int, *, escaping: bool) -> bool:
    return bool(grammar.mask(torch.tensor([escaping]))[0, token] == 0)


@pytest.mark.parametrize(
    ("text", "plain", "escaped"),
    [
        (" the", True, False),
        ('"', False, True),
        ('."', False, False),
        ("\n", False, False),
        ("\t", False, False),
        ("\\", True, True),
        ("\\\\", True, True),
        ("n", True, True),
        ("a", True, False),
        ("/", True, True),
        ("é", True, False),
        ("中", True, False),
        ("'", True, False),
        ("0", True, False),
    ],
)
def test_grammar_allows_what_json_allows_inside_a_string(
    grammar: ThoughtGrammar, prompt_format: PromptFormat, text: str, plain: bool, escaped: bool
) -> None:
    token = _token(prompt_format, text)
    assert _allowed(grammar, token, escaping=False) == plain
    assert _allowed(grammar, token, escaping=True) == escaped


def test_grammar_forbids_every_quote_but_the_closing_one(
    grammar: ThoughtGrammar, prompt_format: PromptFormat
) -> None:
    plain = grammar.mask(torch.tensor([False]))[0]
    quoting = [
        token
        for token, text in enumerate(prompt_format.token_texts)
        if '"' in text.replace("\\\\", "").replace('\\"', "") and plain[token] == 0
    ]
    assert quoting == [grammar.closing_ids[0]]


def test_grammar_forbids_control_tokens_and_control_characters(
    grammar: ThoughtGrammar, prompt_format: PromptFormat
) -> None:
    masks = grammar.mask(torch.tensor([False, True]))
    for token, text in enumerate(prompt_format.token_texts):
        if token in prompt_format.special_ids or any(ord(character) < 0x20 for character in text):
            assert torch.isinf(masks[:, token]).all(), (token, text)


def test_backslash_opens_and_a_second_one_closes(
    grammar: ThoughtGrammar, prompt_format: PromptFormat
) -> None:
    one, two, word = (_token(prompt_format, text) for text in ("\\", "\\\\", " the"))
    tokens = torch.tensor([one, one, two, two, word])
    escaping = torch.tensor([False, True, False, True, False])
    assert grammar.escaping_after(tokens, escaping).tolist() == [True, False, False, True, False]


# --------------------------------------------------------------- scripted thoughts


class Scripted(torch.nn.Module):
    """A language model that says one given token after the other, whatever it reads."""

    def __init__(self, script: Sequence[int], num_read: int, vocab_size: int) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.num_read = num_read
        self.lm_head = torch.nn.Linear(len(script), vocab_size, bias=False)
        self.lm_head.weight.data.zero_()
        self.lm_head.weight.data[list(script), range(len(script))] = 9.0

    def model(self, *, position_ids: torch.Tensor, **rest: Any) -> SimpleNamespace:
        place = (position_ids - self.num_read + 1).clamp(min=0)
        return SimpleNamespace(
            last_hidden_state=torch.nn.functional.one_hot(place, self.lm_head.in_features).float()
        )


@cache
def _mistral() -> MistralFormat:
    return MistralFormat()


THOUGHTS = [
    'He said "no", not "yes".',
    'He said "no." Then he left.',
    'A path C:\\temp\\ and a \\"mix\\".',
    "Two\nlines\tand a tab.",
    "Ça coûte 3 €, naïve – 中文 🙂 e\u0301.",
    "\\",
    '"',
    '", "predicted_label": 0}',
    "a / b [INST] </s> <|im_end|>",
]


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("name", ["chat", "mistral"])
def test_every_thought_that_training_teaches_can_be_said(
    name: str, thought: str, prompt_format: PromptFormat
) -> None:
    spoken = prompt_format if name == "chat" else _mistral()
    ids, _ = encode_completion(spoken, thought, 1)
    opening = spoken.encode_segment(completion.THOUGHT_OPENING, first=True)
    assert ids[: len(opening)] == opening
    prompt = spoken.encode_prompt("Premise")
    model = Scripted(ids[len(opening) :], len(prompt) + len(opening), spoken.vocab_size)
    (found,) = _decode(model, spoken, [prompt], max_thought_tokens=80)
    assert _said(found) == (1, thought, "closed", completion.render(thought, 1), None)


def test_budget_that_ends_behind_a_backslash_leaves_a_valid_thought(prompt_format: PromptFormat) -> None:
    ids, _ = encode_completion(prompt_format, 'so "', 1)
    opening = prompt_format.encode_segment(completion.THOUGHT_OPENING, first=True)
    said = prompt_format.encode_segment("so \\\\\\", first=False)
    model = Scripted([*said, *ids[-8:]], 1 + len(opening), prompt_format.vocab_size)
    (found,) = _decode(model, prompt_format, [[0]], max_thought_tokens=len(said))
    assert (found.thought_process, found.status) == ("so \\", "truncated")
    assert completion.parse(found.completion) is not None


# -------------------------------------------------------- equally likely labels


def _undecided(prompt_format: PromptFormat, form: Form) -> tuple[Scripted, list[int]]:
    """A model that closes its thought at once and has no preference for a label, and a prompt for it."""
    closing = completion.THOUGHT_CLOSING if form.thinks_before_label else completion.THOUGHT_END
    token = prompt_format.encode_segment(closing, first=False)[0]
    prompt = _prompts(prompt_format, form=form, num=1)[0]
    return Scripted([token] * (len(prompt) + 50), 0, prompt_format.vocab_size), prompt


@pytest.mark.parametrize("form", Form)
def test_of_equally_likely_labels_1_is_predicted_and_said(form: Form, prompt_format: PromptFormat) -> None:
    model, prompt = _undecided(prompt_format, form)
    (found,) = _decode(model, prompt_format, [prompt], form=form)
    assert (found.p_entailment, found.predicted_label) == (0.5, 1)
    parsed = completion.parse(found.completion)
    assert parsed is not None and parsed.label == 1


def test_thought_after_an_undecided_label_follows_the_label_1(prompt_format: PromptFormat) -> None:
    model, prompt = _undecided(prompt_format, Form.LABEL_FIRST)
    decoder = Decoder(model, prompt_format, DecodingSettings(max_thought_tokens=BUDGET))
    opening, script = decoder._student_script(Form.LABEL_FIRST)
    (answer,) = decoder.follow([prompt], opening, script)
    assert (answer.choices, answer.probabilities) == ([1], [[0.5, 0.5]])


def _answer(p: float, draft: float | None = None) -> Prediction:
    return Prediction(
        id="a",
        predicted_label=int(p >= 0.5),
        p_entailment=p,
        thought_process=f"p is {p}",
        status="closed",
        completion="",
        draft_label=None if draft is None else int(draft >= 0.5),
        draft_p_entailment=draft,
    )


def test_label_and_agreement_of_votes_follow_one_rule() -> None:
    found = average([_answer(0.5), _answer(0.25), _answer(0.75)])
    assert (found.p_entailment, found.predicted_label, found.agreement) == (0.5, 1, pytest.approx(2 / 3))
    assert found.thought_process == "p is 0.5"


def test_an_ensemble_has_a_draft_only_if_each_member_has_one() -> None:
    found = average([_answer(0.75, 0.25), _answer(0.5, 1.0)], [1, 3])
    assert (found.p_entailment, found.draft_p_entailment, found.draft_label) == (0.5625, 0.8125, 1)
    found = average([_answer(0.75, 0.25), _answer(0.5, None)], [3, 1])
    assert (found.draft_p_entailment, found.draft_label) == (None, None)


def test_an_ensemble_keeps_the_form_of_its_members() -> None:
    def written(form: Form) -> Prediction:
        one = _answer(0.75, 0.25 if form is Form.DRAFT_FIRST else None)
        return replace(one, completion=render("p is 0.75", 1, form, one.draft_label))

    for form in (Form.THOUGHT_FIRST, Form.LABEL_FIRST, Form.DRAFT_FIRST):
        assert average([written(form)] * 2).completion == written(form).completion
    mixed = average([written(Form.DRAFT_FIRST), written(Form.LABEL_FIRST)])  # a draft of one of them only
    assert mixed.completion == render("p is 0.75", 1, Form.THOUGHT_FIRST)


def test_labels_are_read_in_float32_from_a_bfloat16_model() -> None:
    """Two logits that differ by less than bfloat16 resolves: 256 and 256.5."""
    head = torch.nn.Linear(2, 3, bias=False, dtype=torch.bfloat16)
    head.weight.data = torch.tensor([[0.0, 0.0], [256.0, 0.0], [256.0, 0.5]], dtype=torch.bfloat16)
    hidden = torch.ones(1, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(hidden)[0]
        assert logits[1] == logits[2]
        found = choice_probabilities(head, hidden, (1, 2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5]]).softmax(-1))
