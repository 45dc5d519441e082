"""The registry `ENGINES`: the programs that can run a model to predict with it.

A new engine is a subclass of `prediction.decoding.Engine` or `prediction.engines.text.BatchEngine`, and one
entry here, which is read before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMERS = "transformers"
HERE = ("model.decoding.merge", "model.decoding.fast", "trainer")
"""Settings of nlicot's own forward passes."""
SERVER = ("server_url", "server_model", "send_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """One engine; its class is called with a member and the command's settings."""

    class_path: str = ""  # imported only when it is used
    module: str = ""  # that must be installed, besides those of nlicot
    pip: str = ""  # the command that installs it
    asks_server: bool = False  # needs --server_url
    has_weights_here: bool = True  # loads the base, so that this machine must have it
    unused: tuple[str, ...] = ()  # settings, or groups of them, that it cannot follow


ENGINES: dict[str, EngineEntry] = {
    TRANSFORMERS: EngineEntry(unused=SERVER),
    "openai": EngineEntry(
        class_path="nlicot.prediction.engines.openai.OpenAIEngine",
        asks_server=True,
        has_weights_here=False,
        unused=(*HERE, "model.quantization", "model.dtype"),
    ),
    "vllm": EngineEntry(
        class_path="nlicot.prediction.engines.vllm.VllmEngine",
        module="vllm",
        pip="pip install vllm",
        unused=(*HERE, *SERVER),
    ),
}
