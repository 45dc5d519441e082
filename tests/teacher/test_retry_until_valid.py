"""One question until its answer is valid: the requests that follow an unusable answer, and their models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from nlicot.records import Failure, Provenance, Usage
from nlicot.teacher.answers import SCHEMAS, Answer, NoValidAnswer, ValidAnswer, ask_until_valid
from nlicot.teacher.backends.base import Message, Reply, Request
from nlicot.teacher.prompt import PromptType

KIND = PromptType.INITIAL_GENERATION
GOOD = '{"thought_process": "It rains.", "predicted_label": 1}'
OTHER = '{"thought_process": "It snows.", "predicted_label": 0}'
FENCED = f"```json\n{GOOD}\n```"
NO_LABEL = '{"thought_process": "It rains."}'
LABEL_2 = '{"thought_process": "It rains.", "predicted_label": 2}'
ASKED = Message(role="user", content="Does it rain?")
REQUEST = Request(
    stage="generate",
    backend="openai",
    server="http://localhost:8000",
    model="teacher",
    messages=(Message(role="system", content="Think."), ASKED),
    params={"temperature": 0.3, "max_tokens": 100},
    schema=SCHEMAS[KIND],
)


def reply(
    text: str, finish_reason: str = "stop", *, salvaged: bool = False, created: int | None = None
) -> Reply:
    usage = Usage(prompt_tokens=9, completion_tokens=5)
    return Reply(
        text=text, finish_reason=finish_reason, usage=usage, raw="", salvaged=salvaged, created=created
    )


def cut(text: str = '{"thought_process": "It ra') -> Reply:
    return reply(text, "length")


class Teacher:
    """Gives its answers in turn, records the requests, and fails if it is asked too often."""

    def __init__(self, *answers: str | Reply) -> None:
        self.answers = [reply(answer) if isinstance(answer, str) else answer for answer in answers]
        self.asked: list[Request] = []

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        assert len(self.asked) <= len(self.answers), f"asked too often: {request}"
        return self.answers[len(self.asked) - 1]

    def until_valid(self, request: Request = REQUEST, kind: PromptType = KIND, **options: Any) -> ValidAnswer:
        answered = asyncio.run(ask_until_valid(self.ask, request, kind, **options))
        assert len(self.asked) == len(self.answers), "not asked often enough"
        return answered

    @property
    def models(self) -> list[str]:
        return [request.model for request in self.asked]


def complaint(problem: str) -> Message:
    return Message(
        role="user",
        content=f"That could not be used: {problem}. "
        "Answer once more, with nothing but the one JSON object that was asked for.",
    )


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


# ------------------------------------------------------------------ valid


def test_a_valid_answer_is_accepted_at_once() -> None:
    teacher = Teacher(GOOD)

    answered = teacher.until_valid()

    assert answered.answer == Answer(
        fields={"thought_process": "It rains.", "predicted_label": 1}, repaired=False
    )
    assert teacher.asked == [REQUEST]
    assert (answered.request, answered.reply) == (REQUEST, teacher.answers[0])


def test_repaired_syntax_is_accepted_and_flagged_without_asking_again() -> None:
    answered = Teacher(FENCED).until_valid()

    assert answered.answer == Answer(
        fields={"thought_process": "It rains.", "predicted_label": 1}, repaired=True
    )


# ------------------------------------------------------------------ asked again


def test_each_retry_shows_the_model_its_answer_and_what_was_wrong() -> None:
    teacher = Teacher(NO_LABEL, LABEL_2, GOOD)

    answered = teacher.until_valid()

    first = (
        said(NO_LABEL),
        complaint("found no field predicted_label, expected thought_process, predicted_label"),
    )
    second = (said(LABEL_2), complaint("found predicted_label 2, expected one of [0, 1]"))
    assert [request.messages for request in teacher.asked] == [
        REQUEST.messages,
        (*REQUEST.messages, *first),
        (*REQUEST.messages, *first, *second),
    ]
    assert len({request.key() for request in teacher.asked}) == 3
    assert answered.request == teacher.asked[-1]
    assert answered.reply == teacher.answers[-1]


def test_a_model_is_asked_again_twice_before_it_is_a_failure() -> None:
    teacher = Teacher(NO_LABEL, NO_LABEL, LABEL_2)

    with pytest.raises(NoValidAnswer) as error:
        teacher.until_valid()

    assert error.value.failure(pair="pair-1", stage="generate") == Failure(
        id="pair-1",
        stage="generate",
        kind="label_outside",
        message="found predicted_label 2, expected one of [0, 1]",
        attempts=3,
        raw=LABEL_2,
    )


def test_half_a_surrogate_pair_in_an_answer_can_be_sent_back_and_written() -> None:
    broken = "It rains \ud83d"
    teacher = Teacher(broken, broken, broken)

    with pytest.raises(NoValidAnswer) as error:
        teacher.until_valid()

    assert teacher.asked[1].messages[2] == said("It rains ?")
    failure = error.value.failure(pair="pair-1", stage="generate")
    assert (failure.kind, failure.raw) == ("no_json", "It rains ?")


def test_the_next_model_gets_the_question_without_the_answers_of_the_first() -> None:
    teacher = Teacher(NO_LABEL, NO_LABEL, NO_LABEL, LABEL_2, GOOD)

    answered = teacher.until_valid(next_models=("stronger", "strongest"))

    assert teacher.models == ["teacher"] * 3 + ["stronger"] * 2
    assert teacher.asked[3].messages == REQUEST.messages
    assert answered.request.model == "stronger"
    assert answered.answer.fields["thought_process"] == "It rains."


def test_every_model_has_its_turn_before_it_is_a_failure() -> None:
    teacher = Teacher(*[NO_LABEL] * 9)

    with pytest.raises(NoValidAnswer) as error:
        teacher.until_valid(next_models=("stronger", "strongest"))

    assert teacher.models == ["teacher"] * 3 + ["stronger"] * 3 + ["strongest"] * 3
    assert error.value.attempts == 9


# ------------------------------------------------------------------ out of tokens


@pytest.mark.parametrize(
    "short",
    [cut(), cut(" \n" * 50), reply(" \n\t" * 50), reply("")],
    ids=["cut", "flood", "blanks", "nothing"],
)
def test_a_truncated_answer_gets_twice_the_budget_once(short: Reply) -> None:
    teacher = Teacher(short, GOOD)

    answered = teacher.until_valid()

    assert [request.params["max_tokens"] for request in teacher.asked] == [100, 200]
    assert teacher.asked[1].messages == REQUEST.messages, "there is nothing to complain about"
    assert answered.request.params == {"temperature": 0.3, "max_tokens": 200}


def test_after_two_truncated_answers_the_next_model_is_asked() -> None:
    teacher = Teacher(cut(), cut(), cut(), cut())

    with pytest.raises(NoValidAnswer) as error:
        teacher.until_valid(next_models=("stronger",))

    assert teacher.models == ["teacher", "teacher", "stronger", "stronger"]
    assert [request.params["max_tokens"] for request in teacher.asked] == [100, 200, 100, 200]
    assert (error.value.problem.kind, error.value.attempts) == ("truncated", 4)
    assert error.value.raw == '{"thought_process": "It ra'


@pytest.mark.parametrize(
    "answers",
    [
        (cut(), NO_LABEL, NO_LABEL, GOOD),
        (NO_LABEL, cut(), NO_LABEL, GOOD),
        (NO_LABEL, NO_LABEL, cut(), GOOD),
    ],
)
def test_a_truncated_answer_does_not_count_as_a_retry(answers: Sequence[str | Reply]) -> None:
    answered = Teacher(*answers).until_valid()

    assert answered.answer.fields["predicted_label"] == 1
    assert answered.request.params["max_tokens"] == 200, "the larger budget stays"
    assert len(answered.request.messages) == len(REQUEST.messages) + 4


@pytest.mark.parametrize(
    ("params", "again"),
    [({}, {"random_seed": 1}), ({"random_seed": 7}, {"random_seed": 8})],
    ids=["no seed", "a seed"],
)
def test_without_a_budget_a_truncated_answer_is_drawn_again(
    params: dict[str, Any], again: dict[str, Any]
) -> None:
    teacher = Teacher(cut(), GOOD)
    request = Request(
        stage="generate",
        backend="openai",
        server="",
        model="teacher",
        messages=(ASKED,),
        params=params,
        schema=SCHEMAS[KIND],
    )

    teacher.until_valid(request)

    assert [dict(asked.params) for asked in teacher.asked] == [params, again]
    assert teacher.asked[0].key() != teacher.asked[1].key(), "else the journal would answer it"


# ------------------------------------------------------------------ reasoning before the answer


def test_reasoning_is_cut_off_and_not_a_repair() -> None:
    teacher = Teacher(f"<think>{OTHER}? No.</think>\n{GOOD}")

    assert teacher.until_valid().answer == Answer(
        fields={"thought_process": "It rains.", "predicted_label": 1}, repaired=False
    )


def test_reasoning_is_not_sent_back() -> None:
    teacher = Teacher(f"<think>{OTHER}? No.</think>{NO_LABEL}", GOOD)

    teacher.until_valid()

    assert teacher.asked[1].messages[2] == said(NO_LABEL)


@pytest.mark.parametrize("text", [f"<think>{OTHER} Hmm", f"<think>{OTHER}</think>", f"{OTHER}</think> \n"])
def test_reasoning_without_an_answer_is_out_of_tokens(text: str) -> None:
    teacher = Teacher(text, GOOD)

    assert teacher.until_valid().request.params["max_tokens"] == 200


@pytest.mark.parametrize(
    ("finish_reason", "message"),
    [
        ("LENGTH", "the answer ran out of its 200 tokens: raise --max_tokens (reasoning counts, too)"),
        ("stop", "the answer is empty, or only reasoning (stop); try a larger --max_tokens"),
    ],
)
def test_a_truncated_answer_names_the_setting(finish_reason: str, message: str) -> None:
    with pytest.raises(NoValidAnswer) as error:
        Teacher(reply("", finish_reason), reply("", finish_reason)).until_valid()

    assert (error.value.problem.kind, error.value.problem.message) == ("truncated", message)


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize("finish_reason", ["content_filter", "refusal", "SAFETY"])
def test_a_refused_answer_is_not_asked_for_again(finish_reason: str) -> None:
    with pytest.raises(NoValidAnswer) as error:
        Teacher(reply('{"thought_pro', finish_reason)).until_valid()

    failure = error.value.failure(pair="pair-1", stage="generate")
    reason = finish_reason.casefold()
    message = f"the model or a filter refused ({reason}): '{{\"thought_pro'"
    assert (failure.kind, failure.message, failure.attempts) == (reason, message, 1)


def test_after_a_refusal_the_next_model_is_asked() -> None:
    teacher = Teacher(reply("", "content_filter"), GOOD)

    teacher.until_valid(next_models=("stronger",))

    assert teacher.models == ["teacher", "stronger"]


def test_a_whole_answer_is_used_even_if_its_end_was_filtered() -> None:
    assert Teacher(reply(GOOD, "content_filter")).until_valid().answer.fields["predicted_label"] == 1


# ------------------------------------------------------------------ another label than the true one


def reflection(label: int) -> str:
    fields = {"error_analysis": "Hasty.", "improved_thought_process": "It snows.", "reflected_label": label}
    return json.dumps(fields)


def test_after_a_wrong_label_the_next_model_is_asked_at_once() -> None:
    teacher = Teacher(reflection(1), reflection(0))

    answered = teacher.until_valid(kind=PromptType.REFLECTION, next_models=("stronger",), true_label=0)

    assert teacher.models == ["teacher", "stronger"]
    assert teacher.asked[1].messages == REQUEST.messages
    assert answered.answer.fields["reflected_label"] == 0


def test_a_wrong_label_from_the_last_model_is_a_failure() -> None:
    teacher = Teacher(reflection(1))

    with pytest.raises(NoValidAnswer) as error:
        teacher.until_valid(kind=PromptType.REFLECTION, true_label=0)

    failure = error.value.failure(pair="pair-1", stage="reflect")
    assert (failure.kind, failure.message) == ("wrong_label", "found reflected_label 1, expected 0")
    assert (failure.attempts, failure.raw) == (1, reflection(1))


# ------------------------------------------------------------------ provenance


def test_provenance_names_the_model_and_flags_a_repaired_answer() -> None:
    answered = Teacher(cut(), reply(FENCED, salvaged=True, created=1_767_225_600)).until_valid()

    assert answered.provenance("abc") == Provenance(
        backend="openai",
        model="teacher",
        prompt_sha256="abc",
        params={"temperature": 0.3, "max_tokens": 200, "repaired": True, "salvaged": True},
        usage=Usage(prompt_tokens=9, completion_tokens=5),
        created_at="2026-01-01T00:00:00+00:00",
    )


def test_an_untouched_answer_is_not_flagged() -> None:
    answered = Teacher(json.dumps(json.loads(GOOD))).until_valid()

    assert answered.provenance("abc").params == {"temperature": 0.3, "max_tokens": 100}
