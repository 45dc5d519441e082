"""The cost of a run: the price table, the tokenizer, and the dry run's interval."""

from pathlib import Path

import pytest

from nlicot.errors import ConfigError
from nlicot.teacher.answers import SCHEMAS
from nlicot.teacher.backends.base import Message, Request
from nlicot.teacher.engine.pricing import (
    Estimate,
    Price,
    count_tokens,
    estimate,
    format_estimate,
    load_prices,
    parse_price,
    price_of,
)
from nlicot.teacher.options import parse
from nlicot.teacher.prompt import PromptType, load_prompt


def table(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def request(
    user: str,
    *,
    kind: PromptType = PromptType.INITIAL_GENERATION,
    model: str = "m",
    max_tokens: int | None = 500,
) -> Request:
    return Request(
        stage="generate",
        backend="mistral",
        server="",
        model=model,
        messages=(Message(role="system", content="You judge."), Message(role="user", content=user)),
        params={} if max_tokens is None else {"max_tokens": max_tokens},
        schema=SCHEMAS[kind],
    )


# ------------------------------------------------------------------ prices


def test_shipped_table_names_its_date_and_source() -> None:
    prices = load_prices()
    assert prices.as_of == "2026-10-20"
    assert prices.batch_discount == 0.5
    assert all(0 < price.input <= price.output for price in prices.models.values())


def test_shipped_table_gives_a_model_and_its_aliases_the_same_price() -> None:
    prices = load_prices()
    for name in ("mistral-small-2603", "mistral-small-latest"):
        assert price_of(name, prices, None, backend="mistral") == Price(input=0.15, output=0.6)


def test_batch_api_costs_half() -> None:
    found = price_of("mistral-large-2512", load_prices(), None, backend="mistral-batch")
    assert found == Price(input=0.25, output=0.75)


def test_unknown_model_and_other_servers_have_no_price() -> None:
    prices = load_prices()
    assert price_of("mistral-next", prices, None, backend="mistral") is None
    assert price_of("mistral-small-2603", prices, None, backend="openai") is None


def test_local_model_is_free() -> None:
    assert price_of("bundled", load_prices(), None, backend="local") == Price(input=0.0, output=0.0)


@pytest.mark.parametrize("backend", ["mistral", "mistral-batch", "openai", "local"])
def test_given_price_overrides_the_table(backend: str) -> None:
    given = Price(input=3.0, output=4.0)
    assert price_of("mistral-small-2603", load_prices(), given, backend=backend) == given


@pytest.mark.parametrize("stage", ["generate", "reflect", "score"])
def test_every_model_of_the_shipped_recipe_is_in_the_table(stage: str) -> None:
    options = parse(stage, [])
    models = {options.model, *options.next_models, *getattr(options, "regenerate_with", ())}
    prices = load_prices()
    assert {model: price_of(model, prices, None, backend=options.backend) for model in models} == {
        model: prices.models[model] for model in models
    }


def test_user_table_replaces_the_shipped_one(tmp_path: Path) -> None:
    prices = load_prices(table(tmp_path, "as_of: 2027-01-02\nmodels: {a: [1, 2]}\naliases: {b: a}\n"))
    assert (prices.as_of, prices.batch_discount) == ("2027-01-02", 1.0)
    assert price_of("b", prices, None, backend="mistral") == Price(input=1.0, output=2.0)
    assert price_of("mistral-small-2603", prices, None, backend="mistral") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {a: [1, 2]\n", ":2: not valid YAML: expected"),
        ("as_of: 2026-01-01\n", ": found no `models`, expected MODEL: [INPUT, OUTPUT] under it"),
        ("models: [a, b]\n", ": found no `models`"),
        ("models: {a: 1}\n", ": a: found 1, expected two amounts, dollars per million tokens"),
        ("models: {a: [1]}\n", ": a: found [1], expected two amounts"),
        ("models: {a: [1, -2]}\n", ": a: found [1, -2], expected two amounts"),
        ("models: {a: [1, yes]}\n", ": a: found [1, True], expected two amounts"),
        ("models: {a: [1, .inf]}\n", ": a: found [1, inf], expected two amounts"),
        (
            "models: {a: [1, 2]}\nalias: {b: a}\n",
            ": unknown key 'alias' (did you mean aliases?)",
        ),
        ("models: {a: [1, 2]}\naliases: {b: c}\n", ": the alias b names 'c', which is not under `models`"),
        (
            "models: {a: [1, 2]}\naliases: {b: [a]}\n",
            ": the alias b names ['a'], which is not under `models`",
        ),
        ("models: {a: [1, 2]}\naliases: [b]\n", ": found aliases ['b'], expected OTHER_NAME: MODEL"),
        (
            "models: {a: [1, 2]}\nbatch_discount: half\n",
            ": found batch_discount 'half', expected a number from 0 to 1",
        ),
        ("models: {a: [1, 2]}\nbatch_discount: 50\n", ": found batch_discount 50, expected a number"),
    ],
)
def test_mistake_in_a_user_table_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_prices(path)
    assert str(caught.value).startswith(f"--prices {path}{expected}")
    assert "\n" not in str(caught.value)


def test_missing_table_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--prices .*none.yaml: cannot be read: No such file"):
        load_prices(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("0.15,0.15", Price(input=0.15, output=0.15)),
        (" 2 , 6 ", Price(input=2.0, output=6.0)),
        ("0,0", Price(input=0.0, output=0.0)),
    ],
)
def test_price_flag_is_parsed(text: str, price: Price) -> None:
    assert parse_price(text) == price


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "1;2", "a,b", "1,", "-1,2", "nan,1", "inf,1", "$1,$2"])
def test_price_flag_refuses_anything_but_two_amounts(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--price: found"):
        parse_price(text)


def test_cost_is_counted_per_million_tokens() -> None:
    price = Price(input=0.5, output=1.5)
    assert price.cost_usd(2_000, 400) == pytest.approx(0.0016)
    assert price.cost_usd(0, 0) == 0


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("text", ["", "A dog runs.", "naïve 猫 🐈", "[INST] <s> </s>", "{premise}\n\n\t"])
def test_tokens_of_any_text_can_be_counted(text: str) -> None:
    assert (count_tokens(text) == 0) == (text == "")


@pytest.mark.parametrize("kind", [PromptType.INITIAL_GENERATION, PromptType.REFLECTION])
def test_prompt_is_counted_as_mistral_encodes_it_up_to_control_tokens(kind: PromptType) -> None:
    from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    messages = load_prompt(kind).render(
        premise="A dog runs.",
        hypothesis="An animal moves.",
        true_label="1",
        predicted_label="0",
        thought_process="Step 1: It runs.",
    )
    exact = len(
        MistralTokenizer.v3(is_tekken=True)
        .encode_chat_completion(
            ChatCompletionRequest(
                messages=[
                    SystemMessage(content=messages[0].content),
                    UserMessage(content=messages[1].content),
                ]
            )
        )
        .tokens
    )
    counted = estimate(
        [
            Request(
                stage="",
                backend="",
                server="",
                model="m",
                messages=messages,
                params={},
                schema=SCHEMAS[kind],
            )
        ],
        {},
    ).prompt_tokens
    assert exact <= counted <= exact + 8


# ------------------------------------------------------------------ the dry run


def test_estimate_counts_prompts_answers_and_dollars() -> None:
    prices: dict[str, Price | None] = {"m": Price(input=1.0, output=2.0)}
    system, user = count_tokens("You judge.") + 4, count_tokens("A dog runs.") + 4
    found = estimate([request("A dog runs.") for _ in range(3)], prices)
    prompt_tokens = 3 * (system + user)
    assert found == Estimate(
        num_requests=3,
        prompt_tokens=prompt_tokens,
        completion_tokens=(3 * 60, 3 * 500),
        usd=(
            pytest.approx((prompt_tokens + 2 * 3 * 60) / 1e6),
            pytest.approx((prompt_tokens + 2 * 3 * 500) / 1e6),
        ),
    )


def test_short_answer_with_two_texts_is_twice_as_long() -> None:
    kinds = {kind: estimate([request("x", kind=kind)], {}).completion_tokens[0] for kind in PromptType}
    assert kinds == {
        PromptType.INITIAL_GENERATION: 60,
        PromptType.RELATION: 60,
        PromptType.REFLECTION: 120,
        PromptType.SCORING: 60,
        PromptType.REGENERATION: 60,
        PromptType.REFLECTION_REGENERATION: 120,
    }


def test_low_end_never_exceeds_max_tokens() -> None:
    assert estimate([request("x", max_tokens=20)], {}).completion_tokens == (20, 20)


def test_request_without_max_tokens_counts_the_usual_server_default() -> None:
    assert estimate([request("x", max_tokens=None)], {}).completion_tokens == (60, 4096)


def test_one_unknown_price_makes_the_total_unknown() -> None:
    prices = {"m": Price(input=1.0, output=1.0), "other": None}
    found = estimate([request("x"), request("x", model="other"), request("x")], prices)
    assert (found.num_requests, found.usd) == (3, None)


def test_no_requests_cost_nothing() -> None:
    assert estimate([], {}) == Estimate(
        num_requests=0, prompt_tokens=0, completion_tokens=(0, 0), usd=(0.0, 0.0)
    )


def test_estimate_is_formatted_as_two_lines() -> None:
    found = Estimate(
        num_requests=40_000,
        prompt_tokens=17_400_000,
        completion_tokens=(2_400_000, 20_480_000),
        usd=(4.05, 14.898),
    )
    assert format_estimate(found, as_of="2026-10-20") == (
        "40,000 requests, 17,400,000 prompt tokens, 2,400,000 to 20,480,000 completion tokens\n"
        "  $4.05 to $14.90 (prices as of 2026-10-20)"
    )


def test_unknown_price_is_reported_with_the_flag_that_gives_it() -> None:
    found = Estimate(num_requests=1, prompt_tokens=10, completion_tokens=(60, 512), usd=None)
    assert format_estimate(found, as_of="2026-10-20").splitlines()[1] == (
        "  price unknown (--price INPUT,OUTPUT, dollars per million tokens)"
    )
