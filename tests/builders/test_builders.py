from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nlicot import completion
from nlicot.builders import BUILDERS, builder_name, find_builder
from nlicot.builders.base import Builder, BuildReport, Target, build_report
from nlicot.builders.correct_only import CorrectOnly
from nlicot.builders.draft_first import DraftFirst
from nlicot.builders.label_first import LabelFirst
from nlicot.builders.label_only import LabelOnly
from nlicot.builders.multitask import Multitask
from nlicot.builders.reflected import Reflected
from nlicot.builders.unmodified import Unmodified
from nlicot.completion import Form
from nlicot.data.pairs import read_examples
from nlicot.data.thoughts import join_reflections, join_thoughts, read_reflections, read_thoughts
from nlicot.errors import ConfigError
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import Example, Reflection, Score, Thought, TrainingExample

PAIRS = [
    Example(id="right-1", premise="P1", hypothesis="H1", label=1),
    Example(id="wrong-1", premise="P2", hypothesis="H2", label=1),
    Example(id="wrong-0", premise="P3", hypothesis="H3", label=0),
    Example(id="bare-0", premise="P4", hypothesis="H4", label=0),
    Example(id="unlabelled", premise="P5", hypothesis="H5"),
]
PAIR_OF = {pair.id: pair for pair in PAIRS}


def thought(id: str, text: str, predicted_label: int, sample: int = 0) -> Thought:
    pair = PAIR_OF[id]
    return Thought(
        id=id,
        sample=sample,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        thought_process=text,
        predicted_label=predicted_label,
        true_label=pair.label,
    )


def reflection(id: str, text: str, reflected_label: int, sample: int = 0) -> Reflection:
    pair = PAIR_OF[id]
    assert pair.label is not None
    return Reflection(
        id=id,
        sample=sample,
        premise=pair.premise,
        hypothesis=pair.hypothesis,
        true_label=pair.label,
        thought_process="first",
        error_analysis="E",
        improved_thought_process=text,
        reflected_label=reflected_label,
    )


THOUGHTS = [
    thought("right-1", "right", 1),
    thought("wrong-1", "wrong", 0),
    thought("wrong-0", "wrong too", 1),
    thought("unlabelled", "blind", 1),
]
REFLECTIONS = [reflection("wrong-1", "improved", 1)]


def targets(built: list[TrainingExample]) -> list[tuple[str, str | None, int, str]]:
    """Each example's id, thought, label and source, as in its completion."""
    found = []
    for example in built:
        parsed = completion.parse(example.completion)
        assert parsed is not None
        assert parsed.label == example.label
        found.append((example.id, parsed.thought_process, parsed.label, example.source))
    return found


def test_correct_only_keeps_the_thoughts_whose_label_is_the_true_one() -> None:
    assert targets(CorrectOnly().build(PAIRS, THOUGHTS, REFLECTIONS)) == [("right-1", "right", 1, "thought")]


def test_reflected_replaces_a_wrong_thought_by_its_reflection() -> None:
    assert targets(Reflected().build(PAIRS, THOUGHTS, REFLECTIONS)) == [
        ("right-1", "right", 1, "thought"),
        ("wrong-1", "improved", 1, "reflection"),
    ]


def test_unmodified_keeps_every_thought_with_the_teachers_own_label() -> None:
    assert targets(Unmodified().build(PAIRS, THOUGHTS, REFLECTIONS)) == [
        ("right-1", "right", 1, "thought"),
        ("wrong-1", "wrong", 0, "thought"),
        ("wrong-0", "wrong too", 1, "thought"),
        ("unlabelled", "blind", 1, "thought"),
    ]


def test_label_only_takes_the_true_label_of_every_labelled_pair() -> None:
    assert targets(LabelOnly().build(PAIRS)) == [
        ("right-1", None, 1, "label"),
        ("wrong-1", None, 1, "label"),
        ("wrong-0", None, 0, "label"),
        ("bare-0", None, 0, "label"),
    ]


def test_label_only_can_be_limited_to_pairs_with_a_thought() -> None:
    builder = LabelOnly(only_with_thoughts=True)
    assert (builder.needed_texts("dev"), LabelOnly().needed_texts("dev")) == (["thoughts"], [])
    built = builder.build(PAIRS, THOUGHTS, REFLECTIONS)
    assert targets(built) == [
        ("right-1", None, 1, "label"),
        ("wrong-1", None, 1, "label"),
        ("wrong-0", None, 0, "label"),
    ]


def test_the_prompt_asks_for_a_thought_if_the_completion_has_one() -> None:
    prompts = StudentPrompts(
        thinking="think {premise} {hypothesis} {entailment}",
        label_only="just {premise} {hypothesis} {no_entailment}",
        definitions=LabelDefinitions(entailment="yes", no_entailment="no"),
    )
    (thinking,) = CorrectOnly().build(PAIRS[:1], THOUGHTS, prompts=prompts)
    (label_only,) = LabelOnly().build(PAIRS[:1], prompts=prompts)
    assert (thinking.prompt, label_only.prompt) == ("think P1 H1 yes", "just P1 H1 no")


def test_examples_come_in_the_pairs_order_whatever_the_thoughts_order() -> None:
    built = Unmodified().build(PAIRS, reversed(THOUGHTS))
    assert [example.id for example in built] == ["right-1", "wrong-1", "wrong-0", "unlabelled"]


def test_balancing_drops_examples_of_the_more_frequent_label_by_its_seed() -> None:
    pairs = [Example(id=f"{i}", premise="P", hypothesis=f"H{i}", label=int(i >= 4)) for i in range(24)]
    kept = LabelOnly(balance=True, seed=3).build(pairs)
    assert Counter(example.label for example in kept) == {0: 4, 1: 4}
    assert [example.id for example in kept] == sorted((example.id for example in kept), key=int)
    assert LabelOnly(balance=True, seed=3).build(pairs) == kept
    assert LabelOnly(balance=True, seed=4).build(pairs) != kept


def test_a_thought_of_more_words_than_allowed_leaves_its_pair_out() -> None:
    thoughts = [thought("right-1", "one two three", 1), thought("wrong-1", "one  two\nthree four", 0)]
    built = Unmodified(max_thought_words=3).build(PAIRS, thoughts)
    assert [example.id for example in built] == ["right-1"]


def test_a_thought_of_more_tokens_than_allowed_leaves_its_pair_out() -> None:
    thoughts = [thought("right-1", "one two", 1), thought("wrong-1", "one two three", 0)]
    built = Unmodified(max_thought_tokens=3).build(
        PAIRS, thoughts, count_tokens=lambda text: 1 + len(text.split())
    )
    assert [example.id for example in built] == ["right-1"]


def test_a_token_limit_without_the_students_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_thought_tokens 3: cannot count tokens without the student"):
        Unmodified(max_thought_tokens=3).build(PAIRS, [thought("right-1", "one", 1)])


LONG_THOUGHT = "Step 1: A dog is an animal. Step 2: It runs, so it moves. Step 3: So it follows."


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_thought_words": 14}, "Step 1: A dog is an animal. Step 2: It runs, so it moves."),
        ({"max_thought_words": 13}, "Step 1: A dog is an animal."),
        ({"max_thought_words": 4}, "Step 1: A dog"),
        ({"max_thought_words": 99}, LONG_THOUGHT),
        ({"max_thought_tokens": 30}, "Step 1: A dog is an animal."),
        ({"max_thought_tokens": 10}, "Step 1: A"),
        ({"max_thought_words": 2, "thought_part": "last_step"}, "So it"),
        ({"thought_part": "last_step"}, "So it follows."),
    ],
)
def test_a_long_thought_is_cut_at_the_end_of_a_sentence_or_of_a_word(
    options: dict[str, Any], expected: str
) -> None:
    builder = find_builder("label_first", {"over_limit": "cut", **options})
    (built,) = builder.build(PAIRS, [thought("right-1", LONG_THOUGHT, 1)], count_tokens=len)
    assert targets([built]) == [("right-1", expected, 1, "thought")]


def test_a_thought_of_which_no_word_is_within_the_limit_leaves_its_pair_out() -> None:
    builder = CorrectOnly(max_thought_tokens=3, over_limit="cut")
    assert builder.build(PAIRS, [thought("right-1", LONG_THOUGHT, 1)], count_tokens=len) == []


def test_a_limit_counts_the_words_of_the_part_that_is_learnt() -> None:
    thoughts = [thought("right-1", LONG_THOUGHT, 1)]
    assert CorrectOnly(max_thought_words=3).build(PAIRS, thoughts) == []
    (built,) = CorrectOnly(max_thought_words=3, thought_part="last_step").build(PAIRS, thoughts)
    assert targets([built])[0][1] == "So it follows."


def samples(id: str, *texts: str) -> list[Thought]:
    label = PAIR_OF[id].label
    assert label is not None
    return [thought(id, text, label, sample=number) for number, text in enumerate(texts)]


def test_all_samples_are_variants_of_one_example() -> None:
    thoughts = [*samples("right-1", "one", "two", "one"), thought("right-1", "wrong", 0, sample=3)]
    thoughts += samples("bare-0", "only")
    built = Reflected(samples="all").build(PAIRS, thoughts)
    assert [(each.id, targets([each])[0][1], each.variant) for each in built] == [
        ("right-1", "one", 0),
        ("right-1", "two", 1),
        ("bare-0", "only", 0),
    ]
    shortest = Reflected(samples="all", prefer="shortest").build(PAIRS, samples("right-1", "longer", "long"))
    assert [target[1] for target in targets(shortest)] == ["long", "longer"]


def test_multitask_has_one_label_for_all_samples_of_a_thought() -> None:
    built = Multitask(samples="all").build(PAIRS[:1], samples("right-1", "one", "two"))
    assert [(target[1], each.variant) for target, each in zip(targets(built), built, strict=True)] == [
        (None, 0),
        ("one", 0),
        ("two", 1),
    ]


def test_multitask_takes_the_first_right_sample_even_after_a_wrong_one() -> None:
    thoughts = [thought("right-1", "wrong", 0), thought("right-1", "right", 1, sample=1)]
    built = Multitask().build(PAIRS[:1], thoughts)
    assert targets(built) == [("right-1", None, 1, "label"), ("right-1", "right", 1, "thought")]
    (label_only,) = Multitask(max_thought_words=1).build(PAIRS[:1], [thought("right-1", "too long", 1)])
    assert targets([label_only]) == [("right-1", None, 1, "label")]


def test_balancing_drops_an_example_with_its_variants() -> None:
    pairs = [*PAIRS[:2], PAIRS[2]]
    thoughts = [thought for pair in pairs for thought in samples(pair.id, "a", "b")]
    built = CorrectOnly(balance=True, samples="all").build(pairs, thoughts)
    assert [(each.label, each.variant) for each in built] == [(1, 0), (1, 1), (0, 0), (0, 1)]


def test_shuffled_thoughts_are_each_those_of_another_pair_and_labels_stay() -> None:
    pairs = [Example(id=f"{n}", premise=f"P{n}", hypothesis="H", label=n % 2) for n in range(9)]
    thoughts = [
        Thought(
            id=pair.id,
            premise=pair.premise,
            hypothesis="H",
            thought_process=f"T{pair.id}",
            predicted_label=pair.label or 0,
            true_label=pair.label,
        )
        for pair in pairs[:8]
    ]
    for name in ("correct_only", "label_first", "draft_first", "multitask"):
        options = {"shuffle_thoughts": True, "seed": 3}
        built = targets(find_builder(name, options).build(pairs, thoughts))
        givers = {id_: text for id_, text, _, _ in built if text is not None}
        assert sorted(givers.values()) == [f"T{n}" for n in range(8)]
        assert all(text != f"T{id_}" for id_, text in givers.items())
        assert all(label == int(id_) % 2 for id_, _, label, _ in built)
        assert targets(find_builder(name, options).build(pairs, thoughts)) == built
        assert targets(find_builder(name, {**options, "seed": 4}).build(pairs, thoughts)) != built


def test_shuffled_samples_move_together() -> None:
    thoughts = [*samples("right-1", "one", "two"), *samples("bare-0", "only")]
    built = CorrectOnly(shuffle_thoughts=True, samples="all").build(PAIRS, thoughts)
    assert targets(built) == [
        ("right-1", "only", 1, "thought"),
        ("bare-0", "one", 0, "thought"),
        ("bare-0", "two", 0, "thought"),
    ]


def test_one_thought_cannot_be_shuffled() -> None:
    with pytest.raises(ConfigError, match="shuffle_thoughts: found one pair with a thought, expected two"):
        CorrectOnly(shuffle_thoughts=True).build(PAIRS, THOUGHTS)


# ----------------------------------------------------------------- soft labels

SOFT = [
    dataclasses.replace(PAIR_OF["right-1"], p_entailment=0.25),
    dataclasses.replace(PAIR_OF["unlabelled"], p_entailment=0.5),
    dataclasses.replace(PAIR_OF["unlabelled"], id="unlikely", p_entailment=0.1),
    PAIR_OF["bare-0"],
]


def soft_labels(built: list[TrainingExample]) -> list[tuple[str, str, int, float | None]]:
    return [(each.id, each.source, each.label, each.p_entailment) for each in built]


def test_label_only_learns_true_and_soft_labels() -> None:
    assert soft_labels(LabelOnly().build(SOFT)) == [
        ("right-1", "label", 1, 0.25),
        ("unlabelled", "soft label", 1, 0.5),
        ("unlikely", "soft label", 0, 0.1),
        ("bare-0", "label", 0, None),
    ]


def test_a_label_is_soft_before_a_thought_and_not_after_it() -> None:
    thoughts = THOUGHTS[:1]
    assert soft_labels(Multitask().build(SOFT, thoughts)) == [
        ("right-1", "label", 1, 0.25),
        ("right-1", "thought", 1, None),
        ("unlabelled", "soft label", 1, 0.5),
        ("unlikely", "soft label", 0, 0.1),
        ("bare-0", "label", 0, None),
    ]
    assert soft_labels(LabelFirst().build(SOFT, thoughts)) == [("right-1", "thought", 1, 0.25)]
    assert soft_labels(CorrectOnly().build(SOFT, thoughts)) == [("right-1", "thought", 1, None)]
    assert soft_labels(DraftFirst().build(SOFT, thoughts)) == [("right-1", "thought", 1, None)]


def test_the_reports_hash_depends_on_soft_labels() -> None:
    other = [dataclasses.replace(SOFT[0], p_entailment=0.26), *SOFT[1:]]
    assert build_report(4, LabelOnly().build(SOFT)).sha256 != build_report(4, LabelOnly().build(other)).sha256


def test_the_word_limit_does_not_affect_labels_without_a_thought() -> None:
    assert len(LabelOnly(max_thought_words=1).build(PAIRS)) == 4


def test_a_text_that_a_judge_scored_lower_leaves_its_pair_out_and_an_unscored_one_stays() -> None:
    scores = [
        Score(id="right-1", score=2),
        Score(id="wrong-1", score=1),
        Score(id="wrong-1", target="reflection", score=3),
    ]
    chosen = {
        least: [
            example.id for example in Reflected(min_score=least).build(PAIRS, THOUGHTS, REFLECTIONS, scores)
        ]
        for least in (2, 3, 4)
    }
    assert chosen == {2: ["right-1", "wrong-1"], 3: ["wrong-1"], 4: []}
    assert len(Reflected(min_score=5).build(PAIRS, THOUGHTS, REFLECTIONS)) == 2


@pytest.mark.parametrize(("prefer", "expected"), [("first", "the first sample"), ("shortest", "short")])
def test_of_several_fitting_samples_the_preferred_one_is_taken(prefer: str, expected: str) -> None:
    thoughts = [
        thought("right-1", "short", 1, sample=2),
        thought("right-1", "x", 0, sample=1),
        thought("right-1", "the first sample", 1, sample=0),
    ]
    (built,) = CorrectOnly(prefer=prefer).build(PAIRS, thoughts)
    assert targets([built]) == [("right-1", expected, 1, "thought")]


def later(record: Thought | Reflection, text: str, round: int) -> Any:
    """The record, regenerated in a later round."""
    name = "thought_process" if isinstance(record, Thought) else "improved_thought_process"
    return dataclasses.replace(record, round=round, **{name: text})


RIGHT = THOUGHTS[0]
ROUNDS = [RIGHT, later(RIGHT, "second", 1), later(RIGHT, "third one", 2)]


@pytest.mark.parametrize(
    ("marks", "min_score", "expected"),
    [
        ({}, None, "right"),  # without scores the earliest
        ({0: 2, 1: 3, 2: 5}, None, "third one"),
        ({0: 4, 1: 5, 2: 5}, None, "second"),  # the earlier of two that are equal
        ({0: 2, 1: 4, 2: 3}, 4, "second"),
        ({0: 2, 1: 3, 2: 3}, 4, None),
        ({0: 2, 1: 3}, 4, "third one"),  # a text without a score is kept
        ({1: 1}, None, "second"),  # but one with a score is preferred
    ],
)
def test_of_several_rounds_the_one_with_the_highest_score_is_used(
    marks: dict[int, int], min_score: int | None, expected: str | None
) -> None:
    scores = [Score(id="right-1", round=round, score=mark) for round, mark in marks.items()]
    for thoughts in (ROUNDS, ROUNDS[::-1]):
        built = targets(CorrectOnly(min_score=min_score).build(PAIRS, thoughts, scores=scores))
        assert [text for _, text, _, _ in built] == ([] if expected is None else [expected])


def test_an_unsuitable_round_is_replaced_by_a_suitable_one() -> None:
    scores = [Score(id="right-1", round=round, score=round + 1) for round in range(3)]
    wrong = dataclasses.replace(ROUNDS[2], predicted_label=0)
    assert targets(CorrectOnly().build(PAIRS, [*ROUNDS[:2], wrong], scores=scores))[0][1] == "second"
    assert targets(CorrectOnly(max_thought_words=1).build(PAIRS, ROUNDS, scores=scores))[0][1] == "second"


def test_a_regenerated_reflection_belongs_to_the_first_thought() -> None:
    wrong, improved = THOUGHTS[1], REFLECTIONS[0]
    reflections = [improved, later(improved, "improved more", 1)]
    scores = [Score(id="wrong-1", target="reflection", round=round, score=round + 3) for round in (0, 1)]
    assert targets(Reflected().build(PAIRS, [wrong], reflections, scores)) == [
        ("wrong-1", "improved more", 1, "reflection")
    ]
    assert targets(Reflected().build(PAIRS, [wrong], reflections)) == [
        ("wrong-1", "improved", 1, "reflection")
    ]
    # The thought's own rounds do not count as the reflection's: a score belongs to its text.
    regenerated = dataclasses.replace(later(wrong, "right now", 1), predicted_label=1)
    scores.append(Score(id="wrong-1", round=1, score=5))
    assert targets(Reflected().build(PAIRS, [wrong, regenerated], reflections, scores)) == [
        ("wrong-1", "right now", 1, "thought")
    ]


def test_each_sample_offers_its_best_round() -> None:
    thoughts = [*ROUNDS, thought("right-1", "short", 1, sample=1)]
    scores = [Score(id="right-1", round=2, score=5), Score(id="right-1", sample=1, score=3)]
    assert targets(CorrectOnly().build(PAIRS, thoughts, scores=scores))[0][1] == "third one"
    assert targets(CorrectOnly(prefer="shortest").build(PAIRS, thoughts, scores=scores))[0][1] == "short"


def test_a_builder_sees_each_round_with_the_texts_that_were_current_then() -> None:
    seen = []

    class Watching(Unmodified):
        def target(
            self, example: Example, thought: Thought | None, reflection: Reflection | None
        ) -> Target | None:
            seen.append((thought and thought.round, reflection and reflection.round))
            return None

    wrong, improved = THOUGHTS[1], REFLECTIONS[0]
    Watching().build([PAIRS[1]], [wrong, later(wrong, "x", 2)], [improved, later(improved, "y", 1)])
    assert seen == [(0, 0), (0, 1), (2, 1)]


def test_a_reflection_belongs_to_the_sample_it_was_made_from() -> None:
    thoughts = [thought("wrong-1", "wrong", 0, sample=0), thought("wrong-1", "wrong again", 0, sample=1)]
    reflections = [reflection("wrong-1", "improved", 1, sample=1)]
    assert targets(Reflected().build(PAIRS, thoughts, reflections)) == [
        ("wrong-1", "improved", 1, "reflection")
    ]
    assert Reflected().build(PAIRS, thoughts[:1], reflections) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prefer": "longest"}, "prefer: found 'longest', expected 'first' or 'shortest'"),
        ({"over_limit": "keep"}, "over_limit: found 'keep', expected 'drop' or 'cut'"),
        ({"thought_part": "first"}, "thought_part: found 'first', expected 'all' or 'last_step'"),
        ({"samples": "two"}, "samples: found 'two', expected 'one' or 'all'"),
    ],
)
def test_an_unknown_word_for_an_option_is_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorrectOnly(**option)


def test_the_report_counts_labels_sources_and_pairs_left_out() -> None:
    built = Reflected().build(PAIRS, THOUGHTS, REFLECTIONS)
    report = build_report(len(PAIRS), built)
    assert dataclasses.replace(report, sha256="") == BuildReport(
        num_pairs=5,
        num_examples=2,
        num_without_target=3,
        by_source={"thought": 1, "reflection": 1},
        by_label={"1": 2},
        sha256="",
    )
    assert str(report) == (
        "2 examples from 5 pairs (reflection: 1, thought: 1; label 1: 2; 3 pairs left out; "
        f"content {report.sha256[:12]})"
    )


def test_the_reports_hash_distinguishes_contents() -> None:
    built = Unmodified().build(PAIRS, THOUGHTS)
    changed = [*built[:-1], dataclasses.replace(built[-1], completion=completion.render("blind.", 1))]
    assert build_report(5, built).sha256 == build_report(5, list(built)).sha256
    assert len({build_report(5, each).sha256 for each in (built, built[:-1], built[::-1], changed)}) == 4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("correct_only", CorrectOnly),
        ("reflected", Reflected),
        ("unmodified", Unmodified),
        ("label_only", LabelOnly),
        ("nlicot.builders.Reflected", Reflected),
        ("nlicot.builders.label_only.LabelOnly", LabelOnly),
    ],
)
def test_a_builder_is_found_by_short_name_and_by_class_path(name: str, kind: type[Builder]) -> None:
    assert type(find_builder(name)) is kind


def test_a_builder_is_made_with_arguments() -> None:
    builder = find_builder(
        "label_only", {"only_with_thoughts": True, "balance": True, "max_thought_words": None}
    )
    assert isinstance(builder, LabelOnly)
    assert (builder.only_with_thoughts, builder.balance, builder.max_thought_words) == (True, True, None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"blance": True},
            "found 'blance', "
            "expected some of only_with_thoughts, balance, max_thought_words, min_score, prefer, seed, "
            "max_thought_tokens, over_limit, thought_part, samples, shuffle_thoughts",
        ),
        ({"balance": 1}, "balance: found '1', expected true or false"),
        ({"min_score": True}, "min_score: found 'True', expected a whole number"),
        ({"prefer": 1}, "prefer: found '1', expected text"),
    ],
)
def test_arguments_that_a_builder_does_not_take_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_builder("label_only", args, flag="--builder")
    assert str(raised.value).startswith("--builder_args")
    assert str(raised.value).endswith(message)


def test_a_users_own_builder_is_found_by_its_class_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_builders_of_a_user.py").write_text(
        "from nlicot.builders.base import Builder, Target\n"
        "class Shouting(Builder):\n"
        "    def target(self, example, thought, reflection):\n"
        "        return Target(thought_process=example.hypothesis.upper(), label=1, source='shout')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    builder = find_builder("own_builders_of_a_user.Shouting")
    pair = Example(id="a", premise="p", hypothesis="it rains")
    assert targets(builder.build([pair])) == [("a", "IT RAINS", 1, "shout")]


@pytest.mark.parametrize(
    "name",
    ["reflectd", "", "nlicot.builders.Nothing", "no_such_module.Thing", "pathlib.Path", "builtins.len"],
)
def test_an_unknown_builder_is_refused_and_the_known_ones_listed(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_builder(name)
    assert str(raised.value).startswith(f"--data.builder: found {name!r}")
    assert (
        "expected one of correct_only, reflected, unmodified, label_only, label_first, draft_first, "
        "multitask, or the class path of your own (module.Class)" in str(raised.value)
    )


def test_all_builders_think_except_the_baseline() -> None:
    assert {name: builder.thinks for name, builder in BUILDERS.items()} == {
        "correct_only": True,
        "reflected": True,
        "unmodified": True,
        "label_only": False,
        "label_first": True,
        "draft_first": True,
        "multitask": True,
    }


def test_multitask_teaches_every_label_and_every_thought() -> None:
    prompts = StudentPrompts()
    reflected = {example.id: example for example in Reflected().build(PAIRS, THOUGHTS, REFLECTIONS)}
    built = Multitask().build(PAIRS, THOUGHTS, REFLECTIONS)
    labelled = [pair for pair in PAIRS if pair.label is not None]
    at_once = [example for example in built if example.source == "label"]
    assert [(example.id, example.label) for example in at_once] == [(p.id, p.label) for p in labelled]
    assert {example.prompt for example in at_once} == {
        prompts.render(pair.premise, pair.hypothesis, form=Form.LABEL_ONLY) for pair in labelled
    }
    assert {example.id: example for example in built if example.source != "label"} == reflected


def test_label_first_has_the_content_of_reflected_in_the_other_order() -> None:
    for found, other in zip(
        LabelFirst().build(PAIRS, THOUGHTS, REFLECTIONS),
        Reflected().build(PAIRS, THOUGHTS, REFLECTIONS),
        strict=True,
    ):
        first, second = completion.parse(found.completion), completion.parse(other.completion)
        assert first is not None
        assert second is not None
        assert (first.thought_process, first.label) == (second.thought_process, second.label)
        assert first.form is Form.LABEL_FIRST
        assert found.prompt != other.prompt


def drafts(built: list[TrainingExample]) -> dict[str, tuple[int | None, int, bool]]:
    """Each pair's draft, label, and whether the draft is learnt."""
    found = {}
    for example in built:
        parsed = completion.parse(example.completion)
        assert parsed is not None and parsed.form is Form.DRAFT_FIRST
        found[example.id] = parsed.draft, parsed.label, example.learns_draft
    return found


def test_draft_first_has_the_content_of_reflected_after_a_true_draft() -> None:
    built = DraftFirst().build(PAIRS, THOUGHTS, REFLECTIONS)
    assert targets(built) == targets(Reflected().build(PAIRS, THOUGHTS, REFLECTIONS))
    assert drafts(built) == {"right-1": (1, 1, True), "wrong-1": (1, 1, True)}
    prompts = [StudentPrompts().render(f"P{n}", f"H{n}", form=Form.DRAFT_FIRST) for n in (1, 2)]
    assert [example.prompt for example in built] == prompts


def test_drafts_that_are_only_read_are_not_learnt() -> None:
    built = DraftFirst(train_draft=False).build(PAIRS, THOUGHTS, REFLECTIONS)
    assert drafts(built) == {"right-1": (1, 1, False), "wrong-1": (1, 1, False)}


def test_a_proportion_of_drafts_is_false_by_the_pairs_ids_and_not_learnt() -> None:
    pairs = [Example(id=f"{n}", premise=f"P{n}", hypothesis="H", label=n % 2) for n in range(400)]
    thoughts = [
        Thought(
            id=pair.id,
            sample=sample,
            premise=pair.premise,
            hypothesis="H",
            thought_process=f"T{sample}",
            predicted_label=n % 2,
            true_label=pair.label,
        )
        for n, pair in enumerate(pairs)
        for sample in range(2)
    ]
    found = drafts(DraftFirst(false_drafts=0.3).build(pairs, thoughts))
    assert all((draft == label) == learnt for draft, label, learnt in found.values())
    false = {id_ for id_, (draft, label, _) in found.items() if draft != label}
    assert 90 < len(false) < 150  # 120 expected, with a standard deviation of 9
    assert drafts(DraftFirst(false_drafts=0.3).build(pairs[200:], thoughts[400:])) == {
        id_: draft for id_, draft in found.items() if int(id_) >= 200
    }
    assert drafts(DraftFirst(false_drafts=0.3, seed=1).build(pairs, thoughts)) != found
    both = DraftFirst(false_drafts=0.3, samples="all").build(pairs, thoughts)
    assert len(both) == 800 and drafts(both) == found
    every = drafts(DraftFirst(false_drafts=1.0).build(pairs, thoughts))
    assert all(draft != label for draft, label, _ in every.values())


def test_the_reports_hash_depends_on_what_is_learnt_of_drafts() -> None:
    learnt, read = (DraftFirst(train_draft=learn).build(PAIRS, THOUGHTS) for learn in (True, False))
    assert [each.completion for each in learnt] == [each.completion for each in read]
    assert build_report(5, learnt).sha256 != build_report(5, read).sha256


def test_a_proportion_of_false_drafts_outside_0_and_1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"false_drafts: found 1\.5, expected a number from 0 to 1"):
        find_builder("draft_first", {"false_drafts": 1.5})


def test_the_name_of_a_builder_is_its_short_name_or_its_class_name() -> None:
    class Own(Unmodified):
        pass

    assert (builder_name(LabelOnly()), builder_name(Own())) == ("label_only", "Own")


def test_text_is_converted_to_an_arguments_type() -> None:
    builder = find_builder("reflected", {"balance": "true", "min_score": "4", "prefer": "shortest"})
    assert (builder.balance, builder.min_score, builder.prefer) == (True, 4, "shortest")


def test_a_builder_is_one_method() -> None:
    class Constant(Builder):
        def target(
            self, example: Example, thought: Thought | None, reflection: Reflection | None
        ) -> Target | None:
            return Target(thought_process="t", label=0, source=f"{thought and thought.sample}")

    assert [example.source for example in Constant().build(PAIRS, THOUGHTS[:1])] == ["0"] + 4 * ["None"]


def test_each_builder_makes_the_known_number_of_examples_of_the_real_data(real_data: Path) -> None:
    folder = real_data / "comp34812"
    pairs = read_examples(folder / "train.csv")
    path = folder / "thoughts_defined_train.jsonl"
    thoughts = join_thoughts(pairs, read_thoughts(path))
    path = folder / "reflections_defined_train.jsonl"
    joined = join_reflections(pairs, thoughts, read_reflections(path))
    by_source = {
        name: dict(Counter(example.source for example in builder().build(pairs, thoughts, joined)))
        for name, builder in BUILDERS.items()
    }
    assert by_source == {
        "correct_only": {"thought": 1127},
        "reflected": {"thought": 1127, "reflection": 73},
        "unmodified": {"thought": 1200},
        "label_only": {"label": 5237},
        "label_first": {"thought": 1127, "reflection": 73},
        "draft_first": {"thought": 1127, "reflection": 73},
        "multitask": {"label": 5237, "thought": 1127, "reflection": 73},
    }
    label_of = {pair.id: pair.label for pair in pairs}
    built = Reflected().build(pairs, thoughts, joined)
    assert all(example.label == label_of[example.id] for example in built)
