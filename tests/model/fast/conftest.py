"""A compiler for the tests of compiled kernels; other tests run without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nlicot.model.fast import kernels


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    kernels.use_compiler(True)
    if not kernels.are_compiled():
        pytest.skip("torch.compile does not work here")
    yield
    kernels.use_compiler(False)


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def compiled_or_eager(request: pytest.FixtureRequest) -> None:
    if request.param:
        request.getfixturevalue("compiler")
