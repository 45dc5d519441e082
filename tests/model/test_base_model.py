"""Choosing, resolving and loading the base model, and the messages if that fails."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from nlicot.errors import ModelError
from nlicot.model.base_model import DeviceState, _matrices_counted, choose, device_state, resolve
from nlicot.model.loaded_model import compute_dtype, load_base
from nlicot.run.config import parse_fit
from nlicot.training.command import make_trainer, trainer_arguments
from tests.small_model import write_small_model
from tests.time_limits import HANGS_S

PROJECT = Path(__file__).parents[2]
HUB = "mistralai/Mistral-7B-v0.3"
FOLDER = str(Path(__file__).parent)
CHOICES = ("fix the driver", "--model.base FOLDER", "HF_TOKEN", "--model.base bundled")

# ---------------------------------------------------------------------- choose


@pytest.mark.parametrize("device", DeviceState)
@pytest.mark.parametrize("on_sample", [True, False])
@pytest.mark.parametrize("base", ["bundled", FOLDER])
def test_bundled_and_local_models_are_used_on_any_device(
    base: str, on_sample: bool, device: DeviceState
) -> None:
    assert choose(base, "bundled", on_sample=on_sample, device=device) == base


@pytest.mark.parametrize("on_sample", [True, False])
def test_hub_model_is_used_if_torch_can_use_a_device(on_sample: bool) -> None:
    assert choose(HUB, "bundled", on_sample=on_sample, device=DeviceState.CUDA) == HUB


def test_fallback_is_used_on_the_sample_without_a_device(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "nlicot"):
        assert choose(HUB, "bundled", on_sample=True, device=DeviceState.NONE) == "bundled"
    assert "no NVIDIA device" in caplog.text
    assert f"using bundled instead of {HUB} on the sample data" in caplog.text


@pytest.mark.parametrize(
    ("fallback", "on_sample", "device", "reason"),
    [
        ("bundled", False, DeviceState.NONE, "this machine has no NVIDIA device to run it on"),
        (None, True, DeviceState.NONE, "this machine has no NVIDIA device to run it on"),
        ("bundled", True, DeviceState.UNUSABLE, "torch cannot use the NVIDIA device of this machine"),
        ("bundled", False, DeviceState.UNUSABLE, "torch cannot use the NVIDIA device of this machine"),
    ],
)
def test_hub_model_that_cannot_run_here_is_refused_with_the_choices(
    fallback: str | None, on_sample: bool, device: DeviceState, reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        choose(HUB, fallback, on_sample=on_sample, device=device)
    message = str(caught.value)
    assert message.startswith(f"--model.base {HUB}: {reason}; ")
    assert all(choice in message for choice in CHOICES)
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine on which torch finds no device")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvidia0", DeviceState.UNUSABLE),
        ("dxg", DeviceState.UNUSABLE),
        ("nvidiactl", DeviceState.NONE),
        ("sda", DeviceState.NONE),
    ],
)
def test_device_files_reveal_a_device_that_torch_cannot_use(
    name: str, expected: DeviceState, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    assert device_state(tmp_path) is expected


# --------------------------------------------------------------------- resolve


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"--model\.base: found no folder .*/none.*bundled, a folder or a hub"
    ):
        resolve(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["Mistral-7B-v0.3", "./somewhere", "a/b/c"])
def test_neither_a_folder_nor_a_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"found no folder '{name}'"):
        resolve(name)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder has no config\.json; pass a model's folder"):
        resolve(str(tmp_path))


def test_local_folder_is_named_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = resolve("./mine")
    assert (found.name, found.folder.resolve()) == (str(tmp_path / "mine"), tmp_path / "mine")


def test_bundled_model_is_a_llama_of_135_million_parameters() -> None:
    config = json.loads((resolve("bundled").folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("llama", 576, 30)


# ------------------------------------------------------------------ the hub


class _Quiet(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _hub(status: int, headers: dict[str, str]) -> Iterator[str]:
    """A hub on the loopback interface with the same answer to every request."""

    class Answer(_Quiet):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with _served(Answer) as address:
        yield address


def _refusal(endpoint: str, tmp_path: Path, *, weights: bool = True, **environment: str) -> str:
    """The message of `resolve` for a hub model, in a new process: the hub's address is read at import."""
    code = (
        "from nlicot.errors import ModelError\n"
        "from nlicot.model.base_model import resolve\n"
        f"try:\n    resolve({HUB!r}, weights={weights})\n"
        "except ModelError as error:\n    print(error)\n"
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **kept,
            "PYTHONPATH": str(PROJECT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=True,
    )
    return done.stdout.strip()


def test_gated_model_without_a_token_names_terms_and_token(tmp_path: Path) -> None:
    with _hub(401, {"X-Error-Code": "GatedRepo"}) as endpoint:
        message = _refusal(endpoint, tmp_path)
    assert message.startswith(f"--model.base {HUB}: the model is gated and HF_TOKEN is not set; accept ")
    assert "terms" in message
    assert f"https://huggingface.co/{HUB}" in message
    assert "set HF_TOKEN to a token of that account" in message
    assert "--model.base FOLDER or bundled" in message


def test_gated_model_with_a_token_reports_that_terms_are_not_accepted(tmp_path: Path) -> None:
    with _hub(403, {"X-Error-Code": "GatedRepo"}) as endpoint:
        message = _refusal(endpoint, tmp_path, HF_TOKEN="hf_none")
    assert "the account of your token has not accepted its terms" in message
    assert f"https://huggingface.co/{HUB}" in message


@pytest.mark.parametrize("status", [401, 404])
def test_model_that_the_hub_does_not_have_is_named(status: int, tmp_path: Path) -> None:
    with _hub(status, {"X-Error-Code": "RepoNotFound"}) as endpoint:
        message = _refusal(endpoint, tmp_path)
    assert message.startswith(
        f"--model.base {HUB}: the hub has no such model for this account; check the name"
    )


def test_unreachable_hub_is_reported_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    message = _refusal("http://127.0.0.1:9", tmp_path)
    assert time.monotonic() - started < 30
    assert "the hub cannot be reached and the model is not in its cache" in message
    assert all(choice in message for choice in CHOICES)


def test_broken_hub_is_reported_like_an_unreachable_one(tmp_path: Path) -> None:
    with _hub(500, {}) as endpoint:
        assert "the hub cannot be reached" in _refusal(endpoint, tmp_path)


TOKENIZER = ["config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"]
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
SENTENCEPIECE = ["tokenizer.json", "tokenizer.model", "tokenizer.model.v3"]
REPOSITORIES = {
    # The file lists of models on the hub: what is loaded, and what is not.
    "Mistral-7B-v0.3": ([*TOKENIZER, "params.json", *SENTENCEPIECE], ["consolidated.safetensors"]),
    "Mistral-Nemo-Base-2407": (
        [*TOKENIZER, "params.json", "tekken.json", "tokenizer.json"],
        ["consolidated.safetensors", "consolidated.safetensors.index.json"],
    ),
    "chat models": (
        [*TOKENIZER, "chat_template.jinja", "merges.txt", "vocab.json", "tokenizer.model"],
        [
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "original/consolidated.00.pth",
            "adapter.safetensors",
        ],
    ),
}


@contextmanager
def _hub_with(paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model of these files, and the paths of files that it was asked for."""
    commit, asked = "0123456789" * 4, []

    class Answer(_Quiet):
        def do_GET(self) -> None:
            path, content, headers = self.path.partition("?")[0], b"{}", {}
            if path.endswith("/revision/main"):
                content = json.dumps({"id": HUB, "sha": commit}).encode()
            elif "/tree/" in path:
                files = [{"type": "file", "path": each, "size": 2, "oid": f"{each:x<40}"} for each in paths]
                content = json.dumps(files).encode()
            elif name := path.partition(f"/resolve/{commit}/")[2]:
                headers = {"ETag": f'"{hash(name)}"', "X-Repo-Commit": commit}
                asked.append(name)
            self.send_response(200)
            headers |= {"Content-Length": str(len(content)), "Content-Type": "application/json"}
            for each, value in headers.items():
                self.send_header(each, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with _served(Answer) as address:
        yield address, asked


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_only_the_files_that_are_loaded_are_downloaded(
    repository: str, weights: bool, tmp_path: Path
) -> None:
    loaded, others = REPOSITORIES[repository]
    index = "model.safetensors.index.json"
    with _hub_with([*loaded, *others, *SHARDS, index, "README.md", ".gitattributes"]) as (endpoint, asked):
        assert _refusal(endpoint, tmp_path, weights=weights) == ""
    assert sorted(set(asked)) == sorted([*loaded, index, *(SHARDS if weights else [])])


# --------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_without_quantisation_is_dense_and_frozen(dtype: str, small_model: Path) -> None:
    model = load_base(resolve(str(small_model)), quantization="none", dtype=dtype, for_training=True)
    assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{dtype}"}
    assert not any(weight.requires_grad for weight in model.parameters())


def test_base_in_nf4_is_double_quantised_except_its_head(small_model: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_base(resolve(str(small_model)), for_training=True)
    projection = model.model.layers[0].self_attn.q_proj
    assert isinstance(projection, Linear4bit)
    state = projection.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    assert not isinstance(model.lm_head, Linear4bit)


# ----------------------------------------------------------------------- dtype


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_given_dtype_is_used(name: str) -> None:
    assert compute_dtype(name) == name


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "arm_bf16", "expected"),
    [
        ("x86_64", True, False, False, "bfloat16"),
        ("x86_64", False, True, False, "bfloat16"),
        # AVX512 without BF16: torch claims to support bfloat16, and converts.
        ("x86_64", False, False, True, "float32"),
        ("aarch64", False, False, True, "bfloat16"),
        ("aarch64", False, False, False, "float32"),
    ],
)
def test_auto_follows_the_processor(
    machine: str, avx512_bf16: bool, amx: bool, arm_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: arm_bf16, raising=False)
    assert compute_dtype() == expected


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_no_bfloat16_that_a_gpu_only_emulates(
    is_native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or is_native
    )
    assert compute_dtype() == expected


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (["--model.dtype=float32"], "32-true"),
        (["--model.dtype=bfloat16"], "bf16-mixed"),
        (["--model.dtype=bfloat16", "--trainer.precision=32-true"], "32-true"),
    ],
)
def test_the_trainer_follows_the_dtype_unless_it_has_its_own_precision(
    flags: list[str], precision: str, tmp_path: Path
) -> None:
    settings = parse_fit([*flags, "--trainer.accelerator=cpu"]).settings
    arguments = trainer_arguments(settings.trainer)
    trainer = make_trainer(settings, arguments, logger=False, default_root_dir=str(tmp_path))
    assert trainer.precision == precision


def test_unpacking_shows_one_bar_with_our_words(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import modeling_gguf_pytorch_utils

    with caplog.at_level("INFO", "nlicot"), _matrices_counted("unpacking the bundled model"):
        assert list(modeling_gguf_pytorch_utils.tqdm(range(2), desc="Converting and de-quantizing")) == [0, 1]
    shown = capsys.readouterr().err
    assert "unpacking the bundled model: 100%" in shown
    assert "Converting" not in shown
