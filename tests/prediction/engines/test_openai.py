"""`predict --engine openai` asks a server what the run's own model would be asked, and reads it alike."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from nlicot.cli import main
from nlicot.completion import THOUGHT_OPENING, Form
from nlicot.config_files import SAMPLE
from nlicot.data.pairs import read_examples
from nlicot.prediction.engines import openai
from nlicot.prediction.predictor import Predictor, read_member
from nlicot.records import Example
from nlicot.run.config import parse_prediction
from nlicot.settings import PredictionSettings
from tests.prediction.engines.completion_server import CompletionServer
from tests.prediction.engines.conftest import NUM_PAIRS

Rate = Callable[[Sequence[int]], Mapping[int, float]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, and no pauses before a request is sent again."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(openai, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def server(rate: Rate, predictor: Predictor) -> Iterator[CompletionServer]:
    encode = predictor.engine.prompt_format.encode_segment
    with CompletionServer(rate, tokenize=lambda text: encode(text, first=True)) as running:
        yield running


@pytest.fixture
def predict(run: Path, tmp_path: Path) -> Callable[..., int]:
    def command(*flags: str, name: str = "predict") -> int:
        shared = [f"--ckpt_path={run / 'best.ckpt'}", "--split=dev", f"--data.limit_dev={NUM_PAIRS}"]
        return main([name, *shared, f"--output={tmp_path / 'out'}", *flags])

    return command


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == NUM_PAIRS
    return [json.loads(line) for line in lines]


def pairs() -> list[Example]:
    return list(read_examples(SAMPLE / "original_data" / "dev.csv"))[:NUM_PAIRS]


def asking(server: CompletionServer, *flags: str) -> list[str]:
    return ["--engine=openai", f"--server_url={server.url}", *flags]


@pytest.mark.parametrize("form", ["llama.cpp", "vllm", "openai"])
def test_labels_are_those_of_the_run_whatever_the_form_of_probabilities(
    form: str, server: CompletionServer, predict: Callable[..., int], predictor: Predictor, tmp_path: Path
) -> None:
    server.form = form
    server.text_of = lambda token: predictor.engine.prompt_format.decode_inner([token])
    assert predict() == 0
    own = rows(tmp_path)
    assert predict(*asking(server)) == 0
    for mine, found in zip(own, rows(tmp_path), strict=True):
        assert found["p_entailment"] == pytest.approx(mine["p_entailment"], abs=1e-4)
        assert {**found, "p_entailment": 0} == {**mine, "p_entailment": 0}
    assert len(server.seen) == NUM_PAIRS
    prompts = sorted(predictor.encode(pair.premise, pair.hypothesis) for pair in pairs())
    opening = predictor.engine.ids_before_label(None)
    assert sorted(body["prompt"] for body in server.seen) == [[*ids, *opening] for ids in prompts]
    assert {body["model"] for body in server.seen} == {"model.gguf"}


THOUGHT = 'He said \\"no\\".'


@pytest.mark.parametrize(
    ("text", "reason", "thought", "status"),
    [
        (THOUGHT, "stop", 'He said "no".', "closed"),
        ("Step 1: it", "length", "Step 1: it", "truncated"),
        ('So."} and more', "length", "So.", "closed"),
        ("So\nmore", "length", "So", "truncated"),
        ("So \\", "length", "So ", "truncated"),
        ("half of a pair: \ud83d", "stop", "half of a pair: ?", "closed"),
        ("", "stop", "", "closed"),
    ],
)
def test_a_thought_is_generated_and_the_label_read_after_it(
    text: str,
    reason: str,
    thought: str,
    status: str,
    server: CompletionServer,
    predict: Callable[..., int],
    predictor: Predictor,
    rate: Rate,
    tmp_path: Path,
) -> None:
    server.texts.extend([(text, reason)] * NUM_PAIRS)
    assert predict(*asking(server), "--think", "true", "--model.decoding.max_thought_tokens", "40") == 0
    engine, found = predictor.engine, {row["id"]: row for row in rows(tmp_path)}
    generated = [body for body in server.seen if "logprobs" not in body]
    read = [body for body in server.seen if "logprobs" in body]
    assert len(generated) == len(read) == NUM_PAIRS
    opening = engine.prompt_format.encode_segment(THOUGHT_OPENING, first=True)
    for body in generated:
        assert (body["max_tokens"], body["temperature"], body["stop"]) == (40, 0.0, ['", "predicted_label":'])
        after = [*body["prompt"], *engine.ids_before_label(thought)[len(opening) :]]
        assert after in [each["prompt"] for each in read]
    zero, one = engine.scaffold.label_ids
    for row in found.values():
        assert (row["thought_process"], row["status"]) == (thought, status)
        assert json.loads(row["completion"]) == {
            "thought_process": thought,
            "predicted_label": row["predicted_label"],
        }
    expected = []
    for body in read:
        rated = rate(body["prompt"])
        expected.append(1 / (1 + 2.718281828459045 ** (rated[zero] - rated[one])))
    assert sorted(row["p_entailment"] for row in found.values()) == pytest.approx(sorted(expected), abs=1e-6)


def test_a_draft_is_read_and_sent_before_the_thought(
    server: CompletionServer, run: Path, predictor: Predictor, rate: Rate
) -> None:
    server.texts.extend([(THOUGHT, "stop")] * NUM_PAIRS)
    (found,) = parse_prediction("predict", [f"--ckpt_path={run / 'best.ckpt'}", *asking(server)])
    engine = openai.OpenAIEngine(read_member(found), cast("PredictionSettings", found.settings))
    batch = predictor.batch(pairs())
    prompts = dict(zip(batch.ids, batch.prompts, strict=True))
    opening = engine.prompt_format.encode_segment('{"draft_label": ', first=True)
    zero, one = engine.scaffold.label_ids

    def p_entailment(ids: Sequence[int]) -> float:
        rated = rate(ids)
        return 1 / (1 + 2.718281828459045 ** (rated[zero] - rated[one]))

    predictions = list(engine.decode(batch, form=Form.DRAFT_FIRST))
    assert len(predictions) == NUM_PAIRS
    for each in predictions:
        assert each.thought_process == 'He said "no".'
        draft = p_entailment([*prompts[each.id], *opening])
        assert each.draft_p_entailment == pytest.approx(draft, abs=1e-6)
        before = engine.ids_before_label(each.thought_process, int(draft >= 0.5))
        assert each.p_entailment == pytest.approx(p_entailment([*prompts[each.id], *before]), abs=1e-6)


def test_votes_are_sampled_with_seeds_of_their_own_and_the_same_ones_again(
    server: CompletionServer, predict: Callable[..., int], tmp_path: Path
) -> None:
    voting = ["--think=true", "--votes=2", "--model.decoding.temperature=0.7", "--model.decoding.top_p=0.9"]
    assert predict(*asking(server), *voting) == 0
    first = [(body["prompt"], body["seed"]) for body in server.seen if "logprobs" not in body]
    assert len(first) == 2 * NUM_PAIRS
    assert len({seed for _, seed in first}) == 2 * NUM_PAIRS
    assert {(body["temperature"], body["top_p"]) for body in server.seen if "stop" in body} == {(0.7, 0.9)}
    assert {row["agreement"] for row in rows(tmp_path)} == {1.0}  # all thoughts are the same
    server.seen.clear()
    assert predict(*asking(server), *voting) == 0
    again = [(body["prompt"], body["seed"]) for body in server.seen if "logprobs" not in body]
    assert sorted(again) == sorted(first)


def test_a_server_that_dies_keeps_what_it_answered(
    server: CompletionServer, predict: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.dies_after = 3
    one_by_one = asking(server, "--model.decoding.batch_size=1")
    assert predict(*one_by_one) == 7
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"nlicot: --server_url {server.url}: the connection broke off: ")
    assert error.endswith("; predictions so far are kept, run the same command to continue")
    assert not (tmp_path / "out" / "dev.csv").exists()
    server.dies_after, num_seen = None, len(server.seen)
    assert predict(*one_by_one) == 0
    assert len(server.seen) - num_seen == NUM_PAIRS - 3
    assert f"3 of {NUM_PAIRS} predictions were made before" in capsys.readouterr().out
    rows(tmp_path)


def test_what_another_model_of_the_server_predicted_is_not_continued(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.models, server.dies_after = ("one", "other"), 3
    one_by_one = asking(server, "--model.decoding.batch_size=1")
    assert predict(*one_by_one, "--server_model=one") == 7
    server.dies_after = None
    assert predict(*one_by_one, "--server_model=other") == 0
    assert "predictions were made before" not in capsys.readouterr().out


def test_a_busy_server_is_asked_again(
    server: CompletionServer, predict: Callable[..., int], tmp_path: Path
) -> None:
    server.failures.extend([(503, '{"error": {"message": "Loading model"}}'), (429, "{}")])
    assert predict(*asking(server)) == 0
    assert len(server.seen) == NUM_PAIRS + 2


def test_validate_measures_a_server_and_probes_its_thoughts(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(*asking(server), "--think=true", "--probe_thoughts=true", name="validate") == 0
    assert "thought left out" in capsys.readouterr().out


def test_the_server_is_asked_by_the_runs_name_if_it_has_several_models(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.models = ("base", "both")
    assert predict(*asking(server)) == 0
    assert {body["model"] for body in server.seen} == {"both"}
    server.models = ("base", "other")
    assert predict(*asking(server)) == 2
    assert "has several models: name the run's with --server_model (base, other)" in capsys.readouterr().err
    assert predict(*asking(server, "--server_model=both")) == 2
    assert (
        "--server_model: found both, expected one that the server has: base, other" in capsys.readouterr().err
    )
    server.models = None
    server.seen.clear()
    assert predict(*asking(server)) == 0
    assert all("model" not in body for body in server.seen)


def test_a_server_that_cannot_be_reached_is_reported_at_once(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert predict("--engine=openai", f"--server_url={url}") == 7
    assert f"--server_url {url}: {url} cannot be reached: " in capsys.readouterr().err


def test_another_tokenizer_is_refused_before_anything_is_asked(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.tokenize = lambda text: [1, 2, 3]
    assert predict(*asking(server)) == 2
    assert "the model there has another tokenizer than the run's base" in capsys.readouterr().err
    assert server.seen == []


def test_a_server_that_predicts_otherwise_than_the_export_is_refused(
    server: CompletionServer,
    predict: Callable[..., int],
    predictor: Predictor,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run / "gguf" / "agreement.json"
    path.parent.mkdir()
    opening = predictor.engine.ids_before_label(None)
    asked = [[*predictor.encode(pair.premise, pair.hypothesis), *opening] for pair in pairs()]
    right = dict(predictor.engine.label_probabilities(asked))

    def write(shift: float) -> None:
        rows = [
            {"ids": " ".join(map(str, ids)), "p_entailment": right[index] + shift}
            for index, ids in enumerate(asked)
        ]
        path.write_text(json.dumps({"questions": rows}))

    try:
        write(0.09)
        assert predict(*asking(server)) == 0
        assert len(server.seen) == 2 * NUM_PAIRS
        write(0.11)
        assert predict(*asking(server)) == 2
        assert (
            f"the model there is not the run's: p(entailment) of {NUM_PAIRS} pairs in {path} differs by 0.11"
            in capsys.readouterr().err
        )
        path.write_text('{"questions": [{}]}')
        assert predict(*asking(server)) == 2
        assert f"{path}: damaged (KeyError); remove it" in capsys.readouterr().err
    finally:
        path.unlink()
        path.parent.rmdir()


@pytest.mark.parametrize("failure", [
    # llama-cpp-python 0.3.36
    (500, """{"error": {"message": "4 validation errors:\\n  {'type': 'string_type', 'loc': ('body', """
          """'prompt', 'str'), 'msg': 'Input should be a valid string', 'input': [1]}", "param": null}}"""),
    # a server written in Go
    (400, '{"error": {"message": "json: cannot unmarshal array into field .prompt of type string"}}'),
])  # fmt: skip
def test_a_server_that_takes_no_ids_is_refused(
    failure: tuple[int, str],
    server: CompletionServer,
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.failures.extend([failure] * NUM_PAIRS)
    assert predict(*asking(server)) == 2
    assert len(server.seen) <= NUM_PAIRS  # none is asked again
    assert "the server takes texts only, and prompts are lists of token ids; llama.cpp's llama-server," in (
        capsys.readouterr().err
    )


def test_a_server_without_probabilities_is_refused(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures.extend([(200, '{"choices": [{"text": "1", "logprobs": null}]}')] * NUM_PAIRS)
    assert predict(*asking(server)) == 2
    assert "found no log-probabilities, from which labels are read" in capsys.readouterr().err


def test_a_model_that_would_write_no_label_is_refused(
    server: CompletionServer, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.rate = lambda ids: {5: -0.1, 6: -3.0}
    assert predict(*asking(server)) == 2
    assert "neither label among its likeliest next tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (
            (401, '{"error": {"message": "Invalid API Key"}}'),
            3,
            "Invalid API Key; set OPENAI_API_KEY to a key",
        ),
        (
            (400, '{"error": {"message": "the request exceeds the available context size"}}'),
            2,
            "; start the server with a longer context",
        ),
        ((404, '{"error": {"message": "The model `x` does not exist"}}'), 3, "; check --server_model"),
        ((200, "[]"), 7, "no completion in the body: []; predictions so far are kept"),
    ],
)
def test_other_faults_say_what_to_do(
    failure: tuple[int, str],
    code: int,
    message: str,
    server: CompletionServer,
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.failures.extend([failure] * NUM_PAIRS)
    assert predict(*asking(server)) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_a_key_is_sent_to_this_machine_only_and_never_shown(
    server: CompletionServer,
    predict: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-secret-key")
    assert predict("--engine=openai", "--server_url=http://192.0.2.1:8080") == 2
    assert "would be sent unencrypted, so that others can read it" in capsys.readouterr().err
    assert predict(*asking(server, "--send_key=false")) == 0
    assert set(server.keys) == {None}
    server.failures.extend([(401, '{"error": {"message": "no such key: the-secret-key"}}')] * NUM_PAIRS)
    assert predict(*asking(server)) == 3
    assert "no such key: [key]" in capsys.readouterr().err
    assert set(server.keys) == {None, "Bearer the-secret-key"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine=vlm"], "--engine: found 'vlm', expected one of transformers, openai, vllm"),
        (["--engine=openai"], "--engine openai: found no --server_url, expected the server's address"),
        (["--engine=openai", "--server_url=localhost:1"], "--server_url: found 'localhost:1', expected http"),
        (
            ["--server_url=http://localhost:1"],
            "--server_url: --engine transformers cannot use it; leave it out",
        ),
        (
            ["--engine=openai", "--server_url=http://localhost:1", "--model.decoding.merge=false"],
            "--model.decoding.merge: --engine openai cannot use it; leave it out",
        ),
        (
            ["--engine=openai", "--server_url=http://localhost:1", "--trainer.devices=2"],
            "--trainer.devices: --engine openai cannot use it; leave it out",
        ),
    ],
)
def test_what_an_engine_cannot_use_is_refused(
    flags: list[str], message: str, predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(*flags) == 2
    assert message in capsys.readouterr().err


def test_an_ensemble_or_several_processes_are_refused(
    run: Path,
    predict: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--engine=openai", "--server_url=http://localhost:1"]
    assert predict(*flags, f"--ckpt_path={run / 'best.ckpt'}") == 2
    assert "--engine openai takes one --ckpt_path, found 2" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(*flags) == 2
    assert "--engine openai takes one process: start it without torchrun or srun" in capsys.readouterr().err
